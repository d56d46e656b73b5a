"""Judge rewards that are rare: which ticks of an agent have one, and whether its sign contradicts that of the other agents.

A reward is rare where most ticks earn one and the same value, the base. Ticks with another reward are events. A window of ticks has few
of them, so `agent_trust.py` remembers them for longer. The sign of an event is that of its reward without the base, so an offset does not
count. Signs are compared only where the tick has an outcome: what a success or a failure is does not depend on the place. Rewards
without an outcome may differ from place to place, and are left to the regressions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BASE_SHARE = 0.75
"""Of the ticks that earn the base, from which on other rewards count as rare."""
LEAST_EVENTS = 8
"""Of one agent with one outcome, before its sign is known, and of the judged agent since the last look."""
AGREED = 0.9
"""Of an agent's events with one outcome that have its sign; of the judged agent's events that contradict."""


@dataclass(frozen=True, slots=True)
class RewardEvent:
    """A tick with a rare reward."""

    outcome: str
    """`success`, `failure`, or empty."""
    contrast: float
    """Its reward without the base."""


def rare(reward_N: NDArray[np.float64]) -> tuple[float, NDArray[np.bool_]] | None:
    """Return the base of rewards N and which of them differ from it; None where no value is that common."""
    if not len(reward_N):
        return None
    scale = max(1e-9, float(np.abs(reward_N).max()))
    _, first_N, at_N, counts = np.unique(
        np.round(reward_N / scale, 6), return_index=True, return_inverse=True, return_counts=True
    )
    commonest = int(counts.argmax())
    if counts[commonest] < BASE_SHARE * len(reward_N):
        return None
    return float(reward_N[first_N[commonest]]), at_N != commonest


def contradicts(own: Sequence[RewardEvent], others: Sequence[Sequence[RewardEvent]], least: int) -> str:
    """Return why the signs of an agent's events look flipped; empty if they do not, or this cannot be decided.

    Args:
        own: events of the judged agent.
        others: events of each other agent.
        least: other agents that have to agree on the sign of an outcome.
    """
    agreed = _agreed([_signs(each) for each in others], least)
    known = [event for event in own if event.outcome in agreed]
    against = [event for event in known if event.contrast * agreed[event.outcome] < 0]
    if len(known) < LEAST_EVENTS or len(against) < AGREED * len(known):
        return ""
    outcomes = " and ".join(sorted({event.outcome for event in against}))
    return f"{len(against)} of {len(known)} rewards at {outcomes} have the opposite sign of those of the other agents"


def _signs(events: Sequence[RewardEvent]) -> dict[str, int]:
    """Return by outcome the sign of an agent's rewards, where it is always about the same."""
    by_outcome: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_outcome[event.outcome].append(event.contrast)
    means = {
        outcome: float(np.mean(np.sign(values)))
        for outcome, values in by_outcome.items()
        if outcome and len(values) >= LEAST_EVENTS
    }
    return {outcome: int(np.sign(mean)) for outcome, mean in means.items() if abs(mean) >= 2 * AGREED - 1}


def _agreed(signs: Sequence[Mapping[str, int]], least: int) -> dict[str, int]:
    """Return by outcome the sign that more than two thirds of at least `least` agents have."""
    found = {}
    for outcome in {name for each in signs for name in each}:
        votes = [each[outcome] for each in signs if outcome in each]
        if len(votes) >= least and 3 * abs(sum(votes)) > len(votes):
            found[outcome] = int(np.sign(sum(votes)))
    return found
