"""The reference pages are current and name everything there is."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cli.payload_examples import EXAMPLES
from runtime.cli.reference import MODELS, TOPICS, main, pages
from runtime.mqtt import topics
from runtime.mqtt.events import EVENTS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_page_in_docs_is_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == pages()[name], "run `make docs`"


def test_pages_are_written_whole(tmp_path: Path) -> None:
    main(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(pages())


def test_links_inside_the_settings_page_lead_somewhere() -> None:
    text = pages()["settings.md"]
    headings = {h.lower().replace(" ", "-") for h in re.findall(r"^## (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
    assert "| `state_dir` | path | required |" in text


def test_every_topic_that_the_broker_may_see_is_in_the_table() -> None:
    documented = {name.split("/")[0] for name, _, _ in TOPICS}
    acl = (ROOT / "configs/mosquitto/acl").read_text()
    used = set(re.findall(r"reflexd/\+/(\w+)", acl))
    assert used <= documented


SAYS = {
    "event": "event",
    "_on_event": "event",
    "emit": "event",
    "post": "event",
    "Refusal": "rule of the gate",
    "_refuse": "cause of feedback_rejected",
    "PayloadRefused": "cause of a drop",
    "drop": "cause of a drop",
    "CheckpointRefused": "reason of checkpoint_refused",
    "WeightsRefused": "reason of checkpoint_refused",
}
"""Who gives names to what happens; the name is the first argument, for checkpoints the second."""
AT_LEAST = {"event": 40, "rule of the gate": 15, "cause of feedback_rejected": 10, "cause of a drop": 16}


def _words(node: ast.expr) -> list[str]:
    """The string a call says, or both of a choice between two."""
    if isinstance(node, ast.IfExp):
        return [*_words(node.body), *_words(node.orelse)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


@functools.cache
def _code() -> dict[Path, tuple[ast.Call | ast.Constant, ...]]:
    """By file of the code, its calls and constants."""
    return {
        path: tuple(n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call | ast.Constant))
        for folder in ("runtime", "learners", "actuators", "sensors")
        for path in (ROOT / folder).rglob("*.py")
    }


def _reported() -> Iterator[tuple[str, str]]:
    """Every (kind, name) in the code."""
    files = _code()
    for node in (node for nodes in files.values() for node in nodes):
        if not isinstance(node, ast.Call):
            continue
        caller = getattr(node.func, "attr", getattr(node.func, "id", ""))
        place = int(caller == "CheckpointRefused")
        if caller == "post" and getattr(getattr(node.func, "value", None), "attr", "") == "_queue":
            continue  # a request to the learner, which shares the format of the outbox
        if caller in SAYS and len(node.args) > place:
            yield from ((SAYS[caller], word) for word in _words(node.args[place]) if re.fullmatch(r"[a-z_]+", word))
    for text in (path.read_text() for path in files if path.parent.name in {"sensors", "runtime"}):
        yield from (("cause of a drop", word) for word in re.findall(r"drops\[\"(\w+)\"\] \+=", text))


def test_every_event_refusal_and_drop_in_the_code_is_explained_to_the_operator() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    reported = set(_reported())
    assert {pair for pair in reported if f"`{pair[1]}`" not in text} == set()
    counts = Counter(kind for kind, _ in reported)
    assert {kind: counts[kind] for kind, least in AT_LEAST.items() if counts[kind] < least} == {}


def test_every_event_in_the_code_is_in_the_registry_and_the_other_way_round() -> None:
    emitted = {name for kind, name in _reported() if kind == "event"}
    assert emitted - set(EVENTS) == set()
    words = {
        node.value
        for path, nodes in _code().items()
        if path.relative_to(ROOT).parts[0] in {"runtime", "learners"} and path.name != "events.py"
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(EVENTS) - words == set(), "nothing emits it"


def test_the_pages_name_only_events_that_exist() -> None:
    table = (ROOT / "docs" / "operating.md").read_text().partition("\n## Events")[2].partition("\n## ")[0]
    cells = [cell.partition("(")[0] for cell in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    causes = {name for kind, name in _reported() if kind != "event"}
    assert named - causes - set(EVENTS) == set()
    assert set(EVENTS) - named == set()


def test_every_topic_has_an_example_that_its_model_takes() -> None:
    assert set(EXAMPLES) == {name for name, _, _ in TOPICS}
    models = dict(MODELS)
    for name, text in EXAMPLES.items():
        assert topics.parse(text.encode())
        if name in models:
            assert topics.decode(models[name], text.encode())
    assert json.loads(EXAMPLES["event"])["type"] in EVENTS


def test_every_metric_and_alert_is_explained_to_the_operator() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    metrics = set(re.findall(r"\"(reflexd_\w+)\"", (ROOT / "runtime/monitoring/metrics.py").read_text()))
    alerts = set(re.findall(r"alert: (\w+)", (ROOT / "configs/prometheus/reflexd.rules.yml").read_text()))
    assert {name for name in metrics | alerts if name not in text} == set()


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_no_link_or_file_named_in_the_docs_is_dead(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    targets += re.findall(r"`((?:\.\./)?(?:configs|tests|docs)/[\w./-]+\.\w+)`", text)
    for target in filter(None, targets):
        assert (ROOT / "docs" / target).exists() or (ROOT / target).exists(), target
