"""Receive rewards and labels over MQTT and store them as experience.

Every source has a quota and every reward a clip. A refused message is counted by cause and published as an event, rate-limited
so that a noisy producer cannot flood the event topic. Feedback of a quarantined source is stored, and counts for nothing until
the source is released. The gate carries out overrides; the control loop learns of them from the gate's verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from actuators.actions import Value
from learners.config.rewards import BY_MODEL, AnyReward, TopicReward
from learners.experience.store import Label, Mark, Store
from runtime.feedback.episode_ends import EpisodeEnds
from runtime.feedback.outcomes import OutcomeTracker
from runtime.feedback.queries import MAX_OPEN, UncertaintyQueries
from runtime.feedback.source_quarantine import SourceQuarantine
from runtime.mqtt import topics
from runtime.process.emit import Emit

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


@dataclass(slots=True)
class Feedback:
    """Takes untrusted `reward` and `label` payloads."""

    store: Store
    outcomes: OutcomeTracker
    sources: SourceQuarantine
    queries: UncertaintyQueries
    emit: Emit
    rewards: tuple[AnyReward, ...]
    tasks: Mapping[str, tuple[str, ...]]
    """By task, its streams: their readings are copied beside its labels."""
    now: Callable[[], float]
    """Monotonic seconds."""
    wall: Callable[[], float]
    """Unix seconds."""
    counts: Counter[str] = field(default_factory=Counter)
    recent: float = 0.0
    """Exponential mean of the last rewards, for health and the page."""
    ends: EpisodeEnds = field(default_factory=EpisodeEnds)
    """Of sources that are not in quarantine."""
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _last_event_s: dict[str, float] = field(default_factory=dict)

    def reward(self, payload: bytes) -> None:
        """Store one reward with its decision: the one it names, else the one in force at its stamp, else at its arrival.

        One with an end of an episode belongs to the decision of that end, if another source reported it before (`episode_ends.py`).
        """
        setting = next((r for r in self.rewards if isinstance(r, TopicReward)), None)
        if setting is None:
            self._refuse("reward_unwanted", "no reward of kind `topic` is configured; add one under rewards:")
            return
        try:
            reward = topics.decode(topics.Reward, payload)
        except topics.Refused as refusal:
            self._refuse("reward_malformed", str(refusal))
            return
        if reward.source.startswith(BY_MODEL):
            self._refuse("reward_reserved_source", f"source {reward.source}: only rewards of kind `decision` have it")
            return
        if not self._within_quota(reward.source, setting.max_per_s):
            self._refuse("reward_too_many", f"source {reward.source}: more than {setting.max_per_s:g} a second")
            return
        scaled = reward.value * setting.scale
        value = max(-setting.clip, min(setting.clip, scaled))
        if value != scaled:
            self._clipped(setting, reward.source, scaled)
        stamp_s = self.wall() if reward.stamp is None else reward.stamp
        decision = reward.decision if reward.decision is not None else self.outcomes.decision_at(stamp_s)
        ends = reward.done or reward.truncated
        if ends and decision is not None and reward.source not in self.sources.names():
            decision = self.ends.decision(reward.source, decision)
        if self.store.credit(
            value,
            decision=decision,
            stamp_s=stamp_s,
            done=reward.done,
            source=reward.source,
            truncated=reward.truncated,
            outcome=reward.outcome,
        ):
            self._taken(reward, value, decision)
        else:
            self._refuse("reward_lost", "the experience store is full or closed")

    def judged(self, source: str, value: float, stamp_s: float) -> None:
        """Store a reward that a model gave with the decision in force at its stamp (Unix seconds)."""
        decision = self.outcomes.decision_at(stamp_s)
        if not self.store.credit(value, decision=decision, stamp_s=stamp_s, source=source):
            self._refuse("reward_lost", "the experience store is full or closed")
        elif source in self.sources.names():
            self.counts["reward_quarantined"] += 1
        else:
            self.counts["reward_by_model"] += 1
            self.outcomes.judged(source, value, decision)

    def label(self, payload: bytes) -> None:
        """Store one labelled example, or the answer to a query about a decision."""
        try:
            label = topics.decode(topics.LabelPayload, payload)
        except topics.Refused as refusal:
            self._refuse("label_malformed", str(refusal))
            return
        if label.task not in self.tasks and label.id is not None:
            action = self.queries.executed(label.id, label.task)
            if action is not None:
                self._answered(label, label.id, action)
                return
        if label.task not in self.tasks:
            reason = f"{label.task!r} is not under tasks: {sorted(self.tasks)}"
            if label.id is not None:
                reason += f", and no question {label.id!r} is open: only the newest {MAX_OPEN} since the start are"
            self._refuse("label_unknown_task", reason)
            return
        if label.text is None and label.decision is None and label.id is None:
            self._refuse("label_without_subject", "give `text`, `decision`, or the `id` of the question")
            return
        if not self._within_quota(f"label:{label.source}", rate=100.0):
            self._refuse("label_too_many", f"source {label.source}: more than 100 a second")
            return
        answer = label.label if isinstance(label.label, str) else tuple(label.label)
        subject = label.decision or label.id  # a question is named after the decision it is about
        if self.store.add_label(
            Label(label.task, answer, label.text, subject, label.source, self.wall(), streams=self.tasks[label.task])
        ):
            quarantined = f"label:{label.source}" in self.sources.names()
            self.counts["label_quarantined" if quarantined else "label"] += 1
        else:
            self._refuse("label_lost", "the experience store is full or closed")

    def _answered(self, label: topics.LabelPayload, decision: str, action: Value) -> None:
        """Take the answer to a query: a confirmed action becomes a demonstration, another answer is refused."""
        if not self._within_quota(f"label:{label.source}", rate=100.0):
            self._refuse("label_too_many", f"source {label.source}: more than 100 a second")
        elif f"label:{label.source}" in self.sources.names():
            self.counts["label_quarantined"] += 1
        elif label.label != action:
            remedy = f"publish the right action on override/{label.task}"
            self._refuse("label_action_mismatch", f"{decision} did {action!r} and not {label.label!r}; {remedy}")
        elif self.store.mark(Mark(decision, demonstration=True)):
            self.counts["decision_confirmed"] += 1
        else:
            self._refuse("label_lost", "the experience store is full or closed")

    def _taken(self, reward: topics.Reward, value: float, decision: str | None) -> None:
        if reward.source in self.sources.names():
            self.counts["reward_quarantined"] += 1
            return
        self.counts["reward"] += 1
        self.recent += 0.01 * (value - self.recent)
        self.outcomes.credit(
            reward.source, value, decision, done=reward.done or reward.truncated, failure=reward.outcome == "failure"
        )

    def _within_quota(self, source: str, rate: float) -> bool:
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= MAX_SOURCES:
                return False
            bucket = self._buckets[source] = _Bucket(rate, max(1.0, rate), self.now())
        return bucket.take(self.now())

    def _clipped(self, setting: TopicReward, source: str, value: float) -> None:
        """Count a reward beyond the limit; publish it at most once a second."""
        self.counts["reward_clipped"] += 1
        if self._is_due("reward_clipped"):
            count = self.counts["reward_clipped"]
            self.emit(
                "reward_clipped",
                {"name": setting.name, "source": source, "value": value, "limit": setting.clip, "count": count},
            )

    def _is_due(self, cause: str) -> bool:
        """Return whether an event of this cause may be published again."""
        now_s = self.now()
        is_due = now_s - self._last_event_s.get(cause, float("-inf")) >= EVENT_EVERY_S
        if is_due:
            self._last_event_s[cause] = now_s
        return is_due

    def _refuse(self, cause: str, reason: str) -> None:
        self.counts[cause] += 1
        if self._is_due(cause):
            self.emit("feedback_rejected", {"cause": cause, "reason": reason, "count": self.counts[cause]})
