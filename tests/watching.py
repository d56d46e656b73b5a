"""The demo's world in virtual time, with everything in the agent that judges policies and sources after the gate.

Real: the world's movement and rewards, reward payloads through `Feedback`, `OutcomeTracker`, `SourceQuarantine`, `ExperimentController`, signed `Checkpoints`,
`PolicyUpdater`. Scripted: the policies, which know where the picture is and err at a given rate, instead of an engine that sees; nothing is
drawn or spoken. A reward arrives one tick after its decision.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from at_once import AtOnce
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from actuators.actions import Action
from actuators.sim import panorama_world
from actuators.sim.panorama_world import TICK_S, TURNS, Turn, World
from learners.checkpoints.store import Checkpoints
from learners.config.rewards import TopicReward
from learners.experience.store import Label
from learners.ipc.outbox import Outbox
from learners.safeguards.reward_ledger import Ledger
from learners.safeguards.source_consistency import Quarantine, SourceRule
from runtime.control.tick import TickResult, executed_actions
from runtime.control.tick_version import TickVersion
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.deploy.learner_events import LearnerEvents
from runtime.deploy.policy_updater import PolicyUpdater
from runtime.feedback.outcomes import OutcomeTracker
from runtime.feedback.queries import UncertaintyQueries
from runtime.feedback.receiver import Feedback
from runtime.feedback.source_quarantine import SourceQuarantine
from runtime.gate.ipc import GateVerdict, Outcome
from runtime.inference.decision import InferenceResult
from sensors.readings import Observation

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BEGUN_S = 1_750_000_000.0


RULES = {"world": SourceRule("success", 2), "liar": SourceRule("success", 1)} | dict.fromkeys(
    "ab", SourceRule("success")
)


class Blind(World):
    """The world without its pictures, which are not used here."""

    def _paint(self) -> NDArray[np.uint8]:
        return np.zeros((1, 1, 3), np.uint8)


@dataclass(slots=True)
class Script:
    """A policy that prefers what the oracle does, except for its errors.

    `errors` is the share of ticks at which it prefers something else, `confused` the share of episodes in which it takes another
    picture for the one asked for. `sign` -1 is the same policy with its scores negated: it does what it likes least.
    """

    errors: float = 0.12
    confused: float = 0.0
    sign: int = 1
    episode: int = -1
    seen: str = ""

    def turn(self, world: World, rng: np.random.Generator) -> Turn:
        """The choice of highest score."""
        if world.episode != self.episode:
            others = [name for name in world.places if name != world.target]
            self.episode = world.episode
            self.seen = str(rng.choice(others)) if rng.random() < self.confused else world.target
        wanted = panorama_world.oracle(panorama_world.wrapped(world.places[self.seen] - world.head.angle_deg))
        if rng.random() < self.errors:
            wanted = TURNS[(TURNS.index(wanted) + int(rng.integers(1, 3))) % 3]
        scores = {turn: float(rng.random()) for turn in TURNS}
        scores[wanted] = 3.0
        if wanted != "stay":
            scores["stay"] = 2.0  # half right; the other way is the worst
        return max(TURNS, key=lambda turn: self.sign * scores[turn])


@dataclass
class KeptStore:
    """The store's part for feedback: accepts everything, and knows the quarantined sources."""

    retained: set[str] = field(default_factory=set)
    taken: Counter[str] = field(default_factory=Counter)

    def credit(
        self, _value: float, *, decision: str | None, stamp_s: float | None, done: bool, source: str, **_end: object
    ) -> bool:
        assert decision is not None or stamp_s is not None
        self.taken[source] += 1
        return not (done and decision is None)

    def add_label(self, label: Label) -> bool:
        self.taken[f"label:{label.source}"] += 1
        return True

    def quarantine(self, source: str, *, on: bool = True) -> bool:
        (self.retained.add if on else self.retained.discard)(source)
        return True


@dataclass
class ScriptedEngine:
    """What acts, by version."""

    version: str = "untrained"
    loaded: set[str] = field(default_factory=lambda: {"untrained"})

    async def load(self, version: str) -> None:
        self.loaded.add(version)

    async def activate(self, version: str) -> None:
        assert version in self.loaded
        self.version = version

    async def release(self, version: str) -> None:
        assert version != self.version
        self.loaded.discard(version)


Sends = Callable[["Stage", str, float], list[dict[str, Any]]]


def world_only(_stage: Stage, decision: str, gain: float) -> list[dict[str, Any]]:
    """One honest source rewards every decision."""
    return [{"value": gain, "decision": decision, "source": "world"}]


