"""Hold what live experiments must not forget: trust, levels, the running phase, the guard; and what follows from it.

`controller.py` changes the state and writes it to `experiments.json`. Knows no file, no clock and no engine.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from learners.experiment_statistics.alpha_budget import AlphaBudget
from learners.experiment_statistics.live_version_guard import RAISED_SHARE, Guard
from runtime.deploy.experiments.first_anchor import FirstAnchor
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.deploy.experiments.report import guard_figures, running_figures
from runtime.deploy.experiments.reward_levels import RewardLevels, RunningBlock, RunningHarms
from runtime.deploy.experiments.running_plan import ExperimentPhase, LossBudget
from runtime.deploy.experiments.trusted_version import Trust
from runtime.inference.engine import UNTRAINED

FORMAT = 1
NOT_TRUSTED = "nothing is proved better than the untrained policy yet, so the newest version acts"
"""Why a version is live although nothing is trusted."""
LEADS = "it is the best version so far, and newer ones race against it"
"""Why the leader is live although nothing is trusted."""


@dataclass(slots=True)
class ExperimentState:
    """See the module."""

    rules: ExperimentRules
    live: str = UNTRAINED
    """The version that LIVE names."""
    waiting: str | None = None
    """The challenger that waits."""
    phase: ExperimentPhase | None = None
    trust: Trust = field(default_factory=Trust)
    levels: RewardLevels = field(default_factory=RewardLevels)
    alpha: AlphaBudget = field(default_factory=AlphaBudget)
    guard: Guard = field(init=False)
    block: RunningBlock = field(default_factory=RunningBlock)
    """The block of the version that acts alone."""
    harms: RunningHarms = field(default_factory=RunningHarms)
    """The harms of the live version."""
    proof: FirstAnchor = field(default_factory=FirstAnchor)
    """Until something is trusted."""
    budget: LossBudget = field(default_factory=LossBudget)
    """What experiments have cost."""
    late_s: float = 0.0
    """How late rewards were lately."""

    def __post_init__(self) -> None:
        self.guard = self.rules.guard(self.levels)

    def renew_guard(self, *, promoted: bool = False) -> None:
        """Restart the watch, because another version is live, or it has another reference.

        Args:
            promoted: by an experiment: its harms are compared with those of the version before.
        """
        before = self.guard
        self.guard, self.block, self.harms = self.rules.guard(self.levels), RunningBlock(), RunningHarms()
        if promoted:
            self.guard.keep_harms(before)

    def forget_rewards(self) -> None:
        """Forget every level of rewards, because other sources count now; trust, harms and the leader stay."""
        self.levels.forget_rewards()
        self.proof.forget_rewards()
        self.guard.forget_rewards()
        self.block = RunningBlock()

    def measure_budget(self, champion: str) -> None:
        """Measure what the loss budget is counted in: gain and deviation of the champion, and the ticks of a unit."""
        self.budget.gain, self.budget.deviation = self.rules.gain(champion, self.levels)
        self.budget.unit_ticks = self.levels.length if self.rules.episodic(self.levels) else 1.0
        self.budget.period_s = self.rules.period_s
        self.budget.debt_ticks = min(self.budget.debt_ticks, self.budget.most_ticks_alone)

    @property
    def racing(self) -> bool:
        """Whether nothing is trusted yet, but the live version leads, and newer ones race against it."""
        return (
            self.trust.anchor is None and self.proof.leader not in (None, UNTRAINED) and self.proof.leader == self.live
        )

    @property
    def watched(self) -> bool:
        """Whether the guard watches the live version: it is protected by trust, or it leads."""
        return self.trust.anchor is not None or self.racing

    @property
    def has_rivals(self) -> bool:
        """Whether a challenger acts or waits."""
        return self.waiting is not None or (self.phase is not None and self.phase.plan.challenger is not None)

    def forget_failed(self, failed: Collection[str]) -> None:
        """Forget versions that were rolled back, by whomever: they are trusted, tried and returned to no more."""
        for version in failed:
            self.trust.forget(version)
            self.proof.drop(version)
            if self.proof.leader == version:
                self.proof.leader = None
            if self.waiting == version:
                self.waiting = None

    def way_back(self, version: str) -> str | None:
        """Return the trusted version that replaces another one; while nothing is trusted, the leader or the best of the others."""
        if self.trust.anchor is None:
            leader = self.proof.leader
            return leader if leader not in (None, version) else self.proof.best(without=version)
        if self.trust.anchor not in (None, version):
            return self.trust.anchor
        return self.trust.previous if self.trust.previous != version else None

    def reference(self) -> str | None:
        """Return whom the live version is compared with while no challenger is on trial."""
        return None if self.live == UNTRAINED or self.trust.anchor is None else self.way_back(self.live)

    def reference_share(self) -> float:
        """Return the share of the reference: that of the settings, more on suspicion; an earlier anchor acts on suspicion only."""
        if self.live == self.trust.anchor:
            return RAISED_SHARE if self.guard.suspicious and self.rules.anchor_share > 0 else 0.0
        return self.guard.anchor_share

    def needs_idle_phase(self, reference: str) -> bool:
        """Return whether the live version must be compared with its reference in a new phase."""
        phase = self.phase
        return (
            phase is None
            or phase.plan.champion != self.live
            or phase.plan.anchor != reference
            or phase.plan.episodic != self.rules.episodic(self.levels)
        )

    def wanted(self) -> set[str]:
        """Return the versions that have to be loaded: what acts, its reference, and the challenger."""
        found = {self.live}
        plan = None if self.phase is None else self.phase.plan
        if plan is not None:
            found |= {version for version in (plan.champion, plan.challenger, plan.anchor, plan.reference) if version}
        compared = self.trust.anchor is not None or self.racing
        if self.waiting is not None and compared and (plan is None or plan.challenger is None):
            found.add(self.waiting)
        reference = self.reference()
        return found | ({reference} if reference is not None else set())

    def sentence(self) -> str:
        """Say in one sentence why the live version is live."""
        if self.live == UNTRAINED:
            return "no version is live; the untrained policy acts"
        if self.trust.anchor is None and self.rules.enabled:
            return f"not yet trusted: {LEADS if self.racing else NOT_TRUSTED}"
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

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        challenged = self.phase is not None and self.phase.plan.challenger is not None
        return {
            "format": FORMAT,
            "live": self.live,
            "waiting": self.waiting,
            "trust": self.trust.dump(),
            "levels": self.levels.dump(),
            "alpha": self.alpha.dump(),
            "guard": self.guard.dump(),
            "proof": self.proof.dump(),
            "late_s": self.late_s,
            "debt_ticks": self.budget.debt_ticks,
            "phase": self.phase.dump() if challenged and self.phase is not None else None,
        }

    def restore(self, body: dict[str, Any]) -> None:
        """Take what `dump` returned, but for the live version, which LIVE names.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: the body is malformed.
        """
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
        trust, levels = Trust.of(body["trust"]), RewardLevels.restored(body["levels"])
        alpha, proof = AlphaBudget.of(body["alpha"]), FirstAnchor.of(body["proof"])
        phase = None if body["phase"] is None else ExperimentPhase.of(body["phase"], self.rules.silence)
        late_s, waiting = float(body["late_s"]), body["waiting"]
        debt_ticks = float(body.get("debt_ticks", 0.0))  # an earlier program stored rewards, which no gain measures now
        if not 0 <= debt_ticks < float("inf"):
            raise ValueError(f"debt_ticks {debt_ticks}: a finite number of at least 0 is expected")
        if waiting is not None and not isinstance(waiting, str):
            raise TypeError(f"waiting is {waiting!r}, not a version")
        guard = self.rules.guard(levels)
        guard.restore(body["guard"])
        self.trust, self.levels, self.alpha, self.guard = trust, levels, alpha, guard
        self.proof, self.phase, self.late_s, self.waiting = proof, phase, late_s, waiting
        self.budget.debt_ticks = debt_ticks
        if phase is not None:
            phase.budget = self.budget
            self.measure_budget(phase.plan.champion)
