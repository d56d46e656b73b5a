"""A control loop of real parts that records sessions begun at random moments, for replays that must come out bit for bit.

Real: control loop, inbox, engine with an encoder that is swapped, checkpoints, reporter, recording requests, replay. Played: the
clock, the readings and the gate, which answers after a random number of the loop's turns: a recording begins anywhere in a tick.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import tinymodels
import torch
from prometheus_client import CollectorRegistry
from task_versions import promote_version

from actuators.safety.decisions import Proposal
from fakes import FakeClock
from learners.checkpoints.store import open_checkpoints
from learners.rewards.tick_rewards import TickRewards
from runtime.config.schema import Config
from runtime.control.inbox import Inbox
from runtime.control.tick import ControlLoop, Utterances
from runtime.deploy.encoder_updater import EncoderUpdater
from runtime.gate import ipc
from runtime.inference.build import build_engine
from runtime.inference.engine import UNTRAINED, Engine
from runtime.monitoring.metrics import Metrics
from runtime.monitoring.reporter import Reporter
from runtime.mqtt.topics import Topics
from runtime.process.pacing import Pacer
from runtime.recording.replay import ReplayReport, replay_file
from runtime.requests.record import RecordingController
from sensors.readings import Telemetry, Text

ORDERS = ("go left", "stop now", "please go", "is the red")
PERIOD_S = 0.05
VERSIONS = 3


def config_of(folder: Path) -> Config:
    """A text stream with a trained encoder, telemetry, a choice and a continuous actuator."""
    model = str(tinymodels.bert(folder / "model"))
    return Config.model_validate(
        {
            "agent": "a",
            "state_dir": folder / "state",
            "streams": {
                "orders": {"kind": "text", "source": "topic", "encoder": "language", "ttl_s": 0.4},
                "joints": {"kind": "telemetry", "source": "topic", "fields": ["q", "v"], "max_age_s": 0.1},
            },
            "encoders": {"language": {"model": model, "follow_task": True}},
            "actuators": {
                "head": {"kind": "choice", "choices": ["a", "b", "c"], "safe": "a"},
                "arm": {"kind": "continuous", "low": [-1, -1], "high": [1, 2], "safe": [0, 0]},
            },
            "policy": {"width": 16, "heads": 2, "latents": 2, "layers": 1, "history": 4, "hidden": [16]},
            "tasks": {"intents": {"kind": "text-classification", "stream": "orders", "model": model}},
            "engine": {"backend": "torch", "precision": "float32"},
        }
    )


class Silent:
    """A connection that carries nothing, and remembers the events."""

    connected, connects = False, 0

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def enqueue(self, topic: str, payload: bytes, **_: object) -> None:
        """Drop it, unless it is an event."""
        if topic.endswith("/event"):
            self.events.append(orjson.loads(payload))


class World:
    """Sessions of one agent, driven by one seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.config = config_of(folder)
        self.chance = random.Random(seed)
        self.versions: list[str] = []
        self.paths: list[Path] = []
        self.swaps = 0

    def prepare(self) -> None:
        """Save versions with continuous actuators that wander half of the time."""
        checkpoints = open_checkpoints(self.config.state_dir, self.config.promotion)
        engine = build_engine(self.config, checkpoints)
        for number in range(VERSIONS):
            torch.manual_seed(number)
            state = {k: x + 0.3 * torch.randn_like(x) if x.dtype == torch.float32 and x.dim() else x.clone()
                     for k, x in engine.policy.state_dict().items()}  # type: ignore[attr-defined] # fmt: skip
            state["heads.continuous.epsilon"] = torch.tensor(0.5)
            state["heads.choice.epsilon"] = torch.tensor(0.2)
            self.versions.append(checkpoints.save({"policy": state}, {}))
            checkpoints.promote(self.versions[-1])
        engine.close()

    async def session(self, recordings: int) -> None:
        """Start the agent once and make recordings, one after the other."""
        checkpoints = open_checkpoints(self.config.state_dir, self.config.promotion)
        engine = await asyncio.to_thread(build_engine, self.config, checkpoints)
        await engine.switch(self.chance.choice([*self.versions, UNTRAINED]))
        stage = Stage(self, engine)
        for _ in range(recordings):
            await stage.ticks(self.chance.randrange(1, 15), begin=True)
            await stage.ticks(self.chance.randrange(8, 25))
            answer = await stage.controller.end()
            self.paths.append(Path(answer["path"]))
        engine.close()

    async def replay(self, path: Path) -> ReplayReport:
        """Decide a recording again."""
        return await asyncio.to_thread(replay_file, path, self.config)


