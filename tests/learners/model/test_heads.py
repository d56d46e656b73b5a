"""What the heads say: values inside the limits, and probabilities that are those of the draw."""

from __future__ import annotations

import learning
import orjson
import pytest
import torch
from rl import ARM, CHOICE, OTHER

from actuators.actions import ActionSpace, Continuous, Utterance
from learners.model.exploration import ColouredNoise, Excursions, draw, epsilon_greedy, silent
from learners.model.gaussian_actor import unit_log_density
from learners.model.heads import Heads, Kinds, finish_exploration, kinds
from learners.model.spec import ExplorationSchedule, PolicySpec, SpecError
from learners.promotion.ope.propensities import taken

BOTH = ActionSpace((CHOICE, ARM, OTHER))


def heads(algorithm: str = "auto", gamma: float = 0.9, actions: ActionSpace = BOTH) -> Heads:
    torch.manual_seed(0)
    return Heads(actions, 4, algorithm, gamma=gamma).eval()  # type: ignore[arg-type]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("algorithm", "gamma", "expected"),
    [
        ("auto", 0.9, Kinds("dqn", "crossq")),
        ("auto", 0.0, Kinds("bandit", "crossq")),
        ("sac", 0.9, Kinds("dqn", "sac")),
        ("crossq", 0.9, Kinds("dqn", "crossq")),
        ("xqc", 0.9, Kinds("c51", "xqc")),
        ("dqn", 0.0, Kinds("dqn", "crossq")),
        ("bandit", 0.0, Kinds("bandit", "crossq")),
    ],
)
def test_which_algorithm_serves_what(algorithm: str, gamma: float, expected: Kinds) -> None:
    assert kinds(algorithm, BOTH, gamma) == expected  # type: ignore[arg-type]
    assert kinds(algorithm, ActionSpace((CHOICE,)), gamma).continuous is None  # type: ignore[arg-type]
    assert kinds(algorithm, ActionSpace((ARM,)), gamma).choice is None  # type: ignore[arg-type]


def test_a_bandit_that_looks_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs gamma: 0, not 0\.9"):
        heads("bandit", 0.9)


def test_text_actuators_get_no_head() -> None:
    out = heads(actions=ActionSpace((Utterance("say", "assistant"),))).act(torch.zeros(2, 4), generator=generator())
    assert out.values == {}
    assert out.value.tolist() == [0.0, 0.0]


def test_greedy_takes_the_best_and_is_certain() -> None:
    out = heads().act(torch.randn(7, 4, generator=generator(1)), generator=generator(), explore=False)
    for name in ("head", "lamp"):
        assert torch.equal(out.values[name], out.scores[name].argmax(-1))
    assert all(torch.equal(p, torch.ones(7)) for p in out.probabilities.values())
    assert out.values["arm"].shape == (7, 2)
    best = torch.stack([out.scores[name].amax(-1) for name in ("head", "lamp")]).mean(0)
    critic = heads().continuous
    assert critic is not None
    assert out.value.shape == best.shape


def test_epsilon_probabilities_are_exact() -> None:
    made = heads(actions=ActionSpace((CHOICE,)))
    context = torch.randn(1, 4, generator=generator(1)).expand(6000, -1)
    out = made.act(context, generator=generator(), explore=0.3)
    index, reported = out.values["head"], out.probabilities["head"]
    best = int(out.scores["head"][0].argmax())
    assert torch.allclose(reported[index == best], torch.tensor(0.8))
    assert torch.allclose(reported[index != best], torch.tensor(0.1))
    assert (index == best).float().mean().item() == pytest.approx(0.8, abs=0.02)


