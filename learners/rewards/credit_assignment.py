"""Decide which decision a reward with a time stamp belongs to: the one rule for the agent's ledger and the experience store."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

Decision = TypeVar("Decision")

MAX_DELAY_S = 2.0
"""A reward belongs to no decision that was made longer ago than this."""


def decision_in_force(timeline: Sequence[tuple[float, Decision]], stamp_s: float) -> Decision | None:
    """Find the newest decision at or before `stamp_s`; of several with one stamp, the last one.

    Args:
        timeline: (stamp in seconds, decision), sorted by stamp; equal stamps in the order of the decisions.
        stamp_s: when the reward arose, on the clock of the timeline.

    Returns:
        The decision; None where the newest one is older than `MAX_DELAY_S`, or there is none.
    """
    index = bisect_right(timeline, stamp_s, key=_stamp_s) - 1
    if index < 0 or stamp_s - timeline[index][0] > MAX_DELAY_S:
        return None
    return timeline[index][1]


def _stamp_s(entry: tuple[float, object]) -> float:
    return entry[0]
