"""Shapley values: exact on hand-worked games, complete, and silent about streams that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actuators.actions import ActionSpace, Choice, Continuous
from learners.experience.transition import Transition
from learners.model.policy import Policy
from learners.model.shapley import NotExplainable, explain, shapley
from learners.model.spec import PolicySpec, StreamSpec

SPEC = PolicySpec(
    streams=(
        StreamSpec("front", "image", 3, 12),
        StreamSpec("orders", "text", 1, 8),
        StreamSpec("joints", "telemetry", 1, 2),
    ),
    actions=ActionSpace((Choice("head", ("left", "stay", "right")), Continuous("arm", (-1.0, -2.0), (1.0, 2.0)))),
    width=32,
    heads=4,
    latents=2,
    layers=1,
    history=3,
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.manual_seed(0)
    return Policy(SPEC).eval()


def _tick(seed: int, **changes: object) -> Transition:
    rng = np.random.default_rng(seed)
    tokens = {s.name: rng.normal(size=(s.tokens, s.width)).astype(np.float16) for s in SPEC.streams[:2]}
    tokens["joints"] = rng.normal(size=(1, 2)).astype(np.float32)
    fields: dict[str, object] = {
        "session": "s",
        "tick": seed,
        "decision": f"s-{seed}",
        "stamp_s": float(seed),
        "policy": "p",
        "tokens": tokens,
        "present": {"front": True, "orders": True, "joints": True},
        "ages_s": {"front": 0.1, "orders": 0.2, "joints": 0.0},
        "actions": {"head": "left", "arm": (0.5, -0.25)},
    }
    return Transition(**(fields | changes))  # type: ignore[arg-type]


def _windows(count: int, **changes: object) -> list[list[Transition]]:
    return [[_tick(100 * k + h, **changes) for h in range(3)] for k in range(1, count + 1)]


def test_an_additive_game_gives_every_player_its_own_worth() -> None:
    worth = np.array([2.0 * (c & 1) + 3.0 * (c >> 1 & 1) - 1.0 * (c >> 2 & 1) for c in range(8)])
    assert shapley(worth) == pytest.approx([2.0, 3.0, -1.0])


def test_the_glove_game() -> None:
    # one left glove, two right ones; a pair is worth 1: the left glove gets 2/3, each right one 1/6
    worth = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    assert shapley(worth) == pytest.approx([2 / 3, 1 / 6, 1 / 6])


@given(st.lists(st.floats(-100, 100), min_size=16, max_size=16))
def test_the_parts_sum_to_what_the_whole_is_worth(worth: list[float]) -> None:
    assert sum(shapley(np.array(worth))) == pytest.approx(worth[-1] - worth[0], abs=1e-9)


def test_parts_sum_to_the_score_difference(policy: Policy) -> None:
    for name, part in explain(policy, _windows(1)[0], _windows(6)).items():
        assert sum(part.streams.values()) == pytest.approx(part.score - part.baseline, abs=1e-5), name
        assert any(abs(value) > 1e-4 for value in part.streams.values())


def test_the_score_is_the_one_of_the_decision(policy: Policy) -> None:
    window = _windows(1)[0]
    part = explain(policy, window, _windows(2))["head"]
    again = explain(policy, window, [window])["head"]
    assert again.score == pytest.approx(part.score, abs=1e-6)
    assert again.baseline == pytest.approx(part.score, abs=1e-6)


def test_a_missing_stream_gets_nothing(policy: Policy) -> None:
    window = _windows(1, present={"front": True, "orders": False, "joints": True})[0]
    for part in explain(policy, window, _windows(4)).values():
        assert part.streams["orders"] == 0.0


def test_a_stream_that_never_changes_gets_nothing(policy: Policy) -> None:
    fixed = {"orders": np.ones((1, 8), np.float16)}
    windows = [[_tick(t.tick, tokens={**t.tokens, **fixed}) for t in window] for window in _windows(5)]
    for part in explain(policy, windows[0], windows[1:]).values():
        assert part.streams["orders"] == pytest.approx(0.0, abs=1e-6)


def test_a_short_window_is_padded_as_acting_does(policy: Policy) -> None:
    first = _tick(1)
    short = explain(policy, [first], _windows(2))["head"]
    long = explain(policy, [first, first, first], _windows(2))["head"]
    assert short == long


def test_what_cannot_be_explained_says_why(policy: Policy) -> None:
    with pytest.raises(NotExplainable, match="other ticks"):
        explain(policy, _windows(1)[0], [])
    with pytest.raises(NotExplainable, match="no longer stored"):
        explain(policy, [], _windows(1))
    with pytest.raises(NotExplainable, match="choices"):
        explain(policy, [_tick(1, actions={"head": "up"})], _windows(1))


def _many(count: int, seed: int, **changes: object) -> Transition:
    rng = np.random.default_rng(seed)
    names = [f"s{n}" for n in range(count)]
    fields: dict[str, object] = {
        "tokens": {name: rng.normal(size=(1, 2)).astype(np.float32) for name in names},
        "present": dict.fromkeys(names, True),
        "ages_s": dict.fromkeys(names, 0.1),
        "actions": {"head": "left", "arm": (0.5, -0.25)},
    }
    return _tick(seed, **(fields | changes))


def _policy(count: int) -> Policy:
    streams = tuple(StreamSpec(f"s{n}", "telemetry", 1, 2) for n in range(count))
    torch.manual_seed(count)
    return Policy(
        PolicySpec(streams, SPEC.actions, width=32, heads=4, latents=2, layers=1, history=2, hidden=(32,))
    ).eval()


def test_sampled_values_are_the_exact_ones_within_their_errors_and_sum_exactly() -> None:
    policy = _policy(6)
    window = [_many(6, 1), _many(6, 2)]
    others = [[_many(6, 100 + 2 * k), _many(6, 101 + 2 * k)] for k in range(8)]
    exact = explain(policy, window, others, budget=10**6)
    sampled = explain(policy, window, others, budget=1_000)
    for name, part in sampled.items():
        assert (part.method, exact[name].method, exact[name].errors) == ("sampled", "exact", {})
        assert part.score == pytest.approx(exact[name].score, abs=1e-5)
        assert sum(part.streams.values()) == pytest.approx(part.score - part.baseline, abs=1e-6)
        far = [abs(part.streams[s] - exact[name].streams[s]) / part.errors[s] for s in part.errors]
        assert max(far) < 4
        assert sum(z < 2 for z in far) >= 5
        assert all(0 < error < 0.5 for error in part.errors.values())


def test_a_busy_machine_draws_fewer_orders_and_says_so_in_its_errors() -> None:
    policy, window = _policy(10), [_many(10, 1)]
    others = [[_many(10, 50 + k)] for k in range(8)]
    calm = explain(policy, window, others, budget=4_000)["head"]
    busy = explain(policy, window, others, budget=4_000, limit_s=0)["head"]
    for part in (calm, busy):
        assert part.method == "sampled"
        assert sum(part.streams.values()) == pytest.approx(part.score - part.baseline, abs=1e-6)
    assert sum(busy.errors.values()) > sum(calm.errors.values())
    assert all(error < float("inf") for error in busy.errors.values())


@pytest.mark.parametrize("count", [3, 10, 30])
def test_the_work_is_bounded_whatever_the_number_of_streams(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = _policy(count)
    fused: list[int] = []
    fuse = Policy.fuse
    monkeypatch.setattr(
        Policy, "fuse", lambda self, features: fused.append(len(features.present)) or fuse(self, features)
    )
    others = [[_many(count, 100 + k)] for k in range(16)]
    part = explain(policy, [_many(count, 1)], others, budget=1_024)["head"]
    assert sum(fused) <= 1_024
    assert max(fused) <= 512
    assert part.method == ("exact" if count == 3 else "sampled")
    assert sum(part.streams.values()) == pytest.approx(part.score - part.baseline, abs=1e-5)


def test_ticks_of_another_encoder_version_are_refused(policy: Policy) -> None:
    new, old = {"encoder_versions": {"front": "new"}}, {"encoder_versions": {"front": "old"}}
    assert explain(policy, _windows(1, **new)[0], _windows(3, **new))
    with pytest.raises(NotExplainable, match="another encoder version"):
        explain(policy, _windows(1, **new)[0], [*_windows(2, **new), *_windows(1, **old)])
