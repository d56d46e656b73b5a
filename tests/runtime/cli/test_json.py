"""Every verb with a result prints it for a person, and with `--json` as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from runtime.cli.main import main

SHOWS = {"run", "demo", "top", "plant", "mcp", "new", "discover"}
"""Verbs that show something until they end, or ask; `discover` and `new` write a file."""


def verbs(group: click.Group = main, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from verbs(command, (*prefix, name))


@pytest.mark.parametrize("words", [words for words, _ in verbs()], ids=" ".join)
def test_every_verb_with_a_result_prints_json(words: tuple[str, ...]) -> None:
    command = dict(verbs())[words]
    has_json = any("--json" in param.opts for param in command.params)
    is_exempt = words[0] in SHOWS or words in {("fleet", "serve"), ("fleet", "page")}
    is_bare_group = isinstance(command, click.Group) and not command.invoke_without_command
    assert has_json or is_exempt or is_bare_group, "give it `with_json` and `show`"


ANSWERS: dict[str, list[tuple[list[str], dict[str, Any], str]]] = {
    "arm": [
        ([], {"armed": True, "waiting_for": []}, "armed"),
        ([], {"armed": False, "waiting_for": ["stream joints: no reading"]}, "not armed yet; it waits for: stream joints: no reading"),
    ],
    "disarm": [([], {"armed": False}, "disarmed")],
    "mode": [(["assist"], {"modes": {"lamp": "assist", "fan": "shadow"}}, "lamp: assist, fan: shadow")],
    "record": [
        (["on"], {"path": "a.mcap"}, "recording to a.mcap"),
        (["off"], {"path": "a.mcap", "written": 7, "dropped": 0, "files": 1}, "a.mcap: 7 messages in 1 files, 0 dropped"),
        (["off"], {"on": False}, "no recording is under way"),
    ],
    "release": [(["button"], {"source": "button", "state": "released"}, "button is released: its data counts again")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "words", "answer", "text"), [(verb, *row) for verb, rows in ANSWERS.items() for row in rows]
)
def test_answers_of_the_daemon(
    verb: str, words: list[str], answer: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "runtime.console.client.send_request", lambda _loaded, name, _body: (asked.append(name), answer)[1]
    )
    command = ["sources", "release"] if verb == "release" else [verb]
    shown = CliRunner().invoke(main, [*command, *words])
    assert (shown.exit_code, shown.output) == (0, f"{text}\n")
    printed = CliRunner().invoke(main, [*command, *words, "--json"])
    assert (printed.exit_code, json.loads(printed.output)) == (0, answer)
    assert asked == [verb, verb]


def test_comparisons_backups_links_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    for seed, mean in enumerate((490.0, 500.0)):
        folder = tmp_path / "runs" / f"seed-{seed}"
        folder.mkdir(parents=True)
        body = {
            "environment": "CartPole-v1",
            "algorithm": "dqn",
            "steps": 9,
            "seed": seed,
            "final": {"mean": mean},
            "evaluations": [],
        }
        (folder / "results.json").write_text(json.dumps(body))
    (group,) = json.loads(run(main, ["compare", "runs", "--least", "495", "--json"]).output)["groups"]
    assert (group["scores"], group["mean"], group["failed"]) == ({"0": 490.0, "1": 500.0}, 495.0, [0])
    (tmp_path / "home.yaml").write_text(
        f"agent: home\nstate_dir: {tmp_path}/state\nmqtt: {{url: 'mqtt://127.0.0.1:1'}}\ndashboard: {{}}\n"
        "streams: {a: {kind: telemetry, fields: [x]}}\nactuators: {lamp: {kind: choice, choices: [on1, off1], safe: off1}}\n"
    )
    link = json.loads(run(main, ["link", "home.yaml", "--json"]).output)
    assert link.keys() == {"link"}
    assert link["link"].startswith("http://")
    made = json.loads(run(main, ["backup", "one.backup", "home.yaml", "--json"]).stdout)
    assert made["path"].endswith("one.backup")
    assert made["size"] == Path("one.backup").stat().st_size
    assert made["files"] > 0
    back = json.loads(run(main, ["restore", "one.backup", "home.yaml", "--replace", "--json"]).stdout)
    assert (back["state_dir"], back["files"]) == (f"{tmp_path}/state", made["files"])
    assert Path(back["earlier"]).is_dir()
    none = run(main, ["service", "uninstall", "--root", str(tmp_path / "root"), "--json"])
    assert json.loads(none.output) == {"deleted": []}
