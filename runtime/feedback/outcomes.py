"""Track the outcome of each decision: every tick and every reward, for experiments and for the comparison of sources.

Runs in the event loop. The experience store keeps everything for learning; this holds some minutes for the safeguards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from learners.experiment_statistics.paired_outcomes import OWN
from learners.safeguards.reward_ledger import Ledger, LedgerEntry
from runtime.control.responsibility import responsibility
from runtime.control.tick import TickResult
from runtime.deploy.experiments.controller import ExperimentController
from runtime.feedback.source_quarantine import SourceQuarantine


@dataclass(slots=True)
class OutcomeTracker:
    """Puts decisions and rewards into the ledger, and hands settled decisions to sources and experiments."""

    ledger: Ledger
    sources: SourceQuarantine
    experiments: ExperimentController
    wall: Callable[[], float]
    """Unix seconds."""
    _last: LedgerEntry | None = None
    """The newest decision; the next tick knows its own reward."""

    def ticked(self, result: TickResult) -> None:
        """Take one finished tick; its `reward` is what the decision before has earned."""
        if self._last is not None and result.reward is not None:
            self._last.own = result.reward
            self.experiments.credit(OWN, result.reward, self._last.decision, done=False)
        self.experiments.ticked(result)
        settled = self.ledger.settle(self.wall())
        if settled:
            self.sources.settled(settled)
            self.experiments.settled(settled)
        acted, refused = responsibility(result)
        self._last = LedgerEntry(
            result.decision, result.stamp_unix_s, result.decided.policy, acted=acted, refused=refused
        )
        self.ledger.decided(self._last)

    def judged(self, source: str, value: float, decision: str | None) -> None:
        """Compare a reward that a model gave with those of other sources; experiments do not count it."""
        settled = self.ledger.judge(source, value, decision)
        if settled is not None:
            self.sources.late(settled, source)

    def decision_at(self, stamp_s: float) -> str | None:
        """Find the decision that a reward of `stamp_s` (Unix seconds) belongs to; None where the ledger does not hold it."""
        return self.ledger.decision_at(stamp_s)

    def credit(self, source: str, value: float, decision: str | None, *, done: bool, failure: bool = False) -> None:
        """Add a reward to its decision; `done` where it ends an episode, `failure` where it ended as one."""
        self.experiments.credit(source, value, decision, done=done, failure=failure)
        settled = self.ledger.credit(source, value, decision, done=done)
        if settled is not None:
            self.sources.late(settled, source)
