"""Run one tick: observe, decide, act, store the transition.

The loop does input and output only; the policy runs in the engine's own thread. The pacer counts a tick that overruns, and
the next tick starts at the next deadline still ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actuators.actions import Action, Value
from actuators.safety.decisions import Proposal
from learners.experience.store import Store
from learners.experience.transition import By, Transition
from learners.rewards.tick_rewards import TickRewards
from runtime.control.actuator_conditions import Conditions
from runtime.control.inbox import Inbox
from runtime.control.tick_version import TickVersion
from runtime.gate import ipc
from runtime.gate.client import GateLink
from runtime.inference.engine import Engine, InferenceResult
from runtime.inference.second_version import OtherDecision
from runtime.process.pacing import Clock, Pacer
from sensors.base import PayloadRefused
from sensors.readings import Observation

COMPARE_WITHIN = 0.25
"""Share of a tick after which the other version of an experiment is not computed any more."""
LATENCIES = 600
"""Ticks over which p50 and p99 are taken: a minute at 10 Hz."""


@dataclass(frozen=True, slots=True)
class TickResult:
    """Everything about one finished tick, for the components that listen to ticks."""

    observation: Observation
    decided: InferenceResult
    verdict: ipc.GateVerdict | None
    decision: str
    executed: dict[str, Value]
    """What each actuator was commanded at this tick."""
    by: dict[str, By]
    """Who decided that command, by actuator."""
    stamp_unix_s: float
    latency_s: float
    """From the tick's deadline to the proposal at the gate: a tick that starts late is slow."""
    stored: bool
    """The experience store took the transition."""
    mode: str
    explore: bool
    answered_s: float
    """From the observation to the gate's verdict, which comes after the command has left; 0 without one."""
    reward: float | None = None
    """The sum of the settings' own rewards (expressions and plug-ins) that the decision before has earned, by what this tick sees; None
    where there are none."""
    arm: TickVersion | None = None
    """The place of this tick in the live experiment."""
    other: OtherDecision | None = None
    """What the version that it is compared with would have done; None where none is, or where time was short."""


ChooseVersion = Callable[[int, Collection[str]], TickVersion]
"""Return which of the loaded versions acts at a tick; called between two ticks, must not block."""
TickListener = Callable[[TickResult], None]
"""Take one finished tick in the event loop; must not block."""


@dataclass(slots=True)
class Utterances:
    """Text that waits for the next proposal, by text actuator; the newest wins."""

    waiting: dict[str, str] = field(default_factory=dict)

    def take(self) -> dict[str, Value]:
        """Remove and return what waits."""
        taken: dict[str, Value] = dict(self.waiting)
        self.waiting.clear()
        return taken


