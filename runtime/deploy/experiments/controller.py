"""Trade the live version only for one that is proved better or as good: run the experiments, guard the live version, remember trust.

A candidate that passed the filters waits as the challenger; a newer one replaces it. The controller plans an experiment, says at each
tick which version acts, joins outcomes to pairs, and has the verdict carried out (`endings.py`). Until there is something to
protect (`first_anchor.py`), versions follow freely ("not yet trusted"), then race against the best one. The first that
newer ones do not overtake becomes the anchor.

The state (`state.py`) lies in `experiments.json` in the state folder. It survives a crash: the experiment goes on with the next pair. An agent that
dies twice with a new version returns to the trusted one; while nothing is trusted, to the best of the others, else to the untrained policy.

Events: `experiment_started`, `experiment_ended`, `policy_promoted`, `policy_trusted`, `policy_suspected`, `policy_rolled_back`, `rollback_failed`,
`experiment_state_unreadable`. Knows no engine: `PolicyUpdater` loads what `state.wanted` names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from learners.checkpoints.experiment_records import EXPERIMENTS_FILE
from learners.checkpoints.store import Checkpoints, Live
from learners.config.rewards import BY_MODEL
from learners.experiment_statistics.experiment_test import ExperimentVerdict
from learners.experiment_statistics.live_version_guard import GuardAlarm
from learners.experiment_statistics.paired_outcomes import TickOutcome
from learners.experiment_statistics.plan import SHARES, Arm
from learners.experiment_statistics.switchback import Assignment
from learners.safeguards.reward_ledger import LedgerEntry
from learners.safeguards.source_consistency import Quarantine
from runtime.control.responsibility import moves_alone, responsibility
from runtime.control.tick import TickResult
from runtime.control.tick_version import TickVersion
from runtime.deploy.experiments.endings import ExperimentEndings
from runtime.deploy.experiments.first_start import trust_what_is_live
from runtime.deploy.experiments.live_moves import LiveMoves
from runtime.deploy.experiments.manual_promotion_watch import ALONE_S, RewardDropCheck
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.deploy.experiments.reward_lateness import DecisionsInWait, RewardLateness
from runtime.deploy.experiments.reward_levels import NewestEpisodeEnd
from runtime.deploy.experiments.running_plan import ExperimentPhase, pairs_allowed
from runtime.deploy.experiments.state import NOT_TRUSTED, ExperimentState
from runtime.deploy.experiments.trusted_version import TRUSTED_BY, trust_reason
from runtime.inference.engine import UNTRAINED
from runtime.process.emit import Emit
from runtime.process.machine_boot import machine_boot
from runtime.process.state_file import StateFile, StateUnreadable

SAVE_EVERY_S = 5.0
REQUESTED_SHARE = 0.5
"""Share of a version that a person made live, while it is compared with the trusted one."""
OF_LABELS = "label:"
"""Begins the names of sources of labels, which give no rewards."""
CALM_S = 86_400.0
"""Seconds of acting after which earlier deaths of the agent no longer count against a version."""
LONG_HOLD_S = 60.0
"""After a hold of this length the live version acts, so that no challenger moves the other actuators for hours."""


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
    boot: Callable[[], str] = machine_boot
    """Names the boot of the machine: an agent that a power cut ended did not die with a version."""
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a verdict waits for `conclude`."""
    file: StateFile = field(init=False)
    moves: LiveMoves = field(init=False)
    endings: ExperimentEndings = field(init=False)
    state: ExperimentState = field(init=False)
    falls: RewardDropCheck = field(default_factory=RewardDropCheck)
    lateness: RewardLateness = field(default_factory=RewardLateness)
    waiting: DecisionsInWait = field(default_factory=DecisionsInWait)
    newest_end: NewestEpisodeEnd = field(default_factory=NewestEpisodeEnd)
    acting: bool = False
    """The policy may act now, and moves an actuator without a person."""
    _now: TickVersion = field(default_factory=lambda: TickVersion(UNTRAINED))
    _counted: tuple[int, Assignment] | None = None
    """Experiment and assignment of the tick before, where it was counted."""
    _alarm: GuardAlarm | None = None
    _newest: str = ""
    """Decision of the tick before."""
    _excluded: frozenset[str] | None = None
    """Sources of rewards that did not count at the decisions before."""
    _tick: int = 0
    _calm_ticks: int = 0
    """Ticks that acted since the start."""
    _held_s: float = 0.0
    """How long a person has held an actuator that the policy moves alone."""
    _held_from: str = ""
    """The version that acted when the hold began."""
    _unwritten: bool = False
    _running: bool = True
    _crashed: bool = False

    def __post_init__(self) -> None:
        self.state = ExperimentState(self.rules)
        self.moves = LiveMoves(self.checkpoints, self.state, self.emit)
        self.endings = ExperimentEndings(self.state, self.moves, self.emit)
        path = self.state_dir / EXPERIMENTS_FILE
        self.file = StateFile(path, self._dump, self._restore, SAVE_EVERY_S, self.emit, durable=False)

    @property
    def live(self) -> str:
        """The version that LIVE names."""
        return self.state.live

    def _dump(self) -> dict[str, Any]:
        return {"running": self._running, "boot": self.boot(), **self.state.dump()}

    def _restore(self, body: dict[str, Any]) -> None:
        tried = ExperimentState(self.rules)
        tried.restore(body)
        orjson.dumps([tried.dump(), tried.figures()])  # a number that cannot be stored again would end each agent
        self.state.restore(body)
        here = self.boot()
        self._crashed = bool(body.get("running")) and body.get("boot", here) == here

    # ------------------------------------------------------------------ start and end

    def start(self) -> None:
        """Restore the state before any policy is loaded; after too many crashes with a new version, return to the trusted one."""
        live = self.checkpoints.live()
        try:
            known = self.file.load()
        except StateUnreadable as error:
            self.emit("experiment_state_unreadable", {"reason": str(error)})
            known = False
        self.state.live = live.version or UNTRAINED
        if not known:
            trust_what_is_live(self.state.trust, live, self.state_dir)
        self.forget_failed(live)
        if (
            self.state.phase is not None
            and self.state.phase.version_of(self.state.phase.acts_in_plain) != self.state.live
        ):
            self.endings.cancel("the live version was changed while no agent ran")
        if self._crashed:
            self.endings.after_crash()
            self.forget_failed(self.checkpoints.live())
        self.moves.is_acting = True
        self.file.write()

    def close(self, *, clean: bool) -> None:
        """Write the state at the agent's end; where that was not a clean stop, the next start counts a crash."""
        self._running = not clean
        self.file.write()

    # ------------------------------------------------------------------ every tick

    def choose(self, tick: int, loaded: Collection[str]) -> TickVersion:
        """Return which version acts at a tick, and what the tick belongs to; only loaded versions act."""
        self._tick = tick
        self._now = TickVersion(self.state.live)
        alarmed = self.state.way_back(self.state.live) if self._alarm is not None else None
        if alarmed is not None and alarmed in loaded:
            self._now = TickVersion(alarmed)
        elif self._held_s >= LONG_HOLD_S:
            return self._now
        elif self.state.phase is not None and self.acting and not self.decided.is_set():
            found = self.state.phase.assign()
            if found is not None and found[0] in loaded:
                other = found[1].other
                against = None if other is None else self.state.phase.version_of(other)
                self._now = TickVersion(found[0], self.state.phase.number, found[1], against)
        elif (
            self.state.phase is not None
            and self.state.phase.verdict is not None
            and self.state.phase.plan.champion in loaded
        ):
            self._now = TickVersion(self.state.phase.plan.champion)
        return self._now

    def ticked(self, result: TickResult) -> None:
        """Take one finished tick: its harms; its rewards come by `credit`."""
        acted, refused = responsibility(result)
        verdict = result.verdict
        alone = moves_alone(result)
        held = any(result.by.get(name) == "override" for name in alone)
        if held and not self._held_s:
            self._held_from = self._now.version
        self._held_s = self._held_s + self.rules.period_s if held else 0.0
        stopped = self.acting and verdict is not None and verdict.stopped
        overridden = verdict is not None and not alone.isdisjoint(verdict.overridden)
        self.acting = verdict is not None and verdict.armed and not verdict.stopped and bool(alone)
        assignment, phase = self._now.assignment, self.state.phase
        before, self._counted = self._counted, None
        counted = phase is not None and before is not None and before[0] == phase.number
        if phase is not None and before is not None and counted and overridden:
            phase.correct(before[1])  # a person's command since the tick before
        if overridden:
            self.state.harms.late(self._newest, "takeover")
        self._newest = result.decision
        if verdict is None or not (acted or held or stopped):
            return
        self._calm_ticks += 1
        if self._calm_ticks * self.rules.period_s >= CALM_S and self.state.trust.crashes:
            self.state.trust.crashes.clear()
            self.file.changed(urgent=True)
        outcome = TickOutcome(takeover=held, stop=stopped, refusal=refused)
        self._watch_harms(result.decision, outcome)
        if phase is None and self._now.version == self.state.live:
            self.state.budget.tick()
        elif phase is not None and assignment is None:
            phase.tick_alone(result.decision, outcome)
        if phase is None or assignment is None or phase.number != self._now.experiment:
            return
        self._counted = (phase.number, assignment)
        phase.add(result.decision, assignment, outcome, hold=held)

    def _watch_harms(self, decision: str, outcome: TickOutcome) -> None:
        """Give the harms of the live version to the guard, whether or not it is compared with another one."""
        begun_by_another = self._held_s > 0 and self._held_from != self.state.live
        if self._now.version != self.state.live or begun_by_another or not self.state.watched:
            return
        block = self.state.harms.add(decision, outcome, self.rules.block_of_one_version())
        if block is not None:
            self._guard_block(None, *block)

    def _guard_block(self, reward: float | None, harms: Mapping[str, float], ticks: int) -> None:
        """Give one block of the live version to the guard; publish a suspicion when it begins."""
        guard = self.state.guard
        before = guard.suspicious
        if guard.block(reward, harms, ticks) and not before:
            self._suspect(str(guard.suspect))

    def _suspect(self, figure: str) -> None:
        """Publish that the live version looks worse, and let another one race against it while nothing is trusted."""
        reference = self.state.proof.fell() if self.state.racing else self.state.reference()
        self.emit("policy_suspected", {"version": self.state.live, "figure": figure, "reference": reference})

    def credit(self, source: str, value: float, decision: str | None, *, done: bool, failure: bool = False) -> None:
        """Add a reward to the unit of its decision; `done` where it ends an episode.

        A failure counts once, for the version and the unit of its decision; without a decision, for the newest one.
        """
        phase = self.state.phase
        if decision is not None:
            self._note_lateness(source, decision)
            if phase is not None and source not in self.quarantine.names:
                phase.credit(decision, source, value)
        counted = failure and phase is not None and decision is not None and phase.failed(decision)
        if done and self.newest_end.is_new(decision) and phase is not None:
            phase.episode_ended(failure=failure and not counted)
        if failure:
            self.state.harms.late(self._newest if decision is None else decision, "failure")

    def _note_lateness(self, source: str, decision: str) -> None:
        """Follow how late rewards arrive, so that pairs stay open for them."""
        run, _, index = decision.rpartition("-")
        if index.isdecimal() and run == self._newest.rpartition("-")[0]:  # ticks of an earlier run have other numbers
            late_s = max(0, self._tick - int(index)) * self.rules.period_s
            self.state.late_s = self.lateness.follow(source, late_s, self.state.late_s)

    def settled(self, entries: list[LedgerEntry]) -> None:
        """Take settled decisions, oldest first: measure levels, close pairs, and let test and guard decide."""
        self.file.changed()
        self._follow_sources()
        complete = self.waiting.take(entries, self.rules.ticks_after_settling(self.state.late_s))
        self._watch(complete, self.state.levels.settled(complete, self.quarantine.names))
        fell = self.falls.settled(entries, self.quarantine.names)
        phase = self.state.phase
        if phase is None or self.decided.is_set():
            return
        if phase.alone:
            phase.alone = self.falls.acted_s < ALONE_S
            if fell:
                phase.test.verdict = ExperimentVerdict("out", "rewards fell at once, before and after")
        if phase.plan.challenger is not None and phase.plan.episodic and not self.rules.episodic(self.state.levels):
            phase.test.verdict = phase.verdict or ExperimentVerdict("cap", "no episode ends any more")
            self.decided.set()
            return
        phase.reference_share = self.state.reference_share()
        for pair in phase.complete(self.rules.late_units(phase.plan, self.state.levels, self.state.late_s)):
            self._alarm = self._alarm or self.state.guard.pair(pair)
        if (
            phase.plan.challenger is not None
            and phase.verdict is None
            and self.state.waiting is not None
            and phase.give_up(pairs_allowed(self.state.trust.undecided, phase.plan.cap_pairs))
        ):
            found = "no gain" if sum(phase.differences) <= 0 else "no proof"
            phase.test.verdict = ExperimentVerdict("cap", f"{found} in {phase.test.pairs} pairs, and a newer one waits")
        if phase.verdict is not None or self._alarm is not None:
            self.decided.set()

    def _follow_sources(self) -> None:
        """Begin again what used rewards of a source that counts no more, or did not count before: its pairs say something else."""
        names = frozenset(name for name in self.quarantine.names if not name.startswith((OF_LABELS, BY_MODEL)))
        before, self._excluded = self._excluded, names
        if before in (None, names):
            return
        phase, alarm = self.state.phase, self._alarm
        self.endings.cancel("other sources of rewards count now")
        self.state.forget_rewards()
        self._alarm = None if alarm is not None and alarm.figure == "reward" else alarm
        plan = None if phase is None else phase.plan
        if phase is not None and plan is not None and plan.challenger is not None:
            if phase.acts_in_plain == "challenger":
                self._begin(plan.champion, plan.challenger, None, REQUESTED_SHARE, requested=True)
            else:
                self.state.waiting = self.state.waiting or plan.challenger
        self.file.changed(urgent=True)

    def _watch(self, entries: list[LedgerEntry], ended: list[tuple[str, float]]) -> None:
        """Give the units of the version that acts to the guard, and to the first proof while nothing is trusted."""
        is_episodic = self.rules.episodic(self.state.levels)
        units = (
            ended
            if is_episodic
            else self.state.block.add(entries, self.rules.block_of_one_version(), self.quarantine.names)
        )
        if is_episodic != self.state.proof.episodic:
            self.state.proof.count(self.state.levels.returns if is_episodic else None)
            units = []  # those of episodes are among the returns
        for version, value in units:
            if version == self.state.live and self.state.watched:
                self._guard_block(value, {}, 0)
            if self.state.trust.anchor is None and self.rules.enabled:
                self.state.proof.add(version, value, untrained=version == UNTRAINED)
                proof = self.state.proof
                if self.state.racing and proof.is_behind():
                    self._suspect("reward")
                if (
                    version != UNTRAINED
                    and (proof.settled(rivals=self.state.has_rivals) if self.state.racing else proof.found())
                    is not None
                ):
                    self.decided.set()

    # ------------------------------------------------------------------ between ticks

    async def conclude(self) -> None:
        """Carry out what was decided: a rollback, the first proof, or the verdict of the experiment."""
        if not self.decided.is_set():
            return
        try:
            if self._alarm is not None:
                await self.endings.take_back(self._alarm)
                self._alarm = None
            elif self.state.phase is not None and self.state.phase.verdict is not None:
                end = self.endings.end_race if self.state.phase.race else self.endings.end_experiment
                await end(self.state.phase, self.state.phase.verdict)
            elif self.state.racing:
                await self.endings.trust_leader()
            elif self.state.trust.anchor is None:
                await self.endings.first_leader()
        except OSError as error:  # what was decided stays, and the next call tries again
            if not self._unwritten:
                self.emit("rollback_failed", {"version": self.state.live, "why": "disk", "reason": str(error)})
            self._unwritten = True
            return
        self.forget_failed(self.checkpoints.live())
        self._unwritten = False
        self.decided.clear()
        self.file.changed(urgent=True)

    async def take_proposal(self) -> None:
        """Read which candidate passed the filters; while nothing is trusted and none leads it goes live at once."""
        proposal = await asyncio.to_thread(self.checkpoints.proposed)
        if proposal is None or proposal in (self.state.waiting, self.state.live) or proposal in self.state.trust.judged:
            return
        if self.state.phase is not None and proposal == self.state.phase.plan.challenger:
            return
        if self.rules.enabled and (self.state.trust.anchor is not None or self.state.racing):
            self.state.waiting = proposal
            self.state.trust.note(proposal, f"waits for its {'race' if self.state.racing else 'experiment'}")
            self.file.changed()
            return
        self.state.trust.judged.append(proposal)
        note = NOT_TRUSTED if self.rules.enabled else "promoted without an experiment (promotion.experiments is false)"
        await self.endings.promote(proposal, note, by="untrusted" if self.rules.enabled else "unguarded")
        self.file.changed(urgent=True)

    def unloadable(self, version: str, reason: str) -> None:
        """Give up a version that cannot be loaded."""
        anchor = self.state.trust.anchor
        self.endings.unloadable(version, reason)
        self.endings.inherit_trust(anchor, self.checkpoints.live())
        self.file.changed(urgent=True)

    def forget_failed(self, live: Live) -> None:
        """Trust, try and return to no version that LIVE names as failed, by whomever it was taken back; end the experiment with it."""
        anchor, plan = self.state.trust.anchor, None if self.state.phase is None else self.state.phase.plan
        self.state.forget_failed(live.failed)
        if plan is not None and not {plan.champion, plan.challenger, plan.anchor, plan.reference}.isdisjoint(
            live.failed
        ):
            self.endings.cancel("a version in it was taken back")
        self.endings.inherit_trust(anchor, live)

    def became_live(self, version: str, by: str | None) -> None:
        """Take note that LIVE names another version; `by` says who moved it."""
        before, self.state.live = self.state.live, version
        live = self.checkpoints.live()
        failed = live.failed
        self.forget_failed(live)
        if self.state.waiting == version:
            self.state.waiting = None
        if by in ("experiment", "untrusted", "unguarded", "guard"):
            self.endings.cancel("the live version changed")
            self.file.changed(urgent=True)
            return
        self.endings.cancel("a person changed the live version")
        reference = self.state.trust.anchor
        if reference is None or before in failed or not self.rules.enabled:
            reason = trust_reason(by or "request") or "request"
            self.state.trust.choose(version, reason)
            self.state.trust.note(version, TRUSTED_BY[reason])
        elif version != reference:
            self.state.trust.note(version, f"a person made it live; it is compared with {reference}")
            self._begin(reference, version, None, REQUESTED_SHARE, requested=True)
            self.falls.begin(version, reference)
        self.state.renew_guard()
        self.file.changed(urgent=True)

    def advance(self, loaded: Collection[str]) -> None:
        """Begin the next phase when everything that it needs is loaded."""
        if self.state.phase is not None and self.state.phase.plan.challenger is not None:
            return
        if self.state.live == UNTRAINED or not self.rules.enabled:
            return
        anchor, reference = self.state.trust.anchor, self.state.reference()
        if self.state.racing and self.state.waiting is None:
            self.state.waiting = self.state.proof.rival
        if (
            self.state.waiting is not None
            and self.acting
            and (anchor is not None or self.state.racing)
            and {self.state.waiting, self.state.live, anchor or self.state.live, reference or self.state.live}
            <= set(loaded)
        ):
            challenger, self.state.waiting = self.state.waiting, None
            share = SHARES[-1 if anchor is None else self.state.trust.pace]
            self._begin(self.state.live, challenger, anchor, share, race=anchor is None)
        elif (
            reference is not None
            and {reference, self.state.live} <= set(loaded)
            and self.state.needs_idle_phase(reference)
        ):
            self._begin(self.state.live, None, reference, SHARES[0])

    def _begin(
        self, champion: str, challenger: str | None, anchor: str | None, share: float, *,
        requested: bool = False, race: bool = False,
    ) -> None:  # fmt: skip
        if race and challenger is not None:
            self.state.proof.race_again(challenger)
        self.state.trust.experiments += 1
        number = self.state.trust.experiments
        versions = (champion, challenger, anchor)
        plan = self.rules.plan(
            versions, number, levels=self.state.levels, share=share, alpha=self.state.alpha.next_alpha(),
            reference=self.state.reference() if champion == anchor else None,
        )  # fmt: skip
        arm: Arm = "challenger" if requested else "champion"
        self.state.measure_budget(champion)
        self.state.phase = ExperimentPhase(
            number, plan, self.rules.silence, arm, self.state.budget, race=race, alone=requested
        )
        self.state.phase.reference_share = self.state.reference_share()
        if challenger is not None:
            self.state.trust.note(challenger, f"{'races' if race else 'on trial'} against {champion}")
            self.emit("experiment_started", {"number": number, **plan.dump(), "race": race})
        self.file.changed(urgent=True)
