"""What the pages tell people to type: every `reflexd` command parses, every piece of settings validates, every message is taken."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from runtime.cli.main import main
from runtime.cli.reference import TOPICS
from runtime.config.schema import Config
from runtime.mqtt import topics

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
TAKEN: dict[str, type[BaseModel]] = {
    "reward": topics.Reward, "label": topics.LabelPayload, "override": topics.Override, "stop": topics.Stop,
}  # fmt: skip
BASE: dict[str, Any] = {
    "agent": "a",
    "state_dir": "x",
    "streams": {"imu": {"kind": "telemetry", "fields": ["pitch"]}, "joints": {"kind": "telemetry", "fields": ["q1"]}},
    "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
}
"""What a fragment is put into."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each block of a page."""
    yield from FENCE.findall(page.read_text())


def spans(page: Path) -> list[str]:
    """Text in backticks within a line."""
    return SPAN.findall(FENCE.sub("", page.read_text()))


def commands(page: Path) -> list[str]:
    """Every command line of ours that a page shows; not the patterns of the tables, which have brackets, commas or dots for a choice."""
    lines = [line for _, text in blocks(page) for line in text.splitlines()]
    shown = [line.strip() for line in [*lines, *spans(page)] if line.strip().startswith("reflexd ")]
    return sorted({line for line in shown if not re.search(r"\[|, |\.\.\.|on/off", line)})


def parsed(line: str) -> str:
    """The verb that would run; fails where a verb or an option is not there."""
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        named = [word for word in words if word in command.commands]
        verb = next(iter(named or [word for word in words if not word.startswith("-")]), None)
        if verb in {None, "VERB"} or (command.invoke_without_command and not named):
            break
        found = command.get_command(context, str(verb))
        assert found is not None, f"{line}: no verb {verb}"
        before, words = words[: words.index(str(verb))], words[words.index(str(verb)) + 1 :]
        command.make_parser(context).parse_args(before)
        command = found
    command.make_parser(context).parse_args(words)
    return str(command.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_there(page: Path) -> None:
    for line in commands(page):
        assert parsed(line), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = [
        link for link in LINK.findall(FENCE.sub("", page.read_text())) if "://" not in link and "mailto:" not in link
    ]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_commands_are_found_and_wrong_ones_refused() -> None:
    assert len({line for page in PAGES for line in commands(page)}) >= 20
    assert parsed("reflexd checkpoints --task X promote V") == "promote"
    for wrong in ("reflexd chek my.yaml", "reflexd check --lod my.yaml", "reflexd checkpoints --taks X"):
        with pytest.raises((AssertionError, click.UsageError)):
            parsed(wrong)


def placed(fragment: dict[str, Any]) -> dict[str, Any]:
    """A fragment of settings where it belongs: a whole file, sections, one reward, streams and actuators by name, or a
    kind of field."""
    if "kind" in fragment and "name" in fragment:
        return BASE | {"rewards": [fragment]}
    if fragment.get("kind") in {"angle", "enum", "range"}:
        fragment = {"kind": "telemetry", "fields": ["one"], "field_kinds": {"one": fragment}}
    if "kind" in fragment:
        fragment = {"one": fragment}
    if set(fragment) <= set(Config.model_fields):
        return fragment if "agent" in fragment else BASE | fragment
    kinds = {"choice", "continuous", "text"}
    section = (
        "actuators" if all(each["kind"] in kinds and "source" not in each for each in fragment.values()) else "streams"
    )
    return BASE | {section: BASE[section] | fragment}


def settings(page: Path) -> list[str]:
    """Every piece of settings on a page."""
    inline = [span for span in spans(page) if re.match(r"\{(?!\").*\bkind:|[a-z]+: \{(?!\").*[^.]\}$", span)]
    return [text for language, text in blocks(page) if language == "yaml"] + [s for s in inline if "..." not in s]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_piece_of_settings_on_a_page_is_valid(page: Path) -> None:
    for text in settings(page):
        assert Config.model_validate(placed(yaml.safe_load(text))).agent, text


def test_pieces_of_settings_are_found_and_wrong_ones_refused() -> None:
    assert sum(len(settings(page)) for page in PAGES) >= 6
    with pytest.raises(ValueError, match="choises"):
        Config.model_validate(placed({"lamp": {"kind": "choice", "choises": ["a"], "safe": "a"}}))


def messages() -> Iterator[tuple[str, str]]:
    """Topic and payload of every `mosquitto_pub` on a page that is meant for the agent."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("mosquitto_pub") and "/demo/" in line:
                words = shlex.split(line)
                yield words[words.index("-t") + 1].partition("/demo/")[2], words[words.index("-m") + 1]


def test_every_message_that_people_are_asked_to_publish_is_taken() -> None:
    found = list(messages())
    assert len(found) >= 5
    for topic, payload in found:
        kind, _, rest = topic.partition("/")
        if kind == "request":
            assert f"`{rest}`" in next(received for name, _, received in TOPICS if name == "request/<verb>")
            json.loads(payload)
        elif kind in TAKEN:
            topics.decode(TAKEN[kind], payload.encode())
        else:
            assert kind == "in"
