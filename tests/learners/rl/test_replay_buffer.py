"""What is drawn equals a slow reading of the same ticks; reserved ones outlive the ring; encoder versions never mix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actuators.actions import ActionSpace, Choice, Continuous
from learners.experience.transition import Transition
from learners.model.spec import PolicySpec, StreamSpec, fields_version
from learners.rl.replay_buffer import MAX_GAP, ReplayBuffer

torch.set_num_threads(1)
ACTIONS = ActionSpace((Choice("head", ("left", "stay", "right")), Continuous("arm", (-1.0, -1.0), (1.0, 1.0))))
STREAMS = (StreamSpec("front", "image", 2, 3), StreamSpec("joints", "telemetry", 1, 2))


def spec(history: int = 1, gamma: float = 0.9) -> PolicySpec:
    return PolicySpec(streams=STREAMS, actions=ACTIONS, history=history, gamma=gamma, width=16)


def tick(n: int, session: str = "s", **fields: Any) -> Transition:
    """Every token is `n`, so that a batch says which ticks it is made of."""
    values: dict[str, Any] = {
        "session": session, "tick": n, "decision": f"{session}-{n}", "stamp_s": n / 10, "policy": "p",
        "tokens": {"front": np.full((2, 3), n, np.float16), "joints": np.full((1, 2), n, np.float32)},
        "encoder_versions": {"front": "v1"}, "present": {"front": True, "joints": True},
        "ages_s": {"front": 0.5, "joints": 0.25},
        "actions": {"head": ("left", "stay", "right")[n % 3], "arm": (n / 1e4, -1.0)},
        "by": {"head": "policy", "arm": "policy"}, "reward": float(n),
    }  # fmt: skip
    return Transition(**{**values, **fields})


def replay(history: int = 1, **fields: Any) -> ReplayBuffer:
    settings: dict[str, Any] = {"max_bytes": 1 << 20, "max_rows": 1_000, "demonstration_fraction": 0.5}
    return ReplayBuffer(spec(history), **{**settings, **fields})


def ticks(features: Any) -> list[Any]:
    """The tick each state came from, a list where there is a history; nan where the stream is missing."""
    values = features.tokens["joints"][..., 0, 0]
    found = torch.where(features.present[..., 1], values, torch.nan)
    return (found[:, 0] if found.shape[1] == 1 else found).tolist()


def test_one_step_and_what_is_executed() -> None:
    memory = replay()
    for n in range(10, 14):
        memory.append(tick(n))
    batch = memory.ordered(0, 99)
    assert batch is not None
    assert ticks(batch.features) == [10, 11, 12]
    assert ticks(batch.next_features) == [11, 12, 13]
    assert batch.rewards.tolist() == [10, 11, 12]
    assert batch.discounts.tolist() == pytest.approx([0.9] * 3)
    assert batch.actions["head"].tolist() == [1, 2, 0]
    torch.testing.assert_close(batch.actions["arm"][0], torch.tensor([0.001, -1.0]))
    assert batch.features.tokens["front"].dtype == torch.float32
    assert batch.features.ages[0, 0].tolist() == [0.5, 0.25]
    assert memory.ordered(3, 99) is None  # the outcome of the newest is unknown


def test_n_steps_stop_at_the_end_of_the_world_of_a_session_and_of_time() -> None:
    memory = replay(steps=3)
    for n in (0, 1, 2, 3):
        memory.append(tick(n, done=n == 2))
    for n in (0, 1 + MAX_GAP, 2 + MAX_GAP, 4 + 2 * MAX_GAP):  # the last comes after an outage
        memory.append(tick(n, "t"))
    batch = memory.ordered(0, 99)
    assert batch is not None
    assert ticks(batch.features) == [0, 1, 2, 1 + MAX_GAP]
    g = 0.9
    assert batch.rewards.tolist() == pytest.approx([0 + g + g * g * 2, 1 + g * 2, 2, 1 + MAX_GAP])
    assert batch.discounts.tolist() == pytest.approx([0, 0, 0, g])
    assert ticks(batch.next_features)[-1] == 2 + MAX_GAP


def test_a_gap_of_skipped_ticks_is_no_outage() -> None:
    memory = replay()
    for n in (0, MAX_GAP, 2 * MAX_GAP):
        memory.append(tick(n))
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.next_features) == [MAX_GAP, 2 * MAX_GAP]
    assert batch.discounts.tolist() == pytest.approx([0.9**MAX_GAP] * 2), "the value is that many ticks away"


def test_what_a_rescue_earns_is_not_the_policys() -> None:
    memory = replay(steps=3)
    for n in range(6):
        memory.append(
            tick(n, by={"head": "override" if n in {2, 3} else "policy"}, intervention=n in {2, 3}, reward=1.0)
        )
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [0, 1, 2, 3, 4]
    assert batch.rewards.tolist() == pytest.approx([1.9, 1.0, 2.71, 1.9, 1.0])
    assert ticks(batch.next_features) == [2, 2, 5, 5, 5]


def test_an_actuator_that_was_not_moved_has_what_was_in_force_and_never_another_rows_action() -> None:
    memory = replay(max_rows=80)
    for n in range(memory.capacity):
        memory.append(tick(n, actions={"head": "right", "arm": (0.9, 0.9)}))
    memory.append(tick(0, "next", actions={"head": "stay"}, by={"head": "policy"}))
    memory.append(tick(1, "next", actions={"head": "stay", "arm": (0.5, 0.0)}, by={"head": "policy", "arm": "gate"}))
    memory.append(tick(2, "next", actions={"arm": (0.1, 0.2)}, by={"arm": "policy"}))
    memory.append(tick(3, "next"))
    batch = memory.ordered(memory.added - 4, memory.added)
    assert batch is not None
    torch.testing.assert_close(batch.actions["arm"], torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.1, 0.2]]))
    assert batch.acted["arm"].tolist() == [False, False, True]
    assert batch.actions["head"].tolist() == [1, 1, 0]
    assert batch.acted["head"].tolist() == [True, True, False]


def test_every_reward_of_a_sum_has_time_to_arrive() -> None:
    memory = replay(steps=3, settle=5)
    for n in range(20):
        memory.append(tick(n))
    batch = memory.ordered(0, 99)
    assert batch is not None
    assert ticks(batch.features)[-1] == 19 - 5 - 2


def test_a_cut_episode_keeps_its_future_through_a_last_observation() -> None:
    memory = replay()
    memory.append(tick(0))
    memory.append(tick(1))
    memory.append(tick(2, actions={}, by={}))  # only the last observation
    memory.append(tick(0, "next"))
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [0, 1]
    assert batch.discounts.tolist() == pytest.approx([0.9, 0.9])
    assert ticks(batch.next_features) == [1, 2]


def test_history_stops_where_a_session_began_and_goes_on_over_the_end_of_an_episode() -> None:
    memory = replay(history=3)
    memory.append(tick(7, "old"))
    for n in range(4):
        memory.append(tick(n, done=n == 1))
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [[0, 0, 0], [0, 0, 1], [0, 1, 2]], "the agent's history does so too"
    assert ticks(batch.next_features)[2] == [1, 2, 3]
    newest = memory.newest(2)
    assert newest is not None
    assert ticks(newest) == [[0, 1, 2], [1, 2, 3]]
    assert replay().newest(5) is None


def test_the_history_goes_on_over_an_outage_and_the_chain_of_states_ends() -> None:
    """The agent's history does so too: it holds the last decisions, however long ago they were."""
    memory = replay(history=3)
    for n in (0, 1, 2 + MAX_GAP, 3 + MAX_GAP, 4 + MAX_GAP):
        memory.append(tick(n))
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [[0, 0, 0], [0, 1, 5], [1, 5, 6]]
    assert ticks(batch.next_features) == [[0, 0, 1], [1, 5, 6], [5, 6, 7]]


