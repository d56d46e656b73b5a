"""CrossQ: batch renormalisation worked by hand, one joint pass, no target network."""

from __future__ import annotations

import copy

import torch
from rl import ARM, plain, random_batch

from learners.model.networks import BatchRenorm, SphereLinear, trunk
from learners.rl.algorithm import Algorithm
from learners.rl.crossq import Crossq, CrossqSettings
from learners.rl.head_algorithm import Contexts


def test_warming_up_it_is_batch_normalisation() -> None:
    layer = BatchRenorm(1, eps=1e-12)
    out = layer(torch.tensor([[1.0], [3.0]]))  # mean 2, deviation 1
    torch.testing.assert_close(out, torch.tensor([[-1.0], [1.0]]))
    torch.testing.assert_close(layer.mean, torch.tensor([0.02]))  # a hundredth of the way


def test_afterwards_the_running_statistics_pull() -> None:
    layer = BatchRenorm(1, eps=1e-12, warmup=0)
    # batch mean 2, deviation 1; running 0 and 1: r = 1, d = 2, so the output is what the running statistics would give
    torch.testing.assert_close(layer(torch.tensor([[1.0], [3.0]])), torch.tensor([[1.0], [3.0]]))
    far = BatchRenorm(1, eps=1e-12, warmup=0)
    # batch mean 20, deviation 10: r is held at 3 and d at 5
    torch.testing.assert_close(far(torch.tensor([[10.0], [30.0]])), torch.tensor([[2.0], [8.0]]))


def test_renormalisation_has_the_gradient_of_constant_r_and_d() -> None:
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = BatchRenorm(2, warmup=0).double()
    a = x.clone().requires_grad_()
    layer(a).pow(3).sum().backward()
    fresh = BatchRenorm(2, warmup=0).double()
    b = x.clone().requires_grad_()
    var, mean = torch.var_mean(b, 0, correction=0)
    deviation = (fresh.var + fresh.eps).sqrt()
    r = ((var + fresh.eps).sqrt() / deviation).clamp(1 / 3, 3).detach()
    d = ((mean - fresh.mean) / deviation).clamp(-5, 5).detach()
    ((b - mean) / (var + fresh.eps).sqrt() * r + d).pow(3).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_eval_uses_the_running_statistics_and_changes_nothing() -> None:
    layer = BatchRenorm(1, eps=1e-12).eval()
    torch.testing.assert_close(layer(torch.tensor([[5.0]])), torch.tensor([[5.0]]))
    assert int(layer.passes) == 0


def test_present_and_next_states_share_their_statistics() -> None:
    """The loss is that of one joint pass, worked out again here without the class."""
    policy = plain(ARM, algorithm="crossq")
    head = policy.heads.continuous
    assert head is not None
    twin = copy.deepcopy(head)
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    now, upcoming = policy.encode(batch.features), policy.encode(batch.next_features)
    policy.train()
    twin.train()
    part = Crossq(head, ("arm",), torch.Generator().manual_seed(3))
    loss, _ = part.loss(Contexts(now, upcoming), batch)
    with torch.no_grad():
        noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(3))
        action, log_density = twin.actor.eval().sample(upcoming, noise)
        executed = twin.from_units(batch.actions["arm"])
        both = twin.critics(torch.cat((now, upcoming)), torch.cat((executed, action)))
        target = batch.rewards + 0.9 * (both[:, 16:].amin(0) - log_density.sum(-1))
        expected = (both[:, :16] - target).square().mean(1).sum()
    torch.testing.assert_close(loss.detach(), expected)


def test_the_actor_follows_every_third_update_and_there_is_no_target() -> None:
    policy = plain(ARM, algorithm="crossq")
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    head = policy.heads.continuous
    assert head is not None
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    moved = []
    for _ in range(6):
        before = head.actor.out.weight.detach().clone()
        learning.update(batch)
        moved.append(not torch.equal(before, head.actor.out.weight))
    assert moved == [False, False, True, False, False, True]
    assert CrossqSettings().delay == 3
    assert not any("target" in name for name in learning.state_dict())


def test_sphere_weights_return_to_the_sphere() -> None:
    layer = SphereLinear(4, 3)
    with torch.no_grad():
        layer.weight.mul_(7)
    layer.project()
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(3))
    out = trunk(4, (8, 8), "sphere")(torch.randn(5, 4))
    torch.testing.assert_close(out.norm(dim=1), torch.full((5,), 8**0.5))
