"""A state directory of 0.1.0 as of commit 78b61a8, made by that daemon (`make_old_state.py`): nothing a user had is lost.

The daemon of this tree starts on it and is watched from outside: it acts with the policy that was live, keeps the stop and the
modes, and remembers every tick, reward, label and raw reading. Recordings of before are decided again, identically.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
import yaml
from click.testing import CliRunner, Result
from free_ports import free_port
from paho.mqtt.enums import CallbackAPIVersion
from upgrade.make_old_state import machine, row_facts, write_config

from fakes import connect_when_up, end, wait_for
from learners.experience.reader import Reader
from runtime.cli.main import main

CLI = (sys.executable, "-m", "runtime.cli")
"""This and the imports of `Reader` and `main` are all that is known of this tree's layout."""

HERE = Path(__file__).parent
ARCHIVE = HERE / "old_state.tar.gz"
BASE = "reflexd/old"
START_S = 150.0
CLOSE = 1e-4
"""How far numbers may be off on a machine other than the one that recorded them."""
LOSSES = {
    "policy_untrained", "checkpoint_refused", "experiment_state_unreadable", "quarantine_state_unreadable", "experience_write_failed", "transition_rejected",
    "experience_corrupt", "encoder_refused", "encoder_without_task", "task_failed", "policy_rolled_back", "rollback_failed",
    "child_restarted", "child_restart_limit",
}  # fmt: skip
"""Events that would say that something of before was not understood."""


