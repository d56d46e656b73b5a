"""A whole daemon in virtual time: the agent of `runtime.agent.build`, the learner's loop and a simulated plant in one process.

Real: engine, control loop, feedback, outcomes, deployment, experience store, learner, promotion steps. Replaced: the clocks, the
broker (messages go straight to their handlers) and the gate, which lets every action pass. With `judged`, the gate's own checks decide
and overrides act; only its process is missing. The learner does every update it owes once a virtual second, as a daemon does that
keeps up. An hour at 50 Hz takes minutes, and the same seeds give the same run.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
import yaml
from at_once import AtOnce

from actuators.actions import Value
from actuators.safety.decisions import ActuatorDecision, Proposal
from actuators.safety.gate import Gate
from actuators.sim.plant import Plant
from actuators.sim.registry import build_plant, plant_settings
from actuators.wire import CommandWriter, DeviceMessage
from learners.ipc.settings import LearnerConfig
from learners.worker.loop import LearnerLoop
from runtime.agent.build import build
from runtime.agent.components import Components
from runtime.config.loader import load
from runtime.config.schema import Config
from runtime.gate import ipc
from runtime.gate.agent_channel import outcomes_of
from runtime.process.pacing import Pacer
from sensors.base import TopicSensor

BEGUN_S = 1_750_000_000.0
LEARNER_EVERY_S = 1.0


class VirtualClock:
    """Monotonic seconds that only `sleep_until` moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def now(self) -> float:
        """Return the moment."""
        return self.now_s

    def wall(self) -> float:
        """Return it as Unix seconds."""
        return BEGUN_S + self.now_s

    async def sleep_until(self, deadline_s: float) -> None:
        """Move to the deadline."""
        self.now_s = max(self.now_s, deadline_s)


@dataclass
class PassingGate:
    """Lets every action pass."""

    latest: ipc.GateVerdict | None = None
    unsent: int = 0
    unanswered: int = 0

    async def propose(self, proposal: Proposal, patience_s: float) -> ipc.GateVerdict:
        """Answer one proposal."""
        del patience_s
        outcomes = {name: ipc.Outcome(True, None, value, "policy") for name, value in proposal.actions.items()}
        self.latest = ipc.GateVerdict(proposal.decision, True, False, dict.fromkeys(outcomes, "autonomous"), outcomes)
        return self.latest


class JudgingGate:
    """The checks of `actuators.safety.gate`; what they let pass goes to `send` (actuator, value, decision, version)."""

    unsent = unanswered = 0

    def __init__(
        self, config: Config, clock: VirtualClock, send: Callable[[str, Value, str | None, str], None]
    ) -> None:
        self.latest: ipc.GateVerdict | None = None
        self._period_s, self._clock, self._send = config.tick.period_s, clock, send
        required = [name for name, stream in config.streams.items() if stream.required]
        self.gate = Gate(
            config.actuators, config.gate, required, period_s=self._period_s, now_s=clock.now(), mode=config.mode
        )
        self.gate.connected(clock.now())
        for name, each in config.actuators.items():
            self.gate.reconciled(name, each.safe, clock.now())
        self._apply(self.gate.go_safe(clock.now()))

    async def propose(self, proposal: Proposal, patience_s: float) -> ipc.GateVerdict:
        """Judge one proposal; a command that passes has arrived when this returns."""
        del patience_s
        gate, now_s = self.gate, self._clock.now()
        rulings = gate.judge(proposal, now_s)
        self._apply(rulings, proposal)
        self.latest = ipc.GateVerdict(
            proposal.decision, gate.armed, gate.stopped, gate.modes, outcomes_of(gate, rulings),
            overridden=gate.short_overrides, allowed=gate.allowed_choices(now_s + self._period_s),
        )  # fmt: skip
        return self.latest

    def override(self, name: str, body: Mapping[str, Any]) -> None:
        """Carry out a person's command."""
        self._apply([self.gate.override(name, body["value"], body["hold_s"], self._clock.now())])

    def _apply(self, rulings: Iterable[ActuatorDecision], proposal: Proposal | None = None) -> None:
        for ruling in rulings:
            if ruling.value is None:
                continue
            ours = proposal if ruling.by == "policy" else None
            decision, version = (ours.decision, ours.policy) if ours is not None else (None, ruling.by)
            self._send(ruling.actuator, ruling.value, decision, version)
            self.gate.acknowledged(ruling.actuator, ruling.serial, self._clock.now())


