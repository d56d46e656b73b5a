"""The assembled agent without a broker, with a clock that the test moves and a gate that lets everything pass."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import canaries
import yaml
from free_ports import free_port

from actuators.safety.decisions import Proposal
from runtime.agent.build import build
from runtime.agent.components import Components
from runtime.agent.jobs import jobs
from runtime.config.loader import load
from runtime.gate import ipc

SETTINGS: dict[str, Any] = {
    "agent": "small",
    "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["angle"]}},
    "actuators": {"head": {"kind": "choice", "choices": ["left", "stay", "right"], "safe": "stay"}},
    "rewards": [{"name": "feedback", "kind": "topic", "max_per_s": 1e6}],
    "learner": {"enabled": False},
    "policy": {"gamma": 0.5},
}


class Wall:
    """Unix time that the test moves."""

    now_s = 1_750_000_000.0

    def time(self) -> float:
        return self.now_s


async def answer(gate: socket.socket) -> None:
    """A gate that lets everything pass."""
    loop = asyncio.get_running_loop()
    while True:
        offer = ipc.unpack(await loop.sock_recv(gate, ipc.MAX_MESSAGE))
        assert isinstance(offer, Proposal)
        outcomes = {name: ipc.Outcome(True, None, value, "policy") for name, value in offer.actions.items()}
        verdict = ipc.GateVerdict(offer.decision, True, False, dict.fromkeys(outcomes, "autonomous"), outcomes)
        gate.send(ipc.pack(verdict))


@asynccontextmanager
async def agent(
    folder: Path, wall: Wall, *, rewards: list[dict[str, Any]] | None = None, record: bool = False, **changes: Any
) -> AsyncIterator[Components]:
    """Everything `build` builds, with the tasks that matter here."""
    settings = SETTINGS | {
        "state_dir": str(folder / "state"), "mqtt": {"url": f"mqtt://127.0.0.1:{free_port()}", **canaries.LOGIN},
        "rewards": rewards or SETTINGS["rewards"], "record": {"enabled": record}, **changes,
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    gate, end = ipc.pair()
    with ThreadPoolExecutor(1) as decoders, gate, end:
        parts = await build(load(path), end, [], decoders, wall=wall.time)
        all_jobs = jobs(parts)
        running = [all_jobs.pop(name) for name in ("gate", "policy", "experiments", "sources")]
        for job in all_jobs.values():
            job.close()
        tasks = [asyncio.create_task(job) for job in (answer(gate), *running)]
        try:
            yield parts
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.to_thread(parts.close, clean=True)
