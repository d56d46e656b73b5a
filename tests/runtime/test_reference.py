"""The reference pages are current and name everything there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.reference import TOPICS, main, pages

ROOT = Path(__file__).parents[2]


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


def test_every_event_and_rule_in_the_code_is_explained_to_the_operator() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    sources = [p.read_text() for folder in ("runtime", "learners", "actuators") for p in (ROOT / folder).rglob("*.py")]
    code = "\n".join(sources)
    events = set(re.findall(r"(?:\.event|\bemit|_on_event|reporter\.event)\(\s*\"([a-z_]+)\"", code))
    rules = set(re.findall(r"Refusal\(\s*\"([a-z_]+)\"", code))
    missing = {name for name in events | rules if f"`{name}`" not in text}
    assert missing == set()
    assert len(events) > 10
    assert len(rules) > 10


def test_every_metric_and_alert_is_explained_to_the_operator() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    metrics = set(re.findall(r"\"(reflexd_\w+)\"", (ROOT / "runtime/metrics.py").read_text()))
    alerts = set(re.findall(r"alert: (\w+)", (ROOT / "configs/prometheus/reflexd.rules.yml").read_text()))
    assert {name for name in metrics | alerts if name not in text} == set()


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_no_link_or_file_named_in_the_docs_is_dead(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    targets += re.findall(r"`((?:\.\./)?(?:configs|tests|docs)/[\w./-]+\.\w+)`", text)
    for target in filter(None, targets):
        assert (ROOT / "docs" / target).exists() or (ROOT / target).exists(), target
