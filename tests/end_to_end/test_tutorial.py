"""docs/tutorial-thermostat.md, command by command, as a person types them; ports and folder are the test's own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from free_ports import free_port

from fakes import end, wait_for
from runtime.config.loader import load

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial-thermostat.md").read_text()
START_S = 90.0


def commands() -> list[str]:
    """Every command on the page, in order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line for language, block in blocks if not language for line in block.splitlines() if line.strip()]


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, int]:
    """A folder as the person's, with the shipped settings on free ports; with the broker's port."""
    port = free_port()
    known = yaml.safe_load((ROOT / "configs" / "thermostat.yaml").read_text())
    known["mqtt"]["url"] = f"embedded://127.0.0.1:{port}"
    known["dashboard"]["listen"], known["metrics"]["listen"] = (f"127.0.0.1:{free_port()}" for _ in range(2))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "thermostat.yaml").write_text(yaml.safe_dump(known))
    return tmp_path, port


def run(line: str, folder: Path, port: int) -> str:
    """Run one command of the page to its end; return what it printed."""
    words = shlex.split(line)
    if words[0] == "mosquitto_sub":
        words += ["-p", str(port), "-C", "2", "-W", "60"]
    else:
        words = [sys.executable, "-m", "runtime.cli", *words[1:]]
    if "discover" in words:
        words = [word.replace("mqtt://127.0.0.1", f"mqtt://127.0.0.1:{port}") for word in words]
        words += ["--seconds", "3", "--yes", "--filter", "room/#"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 or "status" in words, (line, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_every_command_of_the_tutorial_works_in_its_order(folder: tuple[Path, int]) -> None:
    place, port = folder
    lines = commands()
    assert [line.split()[1] for line in lines if line.startswith("reflexd")] == [
        "check", "run", "status", "mode", "mode", "disarm", "arm", "discover"
    ]  # fmt: skip
    assert "good. agent thermostat" in run(lines[0], place, port)
    with (place / "log").open("wb") as log:
        command = [sys.executable, "-m", "runtime.cli", *shlex.split(lines[1])[1:]]
        daemon = subprocess.Popen(
            command, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
        )
    try:
        text = place / "log"
        wait_for(lambda: '"type":"policy_untrained"' in text.read_text(), "the agent", START_S)
        reported = {line: run(line, place, port) for line in lines[2:]}
        assert "room/sensor" in next(text for line, text in reported.items() if line.startswith("mosquitto_sub"))
        assert ": autonomous" in next(text for line, text in reported.items() if "mode autonomous" in line)
        assert (
            next(text for line, text in reported.items() if line.startswith("reflexd arm")).splitlines()[0] == "armed"
        )
        wait_for(lambda: _heats(port), "the policy switches the heater on", 60)
    finally:
        end(daemon)
    own = load(place / "own.yaml").config
    assert own.mode == "shadow"
    assert own.streams["sensor"].source == "topic:room/sensor"
    assert own.actuators["heater"].state_topic == "room/heater/state"


def _heats(port: int) -> bool:
    command = ["mosquitto_sub", "-p", str(port), "-t", "room/heater/set", "-C", "1", "-W", "3"]
    received = subprocess.run(command, capture_output=True, text=True, check=False)
    return received.stdout.strip() == "ON"


def test_the_page_shows_the_shipped_settings() -> None:
    shipped = yaml.safe_load((ROOT / "configs" / "thermostat.yaml").read_text())
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])  # type: ignore[index]
    assert shown["streams"] == shipped["streams"]
    assert shown["rewards"] == shipped["rewards"]
    assert shown["actuators"]["heater"].items() <= shipped["actuators"]["heater"].items()
