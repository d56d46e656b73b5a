"""Every row of the table of old names in CHANGELOG.md is true of the schema, the topics, the events and the metrics."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from prometheus_client import CollectorRegistry

from actuators.safety.actuator_state import By
from learners.model.shapley import StreamContribution
from learners.task_kinds import KINDS
from learners.worker.loop import LearnerLoop
from runtime.cli.main import main
from runtime.cli.reference import TOPICS
from runtime.config.errors import OLD_KEYS, REMOVED_KEYS
from runtime.config.schema import Config
from runtime.monitoring.metrics import Metrics
from runtime.mqtt.events import EVENTS

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "CHANGELOG.md"
SCHEMA = Config.model_json_schema()


def rows() -> list[tuple[list[str], list[str], str]]:
    """Return old names, new names and place of each row of the public table."""
    table = TABLE.read_text().partition("<!-- old names -->")[2].partition("<!-- end of old names -->")[0]
    cells = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    return [(re.findall("`([^`]+)`", old), re.findall("`([^`]+)`", new), where) for old, new, where in cells]


ROWS = rows()


def schemas_at(path: str) -> list[dict[str, Any]]:
    """Return the schemas that a dotted settings path may have; `X` means any name."""
    found = [SCHEMA]
    for word in path.split("."):
        found = [inner for outer in found for inner in step(outer, word)]
    return [each for one in found for each in opened(one)]


def step(schema: dict[str, Any], word: str) -> Iterator[dict[str, Any]]:
    for each in opened(schema):
        if word == "X":
            inner = [each.get("additionalProperties"), *each.get("patternProperties", {}).values()]
            yield from (schema for schema in inner if isinstance(schema, dict))
        elif word in each.get("properties", {}):
            yield each["properties"][word]


def opened(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Follow references and yield each alternative."""
    if "$ref" in schema:
        yield from opened(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
        return
    yield schema
    for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from opened(alternative)
    if isinstance(schema.get("items"), dict):
        yield from opened(schema["items"])


def values_at(path: str) -> set[str]:
    """Return the words that a setting may have."""
    found = schemas_at(path)
    assert found, path
    return {str(v) for each in found for v in (*each.get("enum", ()), *([each["const"]] if "const" in each else ()))}


def of(where: str) -> list[tuple[list[str], list[str]]]:
    """Return the rows of one place; there is at least one."""
    found = [(old, new) for old, new, place in ROWS if place.split(",")[0] == where]
    assert found
    return found


def test_every_row_is_of_a_place_that_is_checked() -> None:
    places = {place.split(",")[0] for _, _, place in ROWS}
    assert places == {
        "setting",
        "topic",
        "event",
        "`health.learner`",
        "metric label",
        "metric",
        "verb",
        "response to `explain`",
    }
    assert len(ROWS) > 40


@pytest.mark.parametrize(("old", "new"), of("setting"))
def test_settings(old: list[str], new: list[str]) -> None:
    path, *values = old
    check_knows = (
        OLD_KEYS.keys() | REMOVED_KEYS.keys()
    )  # tests/runtime/config/test_renamed.py runs `check` on each of these
    former = re.sub(r"\bX\b", "*", path)
    assert check_knows.issuperset([f"{former}: {value}" for value in values] or [former])
    if path == "tasks.X.kind":
        assert set(KINDS).isdisjoint(values)
        assert set(KINDS).issuperset(new)
    elif values:
        assert values_at(path).isdisjoint(values)
        assert [word for word in new if ":" not in word and word not in values_at(path) and not schemas_at(word)] == []
    else:
        assert not schemas_at(path)
        assert all(schemas_at(word) for word in new)


def test_topics() -> None:
    topics = {topic for topic, _, _ in TOPICS}
    for old, new in of("topic"):
        assert topics.isdisjoint(old)
        assert topics.issuperset(new)


def test_events() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "learners").rglob("*.py"))
    sources += "".join(path.read_text() for path in (ROOT / "runtime").rglob("*.py"))
    for old, new in of("event"):
        assert EVENTS.keys().isdisjoint(old)
        assert new[0] in EVENTS
        others = [word for word in new[1:] if word not in EVENTS]  # a cause or a verdict
        assert all(re.search(rf"[\"']{word}[\"']", sources) for word in others)


def test_health_of_the_learner() -> None:
    fields = inspect.getsource(LearnerLoop.figures)
    for old, new in of("`health.learner`"):
        assert all(f'"{word}":' in fields for word in new)
        assert not any(f'"{word}":' in fields for word in old)


def test_fields_of_an_explanation() -> None:
    fields = {field.name for field in dataclasses.fields(StreamContribution)}
    for old, new in of("response to `explain`"):
        assert fields.isdisjoint(old)
        assert fields.issuperset(new)


def test_metrics() -> None:
    registry = CollectorRegistry()
    Metrics(registry, agent="a", version="0")
    names = {metric.name for metric in registry.collect()}
    for old, new in of("metric"):
        assert names.isdisjoint(old)
        assert names.issuperset(new)


def test_who_acts() -> None:
    [(old, new)] = of("metric label")
    words = set(get_args(By))
    assert old[0].removeprefix("by: ") not in words
    assert new[0].removeprefix("by: ") in words


def test_verbs() -> None:
    for old, new in of("verb"):
        assert verb(new[0])
        assert not verb(old[0])


def verb(line: str) -> bool:
    """Return whether the help lists this verb; the last word is an argument."""
    group: click.Command = main
    for word in line.split()[:-1]:
        if not isinstance(group, click.Group) or word not in group.commands or group.commands[word].hidden:
            return False
        group = group.commands[word]
    return True
