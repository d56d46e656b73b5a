"""Ask the deliberator's model questions of yes or no about the state, and hand its answers on as rewards.

A reward belongs to the moment of its question. Without an answer there is no reward; nothing waits for one. Its source is `model:NAME`:
it is compared with other sources and can be quarantined, it trains the policy, and no promotion counts it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Protocol

from learners.config.rewards import DecisionReward
from learners.goal_models.answers import YesNoAnswer, YesNoQuestion
from runtime.deliberation.question_schedule import HOUR_S, QuestionSchedule

LATE_S = 125.0
"""From a question to a failure, without any answer of the models process: the model may have to load."""


class YesNoModel(Protocol):
    """What takes the questions: the client of the models process."""

    @property
    def connected(self) -> bool:
        """Whether a question can be answered now."""

    def ask_yes_no(self, question: YesNoQuestion) -> None:
        """Take a question; the answer or the failure follows, perhaps at once."""


class StoreReward(Protocol):
    """What stores a reward."""

    def __call__(self, source: str, value: float, stamp_s: float) -> object:
        """Store the reward of a source for the decision in force at a stamp (Unix seconds)."""


@dataclass(slots=True)
class RewardJudge:
    """Asks one question at a time, the longest waiting one first.

    Args:
        rewards: the questions.
        model: takes them.
        state: returns the state in words.
        credit: takes each reward.
        degraded: the agent's reasons for a degraded status; the key `rewards by model` belongs to this component.
        clock: monotonic seconds.
        wall: Unix seconds.
    """

    rewards: tuple[DecisionReward, ...]
    model: YesNoModel
    state: Callable[[], str]
    credit: StoreReward
    degraded: MutableMapping[str, str]
    clock: Callable[[], float]
    wall: Callable[[], float]
    counts: Counter[str] = field(init=False, default_factory=Counter)
    """`asked`, `answered`, `failed` questions, and `stale` answers."""
    _schedules: dict[str, QuestionSchedule] = field(init=False)
    _asked: tuple[YesNoQuestion, DecisionReward, float, float] | None = field(init=False, default=None)
    """The question on its way, its reward, and when it was asked: monotonic and Unix seconds."""
    _number: int = field(init=False, default=0)
    _first: int = field(init=False, default=0)
    """Index of the reward to ask about next."""

    def __post_init__(self) -> None:
        self._schedules = {
            one.name: QuestionSchedule(one.every_s, math.ceil(4 * HOUR_S / one.every_s)) for one in self.rewards
        }
        self._number = -int(self.clock() * 1e9)  # another one than before a restart, and than those of goals

    def step(self) -> None:
        """Ask what is due."""
        now_s = self.clock()
        if self._asked is not None:
            if now_s - self._asked[2] > LATE_S:
                self.failed(self._asked[0].number, f"no answer within {LATE_S:g} s")
            return
        if not self.model.connected:
            return
        for turn in range(len(self.rewards)):
            reward = self.rewards[(self._first + turn) % len(self.rewards)]
            if self._schedules[reward.name].ask(now_s, urgent=False, longest_s=reward.every_s):
                self._first = (self._first + turn + 1) % len(self.rewards)
                self._number -= 1
                question = YesNoQuestion(self._number, self.state(), reward.question)
                self._asked = (question, reward, now_s, self.wall())
                self.counts["asked"] += 1
                self.model.ask_yes_no(question)
                return

    def answered(self, answer: YesNoAnswer) -> None:
        """Take an answer; one to another question than the last is counted and not used."""
        if self._asked is None or answer.number != self._asked[0].number:
            self.counts["stale"] += 1
            return
        _, reward, _, stamp_s = self._asked
        self._asked = None
        self.counts["answered"] += 1
        self._schedules[reward.name].answered()
        self.degraded.pop("rewards by model", None)
        self.credit(reward.source, reward.scale * (2.0 * answer.yes - 1.0), stamp_s)

    def failed(self, number: int, reason: str) -> None:
        """Note that a question has no answer; three in a row make the agent degraded, and the next try comes later."""
        if self._asked is None or number != self._asked[0].number:
            self.counts["stale"] += 1
            return
        reward = self._asked[1]
        self._asked = None
        self.counts["failed"] += 1
        if self._schedules[reward.name].failed(self.clock()):
            self.degraded["rewards by model"] = f"no answer about {reward.name}: {reason}"[:200]
