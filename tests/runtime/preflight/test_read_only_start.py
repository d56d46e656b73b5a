"""A start on a disk that refuses: what was there is read, and nothing that acts needs to write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import SmallDisk, small_disk

from learners.files import exclusive_lock, locked, private_folder
from runtime.config.mqtt_settings import MqttSettings
from runtime.dashboard.access.auth import token_file
from runtime.preflight.preflight import problems_and_warnings
from runtime.supervisor import broker

SETTINGS = """agent: robot
state_dir: {state}
mqtt: {{url: "mqtt://127.0.0.1:1"}}
streams: {{joints: {{kind: telemetry, source: topic, fields: [a], max_age_s: 1, required: true}}}}
actuators: {{head: {{kind: choice, choices: [left, stay, right], safe: stay}}}}
"""


@pytest.fixture(params=["read-only", "full"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "size=2m") as one:
        state = one.folder / "state"
        with exclusive_lock(state):
            private_folder(state / "checkpoints")
            with locked(state / "checkpoints"):
                pass
        token_file(state / "token")
        broker.prepare(MqttSettings(url="embedded://127.0.0.1:18123"), state)
        if request.param == "full":
            one.fill()
        else:
            one.remount("ro")
        yield one


def test_what_a_daemon_had_written_is_enough_for_its_next_start(disk: SmallDisk, tmp_path: Path) -> None:
    state = disk.folder / "state"
    config = tmp_path / "robot.yaml"
    config.write_text(SETTINGS.format(state=state))
    problems, _, loaded = problems_and_warnings(config, ports=False)
    assert problems == []
    assert loaded is not None
    with exclusive_lock(state), locked(state / "checkpoints"):
        first = token_file(state / "token")
    assert first == token_file(state / "token")
    assert "-c" in broker.prepare(MqttSettings(url="embedded://127.0.0.1:18123"), state).command
