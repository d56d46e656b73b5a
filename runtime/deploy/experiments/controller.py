"""Trade the live version only for one that is proved better or as good: run the experiments, guard the live version, remember trust.

A candidate that passed the filters waits as the challenger; a newer one replaces it. The controller plans an experiment, says at each
tick which version acts, joins outcomes to pairs, and carries out the verdict: it moves the LIVE pointer. Until there is something to
protect (`first_anchor.py`), versions follow freely ("not yet trusted"). The first proof makes the anchor.

The state lies in `experiments.json` in the state folder. It survives a crash: the experiment goes on with the next pair. An agent that
dies twice with a new version returns to the trusted one.

Events: `experiment_started`, `experiment_ended`, `policy_promoted`, `policy_trusted`, `policy_rolled_back`, `rollback_failed`,
`experiment_state_unreadable`. Knows no engine: `PolicyUpdater` loads what `wanted` names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from learners.checkpoints.experiment_records import EXPERIMENTS_FILE, PROBATION_FILE
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints, Live
from learners.experiments.alpha_budget import AlphaBudget
from learners.experiments.experiment_test import ExperimentVerdict
from learners.experiments.guard import RAISED_SHARE, Guard, GuardAlarm
from learners.experiments.paired_outcomes import TickOutcome
from learners.experiments.plan import SHARES, Arm
from learners.experiments.switchback import Assignment
from learners.safeguards.reward_ledger import LedgerEntry
from learners.safeguards.source_consistency import Quarantine
from runtime.control.arm_record import ArmRecord
from runtime.control.attribution import attribution
from runtime.control.tick import TickResult
from runtime.deploy.experiments.first_anchor import FirstAnchor
from runtime.deploy.experiments.phase import ExperimentPhase, LossBudget
from runtime.deploy.experiments.report import guard_figures, look_figures, running_figures
from runtime.deploy.experiments.reward_drop_check import ALONE_S, RewardDropCheck
from runtime.deploy.experiments.reward_levels import RewardLevels, RunningBlock
from runtime.deploy.experiments.rules import ExperimentRules
from runtime.deploy.experiments.trusted_version import Trust
from runtime.inference.engine import UNTRAINED
from runtime.process.emit import Emit
from runtime.process.state_file import StateFile, StateUnreadable

SAVE_EVERY_S = 5.0
FORMAT = 1
REQUESTED_SHARE = 0.5
"""Share of a version that a person made live, while it is compared with the trusted one."""
MOST_LATE_S = 600.0
"""Longest wait for late rewards."""
LATE_MARGIN = 1.5
"""Pairs stay open for this multiple of the lateness seen."""


@dataclass(slots=True)
class ExperimentController:
    """See the module."""

    rules: ExperimentRules
    checkpoints: Checkpoints
    state_dir: Path
    emit: Emit
    wall: Callable[[], float]
    """Unix seconds."""
    quarantine: Quarantine
    """Rewards of the sources in it do not count."""
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a verdict waits for `conclude`."""
    file: StateFile = field(init=False)
    live: str = UNTRAINED
    """The version that LIVE names."""
    waiting: str | None = None
    """The challenger that waits."""
    phase: ExperimentPhase | None = None
    trust: Trust = field(default_factory=Trust)
    levels: RewardLevels = field(default_factory=RewardLevels)
    alpha: AlphaBudget = field(default_factory=AlphaBudget)
    guard: Guard = field(init=False)
    falls: RewardDropCheck = field(default_factory=RewardDropCheck)
    proof: FirstAnchor = field(default_factory=FirstAnchor)
    """Until something is trusted."""
    budget: LossBudget = field(default_factory=LossBudget)
    """What experiments have cost."""
    late_s: float = 0.0
    """How late rewards were lately."""
    mode: str = "autonomous"
    acting: bool = False
    """The policy may act now."""
    _now: ArmRecord = field(default_factory=lambda: ArmRecord(UNTRAINED))
    _counted: tuple[int, Assignment] | None = None
    """Experiment and assignment of the tick before, where it was counted."""
    _alarm: GuardAlarm | None = None
    _block: RunningBlock = field(default_factory=RunningBlock)
    _dones: set[str] = field(default_factory=set)
    _tick: int = 0
    _announced: str = ""
    """The version of the last `policy_promoted`."""
    _unwritten: bool = False
    _started: bool = False
    _running: bool = True
    _crashed: bool = False

    def __post_init__(self) -> None:
        self.guard = self.rules.guard(self.levels)
        path = self.state_dir / EXPERIMENTS_FILE
        self.file = StateFile(path, self._dump, self._restore, SAVE_EVERY_S, self.emit, durable=False)

    # ------------------------------------------------------------------ start and end

    def start(self) -> None:
        """Restore the state before any policy is loaded; after too many crashes with a new version, return to the trusted one."""
        live = self.checkpoints.live()
        try:
            known = self.file.load()
        except StateUnreadable as error:
            self.emit("experiment_state_unreadable", {"reason": str(error)})
            known = False
        self.live = live.version or UNTRAINED
        if not known:
            self._first_start(live)
        if self.trust.anchor in live.failed:
            self.trust.forget(str(self.trust.anchor))
        if self.phase is not None and self.phase.version_of(self.phase.acts_in_plain) != self.live:
            self._cancel("the live version was changed while no agent ran")
        if self._crashed:
            self._after_crash()
        self._started = True
        self.file.write()

    def _first_start(self, live: Live) -> None:
        """Trust what is live where nothing is known: a person or an earlier program put it there."""
        if live.version is None:
            return
        before = _on_probation(self.state_dir)
        self.trust.choose(live.version, "upgrade" if live.by is None else live.by)
        self.trust.previous = before if before != live.version and before not in live.failed else None
        self.trust.note(live.version, _TRUSTED_BY[self.trust.by])

    def _after_crash(self) -> None:
        phase = self.phase
        new = self.live if phase is None or phase.plan.challenger is None else phase.plan.challenger
        back = self._way_back(new)
        if new in (UNTRAINED, self.trust.anchor) or back is None or not self.trust.crashed(new):
            return
        self._cancel("the agent died twice with it")
        self.trust.judged.append(new)
        self.trust.note(new, f"the agent died {self.trust.crashes[new]} times with it")
        if new == self.live:
            self._publish_rollback(new, self._move_back(new, back), {"by": "experiment", "why": "crashes"})

    def close(self, *, clean: bool) -> None:
        """Write the state at the agent's end; where that was not a clean stop, the next start counts a crash."""
        self._running = not clean
        self.file.write()

    # ------------------------------------------------------------------ every tick

    def choose(self, tick: int, loaded: Collection[str]) -> ArmRecord:
        """Return which version acts at a tick, and what the tick belongs to; only loaded versions act."""
        self._tick = tick
        self._now = ArmRecord(self.live)
        alarmed = self._way_back(self.live) if self._alarm is not None else None
        if alarmed is not None and alarmed in loaded:
            self._now = ArmRecord(alarmed)
        elif self.phase is not None and self.acting and not self.decided.is_set():
            found = self.phase.assign()
            if found is not None and found[0] in loaded:
                other = found[1].other
                against = None if other is None else self.phase.version_of(other)
                self._now = ArmRecord(found[0], self.phase.number, found[1], against)
        elif self.phase is not None and self.phase.verdict is not None and self.phase.plan.champion in loaded:
            self._now = ArmRecord(self.phase.plan.champion)
        return self._now

    def ticked(self, result: TickResult) -> None:
        """Take one finished tick: its harms; its rewards come by `credit`."""
        acted, refused = attribution(result)
        verdict = result.verdict
        held = "override" in result.by.values()
        stopped = self.acting and verdict is not None and verdict.stopped
        mode = result.mode
        if mode != self.mode and self.phase is not None and self.phase.plan.weaker != self.rules.weaker(mode):
            self._cancel("the mode changed")
        self.mode = mode
        modes = ("autonomous", "assist")
        self.acting = verdict is not None and verdict.armed and not verdict.stopped and mode in modes
        assignment, phase = self._now.assignment, self.phase
        before, self._counted = self._counted, None
        counted = phase is not None and before is not None and before[0] == phase.number
        if phase is not None and before is not None and counted and verdict is not None and verdict.overridden:
            phase.correct(before[1])  # a person's command since the tick before
        if phase is None or assignment is None or phase.number != self._now.experiment or verdict is None:
            return
        if not (acted or held or stopped):
            return
        outcome = TickOutcome(takeover=held, stop=stopped, refusal=refused)
        self._counted = (phase.number, assignment)
        phase.add(result.decision, assignment, outcome, hold=held)

    def credit(self, source: str, value: float, decision: str | None, *, done: bool, failure: bool = False) -> None:
        """Add a reward to the unit of its decision; `done` where it ends an episode."""
        phase = self.phase
        if decision is not None:
            self._note_lateness(decision)
            if phase is not None and source not in self.quarantine.names:
                phase.credit(decision, source, value)
        if done and phase is not None and (decision is None or decision not in self._dones):
            phase.episode_ended(failure=failure)
        elif failure and phase is not None and decision is not None:
            phase.failed(decision)
        if done and decision is not None:
            self._dones = {decision}

    def _note_lateness(self, decision: str) -> None:
        """Follow how late rewards arrive, so that pairs stay open for them."""
        _, _, index = decision.rpartition("-")
        if index.isdecimal():
            late_s = max(0, self._tick - int(index)) * self.rules.period_s
            if late_s <= MOST_LATE_S:
                self.late_s = max(self.late_s * 0.9999, LATE_MARGIN * late_s)

    def settled(self, entries: list[LedgerEntry]) -> None:
        """Take settled decisions, oldest first: measure levels, close pairs, and let test and guard decide."""
        self.file.changed()
        ended = self.levels.settled(entries, self.quarantine.names)
        self._watch(entries, ended)
        fell = self.falls.settled(entries, self.quarantine.names)
        phase = self.phase
        if phase is None or self.decided.is_set():
            return
        if phase.alone:
            phase.alone = self.falls.acted_s < ALONE_S
            if fell:
                phase.test.verdict = ExperimentVerdict("out", "rewards fell at once, before and after")
        phase.reference_share = self._reference_share()
        for pair in phase.complete(self.rules.late_units(phase.plan, self.levels, self.late_s)):
            self._alarm = self._alarm or self.guard.pair(pair)
        if phase.plan.challenger is not None and phase.verdict is None and self.waiting is not None and phase.give_up():
            phase.test.verdict = ExperimentVerdict("cap", f"no gain in {phase.test.pairs} pairs, and a newer one waits")
        if phase.verdict is not None or self._alarm is not None:
            self.decided.set()

    def _watch(self, entries: list[LedgerEntry], ended: list[tuple[str, float]]) -> None:
        """Give the units of the version that acts to the guard, and to the first proof while nothing is trusted."""
        units = (
            ended
            if self.rules.episodic(self.levels)
            else self._block.add(entries, self.rules.block_of_one_version(), self.quarantine.names)
        )
        for version, value in units:
            if version == self.live and self.trust.anchor is not None:
                self.guard.block(value, {})
            if self.trust.anchor is None and self.rules.enabled:
                self.proof.add(version, value, untrained=version == UNTRAINED)
                if version != UNTRAINED and self.proof.found() is not None:
                    self.decided.set()

    # ------------------------------------------------------------------ between ticks

    def wanted(self) -> set[str]:
        """Return the versions that have to be loaded: what acts, its reference, and the challenger."""
        found = {self.live}
        if self.phase is not None:
            found |= {v for v in (self.phase.plan.champion, self.phase.plan.challenger, self.phase.plan.anchor) if v}
        elif self.waiting is not None and self.trust.anchor is not None:
            found.add(self.waiting)
        reference = self._reference()
        return found | ({reference} if reference is not None else set())

    async def conclude(self) -> None:
        """Carry out what was decided: a rollback, the first proof, or the verdict of the experiment."""
        if not self.decided.is_set():
            return
        try:
            if self._alarm is not None:
                await self._return()
            elif self.phase is not None and self.phase.verdict is not None:
                await self._end_experiment(self.phase, self.phase.verdict)
            elif self.trust.anchor is None:
                await self._first_proof()
        except OSError as error:  # what was decided stays, and the next call tries again
            if not self._unwritten:
                self.emit("rollback_failed", {"version": self.live, "why": "disk", "reason": str(error)})
            self._unwritten = True
            return
        self._unwritten = False
        self.decided.clear()
        self.file.changed(urgent=True)

    async def take_proposal(self) -> None:
        """Read which candidate passed the filters; while nothing is trusted it goes live at once."""
        proposal = await asyncio.to_thread(self.checkpoints.proposed)
        if proposal is None or proposal in (self.waiting, self.live) or proposal in self.trust.judged:
            return
        if self.phase is not None and proposal == self.phase.plan.challenger:
            return
        if self.rules.enabled and self.trust.anchor is not None:
            self.waiting = proposal
            self.trust.note(proposal, "waits for its experiment")
            self.file.changed()
            return
        self.trust.judged.append(proposal)
        note = _FREE if self.rules.enabled else "promoted without an experiment (promotion.experiments is false)"
        await self._promote(proposal, note, by="untrusted" if self.rules.enabled else "unguarded")

    def unloadable(self, version: str, reason: str) -> None:
        """Give up a version that cannot be loaded."""
        self.trust.judged.append(version)
        self.trust.note(version, f"cannot be loaded: {reason}")
        if self.waiting == version:
            self.waiting = None
        if version in (self.trust.anchor, self.trust.previous) and version != self.live:
            self.trust.forget(version)
        if self.phase is not None and version in (self.phase.plan.challenger, self.phase.plan.anchor):
            self._cancel(f"{version} cannot be loaded")
        self.file.changed(urgent=True)

    def became_live(self, version: str, by: str | None) -> None:
        """Take note that LIVE names another version; `by` says who moved it."""
        before, self.live = self.live, version
        if by in ("experiment", "untrusted", "unguarded", "guard"):
            self._cancel("the live version changed")
            self.file.changed(urgent=True)
            return
        self._cancel("a person changed the live version")
        failed = self.checkpoints.live().failed
        if self.trust.anchor in failed:
            self.trust.forget(str(self.trust.anchor))
        reference = self.trust.anchor
        if reference is None or before in failed or not self.rules.enabled:
            self.trust.choose(version, by or "request")
            self.trust.note(version, _TRUSTED_BY.get(self.trust.by, _TRUSTED_BY["request"]))
        elif version != reference:
            self.trust.note(version, f"a person made it live; it is compared with {reference}")
            self._begin(reference, version, None, REQUESTED_SHARE, requested=True)
            self.falls.begin(version, reference)
        self._renew_guard()
        self.file.changed(urgent=True)

    def advance(self, loaded: Collection[str]) -> None:
        """Begin the next phase when everything that it needs is loaded."""
        if self.phase is not None and self.phase.plan.challenger is not None:
            return
        if self.live == UNTRAINED or not self.rules.enabled:
            return
        anchor, reference = self.trust.anchor, self._reference()
        if self.waiting is not None and anchor is not None and {self.waiting, self.live, anchor} <= set(loaded):
            challenger, self.waiting = self.waiting, None
            self._begin(self.live, challenger, anchor, SHARES[self.trust.pace])
        elif reference is not None and {reference, self.live} <= set(loaded) and self._needs_idle_phase(reference):
            self._begin(self.live, None, reference, SHARES[0])

    def _needs_idle_phase(self, reference: str) -> bool:
        phase = self.phase
        return (
            phase is None
            or phase.plan.champion != self.live
            or phase.plan.anchor != reference
            or phase.plan.episodic != self.rules.episodic(self.levels)
        )

    def _begin(
        self, champion: str, challenger: str | None, anchor: str | None, share: float, *, requested: bool = False
    ) -> None:
        self.trust.experiments += 1
        number = self.trust.experiments
        versions = (champion, challenger, anchor)
        plan = self.rules.plan(
            versions, number, levels=self.levels, mode=self.mode, share=share, alpha=self.alpha.next_alpha()
        )
        arm: Arm = "challenger" if requested else "champion"
        self.budget.gain, self.budget.deviation = self.rules.gain(champion, self.levels)
        self.phase = ExperimentPhase(number, plan, self.rules.silence, arm, self.budget, alone=requested)
        self.phase.reference_share = self._reference_share()
        if challenger is not None:
            self.trust.note(challenger, f"on trial against {champion}")
            self.emit("experiment_started", {"number": number, **plan.dump()})
        self.file.changed(urgent=True)

    async def _end_experiment(self, phase: ExperimentPhase, verdict: ExperimentVerdict) -> None:
        """Carry out a verdict; where a person had made the challenger live, a rejection is a rollback."""
        plan, sentence = phase.plan, phase.test.sentence()
        challenger = plan.challenger
        assert challenger is not None
        requested, passed = phase.acts_in_plain == "challenger", verdict.outcome == "live"
        if passed and not requested:
            by = "better" if verdict.better else "as good"
            await self._promote(challenger, f"{by}: {sentence}", by="experiment", figures=look_figures(phase))
        moved: Live | CheckpointRefused | None = None
        if requested and verdict.outcome == "out":
            moved = await asyncio.to_thread(self._move_back, challenger, plan.champion)
        self.phase = None
        self.alpha.record(promoted=passed, alpha=plan.alpha)
        self.trust.ended(challenger, promoted=verdict.better, rejected=verdict.outcome == "out")
        self.trust.note(challenger, f"{'live' if passed else 'not live'}: {sentence}")
        if passed and verdict.new_anchor:
            self.trust.choose(challenger, "proof")
        fields = {"number": phase.number, "version": challenger, "champion": plan.champion, "outcome": verdict.outcome}
        self.emit("experiment_ended", {**fields, "reason": verdict.reason, "result": sentence, **look_figures(phase)})
        if moved is not None:
            self._publish_rollback(challenger, moved, {"by": "experiment", "why": verdict.reason, "result": sentence})
        elif requested and passed:
            self.trust.choose(challenger, "proof" if verdict.better else "request")
        self._renew_guard()

    async def _promote(self, version: str, note: str, *, by: str, figures: Mapping[str, Any] | None = None) -> None:
        """Move LIVE to a version; the event comes before the pointer."""
        before = self.live
        fields = {"version": version, "before": None if before == UNTRAINED else before, "by": by, "why": note}

        def announce(_live: Live) -> None:
            if self._announced != version:  # a full disk may refuse the pointer, and this is tried again
                self.emit("policy_promoted", {**fields, **(figures or {})})
            self._announced = version

        try:
            await asyncio.to_thread(partial(self.checkpoints.promote, version, announce=announce, by=by))
        except CheckpointRefused as refusal:
            self.unloadable(version, refusal.reason)
            self.emit("checkpoint_refused", {"version": version, "reason": refusal.reason, "detail": refusal.detail})
            return
        self.trust.note(version, f"live: {note}" if by == "untrusted" else note)

    async def _first_proof(self) -> None:
        """Trust the best version so far, and let it act again if a later one acts."""
        found = self.proof.found()
        if found is None:
            return
        version, sentence = found
        if version != self.live:
            before = self.live
            await self._promote(version, sentence, by="experiment")
            if version in self.trust.judged and version not in self.checkpoints.live().promoted:
                self.proof.versions.pop(version, None)  # it cannot be loaded any more
                return
            self.trust.note(before, f"not live: {version} earned more")
        self.trust.choose(version, "proof")
        self.trust.note(version, f"live and trusted: {sentence}")
        self.emit("policy_trusted", {"version": version, "result": sentence})
        self.phase = None
        self._renew_guard()

    async def _return(self) -> None:
        """Take the live version back: the guard decided."""
        alarm, version = self._alarm, self.live
        assert alarm is not None
        back = self._way_back(version)
        if back is not None:
            moved = await asyncio.to_thread(self._move_back, version, back)
            figures = {"figure": alarm.figure, "pairs": alarm.pairs, "evidence": round(alarm.evidence, 1)}
            self._publish_rollback(version, moved, {"by": "guard", "why": alarm.reason, **figures})
        self._alarm = None
        self._cancel("the guard took the live version back")
        self._renew_guard()

    def _move_back(self, failing: str, back: str) -> Live | CheckpointRefused:
        """Move LIVE to a trusted version, else to any earlier one that loads."""
        try:
            return self.checkpoints.rollback(to=back, failing=failing, by="guard")
        except CheckpointRefused:
            try:
                return self.checkpoints.rollback(failing=failing, by="guard")
            except CheckpointRefused as refusal:
                return refusal

    def _publish_rollback(self, version: str, live: Live | CheckpointRefused, fields: dict[str, Any]) -> None:
        if isinstance(live, CheckpointRefused):
            self.emit("rollback_failed", {"version": version, **fields, "reason": str(live)})
            return
        self.trust.forget(version)
        self.trust.judged.append(version)
        self.trust.note(version, f"taken back: {fields['why']}")
        self.live = live.version or UNTRAINED
        if self.trust.anchor is None and live.version is not None:
            self.trust.choose(live.version, "proof")
        self.emit("policy_rolled_back", {"version": version, "to": live.version, **fields})
        if self._started:
            self.emit("policy_swapped", {"version": self.live, "before": version})

    def _cancel(self, reason: str) -> None:
        """End the running phase; a challenger in it has no verdict and the champion remains."""
        phase, self.phase = self.phase, None
        if phase is None or phase.plan.challenger is None:
            return
        version = phase.plan.challenger
        self.trust.note(version, f"not decided: {reason}")
        fields = {"number": phase.number, "version": version, "champion": phase.plan.champion, "outcome": "cap"}
        self.emit(
            "experiment_ended", {**fields, "reason": reason, "result": phase.test.sentence(), **look_figures(phase)}
        )

    # ------------------------------------------------------------------ what follows from the state

    def _way_back(self, version: str) -> str | None:
        """Return the trusted version that replaces another one."""
        if self.trust.anchor not in (None, version):
            return self.trust.anchor
        return self.trust.previous if self.trust.previous != version else None

    def _reference(self) -> str | None:
        """Return whom the live version is compared with while no challenger is on trial."""
        return None if self.live == UNTRAINED or self.trust.anchor is None else self._way_back(self.live)

    def _reference_share(self) -> float:
        """Return the share of the reference: that of the settings, more on suspicion; an earlier anchor acts on suspicion only."""
        if self.live == self.trust.anchor:
            return RAISED_SHARE if self.guard.suspicious and self.rules.anchor_share > 0 else 0.0
        return self.guard.anchor_share

    def _renew_guard(self) -> None:
        self.guard, self._block = self.rules.guard(self.levels), RunningBlock()

    # ------------------------------------------------------------------ what people and files see

    def sentence(self) -> str:
        """Say in one sentence why the live version is live."""
        if self.live == UNTRAINED:
            return "no version is live; the untrained policy acts"
        if self.trust.anchor is None and self.rules.enabled:
            return f"not yet trusted: {_FREE}"
        return self.trust.notes.get(self.live, "live")

    def figures(self) -> dict[str, Any]:
        """Return the state for `health`, the page and `reflexd checkpoints`."""
        return {
            "live": self.live,
            "trusted": self.trust.anchor is not None,
            "anchor": self.trust.anchor,
            "why": self.sentence(),
            "experiment": running_figures(self.phase),
            "waiting": self.waiting,
            "alpha": {"next": round(self.alpha.next_alpha(), 5), "experiments": self.alpha.experiments},
            "guard": guard_figures(self.guard),
        }

    def _dump(self) -> dict[str, Any]:
        challenged = self.phase is not None and self.phase.plan.challenger is not None
        return {
            "format": FORMAT,
            "running": self._running,
            "live": self.live,
            "waiting": self.waiting,
            "trust": self.trust.dump(),
            "levels": self.levels.dump(),
            "alpha": self.alpha.dump(),
            "guard": self.guard.dump(),
            "proof": self.proof.dump(),
            "late_s": self.late_s,
            "debt": self.budget.debt,
            "phase": self.phase.dump() if challenged and self.phase is not None else None,
        }

    def _restore(self, body: dict[str, Any]) -> None:
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
        trust, levels, alpha = (
            Trust.of(body["trust"]),
            RewardLevels.restored(body["levels"]),
            AlphaBudget.of(body["alpha"]),
        )
        proof = FirstAnchor.of(body["proof"])
        phase = None if body["phase"] is None else ExperimentPhase.of(body["phase"], self.rules.silence)
        late_s, waiting = float(body["late_s"]), body["waiting"]
        debt = float(body.get("debt", 0.0))
        if not 0 <= debt < float("inf"):
            raise ValueError(f"debt {debt}: a finite number of at least 0 is expected")
        self.budget.debt = debt
        self.trust, self.levels, self.alpha, self.proof, self.phase = trust, levels, alpha, proof, phase
        self.guard = self.rules.guard(self.levels)
        self.guard.restore(body["guard"])
        self.late_s, self.waiting = late_s, waiting
        if phase is not None:
            phase.budget = self.budget
            self.budget.gain, self.budget.deviation = self.rules.gain(phase.plan.champion, levels)
        self._crashed = bool(body.get("running"))


_FREE = "nothing is proved better than the untrained policy yet, so the newest version acts"
_TRUSTED_BY = {
    "proof": "live and trusted: it was proved better",
    "request": "live and trusted: a person made it live",
    "import": "live and trusted: a person imported it",
    "upgrade": "live and trusted: it was live before the program was upgraded",
}


def _on_probation(state_dir: Path) -> str | None:
    """Return the trusted version of a state that an earlier program left in `probation.json`."""
    try:
        body = orjson.loads((state_dir / PROBATION_FILE).read_bytes())
        trial = body.get("trial") or {}
        good = trial.get("before") or body.get("good")
    except (OSError, orjson.JSONDecodeError, AttributeError):
        return None
    return good if isinstance(good, str) else None