@dataclass(slots=True)
class ControlLoop:
    """Ticks of one agent session.

    Args:
        session: prefix of every decision's id.
        pacer: says when the next tick starts.
        clock: monotonic seconds.
        wall: Unix seconds.
        inbox: the newest reading of each stream.
        engine: decides.
        gate: takes proposals and returns verdicts.
        store: takes transitions; never blocks.
        rewards: those that are computed at every tick.
        utterances: text that text actuators are to say.
        listeners: called with every finished tick, in this order.
    """

    session: str
    pacer: Pacer
    clock: Clock
    wall: Callable[[], float]
    inbox: Inbox
    engine: Engine
    gate: GateLink
    store: Store
    rewards: TickRewards
    utterances: Utterances
    listeners: Sequence[TickListener]
    shadow: Callable[[], bool] = lambda: False
    """Whether the gate must not carry out the policy's actions, because nothing says which policy may act."""
    conditions: Conditions = field(default_factory=lambda: Conditions((), {}))
    """On telemetry, without which an actuator does not act."""
    field_versions: Mapping[str, str] = field(default_factory=dict)
    """By telemetry stream, what its numbers mean (`learners.model.spec.fields_version`); stored with each transition."""
    refuse: Callable[[str, PayloadRefused], None] = lambda _stream, _refusal: None
    """Counts a reading that is of no use to the policy, and publishes why."""
    choose: ChooseVersion | None = None
    """Says which version acts; without it, the one that the engine has activated."""
    explore: bool = True
    mode: str = "autonomous"
    degraded: dict[str, str] = field(default_factory=dict)
    """What the agent does not do any more although it should, by its name: the reason. The gate's status shows it."""
    count: int = 0
    _executed: dict[str, Value] | None = None
    """What was executed at the tick before; None at the first one."""
    _allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the gate would let pass at the next tick, by choice actuator; absent where these are all choices."""
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES))

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await self.tick(await self.pacer.next())

    async def tick(self, index: int) -> TickResult:
        """Run one tick and hand the result to the listeners."""
        observation = replace(self.inbox.observe(index, self.clock.now()), allowed=self._allowed)
        explore = self.explore and self.mode == "autonomous"  # only where actions are carried out
        arm = await self._activate(index)
        decided = await self.engine.decide(observation, explore=explore)
        for stream in decided.not_finite:
            if stream in observation.fresh:
                self.refuse(
                    stream,
                    PayloadRefused("not_finite", "its tokens or numbers are not finite in the policy's precision"),
                )
        observation = observation.without(decided.not_finite)
        decision = f"{self.session}-{index}"
        verdict, latency_s = await self._act(observation, decided, decision)
        self._allowed = verdict.allowed if verdict is not None else {}
        overridden = verdict.overridden if verdict is not None else {}
        earned = self._earned(observation, overridden)
        self.store.release(earned or 0.0, overridden)
        executed, by = executed_actions(decided.actions, verdict)
        now_s = self.clock.now()
        other = await self._compare(arm, now_s - observation.stamp_s)
        stamp_unix_s = self.wall() - (now_s - observation.stamp_s)
        transition = self._transition(observation, decided, decision, stamp_unix_s, verdict)
        result = TickResult(
            observation=observation,
            decided=decided,
            verdict=verdict,
            decision=decision,
            executed=executed,
            by=by,
            stamp_unix_s=stamp_unix_s,
            latency_s=latency_s,
            stored=self.store.hold(transition),
            reward=earned,
            mode=self.mode,
            explore=explore,
            arm=arm,
            other=other,
            answered_s=0.0 if verdict is None else now_s - observation.stamp_s,
        )
        self._executed = executed
        for listener in self.listeners:
            listener(result)
        return result

    def _earned(self, observation: Observation, overridden: Mapping[str, Value]) -> float | None:
        """Compute what the decision before has earned; None without such rewards or decision.

        Args:
            observation: what this tick sees.
            overridden: what a person commanded since that decision, by actuator: these are its actions then.
        """
        if not self.rewards or self._executed is None:
            return None
        return self.rewards.at(observation, {**self._executed, **overridden})

    async def _activate(self, index: int) -> TickVersion | None:
        """Let the version act that the live experiment names for this tick."""
        if self.choose is None:
            return None
        arm = self.choose(index, self.engine.loaded)
        if arm.version != self.engine.version and arm.version in self.engine.loaded:
            await self.engine.activate(arm.version)
        return arm

    async def _compare(self, arm: TickVersion | None, spent_s: float) -> OtherDecision | None:
        """Return what the other version of the pair would have done, after the command has left and if the tick has time for it."""
        if arm is None or arm.other is None or spent_s > self.pacer.period_s * COMPARE_WITHIN:
            return None
        return await self.engine.compare(arm.other)

    async def _act(
        self, observation: Observation, decided: InferenceResult, decision: str
    ) -> tuple[ipc.GateVerdict | None, float]:
        """Send the proposal to the gate; return its verdict and the seconds from the deadline to the proposal."""
        actions = {name: action.value for name, action in decided.actions.items()} | self.utterances.take()
        proposal = Proposal(
            tick=observation.tick,
            decision=decision,
            policy=decided.policy,
            stamp_s=observation.stamp_s,
            actions=actions,
            stale=tuple(sorted({*observation.missing, *observation.unknown_age, *self.conditions.unmet(observation)})),
            readings=self.conditions.named(observation),
            degraded=tuple(ipc.shortened(f"{name}: {reason}") for name, reason in sorted(self.degraded.items())),
            shadow=self.shadow(),
        )
        latency_s = self.clock.now() - min(observation.stamp_s, self.pacer.deadline(observation.tick))
        verdict = await self.gate.propose(proposal, patience_s=self.pacer.period_s / 2)
        self.count += 1
        self.latencies_s.append(latency_s)
        if verdict is not None:
            self.mode = overall_mode(verdict.mode)
        return verdict, latency_s

    def _transition(
        self,
        observation: Observation,
        decided: InferenceResult,
        decision: str,
        stamp_unix_s: float,
        verdict: ipc.GateVerdict | None,
    ) -> Transition:
        executed, by = executed_actions(decided.actions, verdict)
        return Transition(
            session=self.session,
            tick=observation.tick,
            decision=decision,
            stamp_s=stamp_unix_s,
            policy=decided.policy,
            tokens=decided.tokens,
            encoder_versions={**self.field_versions, **decided.encoder_versions},
            present={name: name in observation.readings for name in (*observation.readings, *observation.missing)},
            ages_s=dict(observation.ages_s),
            actions=executed,
            proposed={name: action.value for name, action in decided.actions.items()},
            refused={} if verdict is None else {n: o.rule for n, o in verdict.outcomes.items() if o.rule is not None},
            probabilities={name: action.probability for name, action in decided.actions.items()},
            by=by,
            allowed=observation.allowed,
            armed=verdict is not None and verdict.armed and not verdict.stopped,
            intervention="override" in by.values(),
            value=decided.value,
        )


def executed_actions(
    proposed: dict[str, Action], verdict: ipc.GateVerdict | None
) -> tuple[dict[str, Value], dict[str, By]]:
    """Return what each actuator was commanded at this tick, and by whom; without a verdict nothing moved."""
    if verdict is None:
        return {}, dict.fromkeys(proposed, "none")
    executed = {n: o.value for n, o in verdict.outcomes.items() if o.value is not None and o.by != "none"}
    return executed, {name: _credit(proposed.get(name), outcome) for name, outcome in verdict.outcomes.items()}


def _credit(proposed: Action | None, outcome: ipc.Outcome) -> By:
    """Credit the policy with what left at this tick, not with an earlier action that a refusal left in force."""
    if outcome.by == "policy" and not outcome.sent and (proposed is None or proposed.value != outcome.value):
        return "none"
    return outcome.by


def overall_mode(modes: Mapping[str, str]) -> str:
    """Return the most careful mode of any actuator: the one a person should read."""
    return min(modes.values(), key=("shadow", "assist", "autonomous").index, default="autonomous")
