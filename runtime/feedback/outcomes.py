"""Track the outcome of each decision: every tick and every reward, for probation and for the comparison of sources.

Runs in the event loop. The experience store keeps everything for learning; this holds some minutes for the safeguards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from learners.safeguards.reward_ledger import Ledger, LedgerEntry
from runtime.control.tick import TickResult
from runtime.deploy.probation_monitor import ProbationMonitor
from runtime.feedback.source_quarantine import SourceQuarantine

POLICY_RULES = frozenset(
    {
        *("not_finite", "wrong_type", "unknown_choice", "unknown_actuator", "out_of_range", "too_fast", "too_soon"),
        *("min_hold", "forbidden", "too_long"),
    }
)
"""Refusals that are the policy's own doing."""


@dataclass(slots=True)
class OutcomeTracker:
    """Puts decisions and rewards into the ledger, and hands settled decisions to sources and probation."""

    ledger: Ledger
    sources: SourceQuarantine
    probation: ProbationMonitor
    wall: Callable[[], float]
    """Unix seconds."""
    _last: LedgerEntry | None = None
    """The newest decision; the next tick knows its own reward."""

    def ticked(self, result: TickResult) -> None:
        """Take one finished tick; its `reward` is what the decision before has earned."""
        if self._last is not None and result.reward is not None:
            self._last.own = result.reward
        settled = self.ledger.settle(self.wall())
        if settled:
            self.sources.settled(settled)
            self.probation.settled(settled)
        acted, refused = attribution(result)
        self._last = LedgerEntry(
            result.decision, result.stamp_unix_s, result.decided.policy, acted=acted, refused=refused
        )
        self.ledger.decided(self._last)

    def decision_at(self, stamp_s: float) -> str | None:
        """Find the decision that a reward of `stamp_s` (Unix seconds) belongs to; None where the ledger does not hold it."""
        return self.ledger.decision_at(stamp_s)

    def credit(self, source: str, value: float, decision: str | None, *, done: bool) -> None:
        """Add a reward to its decision; `done` where it ends an episode."""
        settled = self.ledger.credit(source, value, decision, done=done)
        if settled is not None:
            self.sources.late(settled, source)


def attribution(result: TickResult) -> tuple[bool, bool]:
    """Return whether the outcome is the policy's doing, and whether the gate refused its action for what it was.

    It is not the policy's doing without a verdict, while disarmed or stopped, under an override, or in a mode in which the
    policy does not act.
    """
    verdict = result.verdict
    if verdict is None or not verdict.armed or verdict.stopped or "override" in result.by.values():
        return False, False
    refused = any(outcome.rule in POLICY_RULES for outcome in verdict.outcomes.values())
    return refused or "policy" in result.by.values(), refused
