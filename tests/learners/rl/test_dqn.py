"""Losses of DQN on numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from rl import CHOICE, OTHER, plain, random_batch, seen

from learners.rl.algorithm import Algorithm
from learners.rl.dqn import Dqn, DqnSettings, double_target, large_margin, quantile_huber
from learners.rl.head_algorithm import Contexts
from learners.rl.transition_batch import Batch

torch.set_num_threads(1)


def test_one_quantile_is_half_the_huber_loss() -> None:
    # errors 0.5 and -3: Huber 0.125 and 3 - 0.5 = 2.5, times 1/2
    loss = quantile_huber(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.5], [-2.0]]))
    torch.testing.assert_close(loss, torch.tensor([0.0625, 1.25]))


def test_quantiles_weigh_over_and_underestimates_apart() -> None:
    # quantiles at 1/4 and 3/4, both predicting 0; one target 2: Huber 1.5, slopes 1/4 and 3/4 -> 0.375 + 1.125
    torch.testing.assert_close(quantile_huber(torch.zeros(1, 2), torch.tensor([[2.0]])), torch.tensor([1.5]))
    # targets 2 and -2: each quantile pays its own slope for one and the rest for the other: mean 0.75, twice
    torch.testing.assert_close(quantile_huber(torch.zeros(1, 2), torch.tensor([[2.0, -2.0]])), torch.tensor([1.5]))
    # a low quantile that is too high pays three quarters: 0.75 * 1.5 + 0.25 * 1.5
    torch.testing.assert_close(quantile_huber(torch.zeros(1, 2), torch.tensor([[-2.0]])), torch.tensor([1.5]))
    low_only = quantile_huber(torch.tensor([[0.0, -2.0]]), torch.tensor([[-2.0]]))
    torch.testing.assert_close(low_only, torch.tensor([1.125]))


def test_quantile_regression_finds_quantiles() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(1, 4000, generator=generator)
    quantiles = torch.zeros(1, 4, requires_grad=True)
    optimiser = torch.optim.SGD([quantiles], lr=0.05)
    for _ in range(600):
        optimiser.zero_grad()
        quantile_huber(quantiles, targets, kappa=0.001).sum().backward()
        optimiser.step()
    torch.testing.assert_close(quantiles.detach(), torch.tensor([[0.125, 0.375, 0.625, 0.875]]), atol=0.04, rtol=0)


def test_double_target_chooses_online_and_values_by_the_target() -> None:
    online = [torch.tensor([[[1.0, 1.0], [3.0, 5.0]]])]  # the second choice is better: mean 4 against 1
    target = [torch.tensor([[[9.0, 9.0], [2.0, 6.0]]])]
    reward, discount = torch.tensor([1.0]), torch.tensor([0.5])
    torch.testing.assert_close(double_target(online, target, reward, discount, [None]), torch.tensor([[2.0, 4.0]]))
    mask = torch.tensor([[True, False]])
    torch.testing.assert_close(double_target(online, target, reward, discount, [mask]), torch.tensor([[5.5, 5.5]]))


def test_double_target_averages_branches_and_ends_with_the_world() -> None:
    branches = [torch.tensor([[[2.0], [0.0]]]), torch.tensor([[[4.0], [8.0]]])]
    target = double_target(branches, branches, torch.tensor([1.0]), torch.tensor([1.0]), [None, None])
    torch.testing.assert_close(target, torch.tensor([[1.0 + (2.0 + 8.0) / 2]]))
    ended = double_target(branches, branches, torch.tensor([1.0]), torch.tensor([0.0]), [None, None])
    torch.testing.assert_close(ended, torch.tensor([[1.0]]))


def test_a_mask_that_forbids_everything_is_refused() -> None:
    q = [torch.zeros(1, 2, 1)]
    with pytest.raises(ValueError, match="forbids every choice"):
        double_target(q, q, torch.zeros(1), torch.ones(1), [torch.zeros(1, 2, dtype=torch.bool)])


def test_large_margin() -> None:
    scores = torch.tensor([[1.0, 1.5, 0.0], [1.0, 3.0, 0.0]])
    # expert 0: max(1, 1.5 + .8, .8) - 1 = 1.3; expert 1: it leads by more than the margin
    torch.testing.assert_close(large_margin(scores, torch.tensor([0, 1]), 0.8), torch.tensor([1.3, 0.0]))


def test_dueling_branches_share_the_value_and_advantages_cancel() -> None:
    head = plain(CHOICE, OTHER).heads.choice
    assert head is not None
    context = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    three, two = head(context)
    assert three.shape == (5, 3, head.quantiles)
    assert two.shape == (5, 2, head.quantiles)
    torch.testing.assert_close(three.mean(1), two.mean(1))  # both are the value


def test_epsilon_shrinks_with_decisions_and_the_target_follows() -> None:
    policy = plain(CHOICE)
    algorithm = Algorithm(policy, torch.Generator().manual_seed(0))
    (part,) = algorithm.parts
    assert isinstance(part, Dqn)
    head = policy.heads.choice
    assert head is not None
    before = part.target.out.weight.clone()
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    algorithm.update(batch)
    settings = DqnSettings()
    assert float(head.epsilon) == pytest.approx(1 - 0.98 / settings.epsilon_decisions, abs=1e-6)
    expected = before + settings.track * (head.out.weight.detach() - before)
    torch.testing.assert_close(part.target.out.weight, expected)
    algorithm.update(batch, 0.0)  # training that has had no new decision explores as much as before
    assert float(head.epsilon) == pytest.approx(1 - 0.98 / settings.epsilon_decisions, abs=1e-6)
    algorithm.update(batch, settings.epsilon_decisions / 2)
    assert float(head.epsilon) == pytest.approx(0.51, abs=1e-3)
    algorithm.update(batch, settings.epsilon_decisions)
    assert float(head.epsilon) == pytest.approx(settings.epsilon)


def test_what_was_not_moved_or_weighs_nothing_does_not_teach() -> None:
    policy = plain(CHOICE)
    part = Dqn(policy.heads.choice, ("head",))  # type: ignore[arg-type]
    batch = random_batch(policy, 8, torch.Generator().manual_seed(1))
    contexts = Contexts(*[policy.encode(batch.features)] * 2)
    full, _ = part.loss(contexts, batch)
    still = Batch(
        batch.features,
        batch.next_features,
        batch.actions,
        batch.rewards,
        batch.discounts,
        acted={"head": torch.zeros(8, dtype=torch.bool)},
    )
    light = Batch(
        batch.features, batch.next_features, batch.actions, batch.rewards, batch.discounts, weights=torch.zeros(8)
    )
    assert float(full.detach()) > 0
    assert float(part.loss(contexts, still)[0].detach()) == 0
    assert float(part.loss(contexts, light)[0].detach()) == 0


def test_demonstrations_pull_the_policy_to_their_actions() -> None:
    policy = plain(CHOICE)
    algorithm = Algorithm(policy, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        x = torch.randn(64, 3, generator=generator)
        expert = (x[:, 0] > 0).long() * 2
        every = torch.ones(64, dtype=torch.bool)
        batch = Batch(seen(x), seen(x), {"head": expert}, torch.zeros(64), torch.zeros(64), is_expert={"head": every})
        metrics = algorithm.update(batch)
    x = torch.randn(200, 3, generator=generator)
    chosen = policy.act(seen(x), generator=generator, explore=False).values["head"]
    assert (chosen == (x[:, 0] > 0).long() * 2).float().mean() > 0.9
    assert metrics["dqn_imitation"] < 0.2


def test_values_of_a_chain_are_found() -> None:
    """Three states in a row, one step right each, reward 1 at the end: values gamma^2, gamma, 1 times the reward."""
    policy = plain(CHOICE, width=3, gamma=0.9)
    algorithm = Algorithm(policy, torch.Generator().manual_seed(0))
    eye = torch.eye(3)
    state = torch.tensor([0, 1, 2] * 8)
    action = torch.tensor([0, 1, 2]).repeat_interleave(8)
    onward = action == 2  # only "right" moves on; the others stay
    following = torch.where(onward, (state + 1).clamp(max=2), state)
    ended = onward & (state == 2)
    batch = Batch(seen(eye[state]), seen(eye[following]), {"head": action}, ended.float(), torch.where(ended, 0.0, 0.9))
    for _ in range(700):
        algorithm.update(batch)
    output = policy.act(seen(eye), generator=torch.Generator().manual_seed(0), explore=False)
    assert output.values["head"].tolist() == [2, 2, 2]
    torch.testing.assert_close(output.value, torch.tensor([0.81, 0.9, 1.0]), atol=0.1, rtol=0)
