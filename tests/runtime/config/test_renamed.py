"""A settings file with a former key or value: `reflexd check` names the new one, with file, line and path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from learners.task_kinds import FORMER_KINDS
from runtime.cli.main import main
from runtime.config.errors import OLD_KEYS, REMOVED_KEYS
from runtime.config.schema import Config

CHANGELOG = Path(__file__).parents[3] / "CHANGELOG.md"
REQUIRED: dict[str, dict[str, Any]] = {
    "tasks.*": {"kind": "text-classification", "model": "m"},
    "encoders.*": {"model": "m"},
    "plant": {"environment": "panorama"},
}


def former(row: str) -> tuple[str, dict[str, Any]]:
    """Return the path that an error names, and a section with the former key or value."""
    path, _, value = row.partition(": ")
    *sections, key = path.split(".")
    inner: dict[str, Any] = {**REQUIRED.get(".".join(sections), {})}
    inner[key] = [value] if key == "steps" else value or 1
    for section in reversed(sections):
        inner = {"mine" if section == "*" else section: inner}
    return path.replace("*", "mine"), inner


def checked(folder: Path, section: dict[str, Any]) -> tuple[int, str]:
    """Run `reflexd check` on a file that ends with the section; the section begins in line 5."""
    head = {
        "agent": "a",
        "state_dir": "s",
        "streams": {"joints": {"kind": "telemetry", "fields": ["q"]}},
        "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
    }
    lines = [yaml.safe_dump({key: value}, default_flow_style=True, width=10_000)[1:-2] for key, value in head.items()]
    file = folder / "old.yaml"
    file.write_text("\n".join([*lines, yaml.safe_dump(section, default_flow_style=False, sort_keys=False)]))
    done = CliRunner().invoke(main, ["check", str(file)])
    return done.exit_code, done.output


@pytest.mark.parametrize("row", sorted(OLD_KEYS))
def test_a_former_key_or_value_is_answered_with_the_new_one(row: str, tmp_path: Path) -> None:
    path, section = former(row)
    code, output = checked(tmp_path, section)
    assert code == 2
    found = re.search(
        rf"old\.yaml:(\d+): {re.escape(path)}(\.0)?: renamed to {re.escape(OLD_KEYS[row])}(;|$)", output, re.MULTILINE
    )
    assert found, output
    assert int(found[1]) > 4


@pytest.mark.parametrize("row", sorted(REMOVED_KEYS))
def test_a_removed_key_or_value_is_answered_with_what_to_do(row: str, tmp_path: Path) -> None:
    path, section = former(row)
    code, output = checked(tmp_path, section)
    assert code == 2
    assert re.search(
        rf"old\.yaml:\d+: {re.escape(path)}(\.0)?: removed; {re.escape(REMOVED_KEYS[row])}$", output, re.MULTILINE
    )


@pytest.mark.parametrize("row", sorted(set(OLD_KEYS) - {row for row in OLD_KEYS if ": " in row}))
def test_a_new_key_exists_where_the_former_one_was(row: str) -> None:
    section = row.split(".", maxsplit=1)[0]
    field = Config.model_fields[section].annotation
    models = [field, *getattr(field, "__args__", ())]
    assert any(OLD_KEYS[row] in getattr(model, "model_fields", {}) for model in models)


def test_the_changelog_has_every_row() -> None:
    table = CHANGELOG.read_text().partition("Renamed before the first release")[2].partition("\n#")[0]
    for row, new in OLD_KEYS.items():
        path, _, value = row.partition(": ")
        assert f"`{path.replace('*', 'X')}`" in table, row
        assert all(f"`{word}`" in table for word in (value, *re.split(" or ", new)) if word and value), row
    assert all(f"`{path.partition(': ')[0].replace('*', 'X')}`" in table for path in REMOVED_KEYS)


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (["release", "button-3"], "reflexd sources release NAME"),
        (["release", "button-3", "--config", "x.yaml"], "reflexd sources release NAME"),
        (["checkpoints", "adopt", "runs/cart"], "reflexd checkpoints import DIR"),
    ],
)
def test_a_former_verb_is_answered_with_the_new_one(words: list[str], now: str) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert f"renamed to `{now}`" in done.output


@pytest.mark.parametrize("verb", ["finetune", "evaluate"])
@pytest.mark.parametrize("kind", sorted(FORMER_KINDS))
def test_a_former_task_kind_is_answered_with_the_new_one(verb: str, kind: str) -> None:
    done = CliRunner().invoke(main, [verb, "--task", kind])
    assert done.exit_code == 2
    assert done.output == f"--task {kind}: renamed to {' or '.join(FORMER_KINDS[kind])}\n"


def test_former_verbs_are_not_in_the_help() -> None:
    done = CliRunner().invoke(main, ["--help"])
    assert "  sources" in done.output
    assert "  release" not in done.output


@pytest.mark.parametrize(
    ("kind", "stream", "reported"),
    [
        (
            "text-classification",
            {"kind": "camera", "source": "topic", "encoder": "e"},
            "reads a text stream; seen is camera; write image-classification",
        ),
        ("image-classification", {"kind": "text", "encoder": "e"}, "reads a camera stream; seen is text"),
        ("audio-classification", {"kind": "camera", "source": "topic", "encoder": "e"}, "write image-classification"),
        (
            "translation",
            {"kind": "microphone", "source": "topic", "encoder": "e"},
            "translation reads a text stream; seen is microphone",
        ),
    ],
)
def test_a_task_names_a_stream_that_it_can_read(kind: str, stream: dict[str, Any], reported: str) -> None:
    body = {
        "agent": "a", "state_dir": "s", "streams": {"seen": stream}, "encoders": {"e": {"model": "m"}},
        "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
        "tasks": {"mine": {"kind": kind, "model": "m", "stream": "seen"}},
    }  # fmt: skip
    with pytest.raises(ValueError, match=reported):
        Config.model_validate(body)


@pytest.mark.parametrize(
    ("kind", "context", "wrong"),
    [
        ("question-answering", "page", ""),
        ("question-answering", "lens", "'lens' is not another text stream; there are \\['page'\\]"),
        ("question-answering", "asked", "'asked' is not another text stream"),
        ("question-answering", "gone", "'gone' is not another text stream"),
        ("text-classification", "page", "text-classification reads no context; leave it out"),
    ],
)
def test_a_context_is_another_text_stream_of_an_answering_task(kind: str, context: str, wrong: str) -> None:
    texts: dict[str, Any] = {name: {"kind": "text", "encoder": "e"} for name in ("asked", "page")}
    body = {
        "agent": "a", "state_dir": "s", "encoders": {"e": {"model": "m"}},
        "streams": texts | {"lens": {"kind": "camera", "source": "topic", "encoder": "e"}},
        "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
        "tasks": {"mine": {"kind": kind, "model": "m", "stream": "asked", "context": context}},
    }  # fmt: skip
    if not wrong:
        assert Config.model_validate(body).tasks["mine"].context == "page"
        return
    with pytest.raises(ValueError, match=f"tasks.mine.context: {wrong}"):
        Config.model_validate(body)


def test_the_name_of_the_preview_requests_is_no_stream() -> None:
    body = {
        "agent": "a", "state_dir": "s", "streams": {"subscribe": {"kind": "telemetry", "fields": ["q"]}},
        "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
    }  # fmt: skip
    with pytest.raises(ValueError, match="preview/subscribe has another use"):
        Config.model_validate(body)
