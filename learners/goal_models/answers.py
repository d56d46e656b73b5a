"""Define a question for a deliberator's backend and its answer, and check answers. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 0.02
"""Of the sum of the probabilities; servers round them."""


CHOICE = "Which goal fits the newest order and the state best?"
STILL = "Is the present goal still the right one?"


class BackendFailed(Exception):  # noqa: N818 - reads as what happened
    """A backend gave no answer; `str` says which and why."""


@dataclass(frozen=True, slots=True)
class GoalQuestion:
    """What a backend is asked: which of the goals fits the state."""

    number: int
    state: str
    """The state in words, at most `state_text.MOST_BYTES`."""
    orders: tuple[str, ...]
    """The newest texts, newest first."""
    goal: str
    """In force now."""
    order_stamp_s: float = 0.0
    """When the newest text was captured, monotonic seconds of this process; 0 without one, and in another process."""


@dataclass(frozen=True, slots=True)
class GoalAnswer:
    """What a backend answered."""

    number: int
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """By goal, each goal of the settings once; empty where the state has nothing that the backend can judge."""
    still: float | None = None
    """Probability that the goal in force is still right; None where the backend was not asked."""
    model: str = ""
    """Name of the model with the hash of its files, or the address of the server with its model."""
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class YesNoQuestion:
    """What a backend is asked for a reward: a question about the state that is answered with yes or no."""

    number: int
    state: str
    """The state in words, at most `state_text.MOST_BYTES`."""
    question: str


@dataclass(frozen=True, slots=True)
class YesNoAnswer:
    """What a backend answered to a `YesNoQuestion`."""

    number: int
    yes: float
    """The probability of yes."""
    model: str = ""
    """As in `GoalAnswer`."""
    took_s: float = 0.0


def probability(value: object) -> float:
    """Return a number between 0 and 1 as it is.

    Raises:
        BackendFailed: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BackendFailed(f"the probability of yes is {str(value)[:40]!r}, not a number between 0 and 1")
    return float(value)


def checked(probabilities: Mapping[str, Any], goals: Mapping[str, str]) -> dict[str, float]:
    """Return the probability of each goal, normalised to the sum 1.

    Raises:
        BackendFailed: a goal is missing or not listed, or a number is no probability.
    """
    if set(probabilities) != set(goals):
        foreign = sorted(str(name)[:40] for name in set(probabilities) ^ set(goals))[:4]
        raise BackendFailed(f"the answer does not have exactly the listed goals: {', '.join(foreign)}")
    found: dict[str, float] = {}
    for name in goals:
        value = probabilities[name]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or not 0 <= value <= 1
        ):
            raise BackendFailed(f"the probability of {name} is {str(value)[:40]!r}, not a number between 0 and 1")
        found[name] = float(value)
    total = sum(found.values())
    if abs(total - 1) > TOLERANCE:
        raise BackendFailed(f"the probabilities have the sum {total:.3g}, not 1")
    return {name: value / total for name, value in found.items()}


def yes_no(question: str) -> dict[str, Any]:
    """Return a question of yes or no in the form of System One, named `answer`."""
    return {"answer": {"type": "noul", "instructions": question}}


def still_right(present: str, goals: Mapping[str, str]) -> str:
    """Return the question whether the present goal is still the right one."""
    return f"{STILL} It is {present}: {goals[present]}"


def questions(present: str, goals: Mapping[str, str]) -> dict[str, Any]:
    """Return the two questions about a state in the form of System One."""
    return {
        "goal": {"type": "choice", "instructions": CHOICE, "criteria": dict(goals)},
        "still": {"type": "noul", "instructions": still_right(present, goals)},
    }