def test_the_reserve_joins_no_ticks_that_had_others_between_them() -> None:
    memory = replay(history=1, steps=1, max_rows=100)
    for n in range(400):  # LEAD_UP before each ending, and one after it, go to the reserve: 13 and 14 do not
        memory.append(tick(n, done=n in {11, 24}, demonstration=n == 12), number=n)
    reserve = memory._reserve.order()
    held = memory._columns.tick_N[reserve].tolist()
    assert [n for n in held if n > 11] == [12, 13, *range(16, 26)]
    assert memory.change(13, {"reward": 13.0, "done": 0, "demonstration": 1, "intervention": 0, "failure": 0})
    assert 13 not in [int(n) for n in ticks(memory.batch(memory._sampler.special()["demonstrations"]).features)]
    two = replay(history=1, steps=1, max_rows=100)
    two.refill(memory.held(), {n: tick(n, done=n in {11, 24}, demonstration=n in {12, 13}) for n in range(400)})
    assert two.held() == memory.held()
    assert two.strata() == memory.strata()


def naive(transitions: list[Transition], i: int, steps: int, gamma: float) -> tuple[float, float, int] | None:
    """The same rules, one tick at a time."""

    def follows(k: int) -> bool:
        if k + 1 >= len(transitions):
            return False
        one, two = transitions[k], transitions[k + 1]
        return one.session == two.session and 0 < two.tick - one.tick <= MAX_GAP

    if not transitions[i].actions or not (transitions[i].done or follows(i)):
        return None
    total, discount, k = 0.0, 1.0, i
    for _ in range(steps):
        total += discount * transitions[k].reward
        if transitions[k].done:
            return total, 0.0, k
        discount, k = discount * gamma ** (transitions[k + 1].tick - transitions[k].tick), k + 1
        if not transitions[k].actions or not (transitions[k].done or follows(k)):
            break
        if transitions[k].intervention and not transitions[i].intervention:
            break
    return total, discount, k


