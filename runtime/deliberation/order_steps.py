"""Divide an order of several steps, as "first the kitchen, then the bedroom", and note which step is due. Pure.

Words of the settings (`then`) separate the steps. The model is asked about one step at a time, so a model that reads only the newest
order can carry out several. A step ends when its goal is done.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from sensors.readings import Text

MOST_STEPS = 12
"""Further ones stay in the last step."""
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
        return text.stream == self.order.stream and text.text == self.order.text


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
    found = [part.strip(_EDGES) for part in re.split(pattern, text.text, flags=re.IGNORECASE, maxsplit=4 * MOST_STEPS)]
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
