"""Losses of SAC on numbers worked by hand, and that it finds the best action."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rl import ARM, plain, random_batch, seen
from torch import distributions

from learners.model.gaussian_actor import squashed_log_density
from learners.rl.algorithm import Algorithm
from learners.rl.crossq import Crossq
from learners.rl.head_algorithm import Contexts
from learners.rl.sac import Sac, SacSettings, soft_target, temperature_loss
from learners.rl.transition_batch import Batch


def test_soft_target() -> None:
    # min(4, 3) - 0.5 * -2 = 4; 1 + 0.9 * 4 = 4.6; at the end of the world only the reward
    target = soft_target(
        torch.tensor([[4.0, 7.0], [3.0, 9.0]]),
        torch.tensor([-2.0, 1.0]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([0.9, 0.0]),
        torch.tensor(0.5),
    )
    torch.testing.assert_close(target, torch.tensor([4.6, 2.0]))


def test_temperature_rises_while_the_policy_is_less_random_than_asked() -> None:
    log_temperature = torch.tensor(0.3, requires_grad=True)
    # log density 2 is entropy -2, below the target of -1: loss -0.3 * (2 - 1), slope -1, so a step down raises it
    loss = temperature_loss(log_temperature, torch.tensor([2.0, 2.0]), -1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-0.3)
    assert log_temperature.grad is not None
    assert log_temperature.grad.item() == pytest.approx(-1.0)


def test_squashed_density_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, mean, log_std = (torch.randn(50, 2, generator=generator) for _ in range(3))
    raw = mean + log_std.exp() * noise
    normal = distributions.Normal(mean, log_std.exp())
    slope = torch.log1p(-torch.tanh(raw.double()).square())
    expected = normal.log_prob(raw).double() - slope
    mild = raw.abs() < 5
    torch.testing.assert_close(
        squashed_log_density(raw, noise, log_std).double()[mild], expected[mild], atol=1e-3, rtol=1e-3
    )
    far = squashed_log_density(torch.tensor([40.0]), torch.tensor([0.0]), torch.tensor([0.0]))
    assert far.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 40), rel=1e-5)


def test_actor_step_leaves_the_critics_without_gradient() -> None:
    policy = plain(ARM, algorithm="sac")
    head = policy.heads.continuous
    assert head is not None
    part = Sac(head, ("arm",), torch.Generator().manual_seed(0))
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    before = {n: p.clone() for n, p in head.named_parameters()}
    contexts = Contexts(*[policy.encode(batch.features)] * 2)
    metrics = part.improve(contexts, batch, 1)
    after = dict(head.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("critics"))
    assert all(p.grad is None for p in head.critics.parameters())
    assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith("actor"))
    assert metrics["sac_temperature"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["sac", "crossq"])
def test_a_tick_at_which_nothing_was_moved_does_not_train_the_critics(kind: str) -> None:
    policy = plain(ARM, algorithm=kind)
    head = policy.heads.continuous
    assert head is not None
    part = (Sac if kind == "sac" else Crossq)(head, ("arm",), torch.Generator().manual_seed(0))
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    contexts = Contexts(*[policy.encode(batch.features)] * 2)

    def critics(acted: torch.Tensor) -> list[torch.Tensor]:
        part.generator.manual_seed(0)
        loss, _ = part.loss(contexts, replace(batch, acted={"arm": acted}))
        return list(torch.autograd.grad(loss, list(head.critics.parameters())))

    assert all(float(g.abs().max()) == 0 for g in critics(torch.zeros(16, dtype=torch.bool)))
    assert any(float(g.abs().max()) > 0 for g in critics(torch.arange(16) < 8))


def test_the_minimum_is_taken_over_a_random_subset() -> None:
    policy = plain(ARM, algorithm="sac")
    head = policy.heads.continuous
    assert head is not None
    part = Sac(head, ("arm",), torch.Generator().manual_seed(0), SacSettings(subset=1))
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    contexts = Contexts(*[policy.encode(batch.features)] * 2)
    losses = {round(float(part.loss(contexts, batch)[0].detach()), 4) for _ in range(6)}
    assert len(losses) > 1


@pytest.mark.parametrize("algorithm", ["sac", "crossq"])
def test_finds_the_best_action_inside_the_limits(algorithm: str) -> None:
    """One step, reward -(arm - target)^2 with the second component's limits 0 to 4: the best is where the target is."""
    policy = plain(ARM, width=2, gamma=0.0, algorithm=algorithm)
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for _ in range(350):
        x = torch.rand(64, 2, generator=generator) * 2 - 1
        arm = torch.stack((torch.rand(64, generator=generator) * 2 - 1, torch.rand(64, generator=generator) * 4), -1)
        target = torch.stack((0.5 * x[:, 0], 2 + x[:, 1]), -1)
        rewards = -4 * (arm - target).square().sum(-1)
        learning.update(Batch(seen(x), seen(x), {"arm": arm}, rewards, torch.zeros(64)))
    x = torch.rand(100, 2, generator=generator) * 2 - 1
    arm = policy.act(seen(x), generator=generator, explore=False).values["arm"]
    target = torch.stack((0.5 * x[:, 0], 2 + x[:, 1]), -1)
    assert (arm - target).abs().mean() < 0.25
    explored = policy.act(seen(x), generator=generator, explore=True).values["arm"]
    assert bool((explored >= torch.tensor(ARM.low)).all())
    assert bool((explored <= torch.tensor(ARM.high)).all())


def test_cloning_pulls_only_demonstrated_actions() -> None:
    policy = plain(ARM, width=2, gamma=0.0, algorithm="sac")
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        x = torch.randn(64, 2, generator=generator)
        trained = torch.arange(64) < 32
        arm = torch.where(trained[:, None], torch.tensor([0.8, 3.5]), torch.rand(64, 2, generator=generator) - 0.5)
        marks = {"arm": trained}
        metrics = learning.update(
            Batch(seen(x), seen(x), {"arm": arm}, torch.zeros(64), torch.zeros(64), is_expert=marks)
        )
    x = torch.randn(100, 2, generator=generator)
    arm = policy.act(seen(x), generator=generator, explore=False).values["arm"].mean(0)
    torch.testing.assert_close(arm, torch.tensor([0.8, 3.5]), atol=0.5, rtol=0)
    assert metrics["sac_imitation"] >= 0


def test_excursions_come_while_rewards_are_silent_and_go_when_they_tell() -> None:
    policy = plain(ARM, algorithm="sac")
    head = policy.heads.continuous
    assert head is not None
    part = Sac(head, ("arm",), torch.Generator().manual_seed(0), SacSettings(epsilon_decisions=4))
    batch = random_batch(policy, 64, torch.Generator().manual_seed(1))
    assert float(head.epsilon) == 0.0
    part.fade(replace(batch, rewards=torch.full((64,), -0.5)), 1, 1)
    assert float(head.epsilon) == 1.0
    left = []
    for _ in range(5):
        part.fade(batch, 1, 1)
        left.append(float(head.epsilon))
    assert left == [0.75, 0.5, 0.25, 0.0, 0.0]
    head.epsilon.fill_(1.0)
    part.fade(batch, 3, 3)  # one update after three decisions
    assert float(head.epsilon) == 0.25
