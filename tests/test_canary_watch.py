"""The watch over secrets can fail: a run of tests that disclose one, each in another way, names each of them."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import canaries
import pytest
from canary_watch import Watch

HERE = Path(__file__).parent
LEAKS = """
import asyncio, base64, logging, subprocess, sys, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
import aiohttp, click, pytest
import paho.mqtt.client as mqtt
from click.testing import CliRunner
from paho.mqtt.enums import CallbackAPIVersion
from canaries import MQTT
from canary_watch import WATCH
from fakes import Mosquitto, connect_when_up, wait_for

SAYS = [sys.executable, "-c", "import sys; print(sys.argv[1])", MQTT]

def test_log(): logging.getLogger("x").warning("connecting as u:%s", MQTT)
def test_print(): print(MQTT)
def test_captured_by_the_test(capsys): print(MQTT); assert capsys.readouterr().out
def test_child_to_the_terminal(): subprocess.run(SAYS)
def test_child_into_a_pipe(): assert subprocess.run(SAYS, capture_output=True).stdout
def test_child_read_line_by_line():
    with subprocess.Popen(SAYS, stdout=subprocess.PIPE, text=True) as child: assert next(iter(child.stdout))
def test_child_into_a_file(tmp_path):
    with (tmp_path / "log").open("w") as log: subprocess.run(SAYS, stdout=log)
@pytest.fixture(scope="module")
def shared(tmp_path_factory): return tmp_path_factory.mktemp("shared")
def test_exception():
    with pytest.raises(ValueError, match="wrong"): raise ValueError(f"wrong: {MQTT}")
@click.command()
def verb(): click.echo(f"the password is {MQTT}")
def test_verb(): assert CliRunner().invoke(verb).exit_code == 0
def test_base64(): print("Authorization: Basic", base64.b64encode(f"u:{MQTT}".encode()).decode())

@pytest.fixture
def broker(tmp_path):
    with_an_ear = Mosquitto(tmp_path).start()
    yield with_an_ear
    with_an_ear.stop()
def test_published_here(broker):
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    connect_when_up(client, broker.port, 5)
    client.publish("event", MQTT, 1).wait_for_publish(5)
    client.disconnect(); client.loop_stop()
def test_published_by_a_child_for_no_one(broker):
    subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-t", "event", "-m", MQTT, "-q", "1"], check=True)
    wait_for(lambda: len(WATCH.heard) > 0, "the ear")

class Tells(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-Told", MQTT if self.path == "/header" else "")
        self.end_headers()
        self.wfile.write(b"" if self.path == "/header" else MQTT.encode())
    def log_message(self, *_): pass
@pytest.fixture
def page():
    server = HTTPServer(("127.0.0.1", 0), Tells)
    thread = Thread(target=server.serve_forever); thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown(); thread.join(); server.server_close()
def test_page(page): urllib.request.urlopen(page + "/body").read()
def test_page_header(page):
    async def get():
        async with aiohttp.ClientSession() as http: assert (await http.get(page + "/header")).status == 200
    asyncio.run(get())

def test_settings_may_keep_one(tmp_path): (tmp_path / "my.yaml").write_text(MQTT)
def test_nothing(capsys): print("well"); assert capsys.readouterr().out
def test_shared_folder(shared): (shared / "events.json").write_text(MQTT)
"""
CLEAN = {"test_settings_may_keep_one", "test_nothing"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not one of pytest's own: text there is not observed."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def test_every_way_of_telling_a_secret_is_named(folder: Path) -> None:
    (folder / "test_leaks.py").write_text(LEAKS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "watched.py").write_text(
        "from canary_watch import WATCH\ndef pytest_configure(config): config.pluginmanager.register(WATCH)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(HERE), str(HERE.parent)])}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "watched", "-rA"]
    with (folder / "said").open("wb") as out:
        code = subprocess.call([*command, "--basetemp", "base", "."], stdout=out, env=environment, cwd=folder)
    reported = (folder / "said").read_text()
    tests = set(re.findall(r"^def (test_\w+)", LEAKS, re.MULTILINE))
    assert set(re.findall(r"::(test_\w+) disclosed a secret", reported)) == tests - CLEAN, reported
    assert code == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    "name", [name for name, value in vars(canaries).items() if name.isupper() and isinstance(value, str)]
)
def test_every_canary_is_recognised_as_it_is_and_in_a_login(name: str) -> None:
    secret = getattr(canaries, name)
    for text in (secret, f"mqtt://u:{secret}@h", base64.b64encode(f"user:{secret}".encode()).decode()):
        assert canaries.received(text), text
        assert canaries.received(text.encode()), text
    assert canaries.received("canary") is None


def test_ears_are_taken_off_again() -> None:
    before, watch = subprocess.Popen.communicate, Watch()
    watch.pytest_configure()
    assert subprocess.Popen.communicate is not before
    watch.pytest_unconfigure()
    assert subprocess.Popen.communicate is before
