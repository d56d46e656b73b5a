"""Ten situations that go wrong: each is answered at once, in one sentence that says what to do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from canaries import OPERATOR
from click.testing import CliRunner, Result
from doors import reply, site
from free_ports import free_port

from fakes import Contention, Mosquitto
from learners.files import exclusive_lock
from runtime.cli.main import main
from runtime.mqtt.event_sentences import sentence
from runtime.supervisor.broker import installed

AT_ONCE_S = 10.0
"""For an answer, on a busy machine; the former limits were 12 and 30 s."""


def settings(folder: Path, url: str, state: str = "state", more: str = "") -> str:
    path = folder / "robot.yaml"
    path.write_text(
        f"agent: robot\nstate_dir: {folder / state}\nmqtt: {{url: '{url}'}}\n"
        "streams: {joints: {kind: telemetry, fields: [a]}}\n"
        f"actuators: {{head: {{kind: choice, choices: [a, b], safe: a}}}}\nlearner: {{enabled: false}}\n{more}"
    )
    return str(path)


def reflexd(*words: str) -> Result:
    begun_s, contention = time.monotonic(), Contention()
    done = CliRunner().invoke(main, words)
    assert time.monotonic() - begun_s < AT_ONCE_S + contention.s
    assert "Traceback" not in done.output
    return done


@pytest.mark.parametrize("verb", [["status"], ["record", "on"], ["arm"], ["mode", "shadow"], ["explain", "x-1"]])
def test_wrong_port_or_no_broker(verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb != ["status"]:  # one verb with the real limit
        monkeypatch.setattr("runtime.console.client.CONNECT_S", 0.3)
    done = reflexd(*verb, settings(tmp_path, f"mqtt://127.0.0.1:{free_port()}"))
    assert done.exit_code in {1, 3}
    assert "the daemon robot is off: no agent on mqtt://127.0.0.1" in done.stderr
    assert "start it with `reflexd run FILE`" in done.stderr
    assert "no broker" in done.stderr


@pytest.mark.parametrize("verb", [["status"], ["record", "on"], ["arm"]])
def test_daemon_gone(verb: list[str], tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path).start()
    try:
        retained = ["mosquitto_pub", "-p", str(broker.port), "-r", "-q", "1", "-t", "reflexd/robot/status"]
        subprocess.run([*retained, "-m", '{"state": "offline", "reasons": ["SIGTERM received"]}'], check=True)
        done = reflexd(*verb, "--config", settings(tmp_path, broker.url))
        assert done.exit_code in {1, 3}
        assert "the daemon robot is off" in done.stderr
    finally:
        broker.stop()


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        more = f"dashboard: {{listen: '127.0.0.1:{port}'}}\n"
        done = reflexd("run", settings(tmp_path, "mqtt://127.0.0.1:1", more=more))
    assert done.exit_code == 1, "it may be free at the next try"
    assert f"dashboard.listen: cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "end the program that listens there, or choose another port" in done.stderr


def test_no_permission_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = reflexd("check", settings(tmp_path, "mqtt://127.0.0.1:1", state="file/state"))
    assert done.exit_code == 2
    assert "state_dir: " in done.stderr
    assert "name a folder" in done.stderr
    linked = reflexd("link", settings(tmp_path, "mqtt://127.0.0.1:1", "file/state", "dashboard: {}\n"))
    assert linked.exit_code == 2
    assert str(tmp_path / "file") in linked.stderr


def test_two_daemons(tmp_path: Path) -> None:
    path = settings(tmp_path, f"embedded://127.0.0.1:{free_port()}")
    assert installed()
    with exclusive_lock(tmp_path / "state"):
        done = subprocess.run(
            [sys.executable, "-m", "runtime.cli", "run", path], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert "another" in done.stderr
    assert str(tmp_path / "state") in done.stderr


async def test_bad_token_and_stale_browser() -> None:
    async with site() as page:
        refused = await page.http.post(f"{page.url}/login", data={"token": "wrong"})
        assert (await refused.json())["error"] == ("wrong token; `reflexd link` prints a link that signs you in")
        ws = await page.talk(await page.sign_in(OPERATOR))
        await ws.send_json({"do": "of an older page", "id": 7})
        answer = await asyncio.wait_for(reply(ws, 0), 60)
        assert "reload the page" in answer["error"]
        await ws.close()


def test_disk_full() -> None:
    reported = sentence("storage_degraded", {"reason": "state/experience: No space left on device"}).text
    assert reported.startswith(
        "A file cannot be written: state/experience: No space left on device. Free or repair the disk"
    )


@pytest.mark.parametrize(("word", "remedy"), [("chek", "did you mean `reflexd check`?"), ("qqq", "lists all verbs")])
def test_unknown_verb(word: str, remedy: str) -> None:
    done = reflexd(word)
    assert done.exit_code == 2
    assert f"there is no verb '{word}'; " in done.stderr
    assert remedy in done.stderr


def test_the_settings_are_taken_as_an_argument_or_an_option_and_not_twice(tmp_path: Path) -> None:
    path = settings(tmp_path, "mqtt://127.0.0.1:1")
    for words in (["check", path], ["check", "--config", path]):
        assert reflexd(*words).exit_code == 0
    twice = reflexd("check", path, "--config", path)
    assert twice.exit_code == 2
    assert "given twice" in twice.stderr
    missing = reflexd("run")
    assert missing.exit_code == 2
    assert "name a settings file" in missing.stderr
