"""Worlds with a known truth in virtual time, with everything in the agent that decides which version acts.

Real: `ExperimentController`, `OutcomeTracker`, `Ledger`, `Quarantine`. Replaced: the store of checkpoints, by names in memory, and engine,
gate and broker. A world says what each version earns at each tick, and which harm it does. `bench_experiments.py` and the tests of the
controller use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actuators.actions import Action
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Live
from learners.experiment_statistics.paired_outcomes import TickOutcome
from learners.safeguards.reward_ledger import Ledger
from learners.safeguards.source_consistency import Quarantine
from runtime.control.tick import TickResult, executed_actions, overall_mode
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.feedback.outcomes import OutcomeTracker
from runtime.gate.ipc import GateVerdict, Outcome
from runtime.inference.decision import InferenceResult
from sensors.readings import Observation

BEGUN_S = 1_750_000_000.0


class NoSources:
    """Compares no sources of rewards."""

    def settled(self, _entries: object) -> None:
        """Take settled decisions."""

    def late(self, _entry: object, _source: str) -> None:
        """Take a late reward."""


@dataclass(slots=True)
class VersionsInMemory:
    """The part of `Checkpoints` that moves LIVE."""

    pointer: Live = field(default_factory=Live)
    waiting: str | None = None

    def live(self) -> Live:
        """Return the pointer."""
        return self.pointer

    def proposed(self) -> str | None:
        """Return the candidate that passed the filters."""
        return self.waiting

    def promote(self, version: str, *, announce: Callable[[Live], object] = lambda _live: None, by: str) -> Live:
        """Move LIVE to a version."""
        if version in self.pointer.failed:
            raise CheckpointRefused(version, "failed", "not tried again")
        before = self.pointer
        found = Live(version, (*before.promoted, version), before.failed, 0.0, by)
        announce(found)
        self.pointer = found
        return found

    def rollback(
        self, *, to: str | None = None, failing: str | None = None, by: str = "request", or_none: bool = False
    ) -> Live:
        """Move LIVE back, as `Checkpoints` does."""
        live = self.pointer
        failing = live.version if failing is None else failing
        promoted = tuple(name for name in live.promoted if name != failing)
        failed = (*(name for name in live.failed if name != failing), str(failing))
        if failing != live.version:
            self.pointer = Live(live.version, promoted, failed, 0.0, live.by)
            return self.pointer
        earlier = [name for name in promoted if name not in live.failed]
        if to is None and not earlier and or_none:
            self.pointer = Live(None, promoted, failed, 0.0, by)
            return self.pointer
        if to is None and not earlier:
            raise CheckpointRefused(str(failing), "missing", "no earlier version that acted is loadable")
        version = to if to is not None else earlier[-1]
        self.pointer = Live(version, (*(name for name in promoted if name != version), version), failed, 0.0, by)
        return self.pointer


@dataclass(slots=True)
class WorldTick:
    """What one tick leads to: a reward (None: silence), the harm, the end of an episode, and how late its reward arrives.

    `overridden`: a person acted between the tick before and this one. `messages`: how many messages report it.
    """

    reward: float | None
    outcome: TickOutcome = field(default_factory=TickOutcome)
    late_ticks: int = 1
    overridden: bool = False
    messages: int = 1


World = Callable[[str, int], WorldTick]
"""Version and number of the tick."""


class PromotionWorld:
    """One agent in one world; all versions are loaded."""

    def __init__(self, folder: Path, world: World, *, rules: ExperimentRules) -> None:
        self.world, self.rules = world, rules
        self.count, self.now_s = 0, BEGUN_S
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        self.acted: list[str] = []
        self.modes = {"valve": "autonomous"}
        """By actuator; a takeover is one of `valve`."""
        self.versions = VersionsInMemory()
        ledger, quarantine = Ledger(rules.settle_s), Quarantine({})
        self.experiments = ExperimentController(
            rules, self.versions, folder, self._emit, lambda: self.now_s, quarantine  # type: ignore[arg-type]
        )  # fmt: skip
        self.experiments.start()
        self.outcomes = OutcomeTracker(ledger, NoSources(), self.experiments, lambda: self.now_s)  # type: ignore[arg-type]
        self._arriving: dict[int, list[tuple[str, float | None, bool, bool]]] = {}

    @property
    def live(self) -> str:
        """The version that LIVE names."""
        return self.experiments.live

    def kinds(self) -> list[str]:
        """Return the types of all events so far."""
        return [kind for _, kind, _ in self.events]

    def last(self, kind: str) -> dict[str, Any]:
        """Return the fields of the newest event of a type."""
        return next(data for _, one, data in reversed(self.events) if one == kind)

    def trust(self, version: str) -> None:
        """Let a person make a version live."""
        self.versions.promote(version, by="request")
        self.experiments.became_live(version, "request")

    def roll_back(self) -> bool:
        """Let a person roll the live version back; return False where there is nothing to return to."""
        try:
            self.versions.rollback()
        except CheckpointRefused:
            return False
        self._follow()
        return True

    async def propose(self, version: str) -> None:
        """Let a candidate that passed the filters wait."""
        self.versions.waiting = version
        await self.experiments.take_proposal()
        self._follow()

    def restart(self, *, clean: bool = True) -> None:
        """End the agent and start it again; what was arriving is lost."""
        before = self.experiments
        before.close(clean=clean)
        self.experiments = ExperimentController(
            self.rules, before.checkpoints, before.state_dir, self._emit, before.wall, before.quarantine
        )
        self.experiments.start()
        self.outcomes = OutcomeTracker(Ledger(self.rules.settle_s), NoSources(), self.experiments, before.wall)  # type: ignore[arg-type]
        self._arriving.clear()

    def _follow(self) -> None:
        """Follow LIVE, as the updater does."""
        if self.versions.pointer.version not in (None, self.experiments.state.live):
            self.experiments.became_live(str(self.versions.pointer.version), self.versions.pointer.by)

    async def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let virtual time pass; return how much did."""
        begun_s = self.now_s
        while self.now_s - begun_s < seconds - 1e-9:
            await self.tick()
            if until():
                break
        return self.now_s - begun_s

    async def tick(self) -> None:
        """Let rewards arrive, then decide and act once."""
        self.count += 1
        self.now_s = BEGUN_S + self.count * self.rules.period_s
        for decision, reward, done, failure in self._arriving.pop(self.count, ()):
            value = 0.0 if reward is None else reward
            self.outcomes.credit("world", value, decision, done=done, failure=failure)
        state = self.experiments.state
        loaded = state.wanted()
        self.experiments.advance(loaded)
        arm = self.experiments.choose(self.count, loaded)
        found, decision = self.world(arm.version, self.count), f"d-{self.count}"
        self.acted.append(arm.version)
        one = found.outcome
        if found.reward is not None or one.done or one.failure:
            self._arriving.setdefault(self.count + found.late_ticks, []).extend(
                [(decision, found.reward, one.done, one.failure)] * found.messages
            )
        self.outcomes.ticked(self._result(arm.version, decision, found))
        if self.experiments.decided.is_set():
            await self.experiments.conclude()
            self._follow()

    def _result(self, version: str, decision: str, found: WorldTick) -> TickResult:
        one = found.outcome
        outcome = Outcome(True, None, 1, "override" if one.takeover else "policy")
        if one.refusal:
            outcome = Outcome(False, "min_hold", 0, "none")
        outcomes = {"valve": outcome} | {
            name: Outcome(True, None, 1, "policy") if mode == "autonomous" else Outcome(False, "mode", None, "none")
            for name, mode in self.modes.items()
            if name != "valve" or (mode != "autonomous" and not one.takeover)
        }
        verdict = GateVerdict(
            decision, True, one.stop, self.modes, outcomes,
            overridden={"valve": 1.0} if found.overridden else {},
        )  # fmt: skip
        decided = InferenceResult(version, {"valve": Action(1, 1.0)}, 0.0, {}, {}, {}, 0.0)
        executed, by = executed_actions(decided.actions, verdict)
        return TickResult(
            observation=Observation(self.count, self.now_s, {}, {}), decided=decided, verdict=verdict, decision=decision,
            executed=executed, by=by, stamp_unix_s=self.now_s, latency_s=0.0, stored=True, mode=overall_mode(self.modes),
            explore=False, answered_s=0.0,
        )  # fmt: skip

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append((self.now_s - BEGUN_S, kind, data))


def noise(seed: int, rho: float = 0.0) -> Callable[[], float]:
    """Return a function that draws the next value of a series of deviation 1 with correlation `rho`."""
    rng, last, fresh = np.random.default_rng(seed), [0.0], float(np.sqrt(1.0 - rho * rho))

    def draw() -> float:
        last[0] = rho * last[0] + fresh * float(rng.normal())
        return last[0]

    return draw