@pytest.mark.parametrize("seed", range(3))
def test_batches_equal_a_slow_reading_of_the_same_ticks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    memory = replay(history=4, steps=3, max_rows=100)
    transitions: list[Transition] = []
    session, n = 0, 0
    for _ in range(300):
        n += int(rng.choice([1, 1, 1, 1, 2, MAX_GAP + 1]))
        if rng.random() < 0.05:
            session, n = session + 1, 0
        actions = {} if rng.random() < 0.1 else {"head": "left"}
        fields: dict[str, Any] = {"actions": actions, "done": bool(actions) and rng.random() < 0.05}
        fields["intervention"] = bool(actions) and rng.random() < 0.2
        fields["by"] = {"head": "override"} if fields["intervention"] else {"head": "policy"}
        transitions.append(tick(n, f"s{session}", reward=float(rng.normal()), **fields))
        memory.append(transitions[-1])
    held = range(300 - memory.capacity, 300)
    expected = [naive(transitions, i, 3, 0.9) for i in held]
    batch = memory.ordered(0, 999)
    assert batch is not None
    drawable = [(i, e) for i, e in zip(held, expected, strict=True) if e is not None]
    assert len(batch) == len(drawable) > 40
    np.testing.assert_allclose(batch.rewards, [e[0] for _, e in drawable], rtol=1e-5)
    np.testing.assert_allclose(batch.discounts, [e[1] for _, e in drawable], rtol=1e-5)
    last = [ticks(batch.next_features)[b][-1] for b, (_, e) in enumerate(drawable) if e[1] > 0]
    assert last == [transitions[e[2]].tick for _, e in drawable if e[1] > 0]


def test_what_follows_a_time_limit_is_another_episode() -> None:
    """The state it led to was not seen: the tick itself is not drawn, and those before it count up to its state."""
    memory = replay(history=2, steps=3)
    for n in range(6):
        memory.append(tick(n, truncated=n == 2, reward=1.0), n)
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [[0, 0], [0, 1], [2, 3], [3, 4]]
    assert batch.discounts[:2].tolist() == pytest.approx([0.9**2, 0.9])
    assert batch.rewards[:2].tolist() == pytest.approx([1.9, 1.0])
    assert ticks(batch.next_features)[:2] == [[1, 2], [1, 2]]
    late = {"reward": 1.0, "done": 0, "intervention": 0, "demonstration": 0, "failure": 0, "truncated": 1, "success": 0}
    assert memory.change(4, late)
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [[0, 0], [0, 1], [2, 3]]


def test_the_share_of_demonstrations_grows_with_their_number() -> None:
    memory, generator, shares = replay(), torch.Generator().manual_seed(0), {}
    for n in range(800):
        memory.append(tick(n, demonstration=n < 60))
        if n in {9, 799}:
            shares[n] = float(memory.sample(256, generator).is_expert["head"].float().mean())
    single = replay()
    for n in range(800):
        single.append(tick(n, demonstration=n == 300))
    assert shares[9] == 1.0, "all that there is"
    assert 0.5 <= shares[799] < 0.6
    assert float(single.sample(256, generator).is_expert["head"].float().mean()) < 0.03


