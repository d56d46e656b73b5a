"""What `reflexd check` says of settings that are valid, and the verb for what waits for a person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tinymodels
import yaml
from click.testing import CliRunner

from learners.task_serving.versions import TaskVersionStore
from learners.tasks.task_classes import open_task
from runtime.cli.main import main


def written(tmp_path: Path, eval_file: str | None = None, **learner: bool) -> Path:
    """A settings file with one task, in its tenth line or so."""
    file = tmp_path / "robot.yaml"
    body = {
        "agent": "robot",
        "state_dir": str(tmp_path / "state"),
        "mqtt": {"url": "mqtt://127.0.0.1:1883"},
        "streams": {"orders": {"kind": "text", "source": "topic", "encoder": "language", "required": True}},
        "encoders": {"language": {"model": "bundled:minilm-l6"}},
        "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
        "tasks": {"intents": {"kind": "text-classification", "stream": "orders", "model": "bundled:minilm-l6"}},
        "learner": learner,
    }
    if eval_file is not None:
        body["tasks"]["intents"]["eval_file"] = eval_file  # type: ignore[index] # a mapping
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    return file


def checked(file: Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["check", str(file)])
    return done.exit_code, done.stderr


def test_check_tells_which_task_nothing_will_judge(tmp_path: Path) -> None:
    file = written(tmp_path)
    line = file.read_text().splitlines().index("  intents:") + 1
    code, reported = checked(file)
    assert code == 0
    assert reported.startswith(f"{file}:{line}: tasks.intents: no held-out file")
    assert "tasks.intents.eval_file" in reported


@pytest.mark.parametrize("wrong", ["gone.jsonl", "gone.json#test"])
def test_check_tells_of_a_file_that_is_not_there(tmp_path: Path, wrong: str) -> None:
    code, reported = checked(written(tmp_path, str(tmp_path / wrong)))
    assert code == 0
    assert "tasks.intents.eval_file: " in reported
    assert "no such file or folder" in reported


def test_check_says_nothing_where_all_is_well(tmp_path: Path) -> None:
    held = tinymodels.held_out(tmp_path / "held.jsonl", 4, {"go": "move"})
    assert checked(written(tmp_path, str(held))) == (0, "")
    assert checked(written(tmp_path, enabled=False)) == (0, ""), "no learner fine-tunes"


def test_check_tells_of_a_second_task_on_one_encoder(tmp_path: Path) -> None:
    held = tinymodels.held_out(tmp_path / "held.jsonl", 4, {"go": "move"})
    file = written(tmp_path, str(held))
    body = yaml.safe_load(file.read_text())
    body["encoders"]["language"]["follow_task"] = True
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    assert checked(file) == (0, "")
    body["tasks"]["mood"] = body["tasks"]["intents"]
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    code, reported = checked(file)
    assert code == 0
    assert (
        "tasks.mood: the encoder language follows tasks.intents alone; what this task learns does not reach it"
        in reported
    )


def test_what_waits_is_listed_and_promoted_from_the_command_line(tmp_path: Path) -> None:
    file = written(tmp_path)
    versions = TaskVersionStore(tmp_path / "state" / "learner" / "tasks" / "intents")
    task = open_task("text-classification", tinymodels.bert(tmp_path / "model"), labels=("a", "b"))
    first, second = versions.add(task, 1), versions.add(task, 2)

    def verb(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["checkpoints", "--config", str(file), "--task", "intents", *words])
        return done.exit_code, done.output

    assert first.name in verb()[1]
    assert versions.live() is None
    assert verb("promote", first.name) == (0, f"{first.name} is live\n")
    assert verb("promote", "newest") == (0, f"{second.name} is live\n")
    assert verb("rollback") == (0, f"{first.name} is live\n")
    assert verb("rollback") == (0, "pretrained is live\n"), "the first version can be taken back"
    assert versions.live() is None
    code, reported = verb("rollback")
    assert (code, "nothing to roll back to" in reported) == (2, True)
    assert "reads policies" in verb("import", str(tmp_path))[1]
    assert verb("promote", first.name) == (0, f"{first.name} is live\n")


@pytest.mark.parametrize(
    ("mode", "latched", "words"),
    [
        ("autonomous", {}, []),
        ("shadow", {}, ["in mode shadow the policy never moves head, lamp: only a person's override"]),
        ("assist", {}, ["in mode assist the policy only proposes for head, lamp: only a person's override"]),
        (
            "autonomous",
            {"lamp": "assist"},
            ["only proposes for lamp", "while head in autonomous moves at the same time as what a person sets"],
        ),
        (
            "assist",
            {"lamp": "shadow"},
            ["in mode shadow the policy never moves lamp and in mode assist the policy only proposes for head"],
        ),
    ],
)
def test_check_warns_of_a_rule_that_is_not_tested_in_the_mode_of_its_actuators(
    tmp_path: Path, mode: str, latched: dict[str, str], words: list[str]
) -> None:
    held = tinymodels.held_out(tmp_path / "held.jsonl", 4, {"go": "move"})
    file = written(tmp_path, str(held))
    body = yaml.safe_load(file.read_text())
    body["actuators"]["lamp"] = {"kind": "choice", "choices": ["off", "on"], "safe": "off"}
    body |= {"mode": mode, "gate": {"forbid": ["head == 'b' and lamp == 'on'"]}}
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "latches.json").write_text(json.dumps({"modes": latched}))
    code, reported = checked(file)
    assert code == 0
    assert bool(reported) == bool(words)
    assert all(word in reported for word in words), reported


def test_check_warns_of_rules_without_a_harmless_order_of_going_to_rest(tmp_path: Path) -> None:
    file = written(tmp_path, str(tinymodels.held_out(tmp_path / "held.jsonl", 4, {"go": "move"})))
    body = yaml.safe_load(file.read_text())
    for name in ("pump", "valve", "bypass"):
        body["actuators"][name] = {"kind": "choice", "choices": ["off", "on"], "safe": "off"}
    rule = "pump == 'on' and valve == 'off' and bypass == 'off'"
    body["gate"] = {"forbid": [rule, "pump == 'off' and valve == 'on' and bypass == 'off'"]}
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    code, reported = checked(file)
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "pump == 'off'" in text)
    assert code == 0
    assert f":{line}: gate.forbid.1: from bypass = 'off', pump = 'on', valve = 'on' every order" in reported
    assert "commands from rest lead there" in reported
    body["gate"] = {"forbid": [rule]}
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    assert checked(file) == (0, "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state_topic": "lab/pump"}, ""),
        ({"topic": "lab/lamp", "state_topic": "lab/lamp"}, "state_topic: the same topic as the commands: the gate"),
        ({"state_topic": "reflexd/robot/act/lamp/set"}, "state_topic: the same topic as the commands: the gate"),
        ({"state_topic": "reflexd/robot/act/head/set"}, "the same topic as the commands of actuators.head: the gate"),
        ({"choices": ["1", "1.0"], "safe": "1"}, "'1' and '1.0' differ only in case, white space or the way to write"),
        ({"choices": ["0", "1.00", "+1"], "safe": "0"}, "'1.00' and '+1' differ only"),
        ({"choices": ["a", "A "], "safe": "a"}, "'a' and 'A ' differ only"),
        ({"choices": ["nan", "inf", "infinity", "1.5", "15"], "safe": "15"}, ""),
    ],
)
def test_check_warns_of_commands_that_are_reports_and_of_choices_that_look_alike(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    file = written(tmp_path, str(tinymodels.held_out(tmp_path / "held.jsonl", 4, {"go": "move"})))
    body = yaml.safe_load(file.read_text())
    body["actuators"]["lamp"] = {"kind": "choice", "choices": ["off", "on"], "safe": "off"} | changes
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    code, reported = checked(file)
    assert code == 0
    assert bool(reported) == bool(words)
    assert words in reported


def test_check_warns_of_a_rate_and_of_streams_beyond_what_was_measured(tmp_path: Path) -> None:
    held = tinymodels.held_out(tmp_path / "held.jsonl", 4, {"go": "move"})
    file = written(tmp_path, str(held))
    body = yaml.safe_load(file.read_text())
    sensor = {"kind": "telemetry", "source": "topic", "fields": ["x"]}
    for rate_hz, count, warned in (
        (50, 63, []),
        (250, 63, ["tick.rate_hz: 250 Hz leaves 4.0 ms"]),
        (10, 511, ["streams: 512 str"]),
    ):
        streams = body["streams"] | {f"sensor-{number}": sensor for number in range(count)}
        file.write_text(yaml.safe_dump(body | {"tick": {"rate_hz": rate_hz}, "streams": streams}, sort_keys=False))
        code, reported = checked(file)
        assert (code, len(reported.splitlines())) == (0, len(warned))
        assert all(text in reported for text in warned)
    for wrong in ({"tick": {"rate_hz": 251}}, {"streams": streams | {"sensor-511": sensor}}):
        file.write_text(yaml.safe_dump(body | {"streams": streams} | wrong))
        assert checked(file)[0] == 2
