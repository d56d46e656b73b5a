"""configs/node-red/ in a real Node-RED on a real mosquitto: what it sends arrives, and its sidebar shows what a person wants to see."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from free_ports import free_port

from fakes import Mosquitto, eventually, listening, wait_for
from fakes_agent import running

ROOT = Path(__file__).parents[2]
RED = ROOT / ".venv" / "node-red" / "node_modules" / "node-red" / "red.js"
FLOW = ROOT / "configs" / "node-red" / "reflexd-flow.json"
SETTINGS = """module.exports = {
  uiHost: "127.0.0.1", uiPort: %d, flowFile: "flow.json", credentialSecret: false, telemetry: { enabled: false, updateNotification: false },
  logging: { console: { level: "info" } },
};
"""
START_S = 60.0
PATIENCE_S = 30.0

pytestmark = pytest.mark.skipif(
    not (RED.exists() and shutil.which("node")), reason="Node-RED is missing: `make test` installs it with npm"
)


@pytest.fixture
def red(tmp_path: Path, broker: Mosquitto) -> Iterator[str]:
    """The address of a Node-RED that runs the example flow; only the broker's port differs from the file."""
    flow = json.loads(FLOW.read_text())
    next(node for node in flow if node["type"] == "mqtt-broker")["port"] = str(broker.port)
    port = free_port()
    (tmp_path / "flow.json").write_text(json.dumps(flow))
    (tmp_path / "settings.js").write_text(SETTINGS % port)
    command = ["node", str(RED), "--userDir", str(tmp_path), "--settings", str(tmp_path / "settings.js")]
    with (tmp_path / "red.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for(lambda: listening(port) and "Started flows" in (tmp_path / "red.log").read_text(), "Node-RED", START_S)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


class Sidebar:
    """What a person sees in Node-RED's debug sidebar: name of the node and message, oldest first."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        self.seen: list[tuple[str, Any]] = []

    async def shows(self, name: str, accept: Callable[[Any], bool] = lambda _: True) -> Any:
        """The first message of a debug node that is accepted, shown already or soon."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [body for shown, body in self.seen if shown == name and accept(body)]):
                entries = json.loads((await self._ws.receive()).data)
                received = [e["data"] for e in entries if e.get("topic") == "debug"]
                self.seen += [(data["name"], json.loads(data["msg"])) for data in received]
        return found[0]


@pytest.fixture
async def sidebar(red: str) -> AsyncIterator[Sidebar]:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{red}/comms") as ws:
        await ws.send_str(json.dumps({"subscribe": "debug"}))
        yield Sidebar(ws)


async def test_the_example_flow_orders_rewards_shows_and_stops(broker: Mosquitto, red: str, sidebar: Sidebar) -> None:
    async with running(broker.url, gives_orders=False) as agent, aiohttp.ClientSession() as http:

        def observed(topic: str, key: str) -> list[Any]:
            return [body for of, body in agent.observed if of == topic and key in body]

        decision = await sidebar.shows("decisions")
        assert set(decision["actions"]) == {"head", "arm"}
        assert (await sidebar.shows("status"))["state"] == "online"
        await eventually(lambda: observed("in/orders", "text"), "an order", PATIENCE_S)
        assert observed("in/orders", "text")[0] == {"text": "find the cat"}
        await eventually(lambda: len(observed("reward", "source")) > 1, "two rewards", PATIENCE_S)
        for reward in observed("reward", "source"):
            assert reward["source"] == "node-red"
            assert 0.0 <= reward["value"] <= 1.0
            assert reward["decision"] in {f"s-{n}" for n in range(1, agent.tick + 1)}
        assert (await http.post(f"{red}/inject/press")).status == 200
        await sidebar.shows("status", lambda body: body["state"] == "stopped")
        assert observed("stop", "engaged") == [{"engaged": True}]
