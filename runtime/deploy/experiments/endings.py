"""End experiments, races and the guard's watch: move LIVE, note the reason of each version, spend alpha, publish what happened.

`controller.py` says when; `live_moves.py` moves the pointer. A move that the disk refuses raises, nothing has changed then, and the
controller tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Live
from learners.experiment_statistics.experiment_test import ExperimentVerdict
from learners.experiment_statistics.live_version_guard import GuardAlarm
from runtime.deploy.experiments.live_moves import LiveMoves
from runtime.deploy.experiments.report import look_figures
from runtime.deploy.experiments.running_plan import ExperimentPhase
from runtime.deploy.experiments.state import ExperimentState
from runtime.deploy.experiments.trusted_version import trust_reason
from runtime.inference.engine import UNTRAINED
from runtime.process.emit import Emit


@dataclass(slots=True)
class ExperimentEndings:
    """Carries out verdicts on the state that the controller shares with it."""

    state: ExperimentState
    moves: LiveMoves
    emit: Emit

    async def end_experiment(self, phase: ExperimentPhase, verdict: ExperimentVerdict) -> None:
        """Carry out a verdict; where a person had made the challenger live, a rejection is a rollback."""
        plan, sentence = phase.plan, phase.test.sentence()
        challenger = plan.challenger
        assert challenger is not None
        requested, passed = phase.acts_in_plain == "challenger", verdict.outcome == "live"
        if passed and not requested:
            by = "better" if verdict.better else "as good"
            if not await self.promote(challenger, f"{by}: {sentence}", by="experiment", figures=look_figures(phase)):
                return
        moved: Live | CheckpointRefused | None = None
        if requested and verdict.outcome == "out":
            moved = await asyncio.to_thread(self.moves.take_back, challenger, plan.champion)
        self.state.phase = None
        self.state.alpha.record(promoted=passed, alpha=plan.alpha)
        gave_way = verdict.outcome == "cap" and sum(phase.differences) > 0
        self.state.trust.ended(
            challenger, promoted=verdict.better, rejected=verdict.outcome == "out", gave_way=gave_way
        )
        self.state.trust.note(challenger, f"{'live' if passed else 'not live'}: {sentence}")
        if passed and verdict.new_anchor:
            self.state.trust.choose(challenger, "proof")
        fields = {"number": phase.number, "version": challenger, "champion": plan.champion, "outcome": verdict.outcome}
        self.emit("experiment_ended", {**fields, "reason": verdict.reason, "result": sentence, **look_figures(phase)})
        if moved is not None:
            self.moves.publish_rollback(
                challenger, moved, {"by": "experiment", "why": verdict.reason, "result": sentence}
            )
        elif requested and passed:
            self.state.trust.choose(challenger, "proof" if verdict.better else "request")
        if passed or moved is not None:
            self.state.renew_guard(promoted=passed)

    async def promote(self, version: str, note: str, *, by: str, figures: Mapping[str, Any] | None = None) -> bool:
        """Move LIVE to a version; give it up and return False where it cannot be loaded."""
        refusal = await self.moves.promote(version, note, by=by, figures=figures)
        if refusal is not None:
            self.unloadable(version, refusal.reason)
            self.emit("checkpoint_refused", {"version": version, "reason": refusal.reason, "detail": refusal.detail})
        return refusal is None

    async def end_race(self, phase: ExperimentPhase, verdict: ExperimentVerdict) -> None:
        """Give the lead to the challenger if it is ahead; trust a leader that enough versions did not overtake.

        A race proves nothing and trusts nothing, so it uses no alpha.
        """
        plan, sentence, proof = phase.plan, phase.test.sentence(), self.state.proof
        challenger = plan.challenger
        assert challenger is not None
        ahead = verdict.outcome == "live"
        if ahead and not await self.promote(
            challenger, f"leads: {sentence}", by="untrusted", figures=look_figures(phase)
        ):
            return
        self.state.phase = None
        self.state.trust.judged.append(challenger)
        fields = {"number": phase.number, "version": challenger, "champion": plan.champion, "outcome": verdict.outcome}
        self.emit("experiment_ended", {**fields, "reason": verdict.reason, "result": sentence, **look_figures(phase)})
        if ahead:
            proof.lead(challenger)
            self.state.renew_guard()
            return
        self.state.trust.note(challenger, f"not live: {sentence}")
        if challenger == proof.rival:  # not a newer one
            proof.rival = None
        else:
            proof.race_lost()
        await self.trust_leader()

    async def first_leader(self) -> None:
        """Give the lead to the best version so far, and let it act again if a later one acts."""
        found = self.state.proof.found()
        if found is None:
            return
        version, sentence = found
        if version != self.state.live:
            before = self.state.live
            if not await self.promote(version, sentence, by="untrusted"):
                self.state.proof.drop(version)  # it cannot be loaded any more
                return
            self.state.trust.note(before, f"not live: {version} earned more")
        self.state.proof.lead(version)
        self.state.renew_guard()
        self.state.trust.note(version, f"live, not yet trusted: {sentence}")
        await self.trust_leader()

    async def trust_leader(self) -> None:
        """Make the leader the anchor once it is settled: from now on only a proof replaces it. A race that runs is compared again."""
        proof, phase = self.state.proof, self.state.phase
        version, why = proof.leader, proof.settled(rivals=self.state.has_rivals)
        if version is None or why is None:
            return
        if (refusal := await self.moves.confirm(version)) is not None:
            proof.leader = None
            self.emit("checkpoint_refused", {"version": version, "reason": refusal.reason, "detail": refusal.detail})
            return
        if phase is not None and phase.race:
            self.state.waiting = self.state.waiting or phase.plan.challenger
        self.cancel("the leader is trusted now")
        sentence = f"{proof.gain()}, and {why}"
        self.state.trust.choose(version, "proof")
        self.state.trust.note(version, f"live and trusted: {sentence}")
        self.emit("policy_trusted", {"version": version, "result": sentence})
        self.state.renew_guard()

    async def take_back(self, alarm: GuardAlarm) -> None:
        """Take the live version back: the guard decided."""
        version = self.state.live
        back = self.state.way_back(version)
        if back is not None:
            moved = await asyncio.to_thread(self.moves.take_back, version, back)
            figures = {"figure": alarm.figure, "pairs": alarm.pairs, "evidence": round(alarm.evidence, 1)}
            self.moves.publish_rollback(version, moved, {"by": "guard", "why": alarm.reason, **figures})
        self.cancel("the guard took the live version back")
        self.state.renew_guard()

    def after_crash(self) -> None:
        """Count an unexpected end of the agent for the newest version; after too many with it, return to the trusted one."""
        phase = self.state.phase
        new = self.state.live if phase is None or phase.plan.challenger is None else phase.plan.challenger
        back = self.state.way_back(new)
        if new in (UNTRAINED, self.state.trust.anchor) or (back is None and not self.state.rules.enabled):
            return
        if not self.state.trust.crashed(new):
            return
        self.cancel("the agent died twice with it")
        self.state.trust.judged.append(new)
        self.state.trust.note(new, f"the agent died {self.state.trust.crashes[new]} times with it")
        if new == self.state.live:  # without trust, it was not proved better than the untrained policy either
            moved = self.moves.take_back(new, back, or_none=self.state.trust.anchor is None)
            self.moves.publish_rollback(new, moved, {"by": "experiment", "why": "crashes"})

    def inherit_trust(self, anchor: str | None, live: Live) -> None:
        """Trust the live version after the anchor was lost: it was proved as good, or a person chose it and nothing is left to compare it with.

        Else the next candidate would go live without an experiment.

        Args:
            anchor: the one before.
            live: what LIVE says now.
        """
        trust, version = self.state.trust, self.state.live
        if anchor in (None, trust.anchor) or version in (UNTRAINED, trust.anchor) or live.version != version:
            return
        reason = trust_reason(live.by)
        if reason is None or (trust.anchor is not None and reason != "proof"):
            return
        before = trust.notes.get(version, "")
        trust.choose(version, reason)
        sentence = f"{anchor}, with which it was compared, is lost"
        trust.note(version, f"live and trusted: {sentence}" + (f" ({before})" if before else ""))
        self.emit("policy_trusted", {"version": version, "result": sentence})
        self.state.renew_guard()

    def cancel(self, reason: str) -> None:
        """End the running phase; a challenger in it has no verdict and the champion remains.

        Its alpha is spent once a pair is complete: the same version may come again, and the pairs until now could have proved it.
        """
        phase, self.state.phase = self.state.phase, None
        if phase is None or phase.plan.challenger is None:
            return
        version = phase.plan.challenger
        if phase.differences and not phase.race:
            self.state.alpha.record(promoted=False, alpha=phase.plan.alpha)
        self.state.trust.note(version, f"not decided: {reason}")
        fields = {"number": phase.number, "version": version, "champion": phase.plan.champion, "outcome": "cap"}
        self.emit(
            "experiment_ended", {**fields, "reason": reason, "result": phase.test.sentence(), **look_figures(phase)}
        )

    def unloadable(self, version: str, reason: str) -> None:
        """Give up a version that cannot be loaded."""
        self.state.trust.judged.append(version)
        self.state.proof.drop(version)
        self.state.trust.note(version, f"cannot be loaded: {reason}")
        if self.state.waiting == version:
            self.state.waiting = None
        if version in (self.state.trust.anchor, self.state.trust.previous) and version != self.state.live:
            self.state.trust.forget(version)
        plan = None if self.state.phase is None else self.state.phase.plan
        if plan is not None and version in (plan.challenger, plan.anchor, plan.reference):
            self.cancel(f"{version} cannot be loaded")
