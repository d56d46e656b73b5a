"""Categorical critics: bins worked by hand, exact values of a chain, rewards of any scale, and weights of unit norm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rl import ARM, CHOICE, plain, random_batch, seen

from actuators.actions import ActionSpace, Choice, Continuous
from learners.experience.transition import Transition
from learners.model.networks import UnitBatchNorm, UnitLinear
from learners.model.policy import Policy
from learners.model.return_bins import BINS, LIMIT, WIDTH, bins, cross_entropy, expectation, project
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.algorithm import RESCALE_EVERY, Algorithm
from learners.rl.categorical_critics import C51, Xqc, bootstrapped
from learners.rl.replay_buffer import HEADROOM, ReplayBuffer
from learners.rl.transition_batch import Batch

PLACES, GAMMA = 4, 0.8
MOVES = ("left", "right")


def two_hot(values_B: torch.Tensor) -> torch.Tensor:
    return project(torch.ones_like(values_B).unsqueeze(-1), values_B.unsqueeze(-1))


def test_two_hot_of_a_value_decodes_to_it() -> None:
    values = torch.tensor([-5.0, -1.23, 0.0, 0.04, 3.999, 5.0])
    target = two_hot(values)
    torch.testing.assert_close(target @ bins(values), values, atol=1e-5, rtol=0)
    torch.testing.assert_close(target.sum(-1), torch.ones(6))
    assert int((target > 0).sum(-1).max()) <= 2
    torch.testing.assert_close(two_hot(torch.tensor([7.0, -9.0])) @ bins(values), torch.tensor([LIMIT, -LIMIT]))


def test_a_projection_keeps_mass_and_mean() -> None:
    chance = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(torch.randn(8, BINS, generator=chance), -1)
    values = 0.5 * bins(probabilities) + 0.7
    out = project(probabilities, values.expand(8, -1))
    torch.testing.assert_close(out.sum(-1), torch.ones(8))
    torch.testing.assert_close(out @ bins(out), probabilities @ values, atol=1e-5, rtol=0)


def test_a_target_is_reward_and_discounted_rest() -> None:
    next_BK = two_hot(torch.tensor([1.0, 1.0]))
    target = bootstrapped(next_BK, torch.tensor([4.0, 4.0]), torch.tensor([0.5, 0.0]), torch.tensor(2.0))
    # 4 / 2 + 0.5 * 1, and nothing to come where the episode ended
    torch.testing.assert_close(target @ bins(target), torch.tensor([2.5, 2.0]))


def test_cross_entropy_is_least_at_the_target() -> None:
    target = two_hot(torch.tensor([0.33]))
    assert float(cross_entropy(target.clamp(min=1e-9).log(), target)) < float(
        cross_entropy(torch.zeros(1, BINS), target)
    )
    torch.testing.assert_close(cross_entropy(torch.zeros(1, BINS), target), torch.tensor([np.log(BINS)]).float())
    torch.testing.assert_close(expectation(torch.zeros(1, BINS)), torch.zeros(1), atol=1e-5, rtol=0)
    assert pytest.approx(2 * LIMIT) == WIDTH * (BINS - 1)


def test_every_update_returns_the_weights_to_the_sphere() -> None:
    policy = plain(CHOICE, ARM, algorithm="xqc")
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    for i in range(4):
        learning.update(random_batch(policy, 16, torch.Generator().manual_seed(i)))
    linears = [part for part in policy.modules() if isinstance(part, UnitLinear)]
    norms = [part for part in policy.modules() if isinstance(part, UnitBatchNorm)]
    assert len(linears) == 3 + 2 * 3 + 2  # the choices' critic, two critics of motions, the hidden layers of the actor
    for linear in linears:
        torch.testing.assert_close(linear.weight.norm(dim=1), torch.ones(len(linear.weight)))
    for norm in norms:
        together = norm.weight.square().sum() + norm.bias.square().sum()
        torch.testing.assert_close(together, torch.tensor(float(len(norm.weight))))


def test_batch_normalisation_is_that_of_torch() -> None:
    ours, theirs = UnitBatchNorm(3), torch.nn.BatchNorm1d(3, eps=1e-3, momentum=0.01)
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours.train()(x[:1]).isfinite().all()  # one row has no statistics of its own


def corridor(scale: float, steps: int = 2_000) -> ReplayBuffer:
    """Random walks over four places; right of the last is the goal, which ends the episode and pays 5, any other step costs .5."""
    stream = StreamSpec("s", "telemetry", 1, PLACES)
    spec = PolicySpec(
        (stream,), ActionSpace((Choice("move", MOVES),)), history=1, gamma=GAMMA, hidden=(64, 64), algorithm="xqc"
    )
    replay, chance, place = ReplayBuffer(spec, max_bytes=1 << 24), np.random.default_rng(0), 0
    for k in range(steps):
        move = MOVES[chance.integers(2)]
        following = place + (1 if move == "right" else -1)
        done = following == PLACES
        token = {"s": np.eye(PLACES, dtype=np.float32)[[place]]}
        row = Transition("s", k, str(k), 0.0, "p", token, {}, {"s": True}, {"s": 0.0}, {"move": move})
        replay.append(replace(row, reward=scale * (5.0 if done else -0.5), done=done), k)
        place = 0 if done else max(0, following)
    return replay


def exact() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the optimal values [place, move]."""
    values = np.zeros((PLACES, 2))
    for _ in range(200):
        best = values.max(1)
        right = [-0.5 + GAMMA * best[s + 1] for s in range(PLACES - 1)] + [5.0]
        values = np.array([[-0.5 + GAMMA * best[max(0, s - 1)], right[s]] for s in range(PLACES)])
    return values