class NeverWaits(threading.Event):
    """A stop signal for a loop with waits that take no time."""

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once."""
        del timeout
        return self.is_set()


@dataclass
class VirtualDaemon:
    """One daemon and its plant."""

    parts: Components
    plant: Plant
    clock: VirtualClock
    learner: LearnerLoop | None
    events: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)
    """Virtual seconds since the start, type, data."""
    returns: list[tuple[float, float, int]] = field(default_factory=list)
    """Virtual seconds, return and length of every finished episode of a gymnasium plant."""
    states: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """Virtual seconds and what any other plant publishes on `plant`."""
    judging: JudgingGate | None = None
    """Its checks decide; without it every action passes."""
    acted: list[str] = field(default_factory=list)
    """Version of every tick."""
    overruns: float = 0.0
    """Share of ticks at which the command leaves one to two periods late."""
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    """Says which ticks are late."""
    _commands: CommandWriter = field(init=False)
    _begun_s: float = field(init=False)
    _sensors: dict[str, TopicSensor] = field(init=False)
    """By topic."""

    def __post_init__(self) -> None:
        config = self.parts.config
        self._commands = CommandWriter(f"reflexd/{config.agent}", config.actuators, "boot")
        self._begun_s = self.clock.now()
        self._sensors = {
            sensor.topic or f"reflexd/{config.agent}/in/{name}": sensor
            for name, sensor in self.parts.sensors.items()
            if isinstance(sensor, TopicSensor)
        }

    def judge(self) -> None:
        """Let the gate's own checks decide from now on."""
        self.judging = JudgingGate(self.parts.config, self.clock, self._command)
        self.parts.control_loop.gate = self.judging  # type: ignore[assignment]

    @property
    def now_s(self) -> float:
        """Virtual seconds since the start."""
        return self.clock.now() - self._begun_s

    async def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let virtual time pass."""
        loop, period_s = self.parts.control_loop, self.parts.config.tick.period_s
        every, poll = max(1, round(LEARNER_EVERY_S / period_s)), max(1, round(0.2 / period_s))
        self._deliver(self.plant.step(self.clock.wall()))
        for _ in range(round(seconds / period_s)):
            index = await loop.pacer.next()
            result = await loop.tick(index)
            self.acted.append(result.decided.policy)
            if self.chance.random() < self.overruns:
                self._delay(self.chance.uniform(1, 2) * period_s)
            if self.judging is None and result.verdict is not None:
                for name, outcome in result.verdict.outcomes.items():
                    if outcome.value is not None:
                        self._command(name, outcome.value, result.decision, result.decided.policy)
            self._deliver(self.plant.step(self.clock.wall() + period_s / 4))
            if self.learner is not None and index % every == 0:
                self.parts.store.flush()
                self.parts.experiments.file.write()  # by it, the learner's checkpoint store knows which versions are needed
                self.learner.step()
            if index % poll == 0:
                await self.parts.learner_events.forward()
                await self.parts.policy_updater.sync()
            if until():
                return

    def _command(self, name: str, value: Value, decision: str | None, version: str) -> None:
        command = self._commands.write(
            name, value, decision=decision, policy=version, stamp_s=self.clock.wall(), ttl_ms=10_000
        )
        self._deliver(self.plant.receive(command.topic, command.payload, retained=False, now_s=self.clock.wall()))

    def _delay(self, seconds: float) -> None:
        """Let time pass within a tick, while the device's own clock goes on."""
        until_s, quarter_s = self.clock.now_s + seconds, self.parts.config.tick.period_s / 4
        while self.clock.now_s < until_s:
            self.clock.now_s = min(until_s, self.clock.now_s + quarter_s)
            self._deliver(self.plant.step(self.clock.wall()))

    def _deliver(self, messages: list[DeviceMessage]) -> None:
        base = f"reflexd/{self.parts.config.agent}/"
        for message in messages:
            topic = message.topic.removeprefix(base)
            if topic == "reward":
                self.parts.feedback.reward(message.payload)
            elif topic == "plant":
                body = orjson.loads(message.payload)
                if "return" in body:
                    self.returns.append((self.now_s, body["return"], body["length"]))
                else:
                    self.states.append((self.now_s, body))
            elif topic.startswith("override/") and self.judging is not None:
                self.judging.override(topic.removeprefix("override/"), orjson.loads(message.payload))
            elif message.topic in self._sensors:
                reading = self._sensors[message.topic].decode(message.payload, self.clock.now())
                if reading is not None:
                    self.parts.inbox.put(reading)

    def reported(self, kind: str) -> list[tuple[float, dict[str, Any]]]:
        """Return the events of a type."""
        return [(at_s, data) for at_s, one, data in self.events if one == kind]