class Stage:
    """One session."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world, self.engine, self.chance = world, engine, world.chance
        self.clock, self.count = FakeClock(100.0), 0
        self.inbox = Inbox(world.config.streams)
        self.updater = EncoderUpdater(world.config, engine, lambda *_: None)
        metrics = Metrics(CollectorRegistry(), agent="a", version=version("reflexd"))
        self.link = Silent()
        self.reporter = Reporter(self.link, Topics("a"), metrics)  # type: ignore[arg-type]
        self.control: Any = ControlLoop(
            session=f"{world.chance.randrange(1 << 40):x}",
            pacer=Pacer(PERIOD_S, self.clock),
            clock=self.clock,
            wall=lambda: 1e9 + self.clock.now(),
            inbox=self.inbox,
            engine=engine,
            gate=self,  # type: ignore[arg-type]
            store=SimpleNamespace(hold=lambda _: True, release=lambda *_: True),  # type: ignore[arg-type]
            rewards=TickRewards(()),
            utterances=Utterances(),
            listeners=[self.reporter.ticked],
        )
        self.controller = RecordingController(world.config, self.control, self.reporter, self.clock.now)
        self.begun: asyncio.Task[Any] | None = None
        self.begin_at = (-1, 0)

    async def propose(self, proposal: Proposal, patience_s: float) -> ipc.GateVerdict | None:
        """Answer after some turns of the loop, at times nothing or not all choices; the recording may begin in any turn."""
        for turn in range(self.chance.randrange(6)):
            self._maybe_begin(turn)
            await asyncio.sleep(0)
        allowed = self.chance.choice([{}, {}, {"head": ("a", "c")}, {"head": ("b",)}])
        return self.chance.choice([None, ipc.GateVerdict(proposal.decision, False, False, {}, allowed=allowed)])

    async def ticks(self, count: int, *, begin: bool = False) -> None:
        """Run some ticks; within one of them, or between two, the recording begins."""
        if begin:
            self.begin_at = (self.count + self.chance.randrange(count), self.chance.randrange(-1, 4))
        for _ in range(count):
            self._sense()
            await self._change()
            self._maybe_begin(-1)
            await self.control.tick(self.count)
            self.count += 1
            self.clock.advance(PERIOD_S)
        if begin:
            self.begin_at = (-1, 0)
            if self.begun is None:
                self.begun = asyncio.create_task(self.controller.begin())
            await self.begun
            self.begun = None

    def _maybe_begin(self, turn: int) -> None:
        if (self.count, turn) == self.begin_at and self.begun is None:
            self.begun = asyncio.create_task(self.controller.begin())

    def _sense(self) -> None:
        """New readings now and then; both streams go missing at times."""
        now_s, n = self.clock.now(), self.count
        if n % 23 < 19 and self.chance.random() < 0.7:
            values = np.array([np.sin(n / 5), self.chance.random()], np.float32)
            self.inbox.put(Telemetry("joints", now_s, n, ("q", "v"), values))
        if n % 31 < 20 and self.chance.random() < 0.3:
            self.inbox.put(Text("orders", now_s, n, self.chance.choice(ORDERS)))

    async def _change(self) -> None:
        """Swap the policy or the encoder between two ticks, at times both."""
        if self.chance.random() < 0.08 and self.world.versions:
            await self.engine.switch(self.chance.choice(self.world.versions))
        if self.chance.random() < 0.02 and self.world.swaps < 2:
            self.world.swaps += 1
            promote_version(
                self.world.config.state_dir, "intents", self.world.config.tasks["intents"].model, self.world.swaps, 0.2
            )
            await self.updater.sync("language")


async def record(folder: Path, seed: int, sessions: int, recordings: int) -> World:
    """A world with sessions of `recordings` recordings each."""
    world = World(folder, seed)
    await asyncio.to_thread(world.prepare)
    for _ in itertools.repeat(None, sessions):
        await world.session(recordings)
    return world
