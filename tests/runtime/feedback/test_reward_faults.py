"""A reward plug-in that fails is shown: counted, with its reason, in an event at most once a minute."""

from __future__ import annotations

from typing import Any, cast

from learners.config.rewards import ExpressionReward, PluginReward
from learners.rewards.tick_rewards import MAX_REASON, TickRewards
from runtime.control.tick import TickResult
from runtime.feedback.reward_faults import EVENT_EVERY_S, RewardFaultReporter
from sensors.readings import Observation

NOTHING = Observation(1, 0.0, {}, {})
RESULT = cast("TickResult", None)


def broken(_observation: Observation, _actions: Any) -> float:
    raise RuntimeError("no such file: " + "x" * 1_000)


def not_finite(_observation: Observation, _actions: Any) -> float:
    return float("nan")


def test_a_failing_reward_is_published_with_its_reason_and_rate_limited() -> None:
    rewards = TickRewards(
        [
            PluginReward(name="comfort", kind="plugin", plugin="broken"),
            PluginReward(name="noise", kind="plugin", plugin="not_finite"),
            ExpressionReward(name="fine", kind="expression", value="1.0"),
        ],
        plugins={"broken": broken, "not_finite": not_finite},
    )
    now_s, events = [0.0], []
    reporter = RewardFaultReporter(rewards, lambda kind, data: events.append((kind, data)), lambda: now_s[0])
    reporter.ticked(RESULT)
    assert events == []
    for tick in range(300):
        now_s[0] = tick / 10
        assert rewards.at(NOTHING, {}) == 1.0
        reporter.ticked(RESULT)
    assert [kind for kind, _ in events] == ["reward_failed", "reward_failed"]
    by_name = {data["name"]: data for _, data in events}
    assert by_name["comfort"]["reason"].startswith("RuntimeError: no such file")
    assert len(by_name["comfort"]["reason"]) == MAX_REASON
    assert by_name["noise"] == {"name": "noise", "reason": "nan is not a finite number", "count": 1}
    now_s[0] = EVENT_EVERY_S
    reporter.ticked(RESULT)
    assert [data["count"] for _, data in events[2:]] == [300, 300]
    now_s[0] = 3 * EVENT_EVERY_S
    reporter.ticked(RESULT)
    assert len(events) == 4, "nothing failed since"


def test_a_reward_beyond_its_limit_is_published() -> None:
    rewards = TickRewards([ExpressionReward(name="drift", kind="expression", value="-1e9", clip=10.0)])
    now_s, events = [0.0], []
    reporter = RewardFaultReporter(rewards, lambda kind, data: events.append((kind, data)), lambda: now_s[0])
    for tick in range(700):
        now_s[0] = tick / 10
        assert rewards.at(NOTHING, {}) == -10.0
        reporter.ticked(RESULT)
    assert events == [
        ("reward_clipped", {"name": "drift", "source": "drift", "value": -1e9, "limit": 10.0, "count": 1}),
        ("reward_clipped", {"name": "drift", "source": "drift", "value": -1e9, "limit": 10.0, "count": 601}),
    ]
