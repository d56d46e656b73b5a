"""Both kinds at once, exact resume, and what a bad batch does."""

from __future__ import annotations

import copy

import pytest
import torch
from rl import ARM, CHOICE, OTHER, plain, random_batch, seen

from actuators.actions import ActionSpace
from learners.model.features import Features
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.adam import Adam, Group
from learners.rl.algorithm import Algorithm
from learners.rl.crossq import Crossq
from learners.rl.dqn import Dqn
from learners.rl.starting_policy import FIT_UPDATES, LEAST, STRENGTH
from learners.rl.transition_batch import Batch

CASES = [
    ((CHOICE, OTHER), "auto", 0.9),
    ((ARM,), "sac", 0.9),
    ((ARM,), "crossq", 0.9),
    ((CHOICE, ARM), "auto", 0.9),
    ((CHOICE, ARM), "auto", 0.0),
    ((CHOICE, OTHER), "xqc", 0.9),
    ((CHOICE, ARM), "xqc", 0.9),
]


@pytest.mark.parametrize(("actuators", "algorithm", "gamma"), CASES)
def test_resumes_bit_for_bit(actuators: tuple, algorithm: str, gamma: float) -> None:  # type: ignore[type-arg]
    policy = plain(*actuators, algorithm=algorithm, gamma=gamma)
    batches = [random_batch(policy, 16, torch.Generator().manual_seed(i), trained=True) for i in range(8)]
    whole = Algorithm(policy, torch.Generator().manual_seed(0))
    for batch in batches[:4]:
        whole.update(batch)
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    state = whole.state_dict()
    for batch in batches[4:]:
        whole.update(batch)

    other = plain(*actuators, algorithm=algorithm, gamma=gamma, seed=7)
    other.load_state_dict(weights)
    resumed = Algorithm(other, torch.Generator().manual_seed(99))
    resumed.load_state_dict(state)
    for batch in batches[4:]:
        resumed.update(batch)
    assert resumed.updates == 8
    ours, theirs = policy.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_state_is_a_snapshot() -> None:
    policy = plain(ARM, algorithm="sac")
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    learning.update(batch)
    moments = {k: v.clone() for k, v in learning.state_dict().items() if "optimiser.first" in k}
    stored = {k: v for k, v in learning.state_dict().items() if "optimiser.first" in k}
    learning.update(batch)
    assert moments
    assert all(torch.equal(moments[k], stored[k]) for k in stored)


def test_mixed_actuators_have_a_critic_for_each_kind() -> None:
    policy = plain(CHOICE, ARM)
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    assert [type(part) for part in learning.parts] == [Dqn, Crossq]
    metrics = learning.update(random_batch(policy, 16, torch.Generator().manual_seed(1)))
    assert {name.split("_")[0] for name in metrics} == {"dqn", "crossq"}


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    policy = plain(CHOICE, ARM)
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    learning.update(batch)
    before = {n: p.clone() for n, p in policy.named_parameters()}
    batch.rewards[3] = torch.nan
    with pytest.raises(FloatingPointError, match="the batch was skipped"):
        learning.update(batch)
    assert all(torch.equal(before[n], p) for n, p in policy.named_parameters())
    batch.rewards[3] = 0.0
    learning.update(batch)
    assert learning.updates == 2


@pytest.mark.parametrize("algorithm", ["auto", "xqc"])
def test_inputs_that_are_not_finite_change_no_statistics(algorithm: str) -> None:
    """Batch normalisation would store them, and would return no number from then on."""
    policy = plain(CHOICE, ARM, algorithm=algorithm)
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    batch = random_batch(policy, 16, torch.Generator().manual_seed(1))
    learning.update(batch)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    (stream,) = policy.spec.names
    for damaged in (batch.features.tokens[stream], batch.next_features.tokens[stream], batch.actions[ARM.name]):
        former, damaged[3] = damaged[3].clone(), torch.nan
        with pytest.raises(FloatingPointError, match="not finite; the batch was skipped"):
            learning.update(batch)
        damaged[3] = former
        assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())
        assert not any(module.training for module in policy.modules())
    learning.update(batch)
    assert learning.updates == 2


def fused() -> Policy:
    torch.manual_seed(0)
    spec = PolicySpec(
        (StreamSpec("front", "image", 2, 8), StreamSpec("joints", "telemetry", 1, 3)),
        ActionSpace((CHOICE, ARM)),
        width=16,
        latents=2,
        layers=1,
        heads=2,
        history=2,
        modality_dropout=0.2,
    )
    return Policy(spec).eval()


def pictured(generator: torch.Generator) -> Features:
    return Features(
        {
            "front": torch.randn(8, 2, 2, 8, generator=generator),
            "joints": torch.randn(8, 2, 1, 3, generator=generator),
        },
        torch.ones(8, 2, 2, dtype=torch.bool),
        torch.zeros(8, 2, 2),
    )


def test_the_encoder_learns_with_the_heads_and_has_a_slow_copy() -> None:
    policy = fused()
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    actions = {"head": torch.randint(3, (8,), generator=generator), "arm": torch.rand(8, 2, generator=generator)}
    batch = Batch(pictured(generator), pictured(generator), actions, torch.randn(8), torch.full((8,), 0.9))
    before = {n: p.detach().clone() for n, p in policy.named_parameters() if not n.startswith("heads.")}
    slow = copy.deepcopy(learning.target.state_dict())
    learning.update(batch)
    now = dict(policy.named_parameters())
    assert any(not torch.equal(before[n], now[n]) for n in before)
    for name, was in before.items():
        moved = learning.target.state_dict()[name] - slow[name]
        torch.testing.assert_close(moved, 0.005 * (now[name].detach() - was), atol=1e-7, rtol=1e-2)
    assert not any(name.startswith("heads") for name in learning.target.state_dict())
    assert any(name.startswith("encoder.") for name in learning.state_dict())


