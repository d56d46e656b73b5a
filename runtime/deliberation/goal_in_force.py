"""Decide which goal is in force: hysteresis over a backend's answers, a person's choice, conditions, and time limits. Pure.

A goal comes from the settings' list, whatever is answered. Without a newer answer it gives way to the default goal after `ttl_s`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from learners.goal_models.answers import GoalAnswer
from learners.goal_models.config import DeliberatorSettings
from runtime.deliberation.state_text import MOST_GOALS, PastGoal

PERSON = "person"
"""In place of the name of a model."""
FORMAT, MOST_NAME, MOST_HOLD_S = 1, 200, 86_400.0
"""Of the stored goal; characters of a model's name; the longest hold of a person's goal."""


@dataclass(slots=True)
class GoalInForce:
    """The goal, since when, and why.

    Args:
        settings: the goals and limits.
        now_s: monotonic seconds at the start.
    """

    settings: DeliberatorSettings
    now_s: float
    goal: str = field(init=False)
    since_s: float = field(init=False)
    confirmed_s: float = field(init=False)
    """When an answer or a person last confirmed it."""
    probabilities: Mapping[str, float] = field(init=False, default_factory=dict)
    """Of the newest answer; empty before the first one."""
    model: str = field(init=False, default="")
    past: deque[PastGoal] = field(init=False, default_factory=lambda: deque(maxlen=MOST_GOALS))
    """Newest first."""
    held_until_s: float = field(init=False, default=float("-inf"))
    """Until then a person's goal is in force."""

    def __post_init__(self) -> None:
        self.goal = self.settings.default
        self.since_s = self.confirmed_s = self.now_s

    @property
    def confidence(self) -> float:
        """Probability of the goal in force by the newest answer; 1 for a person's goal and for the default without an answer."""
        return self.probabilities.get(self.goal, 1.0)

    def take(self, answer: GoalAnswer, now_s: float) -> str:
        """Take a backend's answer.

        Returns:
            What it led to: `changed`, `confirmed`, `unsure` (below `confidence`), `held` (too early, or a person's goal is in force),
            `close` (within `margin`) or `nothing` (the backend had nothing to judge).
        """
        if not answer.probabilities:
            return "nothing"
        if now_s < self.held_until_s:
            return "held"
        self.probabilities, self.model = dict(answer.probabilities), answer.model
        best = max(self.probabilities, key=lambda goal: self.probabilities[goal])
        verdict = self._compare(best, now_s)
        if verdict in {"confirmed", "close"}:
            self.confirmed_s = now_s
        elif verdict == "changed":
            self._set(best, "replaced", now_s)
        return verdict

    def _compare(self, best: str, now_s: float) -> str:
        """Return what an answer with this most probable goal leads to."""
        if best == self.goal:
            return "confirmed"
        if self.probabilities[best] < self.settings.confidence:
            return "unsure"
        if self.probabilities[best] - self.probabilities[self.goal] < self.settings.margin:
            return "close"
        is_early = self.goal != self.settings.default and now_s - self.since_s < self.settings.min_hold_s
        return "held" if is_early else "changed"

    def set_by_person(self, goal: str, hold_s: float, now_s: float) -> bool:
        """Put a person's goal in force for `hold_s`; return whether it is another one.

        Raises:
            ValueError: it is not listed.
        """
        if goal not in self.settings.goals:
            raise ValueError(f"no goal {goal[:40]!r}; there are {', '.join(sorted(self.settings.goals))}")
        self.held_until_s = now_s + hold_s
        self.probabilities = {name: float(name == goal) for name in self.settings.goals}
        self.model, self.confirmed_s = PERSON, now_s
        if goal == self.goal:
            return False
        self._set(goal, "replaced by a person", now_s)
        return True

    def is_done(self, now_s: float) -> bool:
        """Note that the condition of the goal in force holds: the default goal follows, also on a person's; False for the default."""
        if self.goal == self.settings.default:
            return False
        self.held_until_s = float("-inf")
        self._set(self.settings.default, "done", now_s)
        return True

    def expire(self, now_s: float) -> bool:
        """Give way to the default goal: `ttl_s` after the last confirmation, or at the end of a person's hold; return whether it did."""
        limit_s = self.held_until_s if self.model == PERSON else self.confirmed_s + self.settings.ttl_s
        if self.goal == self.settings.default or now_s < limit_s:
            return False
        self._set(self.settings.default, "expired", now_s)
        return True

    def dump(self, now_s: float, unix_s: float) -> dict[str, Any]:
        """Return the goal with times in Unix seconds, for `restore`."""
        return {
            "format": FORMAT,
            "goal": self.goal,
            "model": self.model,
            "probabilities": dict(self.probabilities),
            "since": unix_s - (now_s - self.since_s),
            "confirmed": unix_s - (now_s - self.confirmed_s),
            "saved": unix_s,
            "held_s": max(0.0, self.held_until_s - now_s),
        }

    def restore(self, body: Mapping[str, Any], now_s: float, unix_s: float) -> bool:
        """Put the goal of an earlier process in force for the rest of its time; return whether it did.

        It does not where the time is over, the goal is no longer listed, or the clock says that the file is from the future.

        Raises:
            KeyError, TypeError, ValueError: `body` is not what `dump` returned.
        """
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
        saved_s, since_s, confirmed_s, held_s = (float(body[key]) for key in ("saved", "since", "confirmed", "held_s"))
        goal, model = str(body["goal"]), str(body["model"])[:MOST_NAME]
        probabilities = {str(name): float(value) for name, value in dict(body["probabilities"]).items()}
        ages = (unix_s - saved_s, saved_s - confirmed_s, confirmed_s - since_s, held_s)
        if not all(math.isfinite(age) for age in ages) or not 0 <= held_s <= MOST_HOLD_S:
            raise ValueError("a time is not finite or too long")
        if not all(0 <= value <= 1 for value in probabilities.values()):
            raise ValueError("a probability is not between 0 and 1")
        is_nothing = goal == self.settings.default and model != PERSON  # a person may hold the default goal, too
        if goal not in self.settings.goals or is_nothing or min(ages) < 0:
            return False
        away_s = unix_s - saved_s
        left_s = held_s - away_s if model == PERSON else confirmed_s + self.settings.ttl_s - unix_s
        if left_s <= 0:
            return False
        self.goal, self.model = goal, model
        self.since_s, self.confirmed_s = now_s - (unix_s - since_s), now_s - (unix_s - confirmed_s)
        self.held_until_s = now_s + held_s - away_s if held_s > 0 else float("-inf")
        self.probabilities = probabilities if probabilities.keys() == self.settings.goals.keys() else {}
        return True

    def _set(self, goal: str, outcome: str, now_s: float) -> None:
        self.past.appendleft(PastGoal(self.goal, outcome, now_s - self.since_s))
        if outcome in {"done", "expired"}:
            self.probabilities, self.model = {}, ""
        self.goal, self.since_s, self.confirmed_s = goal, now_s, now_s
