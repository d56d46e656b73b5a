"""`reflexd fleet`: the server on a real Ray (slow), and what its other verbs print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result
from fleet_parts import covered, device, ingest_on, running, started, uplink_of
from fleet_world import closed_rows, fill, rows_on_disk, ticks
from free_ports import free_port

from fakes import Mosquitto, wait_for
from learners.files import exclusive_lock
from runtime.cli.main import main
from runtime.fleet.reports import GroupReport
from runtime.fleet.server_settings import FleetSettingsError, load_fleet
from runtime.fleet.topics import AgentReport

ROOT = Path(__file__).resolve().parents[3]


def fleet_file(folder: Path, url: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(f'group: arms\ndata: data\nmqtt: {{url: "{url}"}}\n')
    return path


def verb(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["fleet", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_killed_actor_of_ray_starts_again_and_loses_no_row(tmp_path: Path) -> None:
    port = free_port()
    path = fleet_file(tmp_path, f"embedded://127.0.0.1:{port}")
    command = [sys.executable, "-m", "runtime.cli", "fleet", "serve", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "serve.log").open("wb") as log:
        serving = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    uplink = started("uplink", device(tmp_path, f"mqtt://127.0.0.1:{port}"))
    data, begun_s = tmp_path / "data", time.time() - 1_000

    def actor() -> list[psutil.Process]:
        return [
            each for each in psutil.Process(serving.pid).children(recursive=True) if "IngestActor" in " ".join(each.cmdline())
        ]  # fmt: skip

    try:
        fill(tmp_path / "robot", ticks(0, 320, begun_s=begun_s))
        wait_for(lambda: covered(data) == 319, "the first rows on disk", 240)
        victims = actor()
        assert len(victims) == 1
        victims[0].send_signal(signal.SIGKILL)
        fill(tmp_path / "robot", ticks(320, 640, begun_s=begun_s))
        wait_for(lambda: covered(data) == 639, "the rows after the kill on disk", 240)
        assert [row["row"] for row in sorted(rows_on_disk(data / "arms"), key=lambda row: row["row"])] == closed_rows(
            640
        )
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(60) == 0, (tmp_path / "serve.log").read_text()
    finally:
        uplink.kill()
        uplink.wait()
        serving.kill()
        serving.wait()


async def test_status_and_agents_print_what_is_retained(tmp_path: Path, broker: Mosquitto) -> None:
    import asyncio

    path, data = fleet_file(tmp_path, broker.url), tmp_path / "data"
    uplink = uplink_of(device(tmp_path, broker.url))
    fill(tmp_path / "robot", ticks(1_000, 1_100, begun_s=time.time() - 1_100))
    async with running(ingest_on(broker, data), uplink):
        await asyncio.to_thread(wait_for, lambda: covered(data) == 95, "rows on disk")
        listed = await asyncio.to_thread(verb, "agents", path, "--json")
        state = await asyncio.to_thread(verb, "status", path)
    assert '"robot": {"agent": "robot", "state": "online"' in listed.output
    assert "agents: 1 online of 1" in state.output
    assert "ingest-0: online" in state.output


def test_a_report_is_shown_without_markup_and_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def collect(_settings: object) -> GroupReport:
        return GroupReport({"a": AgentReport(agent="a", state="online", policy="[/]x", apart="\x1b[2Jgone")})

    monkeypatch.setattr("runtime.fleet.reports.collect", collect)
    shown = verb("agents", fleet_file(tmp_path, "mqtt://127.0.0.1:1"))
    assert shown.exit_code == 0
    assert "[/]x" in shown.output
    assert "\x1b" not in shown.output


def test_enroll_makes_a_user_that_may_write_its_own_topics_alone(tmp_path: Path, broker: Mosquitto) -> None:
    path = fleet_file(tmp_path, broker.url)
    first, second = verb("enroll", path, "robot"), verb("enroll", path, "arm-7")
    assert "username: robot" in first.output
    assert f"url: {broker.url}" in second.output
    folder = tmp_path / "data" / "enrolled"
    assert [line.partition(":")[0] for line in (folder / "passwords").read_text().splitlines()] == ["robot", "arm-7"]
    rules = (folder / "acl").read_text().partition("user robot\n")[2].splitlines()
    assert rules[0] == "topic write reflexd/fleet/arms/up/robot"
    assert "topic read reflexd/fleet/arms/ack/robot" in rules
    assert not any("arm-7" in rule for rule in rules)
    assert (folder / "passwords").stat().st_mode & 0o077 == 0
    assert verb("enroll", path, "fleet").exit_code == 2


def test_what_is_wrong_is_named_and_a_second_server_is_refused(tmp_path: Path) -> None:
    path = fleet_file(tmp_path, f"embedded://127.0.0.1:{free_port()}")
    with exclusive_lock(tmp_path / "data"):
        refused = verb("serve", path)
    assert refused.exit_code == 1
    path.write_text("group: arms\ndata: d\ningests: many\n")
    assert "ingests: Input should be a valid integer" in verb("serve", path).output
    with pytest.raises(FleetSettingsError, match=r"mqtt.url"):
        load_fleet(fleet_file(tmp_path, "http://broker"))
