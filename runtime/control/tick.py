"""One tick: observe, decide, act, remember.

The loop does input and output only; the model runs in the engine's own thread. A tick that overruns is counted by the
pacer and followed by the next deadline still ahead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from actuators.actions import Action, Value
from actuators.safety.decisions import Proposal
from learners.experience.transition import By, Transition
from runtime.control.inbox import Inbox
from runtime.gate import ipc
from runtime.gate.client import GateLink
from runtime.inference.engine import Engine, InferenceResult
from runtime.process.pacing import Clock, Pacer
from sensors.readings import Observation

LATENCIES = 600
"""Ticks over which p50 and p99 are taken: a minute at 10 Hz."""


class TransitionSink(Protocol):
    """Where transitions go; never blocks."""

    def append(self, transition: Transition) -> bool:
        """Take one; False when it was dropped (and counted)."""


class TickRewards(Protocol):
    """Rewards computed at each tick from what is seen and done."""

    def at(self, observation: Observation, actions: dict[str, Value]) -> float:
        """Their sum."""


@dataclass(frozen=True, slots=True)
class TickResult:
    """Everything about one finished tick, for whoever reports it."""

    observation: Observation
    decided: InferenceResult
    verdict: ipc.Verdict | None
    decision: str
    stamp_unix_s: float
    latency_s: float
    """From the observation to the proposal at the gate."""
    remembered: bool
    mode: str
    explore: bool
    answered_s: float = 0.0
    """From the observation to the gate's verdict, which comes after the command has left; 0 without one."""


@dataclass(slots=True)
class Utterances:
    """Text waiting to be said by each text actuator; the newest wins."""

    waiting: dict[str, str] = field(default_factory=dict)

    def take(self) -> dict[str, Value]:
        """What is waiting, once."""
        taken: dict[str, Value] = dict(self.waiting)
        self.waiting.clear()
        return taken


@dataclass(slots=True)
class ControlLoop:
    """The loop of one agent session."""

    session: str
    pacer: Pacer
    clock: Clock
    inbox: Inbox
    engine: Engine
    gate: GateLink
    memory: TransitionSink | None
    rewards: TickRewards
    report: Callable[[TickResult], None]
    utterances: Utterances = field(default_factory=Utterances)
    explore: bool = True
    mode: str = "autonomous"
    count: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await self.tick(await self.pacer.next())

    async def tick(self, index: int) -> TickResult:
        """One pass from perception to memory."""
        observation = self.observe(index)
        explored = self.exploring
        decided = await self.decide(observation)
        decision = f"{self.session}-{index}"
        verdict, latency_s = await self.act(observation, decided, decision)
        answered_s = 0.0 if verdict is None else self.clock.now() - observation.stamp_s
        remembered, stamp_unix_s = self.remember(observation, decided, verdict, decision)
        ticked = TickResult(
            observation,
            decided,
            verdict,
            decision,
            stamp_unix_s,
            latency_s,
            remembered,
            self.mode,
            explored,
            answered_s,
        )
        self.report(ticked)
        return ticked

    @property
    def exploring(self) -> bool:
        """Whether actions are drawn with exploration: only where they are carried out."""
        return self.explore and self.mode == "autonomous"

    def observe(self, index: int) -> Observation:
        """The newest reading of every stream."""
        return self.inbox.observe(index, self.clock.now())

    async def decide(self, observation: Observation) -> InferenceResult:
        """The model's answer, computed off the loop. Exploration is for a policy that acts."""
        return await self.engine.decide(observation, explore=self.exploring)

    async def act(
        self, observation: Observation, decided: InferenceResult, decision: str
    ) -> tuple[ipc.Verdict | None, float]:
        """Offer the decision to the gate and hear what became of it."""
        actions = {name: action.value for name, action in decided.actions.items()} | self.utterances.take()
        proposal = Proposal(
            tick=observation.tick,
            decision=decision,
            policy=decided.policy,
            stamp_s=observation.stamp_s,
            actions=actions,
            stale=tuple(sorted(observation.missing)),
        )
        latency_s = self.clock.now() - observation.stamp_s
        verdict = await self.gate.propose(proposal, patience_s=self.pacer.period_s / 2)
        self.count += 1
        self.latencies_s.append(latency_s)
        if verdict is not None:
            self.mode = overall_mode(verdict.mode)
        return verdict, latency_s

    def remember(
        self, observation: Observation, decided: InferenceResult, verdict: ipc.Verdict | None, decision: str
    ) -> tuple[bool, float]:
        """The transition, to the store off the loop; whether it was taken, and its stamp in Unix seconds."""
        stamp_unix_s = time.time() - (self.clock.now() - observation.stamp_s)
        executed, by = executed_actions(decided.actions, verdict)
        transition = Transition(
            session=self.session,
            tick=observation.tick,
            decision=decision,
            stamp_s=stamp_unix_s,
            policy=decided.policy,
            tokens=decided.tokens,
            encoder_versions=decided.encoder_versions,
            present={name: name in observation.readings for name in (*observation.readings, *observation.missing)},
            ages_s=dict(observation.ages_s),
            actions=executed,
            probabilities={name: action.probability for name, action in decided.actions.items()},
            by=by,
            reward=self.rewards.at(observation, executed),
            intervention="override" in by.values(),
            value=decided.value,
        )
        remembered = self.memory.append(transition) if self.memory is not None else False
        return remembered, stamp_unix_s


def executed_actions(
    proposed: dict[str, Action], verdict: ipc.Verdict | None
) -> tuple[dict[str, Value], dict[str, By]]:
    """What each actuator was told at this tick and by whom; an unanswered proposal moved nothing."""
    if verdict is None:
        return {}, dict.fromkeys(proposed, "nobody")
    executed = {n: o.value for n, o in verdict.outcomes.items() if o.value is not None and o.by != "nobody"}
    return executed, {name: _credit(proposed.get(name), outcome) for name, outcome in verdict.outcomes.items()}


def _credit(proposed: Action | None, outcome: ipc.Outcome) -> By:
    """The policy is credited with what it proposed at this tick, not with an earlier action that a refusal left in force."""
    if outcome.by == "policy" and (proposed is None or proposed.value != outcome.value):
        return "nobody"
    return outcome.by


def overall_mode(modes: dict[str, str]) -> str:
    """The most careful mode of any actuator: that is what a person should read."""
    return min(modes.values(), key=("shadow", "assist", "autonomous").index, default="autonomous")
