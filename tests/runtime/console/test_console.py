"""The terminal of `run`: banner, live line, sentences, one-time link, rotating log, and Ctrl-C for the daemon alone."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner
from free_ports import free_port

from runtime.cli.main import main
from runtime.config.loader import load
from runtime.console.banner import LiveSeen, banner, event_line, line
from runtime.console.log_file import OLD_FILES, LogFile
from runtime.dashboard.access.auth import Access
from runtime.dashboard.access.login_link import LASTS_S, create_link, page_address, redeem
from runtime.mqtt import Message
from runtime.mqtt.daemon_messages import EventMessage
from runtime.mqtt.event_sentences import TABLE, sentence
from runtime.mqtt.events import EVENTS

SETTINGS = """\
agent: tester
state_dir: {folder}/state
mqtt: {{url: "embedded://127.0.0.1:{port}"}}
streams: {{joints: {{kind: telemetry, source: topic, fields: [a]}}}}
actuators: {{head: {{kind: choice, choices: [left, right], safe: left}}}}
learner: {{enabled: false}}
dashboard: {{listen: "127.0.0.1:{page}"}}
"""


def settings(folder: Path) -> Path:
    path = folder / "tester.yaml"
    path.write_text(SETTINGS.format(folder=folder, port=free_port(), page=free_port()))
    return path


class Terminal:
    """A `reflexd run` with a terminal of its own."""

    def __init__(self, config: Path) -> None:
        self.output = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["COLUMNS"] = "160"
            os.execv(sys.executable, [sys.executable, "-m", "runtime.cli", "run", str(config)])

    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.output.decode(errors="replace"))

    def until(self, pattern: str, patience_s: float = 90.0) -> None:
        end_s = time.monotonic() + patience_s
        while re.search(pattern, self.text()) is None:
            assert time.monotonic() < end_s, self.text()[-2_000:]
            if select.select([self.fd], [], [], 0.2)[0]:
                self.output += os.read(self.fd, 65_536)

    def end(self) -> int:
        """Read until the process ends; return its exit code."""
        while True:
            try:
                more = os.read(self.fd, 65_536)
            except OSError:
                break
            if not more:
                break
            self.output += more
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End the process if `end` has not seen its end."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def test_a_terminal_shows_a_banner_a_line_and_sentences_and_ctrl_c_reaches_the_daemon_alone(tmp_path: Path) -> None:
    terminal = Terminal(settings(tmp_path))
    try:
        terminal.until("random weights act")
        terminal.until(r"● \w+ · .*policy")
        os.write(terminal.fd, b"\x03")
        code = terminal.end()
    finally:
        terminal.kill()
    shown, log = terminal.text(), (tmp_path / "state/log/reflexd.log").read_text()
    assert code == 0, shown
    assert re.search(r"page +http://127.0.0.1:\d+/login#token=once-\S{32}", shown)
    assert "Ctrl-C; the actuators get their safe values first" in shown
    assert "the gate sent every actuator its safe value" in shown
    assert "{" not in shown
    assert "Loading" not in shown
    records = [orjson.loads(text) for text in log.splitlines() if text.startswith("{")]
    assert "supervisor.draining" in {record["event"] for record in records}
    assert not [record for record in records if record["event"] in {"child.failed", "tick"}]


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_every_event_is_a_sentence_with_and_without_its_fields(kind: str) -> None:
    data = {"stream": "front", "reason": "no frame for 2 s.", "version": "000042-1f3a9c0e", "actuator": "head"}
    for fields in (data, {}, {"reason": {"a": [1]}, "modes": 3, "problems": None}):
        reported = sentence(kind, fields)
        assert reported.text.endswith("."), reported
        assert reported.text[0].isupper() or not reported.text[0].isalpha()
        assert not re.search(r"[{}]|\bNone\b|\.\.| :|\x00", reported.text.replace("{'a': [1]}", "")), reported


def test_the_table_has_only_events_that_exist_and_nearly_all_of_them() -> None:
    assert TABLE.keys() <= EVENTS.keys()
    assert len(TABLE) > 0.9 * len(EVENTS)


def test_sentences_say_what_happened_in_the_words_of_the_case() -> None:
    rejected = {"version": "000008-5be2f410", "step": "ope", "reason": "inconclusive: 12 decisions"}
    assert sentence("policy_rejected", rejected).text == (
        "Policy 000008-5be2f410 was not promoted: off-policy evaluation failed, inconclusive: 12 decisions."
    )
    assert sentence("policy_rolled_back", {"version": "8", "to": "7", "why": "rewards"}).text == (
        "Policy 8 was rolled back to 7 because of lower rewards."
    )
    assert sentence("policy_rolled_back", {"version": "8", "to": "7", "by": "request"}).text == (
        "A person rolled policy 8 back to 7."
    )
    assert sentence("reloaded", {"restart_required": ["tick"]}).text == (
        "The new settings are in force. Restart the daemon to apply tick."
    )
    left = {"actuators": ["arm"], "unreachable": []}
    assert sentence("left_moving", left).text == (
        "The run before left devices moving. The gate sends safe actions to: arm."
    )
    assert sentence("left_moving", left | {"unreachable": ["furnace"]}).text == (
        "The run before left devices moving. Bring to rest by hand: furnace."
    )
    assert sentence("sensor_lost", {"stream": "front\x1b[2J"}).text == "Stream front [2J stopped."
    assert sentence("of a plugin", {}).text == "Of a plugin."


def test_the_line_shows_state_rate_streams_policy_reward_and_learner() -> None:
    clock = [100.0]
    events: list[EventMessage] = []
    seen = LiveSeen(on_event=events.append, now=lambda: clock[0])
    waiting = line(seen, rate_hz=None, connected=False, streams=2, now_s=100.0)
    assert waiting.plain.startswith("● starting · the first start")
    seen.take(
        Message("reflexd/a/status", b'{"state": "degraded", "reasons": ["front: no recent data"]}', 1, retain=True)
    )
    health = {"tick": {"p99_ms": 24.94}, "streams": {"a": {"stale": False}, "b": {"stale": True}}, "policy": "000042"}
    learner = {"state": "training", "updates_per_s": 12.0, "reward_mean": 0.4213}
    seen.take(Message("reflexd/a/health", orjson.dumps({**health, "learner": learner}), 1, retain=False))
    for number in range(11):
        clock[0] = 100.0 + number / 10
        seen.take(Message("reflexd/a/decision", b'{"id": "x", "stamp": 1.0}', 1, retain=False))
    seen.take(Message("reflexd/a/event", b'{"type": "armed", "stamp": 1.0}', 1, retain=False))
    shown = line(seen, rate_hz=seen.rate_hz(), connected=True, streams=2, now_s=seen.decision_s).plain
    expected = "● degraded · 10.0 Hz · p99 24.9 ms · streams 1/2 · policy 000042 · reward 0.421"
    assert shown == f"{expected} · learner training, 12 updates/s · front: no recent data"
    assert [event.type for event in events] == ["armed"]
    assert (
        "last decision 9 s ago" in line(seen, rate_hz=9.0, connected=True, streams=2, now_s=seen.decision_s + 9).plain
    )


def test_only_events_for_a_person_are_printed() -> None:
    refused = EventMessage(type="action_refused", data={"actuator": "head", "rule": "too_soon"})
    assert event_line(refused) is None
    stopped = event_line(EventMessage(type="stopped", stamp=1.0))
    assert stopped is not None
    assert stopped.plain.endswith("The software stop is engaged. Every actuator has its safe value.")


def test_a_link_signs_in_once_and_only_within_its_time(tmp_path: Path) -> None:
    code = create_link(tmp_path, "127.0.0.1:8080", 1_000.0).partition("#token=")[2]
    assert (tmp_path / "login-link").stat().st_mode & 0o777 == 0o600
    assert code not in (tmp_path / "login-link").read_text()
    access = Access(
        "operator-token-of-16", "viewer-token-of-16ch", time.monotonic, lambda c: redeem(tmp_path, c, 1_001.0)
    )
    assert access.login("once-" + "a" * 32, "peer") is None
    signed_in = access.login(code, "peer")
    assert signed_in is not None
    assert signed_in[1] == "operator"
    assert access.login(code, "peer") is None
    late = create_link(tmp_path, "127.0.0.1:8080", 1_000.0).partition("#token=")[2]
    assert not redeem(tmp_path, late, 1_001.0 + LASTS_S)
    (tmp_path / "login-link").write_text("[")
    assert not redeem(tmp_path, late, 1_001.0)


def test_the_address_of_the_page_is_one_that_this_machine_reaches() -> None:
    assert page_address("0.0.0.0:8080") == "http://127.0.0.1:8080"
    assert page_address("[::]:8080") == "http://[::1]:8080"
    assert page_address("robot.local:80") == "http://robot.local:80"


def test_link_prints_a_new_link_and_names_a_missing_page(tmp_path: Path) -> None:
    config = settings(tmp_path)
    printed = CliRunner().invoke(main, ["link", str(config)])
    assert printed.exit_code == 0
    assert redeem(tmp_path / "state", printed.stdout.strip().partition("#token=")[2], time.time())
    config.write_text("\n".join(config.read_text().splitlines()[:-1]))
    refused = CliRunner().invoke(main, ["link", str(config)])
    assert refused.exit_code == 2
    assert "add `dashboard: {}`" in refused.stderr


def test_the_log_rotates_and_its_errors_are_read(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log/reflexd.log", max_bytes=100)
    log.begin()
    with log.path.open("ab") as writer:  # as the daemon holds it open
        for number in range(OLD_FILES + 2):
            writer.write(b'{"event": "e", "level": "error", "reason": "%d"}\nLoading weights 100%%\n' % number)
            writer.write(b"x" * 100 + b"\n")
            writer.flush()
            assert [record["reason"] for record in log.new_records()] == [str(number)]
            log.rotate()
            assert log.path.stat().st_size == 0
    assert "Loading weights 100%" in log.plain
    assert sorted(path.name for path in log.path.parent.iterdir()) == [
        "reflexd.log", *(f"reflexd.log.{number}" for number in range(1, OLD_FILES + 1))
    ]  # fmt: skip
    assert b'"reason": "4"' in (log.path.parent / "reflexd.log.1").read_bytes()


def test_the_banner_says_what_runs_and_where(tmp_path: Path) -> None:
    path = settings(tmp_path)
    text = banner(load(path).config, path, None, tmp_path / "log").plain
    for part in ("tester (tester.yaml)", "joints", "head", "add `dashboard: {}`", str(tmp_path / "log")):
        assert part in text
