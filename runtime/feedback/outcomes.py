"""What came of each decision: every tick and every reward on their way to those who judge policies and sources.

Lives in the event loop, beside the store: the store keeps everything for learning, this keeps a few seconds for watching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from learners.safeguards.reward_ledger import Entry, Ledger
from runtime.control.tick import TickResult, executed_actions

POLICY_RULES = frozenset(
    {
        *("not_finite", "wrong_type", "unknown_choice", "unknown_actuator", "out_of_range", "too_fast", "too_soon"),
        *("min_hold", "forbidden", "too_long"),
    }
)
"""Refusals that are the policy's own doing."""


class Latest(Protocol):
    """Who computed the rewards of the last tick."""

    @property
    def latest(self) -> Mapping[str, float]:
        """By name."""


@dataclass(slots=True)
class OutcomeTracker:
    """See the module."""

    rewards: Latest
    ledger: Ledger
    wall: Callable[[], float]
    """Unix seconds."""
    listeners: list[Callable[[list[Entry]], None]] = field(default_factory=list)
    """Are given settled decisions, oldest first."""
    late: Callable[[Entry, str], None] = lambda _entry, _source: None
    """Is told of a reward, by its source, for a decision that was settled before."""

    def ticked(self, ticked: TickResult) -> None:
        """One finished tick; its own rewards were computed just before."""
        own = sum(self.rewards.latest.values()) if self.rewards.latest else None
        acted, refused = attribution(ticked)
        entry = Entry(ticked.decision, ticked.stamp_unix_s, ticked.decided.policy, acted, refused, own)
        self.ledger.decided(entry)
        settled = self.ledger.settle(self.wall())
        if settled:
            for listener in self.listeners:
                listener(settled)

    def credited(
        self, source: str, value: float, decision: str | None, stamp_s: float | None, *, done: bool = False
    ) -> None:
        """One reward that was taken; `done` where it ends an episode."""
        stamp_s = self.wall() if stamp_s is None else stamp_s
        settled = self.ledger.credit(source, value, decision=decision, stamp_s=stamp_s, done=done)
        if settled is not None:
            self.late(settled, source)


def attribution(ticked: TickResult) -> tuple[bool, bool]:
    """Whether what followed is the policy's doing, and whether the gate refused it for what it was.

    Not its doing: nobody answered, not armed, stopped, a person held an actuator, or a mode in which it does not act.
    """
    verdict = ticked.verdict
    if verdict is None or not verdict.armed or verdict.stopped:
        return False, False
    by = executed_actions(ticked.decided.actions, verdict)[1]
    if "override" in by.values():
        return False, False
    refused = any(outcome.rule in POLICY_RULES for outcome in verdict.outcomes.values())
    return refused or "policy" in by.values(), refused
