"""Decide when the deliberator asks its model: often where words change, rarely where nothing happens, never beyond the budget. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LONGEST_S = 900.0
"""Between two questions while nothing but numbers changes."""
GROWTH = 10.0
"""Of the time between two questions without a reason: with `every_s` of 10 s the first hour has six questions, a later one four."""
URGENT_S = 1.0
"""Between two questions that have a reason."""
HOUR_S = 3_600.0
TRIES = 3
"""Failures in a row after which the model is left alone for a while."""
PAUSE_S = (5.0, 300.0)
"""Of that: at first, and at most."""


@dataclass(slots=True)
class QuestionSchedule:
    """When the next question may be asked; all times are monotonic seconds.

    A quarter of the budget is there at once, the rest comes back evenly, also over a restart. No hour has more than `calls_per_hour` questions, and a busy
    stream cannot take them all in its first minutes.
    """

    every_s: float
    calls_per_hour: int
    counts: Counter[str] = field(default_factory=Counter)
    """Questions that were not asked: `over_budget`, `paused`."""
    _left: float = field(init=False)
    _filled_s: float | None = None
    _last_s: float = float("-inf")
    """When the last question was asked or refused."""
    _wait_s: float = 0.0
    _failures: int = 0
    _paused_until_s: float = float("-inf")

    def __post_init__(self) -> None:
        self._left = self._most

    @property
    def _most(self) -> float:
        return max(1.0, self.calls_per_hour / 4)

    def ask(self, now_s: float, *, urgent: bool, longest_s: float = LONGEST_S) -> bool:
        """Return whether to ask now, and note it. A question that the limits forbid is counted.

        Args:
            now_s: the present time.
            urgent: words changed, the goal is done, or a drift began since the last answer.
            longest_s: between two questions without a reason.
        """
        usual_s = min(max(self.every_s, self._wait_s), max(self.every_s, longest_s))
        if now_s - self._last_s < (URGENT_S if urgent else usual_s):
            return False
        self._last_s = now_s
        refill = max(0.0, self.calls_per_hour - self._most) / HOUR_S
        since_s = 0.0 if self._filled_s is None else now_s - self._filled_s
        self._left, self._filled_s = min(self._most, self._left + refill * since_s), now_s
        refused = "paused" if now_s < self._paused_until_s else "over_budget" * (self._left < 1.0)
        if refused:
            self.counts[refused] += 1
            return False
        self._left -= 1.0
        self._wait_s = self.every_s if urgent else min(LONGEST_S, GROWTH * max(self.every_s, self._wait_s))
        return True

    def dump(self, now_s: float, unix_s: float) -> dict[str, float]:
        """Return what is left of the budget, with the time in Unix seconds, for `restore`."""
        filled_s = now_s if self._filled_s is None else self._filled_s
        return {"left": self._left, "at": unix_s - (now_s - filled_s)}

    def restore(self, body: Mapping[str, Any], now_s: float, unix_s: float) -> None:
        """Go on with the budget of an earlier process: a restart brings no new one.

        Raises:
            KeyError, TypeError, ValueError: `body` is not what `dump` returned.
        """
        left, away_s = float(body["left"]), unix_s - float(body["at"])
        if not math.isfinite(left) or not math.isfinite(away_s):
            raise ValueError("a budget is not finite")
        self._left, self._filled_s = min(self._most, max(0.0, left)), now_s - max(0.0, away_s)

    def failed(self, now_s: float) -> bool:
        """Note a failure; return whether the model gets no question for a while from now on."""
        self._failures += 1
        self._wait_s = self.every_s
        if self._failures < TRIES:
            return False
        self._paused_until_s = now_s + min(PAUSE_S[1], PAUSE_S[0] * 2 ** min(self._failures - TRIES, 16))
        return True

    def answered(self) -> None:
        """Note an answer: failures before it no longer count."""
        self._failures, self._paused_until_s = 0, float("-inf")

    @property
    def failures(self) -> int:
        """Failures since the last answer."""
        return self._failures
