"""A verb without a daemon ends soon, and one with an agent that answers late waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
from wire_helpers import address, running

from fakes import Mosquitto
from runtime.config.loader import LoadedConfig, load
from runtime.console import client
from runtime.console.client import NoAnswer, send_request
from runtime.mqtt import Connection, Message


@pytest.fixture
def loaded(broker: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedConfig:
    monkeypatch.setattr(client, "PROBE_S", 0.3)
    monkeypatch.setattr(client, "STATUS_S", 0.1)
    path = tmp_path / "robot.yaml"
    path.write_text(
        f"""agent: robot
state_dir: {tmp_path}/state
mqtt: {{url: "mqtt://127.0.0.1:{broker.port}"}}
streams: {{joints: {{kind: telemetry, source: topic, fields: [a]}}}}
actuators: {{head: {{kind: choice, choices: [left, right], safe: left}}}}
"""
    )
    return load(path)


def test_without_a_daemon_a_long_request_ends_soon(loaded: LoadedConfig) -> None:
    with pytest.raises(NoAnswer, match=r"the daemon robot is off: .*\(no status and no answer within 0\.3 s\)"):
        send_request(loaded, "explain", {"decision": "a-1"}, timeout_s=65.0)


async def test_an_agent_that_answers_late_is_waited_for(loaded: LoadedConfig, broker: Mosquitto) -> None:
    """An explanation may take longer than the answer to a question that needs no work; a gate's verb is never held back."""
    agent = Connection(address(broker.port), "agent", response_prefix="reflexd/robot/response/")

    def answer(message: Message) -> None:
        body = orjson.dumps({"status": "ok", "data": {"verb": message.topic.rpartition("/")[2]}})
        delay_s = 0.8 if message.topic.endswith("explain") else 0.0
        asyncio.get_running_loop().call_later(delay_s, agent.reply, message, body, "reflexd/robot/response/late")

    agent.subscribe("reflexd/robot/request/+", answer)
    async with running(agent):
        for verb in ("explain", "disarm"):
            assert await asyncio.to_thread(send_request, loaded, verb, {}, timeout_s=20.0) == {"verb": verb}