def learned(scale: float, updates: int = 900) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    replay = corridor(scale)
    torch.manual_seed(0)
    policy = Policy(replay.spec).eval()
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    (part,) = learning.parts
    assert isinstance(part, C51)
    part.settings = replace(part.settings, track=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        if learning.needs_return_scale:
            learning.rescale(replay.return_scale())
        learning.update(replay.sample(64, generator))
    with torch.no_grad():
        (scores,) = policy.heads.choice_scores(policy.encode(seen(torch.eye(PLACES), "s")))
    return scores.double().numpy()


@pytest.fixture(scope="module")
def values() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return learned(1.0)


def test_the_values_of_a_chain_are_exact(values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    np.testing.assert_allclose(values, exact(), atol=0.05)


def test_the_scale_of_rewards_does_not_matter(values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    small, large = (learned(scale, 250) / scale for scale in (0.01, 100.0))
    assert (small.argmax(1) == values.argmax(1)).all()
    assert (large.argmax(1) == values.argmax(1)).all()
    np.testing.assert_allclose(small, large, atol=0.1)


def test_the_scale_of_returns_follows_from_the_replay() -> None:
    replay = corridor(1.0, 400)
    rewards, dones = replay._columns.reward_N[replay._main.order()], replay._columns.done_N[replay._main.order()]
    total, returns = 0.0, []
    for reward, done in zip(rewards[::-1], dones[::-1], strict=True):
        total = float(reward) + (0.0 if done else GAMMA * total)
        returns.append(total)
    wanted = max(float(np.std(returns)), float(np.abs(returns).max()) / HEADROOM)
    assert replay.return_scale() == pytest.approx(wanted, rel=1e-3)
    last = max(replay._columns.number_N)
    for huge in (1e6, 1e308):
        after = {"reward": huge, "done": 1.0, "failure": 0.0, "demonstration": 0.0, "intervention": 0.0}
        assert replay.change(int(last), after)
        assert replay.return_scale() < 5 * wanted
        assert np.isfinite(replay._columns.reward_N).all()
    assert corridor(0.0, 50).return_scale() == 1.0
    assert ReplayBuffer(replay.spec, max_bytes=1 << 20).return_scale() == 1.0


def test_a_rare_goal_is_worth_more_than_its_cost() -> None:
    """As in MountainCarContinuous: moving costs up to .1 a step, and a goal that was reached once pays 100."""
    spec = PolicySpec(
        (StreamSpec("s", "telemetry", 1, 1),), ActionSpace((ARM,)), history=1, gamma=0.99, algorithm="xqc"
    )
    replay, cost = ReplayBuffer(spec, max_bytes=1 << 22), 0.1
    for k in range(1_000):
        token = {"s": np.zeros((1, 1), np.float32)}
        row = Transition("s", k, str(k), 0.0, "p", token, {}, {"s": True}, {"s": 0.0}, {"arm": tuple(ARM.high)})
        replay.append(replace(row, reward=100.0 if k == 999 else -cost, done=k == 999), k)
    reaching = cost * (1 - 0.99**999) / 0.01  # about 10, of all that is to come
    most = LIMIT * replay.return_scale()
    assert most > 4 * reaching
    assert most < 100


def test_the_scale_is_measured_at_each_doubling_and_then_regularly() -> None:
    learning = Algorithm(plain(CHOICE, algorithm="xqc"), torch.Generator().manual_seed(0))
    due = []
    for learning.updates in range(2 * RESCALE_EVERY + 1):
        due += [learning.updates] if learning.needs_return_scale else []
    assert due == [0, 1, 2, 4, 8, 16, 32, 64, 128, RESCALE_EVERY, 2 * RESCALE_EVERY]
    assert not Algorithm(plain(CHOICE), torch.Generator()).needs_return_scale


def test_the_divisor_of_rewards_follows_large_changes_only() -> None:
    learning = Algorithm(plain(CHOICE, ARM, algorithm="xqc"), torch.Generator().manual_seed(0))
    choices, motions = learning.parts
    assert isinstance(choices, C51)
    assert isinstance(motions, Xqc)
    divisors = []
    for learning.updates, deviation in enumerate((1.1, 1.3, 1.4, 1.15, 1.1)):
        learning.rescale(deviation)
        divisors.append((choices.deviation, motions.deviation))
    np.testing.assert_allclose(divisors, np.transpose([[1.1, 1.1, 1.4, 1.4, 1.1]] * 2))


@pytest.mark.parametrize("factor", [2.0**-7, 2.0**7])
def test_rewards_of_another_scale_leave_every_weight_the_same(factor: float) -> None:
    """To the bit, because a power of two rounds nothing; values are in units of the rewards."""

    def trained(scale: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        policy = plain(CHOICE, ARM, algorithm="xqc")
        learning = Algorithm(policy, torch.Generator().manual_seed(0))
        chance = torch.Generator().manual_seed(1)
        for i in range(8):
            batch = random_batch(policy, 16, chance, trained=i % 2 == 1)
            batch.rewards.mul_(scale)
            learning.rescale(scale * (2.0 + i))
            learning.update(batch)
        weights = {name: w for name, w in policy.state_dict().items() if not name.endswith(".scale")}
        return weights, policy.act(seen(torch.ones(2, 3)), generator=chance, explore=False).value

    (usual, value), (other, scaled) = trained(1.0), trained(factor)
    assert all(torch.equal(weight, other[name]) for name, weight in usual.items())
    torch.testing.assert_close(scaled, factor * value)


def test_the_values_of_motions_in_two_states_are_known() -> None:
    """States +-1 in turn, reward 100 (s - (a - s / 2)^2): the best motion is s / 2, and Q(s, a) / 100 = s / (1 + gamma) - (a - s / 2)^2."""
    gamma, rows, scale = 0.5, 64, 100.0
    torch.manual_seed(0)
    streams, arm = (StreamSpec("joints", "telemetry", 1, 1),), Continuous("arm", (-1.0,), (1.0,))
    spec = PolicySpec(streams, ActionSpace((arm,)), history=1, gamma=gamma, hidden=(32, 32), algorithm="xqc")
    policy = Policy(spec).eval()
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    (part,) = learning.parts
    assert isinstance(part, Xqc)
    part.settings = replace(part.settings, delay=1)
    learning.rescale(scale)
    chance = torch.Generator().manual_seed(1)
    for _ in range(450):
        s, a = 2 * torch.randint(2, (rows, 1), generator=chance) - 1.0, 2 * torch.rand(rows, 1, generator=chance) - 1
        rewards = scale * (s - (a - s / 2).square())[:, 0]
        learning.update(Batch(seen(s), seen(-s), {"arm": a}, rewards, torch.full((rows,), gamma)))
    s, a = torch.tensor([[1.0], [-1.0]]).repeat(3, 1), torch.tensor([-0.5, 0.0, 0.5]).repeat_interleave(2).unsqueeze(-1)
    with torch.no_grad():
        context = policy.encode(seen(s))
        values, (mean, _) = part.critics(context, a).mean(0) / scale, part.head.actor(context[:2])
    torch.testing.assert_close(values, (s / (1 + gamma) - (a - s / 2).square())[:, 0], atol=0.3, rtol=0)
    torch.testing.assert_close(torch.tanh(mean), s[:2] / 2, atol=0.45, rtol=0)


def test_a_target_that_is_not_a_number_is_seen_in_the_loss() -> None:
    even_BK = torch.full((2, len(bins(torch.zeros(1)))), 1 / 101)
    target_BK = bootstrapped(even_BK, torch.tensor([torch.nan, 1.0]), torch.tensor([0.9, 0.9]), torch.tensor(1.0))
    assert not target_BK[0].isfinite().all()
    assert target_BK[1].sum() == pytest.approx(1.0, abs=1e-5)
