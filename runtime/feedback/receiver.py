"""Rewards and labels from outside on their way into experience.

Every source has a quota and every value a clip; what is refused is counted by cause and said in an event, rate-limited so
that a noisy producer cannot flood the event topic. A quarantined source (`sources.py`) is stored as before, where it counts for
nothing until it is released. Overrides are carried out by the gate, not here; the tick learns of them
from the gate's verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from actuators.actions import Value
from learners.config import AnyReward, TopicReward
from learners.experience.store import Label, Mark, Store
from runtime.mqtt import topics
from runtime.process.events import Emit

MAX_SOURCES = 64
EVENT_EVERY_S = 1.0


@dataclass(slots=True)
class _Bucket:
    """A token bucket: `rate` a second, at most a second's worth saved up."""

    rate: float
    tokens: float
    stamp_s: float

    def take(self, now_s: float) -> bool:
        self.tokens = min(max(1.0, self.rate), self.tokens + (now_s - self.stamp_s) * self.rate)
        self.stamp_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Credited(Protocol):
    """Who is told of every reward taken."""

    def __call__(
        self, source: str, value: float, decision: str | None, stamp_s: float | None, /, *, done: bool
    ) -> None:
        """`done`: an episode ends with it."""


def _nobody(_source: str, _value: float, _decision: str | None, _stamp_s: float | None, /, *, done: bool) -> None:
    """Nobody is told."""


@dataclass(slots=True)
class Feedback:
    """Takes untrusted `reward` and `label` payloads."""

    store: Store
    emit: Emit
    rewards: tuple[AnyReward, ...]
    tasks: frozenset[str]
    now: Callable[[], float]
    """Monotonic seconds."""
    wall: Callable[[], float]
    """Unix seconds."""
    credited: Credited = _nobody
    quarantined: Callable[[], frozenset[str]] = frozenset
    """Sources kept apart; those of labels as `label:NAME`."""
    asked: Callable[[str, str], Value | None] = lambda *_: None
    """What an actuator did at a decision that was asked about; None for any other."""
    counts: Counter[str] = field(default_factory=Counter)
    recent: float = 0.0
    """Exponential mean of the last rewards, for health and the page."""
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _last_event_s: dict[str, float] = field(default_factory=dict)

    def reward(self, payload: bytes) -> None:
        """One reward; credited to its decision, else to the tick its stamp falls in."""
        setting = next((r for r in self.rewards if isinstance(r, TopicReward)), None)
        if setting is None:
            self._refuse("reward_unwanted", "no reward of kind `topic` is configured; add one under rewards:")
            return
        try:
            reward = topics.decode(topics.Reward, payload)
        except topics.Refused as refusal:
            self._refuse("reward_malformed", str(refusal))
            return
        if not self._within_quota(reward.source, setting.max_per_s):
            self._refuse("reward_too_many", f"source {reward.source}: more than {setting.max_per_s:g} a second")
            return
        value = max(-setting.clip, min(setting.clip, reward.value))
        self.counts["reward_clipped"] += value != reward.value
        if self.store.credit(
            value, decision=reward.decision, stamp_s=reward.stamp, done=reward.done, source=reward.source
        ):
            self._taken(reward, value)
        else:
            self._refuse("reward_lost", "the experience store is full or closed")

    def label(self, payload: bytes) -> None:
        """One labelled example."""
        try:
            label = topics.decode(topics.Label, payload)
        except topics.Refused as refusal:
            self._refuse("label_malformed", str(refusal))
            return
        if label.task not in self.tasks and label.id is not None:
            done = self.asked(label.id, label.task)
            if done is not None:
                self._judged(label, label.id, done)
                return
        if label.task not in self.tasks:
            self._refuse("label_unknown_task", f"{label.task!r} is not under tasks: {sorted(self.tasks)}")
            return
        if label.text is None and label.decision is None and label.id is None:
            self._refuse("label_without_subject", "give `text`, `decision`, or the `id` of the question")
            return
        if not self._within_quota(f"label:{label.source}", rate=100.0):
            self._refuse("label_too_many", f"source {label.source}: more than 100 a second")
            return
        answer = label.label if isinstance(label.label, str) else tuple(label.label)
        subject = label.decision or label.id  # a question is named after the decision it is about
        if self.store.add_label(Label(label.task, answer, label.text, subject, label.source, self.wall())):
            kept_apart = f"label:{label.source}" in self.quarantined()
            self.counts["label_quarantined" if kept_apart else "label"] += 1
        else:
            self._refuse("label_lost", "the experience store is full or closed")

    def _judged(self, label: topics.Label, decision: str, done: Value) -> None:
        """An answer to a question about a decision: what was done was right, which makes it a demonstration; or it was not."""
        if not self._within_quota(f"label:{label.source}", rate=100.0):
            self._refuse("label_too_many", f"source {label.source}: more than 100 a second")
        elif f"label:{label.source}" in self.quarantined():
            self.counts["label_quarantined"] += 1
        elif label.label != done:
            remedy = f"what should be done instead is taught with override/{label.task}"
            self._refuse("label_other_action", f"{decision} did {done!r} and not {label.label!r}; {remedy}")
        elif self.store.mark(Mark(decision, demonstration=True)):
            self.counts["decision_confirmed"] += 1
        else:
            self._refuse("label_lost", "the experience store is full or closed")

    def _taken(self, reward: topics.Reward, value: float) -> None:
        if reward.source in self.quarantined():
            self.counts["reward_quarantined"] += 1
            return
        self.counts["reward"] += 1
        self.recent += 0.01 * (value - self.recent)
        self.credited(reward.source, value, reward.decision, reward.stamp, done=reward.done)

    def _within_quota(self, source: str, rate: float) -> bool:
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= MAX_SOURCES:
                return False
            bucket = self._buckets[source] = _Bucket(rate, max(1.0, rate), self.now())
        return bucket.take(self.now())

    def _refuse(self, cause: str, reason: str) -> None:
        self.counts[cause] += 1
        now = self.now()
        if now - self._last_event_s.get(cause, float("-inf")) >= EVENT_EVERY_S:
            self._last_event_s[cause] = now
            self.emit("feedback_refused", {"cause": cause, "reason": reason, "count": self.counts[cause]})