class Stage:
    """One agent in one world.

    Args:
        folder: for its state.
        seed: of world and policies.
        policies: by the name that `version` gives them: each becomes a signed checkpoint.
        rules: of the experiments.
        sends: the reward messages for a decision.
        refusals: share of decisions the gate refuses, by policy name.
        takeovers: share of decisions at which a person acts, by policy name.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        policies: dict[str, Script],
        *,
        rules: ExperimentRules | None = None,
        sends: Sends = world_only,
        refusals: dict[str, float] | None = None,
        takeovers: dict[str, float] | None = None,
    ) -> None:
        self.world, self.rng = Blind(seed), np.random.default_rng([seed, 7])
        self.now_s, self.count, self.sends, self.refusals = BEGUN_S, 0, sends, refusals or {}
        self.takeovers, self.mode = takeovers or {}, "autonomous"
        self.short_takeovers = False
        """A takeover is over before the next tick."""
        self.corrected: dict[str, Any] = {}
        """What the gate reports with its next verdict."""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.gains: list[float] = []
        self.acted: list[str] = []
        self.checkpoints = Checkpoints(folder / "checkpoints", KEY, keep_last=32, clock=lambda: self.now_s)
        self.version = {
            name: self.checkpoints.save({"policy": {"w": torch.full((1,), float(n))}}, {})
            for n, name in enumerate(policies)
        }
        self.names = {version: name for name, version in self.version.items()}
        self.policies = policies
        self.store, self.engine = KeptStore(), ScriptedEngine()
        ledger, self.quarantine = Ledger(1.0), Quarantine(RULES)
        self.sources = SourceQuarantine(
            self.quarantine,
            self.store,
            ledger,
            folder,
            self._emit,
            self._wall,  # type: ignore[arg-type]
        )
        self.sources.start()
        self.rules = rules or ExperimentRules(period_s=TICK_S, gamma=0.5)
        self.experiments = ExperimentController(
            self.rules, self.checkpoints, folder, self._emit, self._wall, self.quarantine
        )
        self.experiments.start()
        self.outcomes = OutcomeTracker(ledger, self.sources, self.experiments, self._wall)
        self.outbox = Outbox(folder / "outbox")
        reward = TopicReward.model_validate({"name": "feedback", "kind": "topic"})
        self.feedback = Feedback(
            store=self.store,  # type: ignore[arg-type]
            emit=self._emit,
            rewards=(reward,),
            tasks={},
            now=self._wall,
            wall=self._wall,
            outcomes=self.outcomes,
            sources=self.sources,
            queries=UncertaintyQueries(None, self._emit),
        )
        self.updater = PolicyUpdater(
            self.checkpoints,
            self.engine,  # type: ignore[arg-type]
            self.experiments,
            LearnerEvents(self.outbox, self._emit, {"source_quarantined": self.sources.report}),
            self._emit,
        )
        self._threads = AtOnce()
        self._last: tuple[str, float, bool] | None = None
        self.arms: list[TickVersion] = []

    def kinds(self) -> list[str]:
        """The types of all events so far."""
        return [kind for kind, _ in self.events]

    def event(self, kind: str) -> dict[str, Any]:
        """The numbers of the newest event of a type."""
        return next(data for one, data in reversed(self.events) if one == kind)

    def propose(self, name: str) -> None:
        """Let a policy wait for its experiment, as the learner does with a candidate that passed the filters."""
        self.checkpoints.propose(self.version[name])

    async def promote(self, name: str) -> None:
        """Force a policy live and wait until it acts."""
        self.checkpoints.promote(self.version[name])
        await self.run(3.0, until=lambda: self.acted[-1] == name)

    async def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let virtual time pass; returns how much did."""
        begun_s = self.now_s
        asyncio.get_running_loop().set_default_executor(self._threads)  # two or three for each tick
        for _ in range(round(seconds / TICK_S)):
            await self.tick()
            if until():
                break
        return self.now_s - begun_s

    async def tick(self) -> None:
        """One tick: the last decision's rewards arrive, then the next decision acts."""
        self.now_s += TICK_S
        self.count += 1
        if self._last is not None:
            decision, gain, over = self._last
            for number, body in enumerate(self.sends(self, decision, gain)):
                self.feedback.reward(orjson.dumps(body | {"truncated": over and number == 0}))
        arm = self.experiments.choose(self.count, self.engine.loaded)
        if arm.version != self.engine.version and arm.version in self.engine.loaded:
            await self.engine.activate(arm.version)
        self.arms.append(arm)
        version = self.engine.version
        name = self.names.get(version, "")
        script = self.policies[name] if name else Script(errors=2 / 3)
        before, turn = self.world.distance_deg(), script.turn(self.world, self.rng)
        refused = self.rng.random() < self.refusals.get(name, 0.0)
        self.world.head.turn = self.world.head.turn if refused else turn
        self.world.advance(TICK_S)
        gain = panorama_world.reward(before, self.world.distance_deg())
        taken_over = self.rng.random() < self.takeovers.get(name, 0.0)
        self.outcomes.ticked(self._ticked(version, turn, refused=refused, taken_over=taken_over))
        self._last = (f"s-{self.count}", gain, self.world.over)
        self.gains.append(gain)
        self.acted.append(name)
        if self.world.over:
            self.world.begin()
        if self.count % 2 == 0 or self.experiments.decided.is_set():
            await self.updater.sync()

    def _ticked(self, version: str, turn: Turn, *, refused: bool, taken_over: bool = False) -> TickResult:
        decision = f"s-{self.count}"
        outcome = Outcome(False, "min_hold", "stay", "none") if refused else Outcome(True, None, turn, "policy")
        if taken_over and not self.short_takeovers:
            outcome = Outcome(True, None, turn, "override")
        overridden, self.corrected = self.corrected, {}
        if taken_over and self.short_takeovers:
            self.corrected = {"head": turn}  # the gate reports it with the next verdict
        verdict = GateVerdict(decision, True, False, {"head": self.mode}, {"head": outcome}, overridden=overridden)
        decided = InferenceResult(version, {"head": Action(turn, 1.0)}, 0.0, {}, {}, {}, 0.0)
        observation = Observation(self.count, self.now_s, {}, {})
        executed, by = executed_actions(decided.actions, verdict)
        return TickResult(
            observation=observation,
            decided=decided,
            verdict=verdict,
            decision=decision,
            executed=executed,
            by=by,
            stamp_unix_s=self.now_s,
            latency_s=0.0,
            stored=True,
            mode=self.mode,
            explore=True,
            answered_s=0.0,
        )

    def _wall(self) -> float:
        return self.now_s

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append((kind, data))