def unpack(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The archive in a folder, with settings for it; and what the old program read in it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    write_config(HERE / "config.yaml", folder / "config.yaml", free_port(), {"learner": {"priority": "normal"}})
    return folder, json.loads((folder / "expected.json").read_text())


class Upgraded:
    """The daemon of this tree on the old state, and everything it says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.expected = unpack(folder)
        self.live: str = self.expected["live"]["version"]
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.decisions: list[dict[str, Any]] = []
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.answers: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {}
        self.health: dict[str, Any] = {}
        self._log = (folder / "log").open("w")
        self.process = subprocess.Popen([*CLI, "run", "config.yaml"], cwd=folder, stdout=self._log, stderr=self._log)
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{BASE}/#", 1)
        self.client.on_message = self._take
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        connect_when_up(self.client, int(settings["mqtt"]["url"].rpartition(":")[2]), START_S)

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        topic = message.topic.removeprefix(f"{BASE}/")
        if topic in ("event", "decision", "status", "health", "task/intents") or topic.endswith("/set"):
            body = json.loads(message.payload)
            match topic:
                case "event":
                    self.events.append((body["type"], body["data"]))
                case "decision":
                    self.decisions.append(body)
                case "status":
                    self.status = body
                case "health":
                    self.health = body
                case "task/intents":
                    self.answers.append(body)
                case _:
                    self.commands.append((topic.split("/")[1], body))

    def tell(self, topic: str, **body: Any) -> None:
        self.client.publish(f"{BASE}/{topic}", json.dumps(body), 1)

    def reported(self, kind: str) -> list[dict[str, Any]]:
        return [data for each, data in list(self.events) if each == kind]

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        try:
            wait_for(condition, what, timeout_s)
        except TimeoutError:
            log = (self.folder / "log").read_text()[-3000:]
            pytest.fail(f"{what}: not within {timeout_s:g} s; events {self.events}; log: {log}")

    def close(self) -> int:
        code = end(self.process)
        self.client.disconnect()
        self.client.loop_stop()
        self._log.close()
        return code


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    """Started, stopped as it was left, and seen to decide on every stream."""
    running = Upgraded(tmp_path_factory.mktemp("upgraded"))
    try:
        running.until(lambda: bool(running.decisions), "a decision", START_S)
        running.tell("in/joints", x=0.5, y=-0.5)
        running.client.publish(f"{BASE}/in/orders", b"please stop now", 1)
        running.until(lambda: not running.decisions[-1]["missing"], "a decision on every stream")
        running.until(lambda: bool(running.reported("learner_resumed")), "the learner", START_S)
        running.until(lambda: bool(running.health), "health")
        yield running
    finally:
        code = running.close()
    assert code == 0


def test_nothing_was_refused_or_begun_again(daemon: Upgraded) -> None:
    assert {kind for kind, _ in daemon.events} & LOSSES == set(), daemon.events


def test_the_policy_that_was_live_decides(daemon: Upgraded) -> None:
    assert {decision["policy"] for decision in daemon.decisions} == {daemon.live}
    pointer = json.loads((daemon.folder / "state" / "checkpoints" / "LIVE").read_bytes())
    assert pointer == daemon.expected["live"]


def test_the_stop_and_the_modes_are_stored(daemon: Upgraded) -> None:
    assert daemon.status["state"] == "stopped"
    assert {body["policy"] for _, body in daemon.commands} <= {"gate"}
    assert {decision["mode"] for decision in daemon.decisions[1:]} == {"assist"}, "the arm was put into it"
    assert daemon.health["stopped"]
    assert not daemon.health["armed"]


def test_the_version_that_was_on_probation_is_trusted_and_the_one_before_is_the_way_back(daemon: Upgraded) -> None:
    was = daemon.expected["probation"]
    assert daemon.health["experiments"]["anchor"] == was["trial"]["version"] == daemon.live
    assert "before the program was upgraded" in daemon.health["experiments"]["why"]
    now = json.loads((daemon.folder / "state" / "experiments.json").read_bytes())
    assert now["trust"]["previous"] == was["good"]


def test_a_source_stays_in_quarantine(daemon: Upgraded) -> None:
    assert daemon.expected["quarantined"] == ["label:mallory"]
    with closing(Reader(daemon.folder / "state" / "experience")) as reader:
        assert reader.quarantined() == ["label:mallory"]
    assert "label:mallory" in json.dumps(daemon.health)


def test_the_learner_goes_on_with_what_it_had(daemon: Upgraded) -> None:
    (resumed,) = daemon.reported("learner_resumed")
    assert resumed["resumed"] is True
    assert resumed["update"] > 0
    assert resumed["row"] > 0.5 * len(daemon.expected["rows"])


def test_the_task_and_the_encoder_that_follows_it_are_the_tuned_ones(daemon: Upgraded) -> None:
    version = daemon.expected["task"]["version"]
    daemon.client.publish(f"{BASE}/in/orders", b"please stop the now", 1)
    daemon.until(lambda: any(answer["version"] == version for answer in daemon.answers), "an answer of that version")
    assert daemon.answers[-1]["version"] == version


def test_every_tick_reward_label_and_reading_is_retained(daemon: Upgraded) -> None:
    expected = daemon.expected
    with closing(Reader(daemon.folder / "state" / "experience")) as reader:
        last = expected["rows"][-1]["row"]
        daemon.until(lambda: reader.last_row() > last, "new experience after the old")
        rows = reader.rows(0, last + 1)
        assert [row_facts(row) for row in rows] == expected["rows"]
        assert idle_words(rows) == idle_words(reader.rows(last + 1, 1 << 30)), (
            "one word for an actuator that did not move"
        )
        assert [[x.row, x.value, x.source] for x in reader.rewards(0, 1 << 30)] == expected["rewards"]
        assert [[x.text, x.label, x.source] for x in reader.labels("intents")] == expected["labels"]
        raw = [[x.stamp_s, x.encoding, x.data.decode()] for x in reader.raw("orders", 0, 1e12)]
        assert raw[: len(expected["raw"])] == expected["raw"]
        assert {row["policy"] for row in expected["rows"]} > {"untrained", daemon.live}
        assert any(row["intervention"] for row in expected["rows"])


def test_released_and_armed_the_old_policy_acts(daemon: Upgraded) -> None:
    daemon.tell("stop", engaged=False)
    daemon.until(lambda: daemon.status["state"] != "stopped", "the release")
    daemon.tell("request/arm")

    def moved() -> set[str]:
        return {name for name, body in list(daemon.commands) if body["policy"] == daemon.live}

    daemon.until(lambda: "lamp" in moved(), "acting")
    assert moved() == {"lamp"}, "the arm is in assist"


def test_the_version_before_is_there_to_go_back_to(daemon: Upgraded) -> None:
    before = daemon.expected["probation"]["good"]
    daemon.tell("request/rollback")
    daemon.until(lambda: daemon.decisions[-1]["policy"] == before, "the version before")


@pytest.mark.parametrize("name", ["exploring", "assisting", "promotion"])
def test_a_recording_of_before_is_decided_identically(name: str, tmp_path: Path) -> None:
    folder, expected = unpack(tmp_path)
    path = f"state/recordings/{name}.mcap"
    done = verb_here("replay", path, "--config", "config.yaml", "--json", folder=folder)
    assert done.stdout, done.stderr
    report, recorded = json.loads(done.stdout), expected["replays"][f"{name}.mcap"]
    assert recorded["same"], "the old program itself decides them identically"
    assert report["decisions"] == recorded["decisions"] >= 40
    assert report["versions"] == recorded["versions"]
    if machine() == expected["machine"]:
        assert report["different"] == []
        assert done.exit_code == 0
    for each in report["different"]:  # another processor may round the last bits in another way
        assert near(each["recorded"], each["now"]), each


def test_the_experience_of_before_can_be_exported(tmp_path: Path) -> None:
    folder, expected = unpack(tmp_path)
    done = verb_here("export", "config.yaml", "--format", "lerobot", "--out", "out", "--no-pictures", folder=folder)
    assert done.exit_code == 0, done.stderr
    info = json.loads((folder / "out" / "meta" / "info.json").read_text())
    assert info["total_frames"] == len(expected["rows"])


def test_todays_settings_are_valid_and_old_ones_are_distinguished(tmp_path: Path) -> None:
    """What was renamed since is named with its path; where nothing was, the old file still is one."""
    folder, _ = unpack(tmp_path)
    (folder / "config.yaml").write_text((HERE / "config.yaml").read_text())
    today = verb("check", "config.yaml", folder=folder)
    assert today.returncode == 0, today.stderr
    old, new = (leaves(yaml.safe_load((HERE / f).read_text())) for f in ("config_0_1_0.yaml", "config.yaml"))
    renamed = [where for where, value in old.items() if where not in new or new[where] != value]
    received = verb("check", str(HERE / "config_0_1_0.yaml"), folder=tmp_path)
    assert received.returncode == (2 if renamed else 0), received.stderr
    assert [where for where in renamed if where not in received.stderr] == []


def idle_words(rows: Iterable[Any]) -> set[str]:
    """The value of `by` for actuators without a command; the program once called it `nobody`."""
    return {by for row in rows for by in row.transition.by.values()} - {"policy", "override", "gate"}


def verb(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the CLI in a process of its own."""
    return subprocess.run([*CLI, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def verb_here(*arguments: str, folder: Path) -> Result:
    """Run the CLI in this process, which has imported torch already."""
    with contextlib.chdir(folder):
        return CliRunner().invoke(main, arguments)


def near(one: Any, other: Any) -> bool:
    """Whether two decisions are the same but for the last digits of numbers."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
        case list(), list():
            return len(one) == len(other) and all(map(near, one, other))
        case ((int() | float()), (int() | float())):
            return abs(one - other) <= CLOSE * max(1.0, abs(one))
    return bool(one == other)


def leaves(body: Any, where: str = "") -> dict[str, Any]:
    """Every value of a settings file under its dotted path; a list is one value."""
    if not isinstance(body, dict):
        return {where: body}
    return {path: x for key, value in body.items() for path, x in leaves(value, f"{where}.{key}".lstrip(".")).items()}
