"""Rewards and labels from outside: clipped, limited by source, refused with a reason, never lost in silence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from learners.config.rewards import TopicReward
from learners.experience.store import Label
from runtime.feedback.queries import UncertaintyQueries
from runtime.feedback.receiver import MAX_SOURCES, Feedback


@dataclass
class FakeStore:
    """Keeps what it is given; `full` refuses everything."""

    full: bool = False
    credits: list[tuple[float, str | None]] = field(default_factory=list)
    stamps: list[float | None] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    ends: list[tuple[bool, bool, str | None]] = field(default_factory=list)

    def credit(
        self,
        value: float,
        *,
        decision: str | None,
        stamp_s: float | None,
        done: bool = False,
        source: str,
        truncated: bool = False,
        outcome: str | None = None,
    ) -> bool:
        self.ends.append((done, truncated, outcome))
        self.credits.append((value, decision))
        self.stamps.append(stamp_s)
        return not self.full

    def add_label(self, label: Label) -> bool:
        self.labels.append(label)
        return not self.full


@dataclass
class FakeOutcomes:
    """Knows one decision by time, and keeps what it is given."""

    credits: list[tuple[str, float, str | None, bool]] = field(default_factory=list)
    judgements: list[tuple[str, float, str | None]] = field(default_factory=list)

    def judged(self, source: str, value: float, decision: str | None) -> None:
        self.judgements.append((source, value, decision))

    def decision_at(self, stamp_s: float) -> str | None:
        return "a-9" if stamp_s == 1_234.5 else None

    def credit(self, source: str, value: float, decision: str | None, *, done: bool, failure: bool = False) -> None:
        self.credits.append((source, value, decision, done))


@dataclass
class FakeSources:
    quarantined: frozenset[str] = frozenset()

    def names(self) -> frozenset[str]:
        return self.quarantined


@dataclass
class Bench:
    feedback: Feedback
    store: FakeStore
    outcomes: FakeOutcomes
    sources: FakeSources
    events: list[tuple[str, dict[str, Any]]]
    time: list[float]


def _bench(**reward: Any) -> Bench:
    store, events, time = FakeStore(), [], [0.0]
    setting = TopicReward.model_validate({"name": "feedback", "kind": "topic", **reward})
    outcomes, sources = FakeOutcomes(), FakeSources()
    feedback = Feedback(
        store=store,
        outcomes=outcomes,
        sources=sources,
        queries=UncertaintyQueries(None, lambda _kind, _data: None),
        emit=lambda kind, data: events.append((kind, data)),
        rewards=(setting,),
        tasks={"intents": ("orders",)},
        now=lambda: time[0],
        wall=lambda: 1_000.0 + time[0],
    )
    return Bench(feedback, store, outcomes, sources, events, time)


def test_a_reward_is_credited_to_its_decision_and_clipped() -> None:
    bench = _bench(clip=2.0)
    bench.feedback.reward(b'{"value": 5, "decision": "a-1"}'.replace(b"5", b"5.0"))
    assert bench.store.credits == [(2.0, "a-1")]
    bench.feedback.reward(b'{"value": -7.0, "decision": "a-1", "source": "x"}')
    assert bench.feedback.counts["reward_clipped"] == 2
    assert bench.events == [
        ("reward_clipped", {"name": "feedback", "source": "default", "value": 5.0, "limit": 2.0, "count": 1})
    ]


def test_no_message_uses_the_name_of_a_reward_that_a_model_gives() -> None:
    bench = _bench(clip=2.0)
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-1", "source": "model:content"}')
    assert bench.store.credits == []
    assert bench.events[0][1]["cause"] == "reward_reserved_source"
    bench.feedback.judged("model:content", 0.5, 1_234.5)
    bench.feedback.judged("model:content", 0.25, 99.0)
    assert bench.store.credits == [(0.5, "a-9"), (0.25, None)]
    assert bench.outcomes.judgements == [("model:content", 0.5, "a-9"), ("model:content", 0.25, None)]
    assert bench.outcomes.credits == []
    assert bench.feedback.counts["reward_by_model"] == 2


def test_a_reward_is_scaled_before_its_limit() -> None:
    bench = _bench(scale=0.1)
    bench.feedback.reward(b'{"value": -99.0, "decision": "a-1"}')
    assert bench.store.credits == [(-99.0 * 0.1, "a-1")]
    assert bench.feedback.counts["reward_clipped"] == 0
    assert bench.events == []


def test_the_end_of_an_episode_its_cut_and_its_outcome_are_three_things() -> None:
    bench = _bench()
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-1", "truncated": true}')
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-2", "done": true, "outcome": "success"}')
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-3", "outcome": "draw"}')
    assert bench.store.ends == [(False, True, None), (True, False, "success")]
    assert bench.feedback.counts["reward_malformed"] == 1
    assert [done for *_, done in bench.outcomes.credits] == [True, True], (
        "a return ends with the episode, however it ends"
    )


def test_two_sources_that_report_one_end_on_neighbouring_decisions_end_one_episode() -> None:
    bench = _bench()
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-100", "source": "plant", "done": true}')
    bench.feedback.reward(b'{"value": -5.0, "decision": "a-101", "source": "fall", "done": true, "outcome": "failure"}')
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-101", "source": "plant"}')
    assert bench.store.credits == [(1.0, "a-100"), (-5.0, "a-100"), (1.0, "a-101")]
    assert [decision for _, _, decision, done in bench.outcomes.credits if done] == ["a-100", "a-100"]
    bench.sources.quarantined = frozenset({"liar"})
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-150", "source": "liar", "done": true}')
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-151", "source": "plant", "done": true}')
    assert bench.store.credits[-1] == (1.0, "a-151"), "an end of a quarantined source takes no other one along"


def test_a_reward_by_stamp_goes_to_one_decision_in_the_ledger_and_in_the_store() -> None:
    bench = _bench()
    bench.feedback.reward(b'{"value": 1.0, "stamp": 1234.5}')
    bench.feedback.reward(b'{"value": 2.0, "stamp": 7.0}')
    bench.feedback.reward(b'{"value": 3.0}')
    assert bench.store.credits == [(1.0, "a-9"), (2.0, None), (3.0, None)]
    assert bench.store.stamps == [1_234.5, 7.0, 1_000.0], "the store looks up what the ledger does not hold"
    assert [decision for _, _, decision, _ in bench.outcomes.credits] == ["a-9", None, None]


def test_one_source_cannot_flood() -> None:
    bench = _bench(max_per_s=10.0)
    for _ in range(50):
        bench.feedback.reward(b'{"value": 1.0, "source": "noisy"}')
    bench.feedback.reward(b'{"value": 1.0, "source": "quiet"}')
    assert len(bench.store.credits) == 11
    assert bench.feedback.counts["reward_too_many"] == 40
    assert [kind for kind, _ in bench.events] == ["feedback_rejected"]
    bench.time[0] = 1.0
    bench.feedback.reward(b'{"value": 1.0, "source": "noisy"}')
    assert len(bench.store.credits) == 12


def test_endless_sources_are_bounded() -> None:
    bench = _bench()
    for n in range(MAX_SOURCES + 5):
        bench.feedback.reward(b'{"value": 1.0, "source": "s%d"}' % n)
    assert len(bench.store.credits) == MAX_SOURCES


def test_labels_need_a_known_task_and_a_subject() -> None:
    bench = _bench()
    bench.feedback.label(b'{"task": "intents", "label": "stop", "text": "halt"}')
    bench.feedback.label(b'{"task": "intents", "label": ["a", "b"], "id": "s-7"}')
    bench.feedback.label(b'{"task": "other", "label": "stop", "text": "halt"}')
    bench.feedback.label(b'{"task": "intents", "label": "stop"}')
    bench.feedback.label(b"[]")
    assert [(label.text, label.decision, label.label) for label in bench.store.labels] == [
        ("halt", None, "stop"),
        (None, "s-7", ("a", "b")),
    ]
    assert bench.store.labels[0].stamp_s == 1_000.0
    causes = {"label_unknown_task", "label_without_subject", "label_malformed"}
    assert {data["cause"] for _, data in bench.events} == causes


def test_a_full_store_is_reported() -> None:
    bench = _bench()
    bench.store.full = True
    bench.feedback.reward(b'{"value": 1.0}')
    bench.feedback.label(b'{"task": "intents", "label": "stop", "text": "halt"}')
    assert {data["cause"] for _, data in bench.events} == {"reward_lost", "label_lost"}


def test_without_a_topic_reward_the_topic_is_refused() -> None:
    bench = _bench()
    bench.feedback.rewards = ()
    bench.feedback.reward(b'{"value": 1.0}')
    assert bench.events[0][1]["cause"] == "reward_unwanted"


@given(st.binary(max_size=200))
def test_any_payload_is_taken_or_counted(payload: bytes) -> None:
    bench = _bench()
    bench.feedback.reward(payload)
    bench.feedback.label(payload)
    assert len(bench.store.credits) + bench.feedback.counts["reward_malformed"] == 1
    assert (
        bench.feedback.counts["label_malformed"] + len(bench.store.labels) + bench.feedback.counts["label_unknown_task"]
        == 1
    )


def test_taken_rewards_are_reported_and_those_of_quarantined_sources_are_only_stored() -> None:
    bench = _bench(clip=2.0)
    bench.sources.quarantined = frozenset({"liar", "label:liar"})
    bench.feedback.reward(b'{"value": 3.0, "decision": "a-1", "source": "world"}')
    bench.feedback.reward(b'{"value": -3.0, "decision": "a-1", "source": "liar"}')
    bench.feedback.label(b'{"task": "intents", "label": "stop", "text": "halt", "source": "liar"}')
    bench.feedback.reward(b'{"value": 1.0, "decision": "a-2", "source": "world", "done": true}')
    assert bench.outcomes.credits == [("world", 2.0, "a-1", False), ("world", 1.0, "a-2", True)]
    assert bench.store.credits == [(2.0, "a-1"), (-2.0, "a-1"), (1.0, "a-2")]
    assert len(bench.store.labels) == 1
    assert {name: bench.feedback.counts[name] for name in ("reward", "reward_quarantined", "label_quarantined")} == {
        "reward": 2,
        "reward_quarantined": 1,
        "label_quarantined": 1,
    }