def test_without_a_number_exploration_is_as_training_left_it() -> None:
    made = heads(actions=ActionSpace((CHOICE,)))
    context = torch.randn(4, 4)
    assert torch.allclose(made.act(context, generator=generator()).probabilities["head"], torch.tensor(1 / 3))
    assert made.choice is not None
    made.choice.epsilon.fill_(0.0)
    assert torch.equal(made.act(context, generator=generator()).probabilities["head"], torch.ones(4))


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_a_masked_choice_is_never_taken(gamma: float) -> None:
    mask = torch.tensor([[False, True, True]]).expand(500, -1)
    made = heads(gamma=gamma, actions=ActionSpace((CHOICE,)))
    for explore in (True, False, 0.5):
        out = made.act(torch.randn(500, 4), generator=generator(), explore=explore, masks={"head": mask})
        assert bool((out.values["head"] > 0).all())
    with pytest.raises(ValueError, match="forbids every choice"):
        made.act(torch.randn(1, 4), generator=generator(), masks={"head": torch.zeros(1, 3, dtype=torch.bool)})


@pytest.mark.parametrize("algorithm", ["sac", "crossq"])
def test_densities_are_those_of_the_draw(algorithm: str) -> None:
    """Along one component the logged densities, over actions drawn in units of 0 to 4, agree with a histogram."""
    made = heads(algorithm, actions=ActionSpace((ARM,)))
    context = torch.randn(1, 4, generator=generator(1)).expand(40_000, -1)
    out = made.act(context, generator=generator(), explore=True)
    value, density = out.values["arm"], out.probabilities["arm"]
    box = (value[:, 0].abs() < 0.3) & ((value[:, 1] - 2).abs() < 0.6)
    share, area = box.float().mean(), 0.6 * 1.2
    assert density[box].mean().item() == pytest.approx(float(share / area), rel=0.1)
    # importance weights of a uniform target over the box average to its share of the mass: E[1/p] = area
    assert (box / density).mean().item() == pytest.approx(area, rel=0.1)


@pytest.mark.parametrize("epsilon", [0.3, 0.6, 1.0])
def test_excursions_are_part_of_the_density(epsilon: float) -> None:
    made = heads(actions=ActionSpace((ARM,)))
    assert made.continuous is not None
    made.continuous.epsilon.fill_(epsilon)
    made.continuous.actor.out.bias.data[2:] = -1.0  # a narrow policy, so that the mixture matters
    context = torch.randn(1, 4, generator=generator(1)).expand(60_000, -1)
    out = made.act(context, generator=generator(), explore=True)
    value, density = out.values["arm"], out.probabilities["arm"]
    box = (value[:, 0].abs() < 0.4) & ((value[:, 1] - 2).abs() < 0.8)
    assert (box / density).mean().item() == pytest.approx(0.8 * 1.6, rel=0.12)
    free = made.continuous.excursions(60_000, epsilon, generator(3))
    assert free.float().mean().item() == pytest.approx(epsilon, abs=0.02)


def test_an_excursion_lasts() -> None:
    away, source = Excursions(length=10.0), generator()
    held = torch.stack([away(4000, 0.5, source) for _ in range(30)])
    changed = (held[1:] != held[:-1]).float().mean().item()
    assert changed == pytest.approx(0.05, abs=0.01)  # one in ten draws again, and half of those draw the same


def test_a_factor_narrows_the_noise() -> None:
    made = heads(actions=ActionSpace((ARM,)))
    context = torch.randn(1, 4).expand(2000, -1)
    wide = made.act(context, generator=generator(), explore=1.0).values["arm"].std(0)
    narrow = made.act(context, generator=generator(), explore=0.1).values["arm"].std(0)
    assert bool((narrow < 0.3 * wide).all())


def test_the_same_generator_draws_the_same() -> None:
    first = heads().act(torch.ones(5, 4), generator=generator(3), explore=0.7)
    again = heads().act(torch.ones(5, 4), generator=generator(3), explore=0.7)
    assert all(torch.equal(first.values[name], again.values[name]) for name in first.values)


def test_units_and_back() -> None:
    head = heads().continuous
    assert head is not None
    unit = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [1.0, -1.0]])
    torch.testing.assert_close(head.to_units(unit), torch.tensor([[-1.0, 4.0], [0.0, 2.0], [1.0, 0.0]]))
    torch.testing.assert_close(head.from_units(head.to_units(unit)), unit)
    assert bool((head.to_units(torch.tensor([[1.0001, -1.0001]])) == torch.tensor([[1.0, 0.0]])).all())