def _settings(environment: str, config: Path | None) -> dict[str, Any]:
    if config is None:
        return plant_settings(environment, agent="virtual", rate_hz=None)
    found: dict[str, Any] = yaml.safe_load(config.read_text())
    return found


@contextlib.asynccontextmanager
async def virtual_daemon(
    folder: Path,
    environment: str,
    *,
    seed: int = 0,
    config: Path | None = None,
    judged: bool = False,
    prepare: Callable[[Path], object] | None = None,
    **changes: Any,
) -> AsyncIterator[VirtualDaemon]:
    """Build a daemon for an environment; `changes` replace parts of the settings.

    Args:
        folder: for settings and state.
        environment: a gymnasium id, or another plant of `build_plant`.
        seed: of plant and learner.
        config: settings file; by default what `reflexd plant --config` prints.
        judged: the gate's own checks decide, and overrides act.
        prepare: called with the path of the settings before anything is built.
        changes: top-level settings; mappings are merged.
    """
    settings = _settings(environment, config)
    settings |= {"mqtt": {"url": "mqtt://127.0.0.1:9"}, "state_dir": str(folder / "state"), "device": "cpu"}
    changes.setdefault("learner", {})
    changes["learner"] = {"seed": seed, **changes["learner"]}
    for name, value in changes.items():
        settings[name] = settings.get(name, {}) | value if isinstance(value, dict) else value
    overrides = settings.get("plant", {}).get("simulated_overrides", False)
    for name in ("plant", "dashboard", "metrics"):  # what runs in processes and servers of its own
        settings.pop(name, None)
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    if prepare is not None:
        prepare(path)
    clock = VirtualClock()
    gate, end = ipc.pair()
    with ThreadPoolExecutor(1) as decoders, gate, end:
        parts = await build(load(path), end, [], decoders, wall=clock.wall)
        loop = parts.control_loop
        loop.clock, loop.wall, loop.pacer = clock, clock.wall, Pacer(loop.pacer.period_s, clock)
        loop.gate = PassingGate()  # type: ignore[assignment]
        parts.feedback.now = clock.now
        parts.engine._inference.shutdown()
        parts.engine._inference = AtOnce()
        parts.write_spec()
        learner = None
        if parts.config.learner.enabled:
            torch.manual_seed(seed)
            inputs = LearnerConfig.model_validate(parts.config.model_dump())
            learner = LearnerLoop(inputs, parts.engine.spec, NeverWaits(), clock=clock.now)
            learner.begin()
        plant = build_plant(
            environment, agent=parts.config.agent, seed=seed, rate_hz=None, simulated_overrides=overrides
        )
        daemon = VirtualDaemon(parts, plant, clock, learner)
        if judged:
            daemon.judge()
        publish = parts.reporter.metrics.observe_event

        def observe(kind: str, data: dict[str, Any]) -> None:
            daemon.events.append((daemon.now_s, kind, data))
            publish(kind, data)

        parts.reporter.metrics.observe_event = observe  # type: ignore[method-assign]
        try:
            yield daemon
        finally:
            if learner is not None:
                learner.finetuning.close()
                learner.reader.close()
                learner.reencoder.recoded.close()
            parts.close(clean=True)