def test_adam_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(3, 2, generator=generator)) for _ in range(3)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    adam = Adam([Group(ours[:2], 1e-2, 0.5), Group(ours[2:], 1e-3)])
    reference = torch.optim.Adam(
        [{"params": theirs[:2], "lr": 1e-2, "betas": (0.5, 0.999)}, {"params": theirs[2:], "lr": 1e-3}]
    )
    for step in range(5):
        for params, optimiser in ((ours, adam), (theirs, reference)):
            optimiser.zero_grad()
            used = params if step % 2 else params[1:]  # the first has no gradient in every other step
            sum(((p - 1) ** 2).sum() for p in used).backward()
            optimiser.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(KeyError):
        adam.load_state_dict({})


def test_a_batch_comes_apart_and_together_again() -> None:
    policy = plain(CHOICE, ARM)
    batch = random_batch(policy, 6, torch.Generator().manual_seed(1), trained=True)
    again = Batch.of(batch.tensors())
    assert len(again[2:5]) == 3
    for name, value in batch.tensors().items():
        assert torch.equal(value, again.tensors()[name])


def test_a_batch_in_a_state_of_before_0_1_0_is_read() -> None:
    batch = random_batch(plain(CHOICE, ARM), 6, torch.Generator().manual_seed(1), trained=True)
    former = {
        name.replace("is_expert.", "taught.").replace("acted.", "moved."): t for name, t in batch.tensors().items()
    }
    assert any(name.startswith("taught.") for name in former)
    again = Batch.of(former)
    assert {name: value.tolist() for name, value in again.is_expert.items()} == {
        name: value.tolist() for name, value in batch.is_expert.items()
    }


@pytest.mark.parametrize(
    ("actuators", "algorithm"), [((CHOICE, OTHER), "auto"), ((ARM,), "sac"), ((CHOICE, ARM), "xqc")]
)
def test_an_adopted_policy_resumes_bit_for_bit(actuators: tuple, algorithm: str) -> None:  # type: ignore[type-arg]
    policy = plain(*actuators, algorithm=algorithm)
    batches = [random_batch(policy, 16, torch.Generator().manual_seed(i)) for i in range(6)]
    whole = Algorithm(policy, torch.Generator().manual_seed(0))
    whole.adopt(updates=FIT_UPDATES - 2)
    for batch in batches[:3]:
        whole.update(batch)
    weights, state = {name: value.clone() for name, value in policy.state_dict().items()}, whole.state_dict()
    for batch in batches[3:]:
        whole.update(batch)
    other = plain(*actuators, algorithm=algorithm, seed=7)
    other.load_state_dict(weights)
    resumed = Algorithm(other, torch.Generator().manual_seed(99))
    resumed.load_state_dict(state)
    for batch in batches[3:]:
        resumed.update(batch)
    assert resumed.prior is not None
    assert resumed.prior.updates == FIT_UPDATES + 4
    ours, theirs = policy.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_actor_of_an_adopted_policy_waits_for_its_critics() -> None:
    policy = plain(ARM, algorithm="sac")
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    learning.adopt(updates=FIT_UPDATES - 5)
    head = policy.heads.continuous
    assert head is not None
    actor, critics = ([p.clone() for p in part.parameters()] for part in (head.actor, head.critics))
    for i in range(5):
        learning.update(random_batch(policy, 16, torch.Generator().manual_seed(i)))
    assert all(torch.equal(a, b) for a, b in zip(actor, head.actor.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critics, head.critics.parameters(), strict=True))
    learning.update(random_batch(policy, 16, torch.Generator().manual_seed(9)))
    assert not all(torch.equal(a, b) for a, b in zip(actor, head.actor.parameters(), strict=True))


def test_rewards_move_an_adopted_policy_only_against_its_prior() -> None:
    """Misleading rewards of few transitions do not change what an adopted policy does; without the prior they do."""
    agreed = {}
    for adopted in (False, True):
        policy = plain(CHOICE)
        learning = Algorithm(policy, torch.Generator().manual_seed(0))
        x_BW = torch.randn(256, 3, generator=torch.Generator().manual_seed(1))
        steer = {"head": (x_BW[:, 0] > 0).long() * 2}
        expert = {"head": torch.ones(256, dtype=torch.bool)}
        for _ in range(200):
            learning.update(Batch(seen(x_BW), seen(x_BW), steer, torch.zeros(256), torch.zeros(256), is_expert=expert))
        learning = Algorithm(policy, torch.Generator().manual_seed(0))
        if adopted:
            learning.adopt()
        generator = torch.Generator().manual_seed(2)
        for _ in range(150):
            action = torch.randint(3, (64,), generator=generator)
            rows = torch.randint(256, (64,), generator=generator)
            noise = 0.2 * torch.randn(64, generator=generator)
            learning.update(Batch(seen(x_BW[rows]), seen(x_BW[rows]), {"head": action}, noise, torch.zeros(64)))
        chosen = policy.act(seen(x_BW), generator=generator, explore=False).values["head"]
        agreed[adopted] = float((chosen == steer["head"]).float().mean())
    assert agreed[True] > 0.95
    assert agreed[False] < 0.8


def test_a_prior_is_dropped_when_experience_outweighs_it() -> None:
    policy = plain(CHOICE)
    learning = Algorithm(policy, torch.Generator().manual_seed(0))
    learning.adopt(updates=round(FIT_UPDATES + STRENGTH / LEAST))
    assert learning.prior is not None
    assert learning.prior.weight < 0.05
    learning.update(random_batch(policy, 16, torch.Generator().manual_seed(1)))
    assert learning.prior is None
    assert "prior_updates" not in learning.state_dict()