def test_coloured_noise_is_standard_normal_and_hangs_together() -> None:
    noise, source = ColouredNoise(1, (1.0, 4.0, 16.0, 64.0, 256.0)), generator()
    drawn = torch.stack([noise(2000, source)[:, 0] for _ in range(40)])
    torch.testing.assert_close(drawn.mean(1), torch.zeros(40), atol=0.12, rtol=0)
    torch.testing.assert_close(drawn.std(1), torch.ones(40), atol=0.1, rtol=0)
    neighbours = float((drawn[:-1] * drawn[1:]).mean())
    # one part in five has no memory, the others keep 1 - 1/t of themselves: (0 + .75 + .9375 + .984 + .996) / 5
    assert neighbours == pytest.approx(0.734, abs=0.02)
    retained = noise.state()
    following = noise(2000, generator(5))
    noise.restore(retained)
    assert torch.equal(following, noise(2000, generator(5)))
    noise.restart()
    assert noise.state() is None


@pytest.mark.parametrize(
    ("received", "is_silent"),
    [(0.0, True), (0.005, True), (0.2, False), (10.0, False)],
)
def test_rewards_are_silent_where_actions_explain_them(received: float, is_silent: bool) -> None:
    actions = torch.rand(256, 3, generator=generator(1)) * 2 - 1
    cost = 0.5 - 0.1 * actions.square().sum(-1) + 0.02 * actions[:, 0]
    world = torch.randn(256, generator=generator(2))
    assert silent(cost + received * cost.std() * world, actions) is is_silent


def test_rewards_that_never_vary_are_silent_and_too_few_say_nothing() -> None:
    actions = torch.rand(64, 1, generator=generator(1))
    assert silent(torch.full((64,), -1.0), actions)
    assert not silent(torch.tensor([0.0, 1.0, 2.0]), actions[:3])


def test_draw_and_epsilon_respect_rows() -> None:
    p = epsilon_greedy(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), 0.5, None)
    torch.testing.assert_close(p, torch.tensor([[0.25, 0.75], [0.75, 0.25]]))
    assert draw(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), generator()).tolist() == [1, 0]


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize("bias", [0.0, 4.0, 8.0, 12.0])
def test_a_policy_judged_on_its_own_stored_motions_has_weight_one(bias: float, epsilon: float) -> None:
    """Saturated motions too: what is logged is the density of what is read again from the store."""
    torch.manual_seed(0)
    actuators = (Continuous("arm", (-2.0, 1000.0), (2.0, 1013.0)),)
    head = Heads(ActionSpace(actuators), 3).eval()
    assert head.continuous is not None
    with torch.no_grad():
        head.continuous.actor.out.weight.mul_(0)
        head.continuous.actor.out.bias[:] = torch.tensor([bias, -bias, -3.0, -0.3])
        head.continuous.epsilon.fill_(epsilon)
    context = torch.randn(4_000, 3)
    out = head.act(context, generator=torch.Generator().manual_seed(1), explore=True)
    stored = torch.tensor([[float(x) for x in row] for row in out.values["arm"]])
    found = taken(head, context, {"arm": stored})["arm"]
    weights = found / out.probabilities["arm"]
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=1e-3, atol=0)
    assert bool(torch.isfinite(out.probabilities["arm"]).all())


def test_the_density_of_motions_integrates_to_one() -> None:
    grid = torch.linspace(-1, 1, 400_001, dtype=torch.float64)
    for mean, log_std in ((0.0, 0.0), (3.0, -1.0), (-6.0, 0.5)):
        density = unit_log_density(grid, torch.tensor(mean).double(), torch.tensor(log_std).double()).exp()
        assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize(("algorithm", "gamma"), [("dqn", 0.9), ("bandit", 0.0), ("sac", 0.9)])