def test_endings_are_drawn_more_often_and_count_as_often_as_they_happened() -> None:
    """`right` ends the episode with p = .005: the values that follow from the batches are those of the data."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    memory = replay(max_rows=30_000, max_bytes=1 << 30, steps=1)
    risky = ended = 0
    for n in range(12_000):
        name = "right" if rng.random() < 0.5 else "left"
        done = name == "right" and bool(rng.random() < 0.005)
        risky, ended = risky + (name == "right"), ended + done
        memory.append(tick(n, actions={"head": name, "arm": (0.0, 0.0)}, done=done))
    ends = weights = drawn = plain = 0.0
    for _ in range(200):
        batch = memory.sample(64, generator)
        assert batch.weights is not None
        is_risky, is_end = batch.actions["head"] == 2, batch.discounts == 0
        ends += float(batch.weights[is_risky & is_end].sum())
        weights += float(batch.weights[is_risky].sum())
        drawn, plain = drawn + float((is_risky & is_end).sum()), plain + float(is_risky.sum())
    assert drawn / plain > 0.03, "an ending is rare in the data and not in the batches"
    assert ends / weights == pytest.approx(ended / risky, abs=0.001)

    def value(p: float) -> float:
        return (1 - p) * 1.5 / (1 - 0.9 * (1 - p))  # of always taking the risk: 1.5 a tick, and 0 at the end

    assert value(ends / weights) == pytest.approx(value(ended / risky), abs=0.3)
    assert value(ends / weights) > 1 / (1 - 0.9), "the risk is worth it"


def test_endings_count_as_often_as_they_happened_while_most_rows_cannot_be_sampled() -> None:
    """Of ten rows nine wait for tokens of a new encoder."""
    memory, generator = replay(max_rows=30_000, max_bytes=1 << 30), torch.Generator().manual_seed(0)
    for n in range(10_000):
        old = {"encoder_versions": {"front": "v0"}} if n < 9_000 else {}
        memory.append(tick(n, done=n % 100 == 50, **old))
    memory.versions = {"front": "v1"}
    ends = total = 0.0
    for _ in range(400):
        batch = memory.sample(64, generator)
        assert batch.weights is not None
        ends += float(batch.weights[batch.discounts == 0].sum())
        total += float(batch.weights.sum())
    assert ends / total == pytest.approx(0.01, abs=0.002)


def test_endings_of_the_reserve_count_no_more_than_the_rows_of_their_time() -> None:
    """The reserve holds endings of 12,000 ticks, and the main ring 800 of these."""
    memory, generator = replay(max_rows=1_000, max_bytes=1 << 30), torch.Generator().manual_seed(0)
    for n in range(12_000):
        memory.append(tick(n, done=n % 500 == 250), n)
    restored = replay(max_rows=1_000, max_bytes=1 << 30)
    restored.restore(*memory.snapshot())
    refilled = replay(max_rows=1_000, max_bytes=1 << 30)
    refilled.refill(memory.held(), {n: tick(n, done=n % 500 == 250) for n in range(12_000)})
    assert memory.strata().terminal > 10
    for one in (memory, restored, refilled):
        ends = total = 0.0
        for _ in range(300):
            batch = one.sample(64, generator)
            assert batch.weights is not None
            ends += float(batch.weights[batch.discounts == 0].sum())
            total += float(batch.weights.sum())
        assert ends / total == pytest.approx(1 / 500, rel=0.15)


@pytest.mark.parametrize("ending", [0, 1])
def test_demonstrations_that_outlive_the_ring_have_their_share_and_no_more(ending: int) -> None:
    """Whether a batch also draws endings changes nothing: they have half of it, and every other row counts alike."""
    memory, generator = replay(max_rows=600), torch.Generator().manual_seed(0)
    for n in range(700):
        memory.append(tick(n, demonstration=n < 180, done=n > 690 and n % 5 == 0 and bool(ending)))
    shown = total = 0.0
    for _ in range(100):
        batch = memory.sample(64, generator)
        assert (batch.weights is not None) == bool(ending)
        weights_B = torch.ones(64) if batch.weights is None else batch.weights
        shown, total = shown + float(weights_B[batch.is_expert["head"]].sum()), total + float(weights_B.sum())
    assert shown / total == pytest.approx(0.5, abs=0.01)
    assert total / 100 == pytest.approx(64, rel=0.01)


def test_terminal_rows_and_demonstrations_have_their_share() -> None:
    memory = replay()
    generator = torch.Generator().manual_seed(0)
    for n in range(400):
        memory.append(tick(n))
    assert (memory.strata().demonstrations, memory.strata().terminal, memory.strata().sampleable) == (0, 0, 399)
    assert not memory.sample(64, generator).is_expert["head"].any()
    for n in range(400, 410):
        memory.append(tick(n, by={"head": "override", "arm": "policy"}, intervention=True))
    memory.append(tick(410, done=True))
    batch = memory.sample(64, generator)
    assert int(batch.is_expert["head"].sum()) >= round(64 * 8 * 10 / 411)
    assert not batch.is_expert["arm"].any()  # no demonstration of the arm
    assert int((batch.discounts == 0).sum()) >= 1
    assert len(batch) == 64


def test_reserved_ticks_outlive_the_ring_with_what_led_up_to_them() -> None:
    memory = replay(history=2, steps=2, max_rows=200)
    for n in range(2_000):
        trained: dict[str, Any] = {"demonstration": True} if n == 500 else {}
        memory.append(tick(n, done=n == 300, **trained))
    assert (memory.strata().demonstrations, memory.strata().terminal) == (1, 1)
    held = memory._columns.number_N  # no store here: numbers are not used
    assert (held == -1).all()
    batch = memory.batch(memory._sampler.special()["demonstrations"])
    assert ticks(batch.features) == [[499, 500]]
    assert ticks(batch.next_features) == [[501, 502]]
    assert batch.rewards.tolist() == pytest.approx([500 + 0.9 * 501])
    order = memory._reserve.order()
    assert memory._columns.tick_N[order].tolist() == [*range(291, 303), *range(491, 503)]


def test_late_changes_reach_the_row_wherever_it_is() -> None:
    memory = replay(max_rows=200)
    after = {"reward": -5.0, "done": 1, "intervention": 0, "demonstration": 0, "failure": 1}
    for n in range(100):
        memory.append(tick(n), number=n)
    assert memory.change(50, after)
    assert memory.strata().terminal == 1
    for n in range(100, 400):
        memory.append(tick(n), number=n)
    assert memory.strata().terminal == 1
    batch = memory.batch(memory._sampler.special()["endings"])
    assert (batch.rewards.tolist(), batch.discounts.tolist()) == ([-5.0], [0.0])
    assert memory.change(50, {**after, "reward": -6.0, "intervention": 1})
    batch = memory.batch(memory._sampler.special()["demonstrations"])
    assert batch.rewards.tolist() == [-6.0]
    assert not memory.change(10, after)  # long gone
    assert not memory.change(9_999, after)


def test_a_late_reward_makes_no_demonstration_of_what_the_policy_did() -> None:
    """A person spoke instead of the policy; what the policy moved at that tick is still its own."""
    memory = replay()
    moved = tick(1).actions
    reported = {"head": "policy", "arm": "policy", "say": "override"}
    for n in range(3):
        memory.append(tick(n, actions={**moved, "say": "stop"}, by=reported, intervention=True), number=n)
    after = {"reward": 3.0, "done": 0, "intervention": 1, "demonstration": 0, "failure": 0}
    assert memory.change(1, after)
    assert memory.strata().demonstrations == 0
    assert memory.change(1, {**after, "demonstration": 1})
    assert memory.strata().demonstrations == 1


def test_an_equal_replay_can_be_filled_again() -> None:
    def feed(memory: ReplayBuffer, start: int, stop: int) -> dict[int, Transition]:
        made = {}
        for n in range(start, stop):
            made[n] = tick(n, f"s{n // 70}", done=n % 70 == 69, demonstration=n % 90 == 5)
            memory.append(made[n], number=n)
        return made

    one = replay(history=3, steps=3, max_rows=150)
    rows = feed(one, 0, 900)
    two = replay(history=3, steps=3, max_rows=150)
    two.refill(one.held(), rows)
    assert two.held() == one.held()
    for step in range(6):
        if step:
            feed(one, 900 + step * 20, 920 + step * 20)
            feed(two, 900 + step * 20, 920 + step * 20)
        a, b = (m.sample(64, torch.Generator().manual_seed(step)) for m in (one, two))
        torch.testing.assert_close(a.rewards, b.rewards, rtol=0, atol=0)
        torch.testing.assert_close(a.features.tokens["front"], b.features.tokens["front"], rtol=0, atol=0)
        assert torch.equal(a.features.present, b.features.present)
        assert torch.equal(a.next_features.present, b.next_features.present)
        assert torch.equal(a.is_expert["head"], b.is_expert["head"])


def test_ticks_with_tokens_of_another_encoder_version_are_set_aside_until_they_are_encoded_again() -> None:
    memory = replay()
    memory.append(tick(0))
    memory.append(tick(1, encoder_versions={"front": "v2"}))
    memory.append(tick(2, present={"front": False, "joints": True}))
    memory.append(tick(3, tokens={"front": np.zeros((2, 4), np.float16), "joints": np.full((1, 2), 3, np.float32)}))
    memory.append(tick(4))
    memory.append(tick(5))
    seen = {None: [0, 1, 2, 3, 4], "v1": [0, 2, 3, 4], "v2": [1, 2, 3], "v3": [2, 3]}
    for version, expected in seen.items():
        memory.versions = {} if version is None else {"front": version}
        batch = memory.ordered(0, 9)
        assert batch is not None
        assert ticks(batch.features) == expected
        assert batch.features.present[:, 0, 0].tolist() == [n not in {2, 3} for n in expected]
        assert batch.features.present[..., 1].all()
        assert memory.outdated == {None: 0, "v1": 1, "v2": 3, "v3": 4}[version]
    assert memory.skipped["shape"] == 1


def test_numbers_of_other_fields_are_set_aside_and_wait_for_no_encoder() -> None:
    """Fields that settings list in another order have the same width, and another meaning."""
    before, after = fields_version(("q1", "q2")), fields_version(("q2", "q1"))
    assert before != after
    memory = replay()
    for n, version in enumerate((before, after, "", before, after, after)):
        memory.append(tick(n, encoder_versions={"joints": version} if version else {}))
    memory.versions = {"joints": after}
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [1, 2, 4], "a row without names was stored before fields had versions"
    assert memory.outdated == 2
    assert memory.stale() == {}


def test_an_action_beyond_the_present_limits_is_left_out() -> None:
    """Limits that settings narrow, or that have another unit, leave no way to take such an action."""
    memory = replay()
    for n, value in enumerate(((0.5, 1.5), (-1.0, 1.0), (90.0, 45.0), (1.0 + 1e-9, 0.0), (0.0, 0.0))):
        memory.append(tick(n, actions={"arm": value}))
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [1, 3]
    assert memory.skipped["action"] == 2


def test_an_action_that_is_no_longer_offered_is_left_out() -> None:
    memory = replay()
    for n, actions in enumerate(({"head": "up"}, {"arm": (0.0,)}, {"arm": "left"}, {"head": "left"}, {})):
        memory.append(tick(n, actions=actions))
    batch = memory.ordered(0, 9)
    assert batch is not None
    assert ticks(batch.features) == [3]
    assert (batch.acted["head"].tolist(), batch.acted["arm"].tolist()) == ([True], [False])
    assert memory.skipped["action"] == 3


def test_the_newest_wait_until_their_rewards_are_in() -> None:
    memory = replay(settle=5)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="none of 0"):
        memory.sample(8, generator)
    for n in range(5):
        memory.append(tick(n))
    with pytest.raises(ValueError, match="none of 5"):
        memory.sample(8, generator)
    memory.append(tick(5))
    assert set(ticks(memory.sample(8, generator).features)) == {0.0}
    memory.append(tick(6, done=True))  # a reward of another source may still arrive
    assert set(ticks(memory.sample(64, generator).features)) == {0.0, 1.0}
    for n in range(7, 12):
        memory.append(tick(n))
    assert 6.0 in ticks(memory.sample(64, generator).features)


def test_the_memory_bound_holds() -> None:
    memory = ReplayBuffer(spec(), max_bytes=1 << 20)
    arrays = sum(column.nbytes for column in memory._columns.arrays)
    assert memory.bytes <= 1 << 20
    assert arrays <= memory.bytes


def test_centred_rewards_are_what_is_better_than_usual() -> None:
    memory = replay(centre=True, steps=2)
    for n in range(5):
        memory.append(tick(n, done=n == 4))
    batch = memory.ordered(0, 99)
    assert batch is not None
    usual = 2.0  # the mean of 0 to 4
    expected = [(n - usual) + 0.9 * (n + 1 - usual) for n in range(4)] + [4 - usual]
    assert batch.rewards.tolist() == pytest.approx(expected)
    assert batch.discounts.tolist() == pytest.approx([0.81, 0.81, 0.81, 0.0, 0.0])


def test_no_ending_weighs_more_than_it_happened_where_demonstrations_fill_the_batch() -> None:
    memory = replay(demonstration_fraction=0.94)
    for n in range(600):
        by = {"head": "override", "arm": "override"} if n % 4 == 1 else {"head": "policy", "arm": "policy"}
        memory.append(tick(n, by=by, done=n % 10 == 5))
    batch = memory.sample(256, torch.Generator().manual_seed(0))
    assert batch.weights is not None
    assert float(batch.weights.min()) > 0.05
    assert float(batch.weights.max()) < 2.0


def test_a_state_without_links_joins_no_rows_of_the_reserve_that_are_far_apart() -> None:
    memory, rows = replay(history=4, max_rows=100), {}
    for n in range(1_000):
        rows[n] = tick(n, done=n in (200, 600))
        memory.append(rows[n], n)
    old, again = replace(memory.held(), linked=None), replay(history=4, max_rows=100)
    assert {189, 589} & set(old.reserve)
    again.refill(old, rows)
    again.append(tick(1_000), 1_000)  # moves nothing that a gap would join
    at = again._reserve.order()
    histories = ticks(again._columns.features(again._histories(at)))
    assert len(histories) >= 10
    assert all(max(history) - min(history) < 4 for history in histories)
    assert again.held().linked is not None
    assert again.held().linked[-1] is False


def test_an_agent_that_calls_all_of_its_rows_demonstrations_takes_no_draws_from_those_of_the_others() -> None:
    """A few corrections of an honest agent are drawn as often as without the other agent."""

    def drawn(*, is_flooded: bool) -> float:
        """Return how many demonstrations of the honest agent a batch of 256 has, on average."""
        memory = replay(failure_share=0.1, max_rows=4_096)
        for n in range(3_000):
            agent = ("flood", "honest")[n // 100 % 2]
            is_shown = is_flooded if agent == "flood" else n % 100 == 50
            memory.append(tick(n, f"{agent}/s", done=n % 100 == 99, demonstration=is_shown))
        generator, found = torch.Generator().manual_seed(3), 0
        for _ in range(200):
            batch = memory.sample(256, generator)
            assert batch.weights is not None
            assert bool((batch.weights > 0).all())
            honest = torch.tensor([int(n) // 100 % 2 == 1 for n in ticks(batch.features)])
            found += int((batch.is_expert["head"] & honest).sum())
        return found / 200

    alone, beside = drawn(is_flooded=False), drawn(is_flooded=True)
    assert alone > 5
    assert beside > 0.8 * alone


def test_demonstrations_of_one_agent_of_a_fleet_are_at_most_an_eighth_of_a_batch() -> None:
    def drawn(agents: list[str], *, teachers: int) -> dict[str, int]:
        """How many of 800 draws are demonstrations, by agent; tick numbers name the agent."""
        memory = replay(failure_share=0.1)
        for at, agent in enumerate(agents):
            for n in range(at * 100, at * 100 + 100):
                memory.append(tick(n, f"{agent}s", done=n % 100 == 99, demonstration=at < teachers))
        batch = memory.sample(800, torch.Generator().manual_seed(3))
        expert = [
            int(n) for n, is_expert in zip(ticks(batch.features), batch.is_expert["head"], strict=True) if is_expert
        ]
        assert batch.weights is not None
        assert bool((batch.weights > 0).all())
        return {agent: sum(n // 100 == at for n in expert) for at, agent in enumerate(agents)}

    one = drawn(["liar/", "b/", "c/", "d/", "e/", "f/", "g/", "h/"], teachers=1)
    assert 100 <= one["liar/"] <= 100 + 800 / 8  # an eighth, and what the uniform part has
    assert not one["b/"]
    several = drawn(["a/", "b/", "c/", "d/", "e/", "f/", "g/", "h/"], teachers=4)
    assert sum(several.values()) > 400
    assert (
        drawn(["own", "b", "c", "d", "e", "f", "g", "h"], teachers=1)["own"] > 350
    )  # a device of its own has no such limit
