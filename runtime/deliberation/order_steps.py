"""Divide an order of several steps, as "first the kitchen, then the bedroom", and note which step is due. Pure.

Words of the settings (`then`) separate the steps. The model is asked about one step at a time, so a model that reads only the newest
order can carry out several. A step ends when its goal is done.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from sensors.readings import Text

MOST_STEPS = 12
"""Further ones stay in the last step."""
MOST_READ = 4_000
"""Characters of an order that are divided; what comes after them is no step."""
_EDGES = " \t\r\n,;.:!-"


@dataclass(slots=True)
class OrderSteps:
    """The newest order, and the step that is due."""

    order: Text
    steps: tuple[str, ...]
    """Two at least."""
    due: int = 0
    goal: str = ""
    """What the model chose for the step that is due; empty before its answer."""
    number: int = field(default_factory=count(1).__next__)
    """Of this order, another one for each."""

    @property
    def now(self) -> tuple[int, int]:
        """The order and its step that is due, to tell whether an answer is about it."""
        return self.number, self.due

    @property
    def step(self) -> str:
        """The text of the step that is due."""
        return self.steps[self.due]

    def finish(self) -> bool:
        """Note that the step is done; return whether another one follows."""
        if self.due + 1 >= len(self.steps):
            return False
        self.due, self.goal = self.due + 1, ""
        return True

    def repeats(self, text: Text) -> bool:
        """Return whether a text is this order again, as a device sends it that repeats what is in force."""
        return same_order(text, self.order)

    def dump(self, now_s: float, unix_s: float) -> dict[str, Any]:
        """Return the order and its step that is due, with the time in Unix seconds, for `restored`."""
        return {
            "stream": self.order.stream,
            "text": self.order.text[:MOST_READ],
            "at": unix_s - (now_s - self.order.stamp_s),
            "due": self.due,
            "goal": self.goal,
        }


def same_order(one: Text, other: Text) -> bool:
    """Return whether two texts are the same words of the same stream."""
    return one.stream == other.stream and (one.text == other.text or one.text.split() == other.text.split())


def restored(body: Mapping[str, Any], separators: Sequence[str], now_s: float, unix_s: float) -> OrderSteps | None:
    """Return the order of an earlier process; None where today's separators leave no such step, or it is from the future.

    Raises:
        KeyError, TypeError, ValueError: `body` is not what `OrderSteps.dump` returned.
    """
    age_s, due = unix_s - float(body["at"]), int(body["due"])
    if not math.isfinite(age_s) or due < 0:
        raise ValueError("an order has no finite time, or a step below 0")
    text = Text(str(body["stream"]), now_s - age_s, 0, str(body["text"])[:MOST_READ])
    found = steps_of(text, separators)
    if found is None or due >= len(found.steps) or age_s < 0:
        return None
    found.due, found.goal = due, str(body["goal"])
    return found


def steps_of(text: Text, separators: Sequence[str]) -> OrderSteps | None:
    """Divide an order at the separators, which match whole words in upper or lower case; None for one with a single step.

    Args:
        text: the order.
        separators: words or marks, as `then` or `;`. Without any, no order is divided.
    """
    if not separators:
        return None
    longest_first = sorted((" ".join(one.split()) for one in separators), key=len, reverse=True)
    pattern = "|".join(_whole(one) for one in longest_first)
    found = [
        part.strip(_EDGES)
        for part in re.split(pattern, text.text[:MOST_READ], flags=re.IGNORECASE, maxsplit=4 * MOST_STEPS)
    ]
    steps = [part for part in found if any(map(str.isalnum, part))]
    if len(steps) < 2:
        return None
    if len(steps) > MOST_STEPS:
        steps = [*steps[: MOST_STEPS - 1], " ".join(steps[MOST_STEPS - 1 :])]
    return OrderSteps(text, tuple(steps))


def _whole(separator: str) -> str:
    """Return the pattern of a separator as whole words; a mark such as `;` needs none around it."""
    words = r"\s+".join(map(re.escape, separator.split()))
    return (r"\b" if separator[0].isalnum() else "") + words + (r"\b" if separator[-1].isalnum() else "")