def test_settings_limit_how_much_a_trained_policy_explores(algorithm: str, gamma: float) -> None:
    torch.manual_seed(0)
    still = ExplorationSchedule(initial=0.5, final=0.0)
    made = Heads(BOTH, 4, algorithm, gamma=gamma, exploration=still).eval()  # type: ignore[arg-type]
    made.load_state_dict({**made.state_dict(), **trained(made)})
    context = torch.randn(50, 4, generator=generator(1))
    best = made.act(context, generator=generator(), explore=False)
    drawn = made.act(context, generator=generator(), explore=True)
    assert all(torch.equal(drawn.values[name], best.values[name]) for name in ("head", "lamp", "arm"))
    assert made.exploration_share() == 0


def trained(made: Heads) -> dict[str, torch.Tensor]:
    weights = {f"heads.{name}": value for name, value in made.state_dict().items()}
    return {name.removeprefix("heads."): value for name, value in finish_exploration(weights).items()}


def test_random_choices_follow_the_schedule_of_training() -> None:
    torch.manual_seed(0)
    made = Heads(BOTH, 4, "dqn", exploration=ExplorationSchedule(0.6, 0.1)).eval()
    assert made.choice is not None
    assert made.epsilon == pytest.approx(0.6), "untrained"
    made.choice.epsilon.fill_(0.51)  # half of the way from 1 to .02
    assert made.epsilon == pytest.approx(0.35)
    made.load_state_dict({**made.state_dict(), **trained(made)})
    assert made.epsilon == pytest.approx(0.1)
    out = made.act(torch.zeros(4_000, 4), generator=generator(), explore=True)
    assert float((out.values["head"] != out.scores["head"].argmax(-1)).float().mean()) == pytest.approx(
        0.2 / 3, abs=0.02
    )


def test_a_narrow_noise_has_the_density_that_acting_logs() -> None:
    torch.manual_seed(0)
    made = Heads(ActionSpace((ARM,)), 4, exploration=ExplorationSchedule(0.0, 0.3)).eval()
    assert made.continuous is not None
    made.continuous.epsilon.fill_(0.5)
    context = torch.randn(200, 4, generator=generator(1))
    out, mean = (made.act(context, generator=generator(), explore=explore) for explore in (True, False))
    wide = Heads(ActionSpace((ARM,)), 4).eval()
    wide.load_state_dict(made.state_dict())
    away = [
        float((one.values["arm"] - mean.values["arm"]).abs().mean())
        for one in (out, wide.act(context, generator=generator(), explore=True))
    ]
    assert away[0] < 0.6 * away[1]
    torch.testing.assert_close(taken(made, context, out.values)["arm"], out.probabilities["arm"], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("wrong", [{"initial": 1.5}, {"final": -0.1}, {"updates": 0}])
def test_an_impossible_schedule_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="exploration"):
        ExplorationSchedule(**wrong)  # type: ignore[arg-type]


def test_the_amount_of_damaged_weights_raises_and_sound_ones_explore_as_they_say() -> None:
    made = Heads(ActionSpace((CHOICE,)), 4, "dqn").eval()
    assert made.choice is not None
    for stored in (0.0, 0.02, 0.3, 1.0):
        made.choice.epsilon.fill_(stored)
        assert made.epsilon == pytest.approx(stored, abs=1e-6)
    made.choice.epsilon.fill_(2.0)
    with pytest.raises(RuntimeError):
        made.act(torch.zeros(1, 4), generator=generator(), explore=True)


def test_policies_with_training_of_another_length_are_the_same_policy() -> None:
    """A recording of before states no length, and the settings always give one."""
    assert (
        ExplorationSchedule(0.5, 0.1, 100) == ExplorationSchedule(0.5, 0.1, 2_000) != ExplorationSchedule(0.5, 0.2, 100)
    )


@pytest.mark.parametrize("heads", [0, -2])
def test_a_spec_without_heads_is_refused(heads: int) -> None:
    body = orjson.loads(learning.SPEC.to_json()) | {"heads": heads}
    with pytest.raises(SpecError, match="is not a multiple of heads"):
        PolicySpec.from_json(orjson.dumps(body))
