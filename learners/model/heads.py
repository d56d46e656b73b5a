"""Map the policy's context to one action for each actuator, its probability, and a value.

There is one head for each kind of actuator. Choices have a dueling quantile critic with a branch for each actuator (DQN), or a
linear posterior (bandit, if gamma is 0). Continuous actuators have a squashed Gaussian actor with an ensemble of critics
(SAC, CrossQ; `gaussian_actor.py`). Heads contain the online networks only: target networks and optimizers belong to the
algorithms. Tasks generate the values of text actuators, so these have no head.

Shapes: B batch, C context, A all continuous components together, n choices of one actuator, K quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from actuators.actions import ActionSpace, Choice, Continuous, Value
from learners.model.exploration import draw, epsilon_greedy
from learners.model.gaussian_actor import ContinuousHead
from learners.model.linear_posterior import LinearPosterior
from learners.model.networks import Norm, UnitLinear, trunk
from learners.model.return_bins import BINS, expectation
from learners.model.spec import FINAL_EPSILON, Algorithm, ExplorationSchedule

MAX_LOG_DENSITY = 700.0
"""Of one actuator's motion; its exponential is just below the largest float64. A transition with an infinite probability
cannot be stored."""
DEFAULT_CONTINUOUS: Literal["sac", "crossq"] = "crossq"


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which algorithm serves which kind of actuator; None where there is no actuator of that kind."""

    choice: Literal["dqn", "c51", "bandit"] | None
    continuous: Literal["sac", "crossq", "xqc"] | None


def kinds(algorithm: Algorithm, actions: ActionSpace, gamma: float) -> Kinds:
    """Resolve `auto`: DQN for choices, or the bandit when gamma is 0; `DEFAULT_CONTINUOUS` for continuous actuators.

    A named algorithm chooses for its own kind and leaves the other to `auto`; `xqc` serves both.
    """
    if algorithm == "bandit" and gamma != 0:
        raise ValueError(f"policy.algorithm: bandit learns from one-step feedback and needs gamma: 0, not {gamma}")
    one_step = algorithm == "bandit" or (algorithm in ("auto", "sac", "crossq") and gamma == 0)
    if algorithm == "xqc":
        return Kinds("c51" if actions.choices else None, "xqc" if actions.continuous else None)
    continuous = algorithm if algorithm in ("sac", "crossq") else DEFAULT_CONTINUOUS
    return Kinds(
        ("bandit" if one_step else "dqn") if actions.choices else None, continuous if actions.continuous else None
    )


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """The output of the heads for B contexts.

    `values`: for a choice the index (B, int64), for a continuous actuator the vector (B,A) in the actuator's units.
    `probabilities`: B for each actuator, exploration included; a density for continuous ones, and 1 where nothing was
    drawn. `value`: the expected return, B. `scores`: the critic's value of each choice, B,n. `choices`: with which probability
    each choice is taken, exploration included, B,n.
    """

    values: dict[str, Tensor]
    probabilities: dict[str, Tensor]
    value: Tensor
    scores: dict[str, Tensor] = field(default_factory=dict)
    choices: dict[str, Tensor] = field(default_factory=dict)


def finish_exploration(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a policy's weights with the exploration of the end of training: a policy that works has explored enough."""
    ends = {"heads.choice.epsilon": FINAL_EPSILON, "heads.continuous.epsilon": 0.0}
    return {name: torch.full_like(value, ends[name]) if name in ends else value for name, value in weights.items()}


def actuator_values(actions: ActionSpace, output: HeadOutput, row: int = 0) -> dict[str, Value]:
    """Return one row of the heads' output as the values of the actuators that the policy learns."""
    values: dict[str, Value] = {}
    learned: list[Choice | Continuous] = [*actions.choices, *actions.continuous]
    for actuator in learned:
        value = output.values[actuator.name][row]
        values[actuator.name] = (
            actuator.choices[int(value)] if isinstance(actuator, Choice) else tuple(value.double().tolist())
        )
    return values


class DuelingQuantiles(nn.Module):
    """A dueling critic with quantiles and one branch for each choice actuator.

    Wang et al. 2016 (dueling), Dabney et al. 2018 (quantiles), Tavakoli et al. 2018 (branches). With one quantile it is
    the plain expected value.
    """

    epsilon: Tensor

    def __init__(
        self, context: int, sizes: tuple[int, ...], hidden: tuple[int, ...], quantiles: int, norm: Norm
    ) -> None:
        super().__init__()
        self.sizes, self.quantiles = sizes, quantiles
        self.trunk = trunk(context, hidden, norm)
        self.out = nn.Linear(hidden[-1], (1 + sum(sizes)) * quantiles)  # the value first, then every advantage
        self.register_buffer("epsilon", torch.ones(()))

    def forward(self, context_BC: Tensor) -> list[Tensor]:
        """Return the quantiles B,n,K of each branch."""
        parts_BxK = self.out(self.trunk(context_BC)).unflatten(-1, (-1, self.quantiles))
        value_B1K, *advantages = torch.split(parts_BxK, [1, *self.sizes], dim=1)
        return [value_B1K + (a_BnK - a_BnK.mean(1, keepdim=True)) for a_BnK in advantages]

    def scores(self, context_BC: Tensor) -> list[Tensor]:
        """Return the values B,n of each branch."""
        return [q_BnK.mean(-1) for q_BnK in self(context_BC)]


class DuelingCategorical(nn.Module):
    """A dueling critic with a categorical distribution over the scaled return of each choice, one branch for each actuator.

    Bellemare et al. 2017 (C51) with the network of XQC (Palenicek et al. 2025).
    """

    epsilon: Tensor
    scale: Tensor

    def __init__(self, context: int, sizes: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.trunk = trunk(context, hidden, "unit")
        self.out = UnitLinear(hidden[-1], (1 + sum(sizes)) * BINS, bias=True)  # the value first, then every advantage
        self.register_buffer("epsilon", torch.ones(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, context_BC: Tensor, first: int = 0) -> list[Tensor]:
        """Return the logits B,n,K of each branch, over returns divided by `scale`.

        Args:
            context_BC: the contexts.
            first: row of the first logits; rows before it only contribute to the batch statistics.
        """
        return self.branches(self.trunk(context_BC)[first:])

    def branches(self, hidden_BH: Tensor) -> list[Tensor]:
        """Return the logits B,n,K of each branch from what `trunk` made."""
        parts_BxK = self.out(hidden_BH).unflatten(-1, (-1, BINS))
        value_B1K, *advantages = torch.split(parts_BxK, [1, *self.sizes], dim=1)
        return [value_B1K + (a_BnK - a_BnK.mean(1, keepdim=True)) for a_BnK in advantages]

    def scores(self, context_BC: Tensor) -> list[Tensor]:
        """Return the values B,n of each branch, in units of the rewards."""
        return [self.scale * expectation(logits_BnK) for logits_BnK in self(context_BC)]


class Heads(nn.Module):
    """All heads of one policy.

    Args:
        actions: every actuator.
        context_width: C.
        algorithm: as in `policy.algorithm`; with `gamma` it decides the kind of each head.
        gamma: discount; 0 makes choices a bandit.
        hidden: widths of the hidden layers of every actor and critic.
        quantiles: of the choice critic.
        critics: how many critics a continuous head has.
        norm: of the critics; by default LayerNorm, and batch renormalisation for CrossQ.
        exploration: how much the heads explore.
    """

    def __init__(
        self,
        actions: ActionSpace,
        context_width: int,
        algorithm: Algorithm = "auto",
        *,
        gamma: float = 0.99,
        hidden: tuple[int, ...] = (256, 256),
        quantiles: int = 16,
        critics: int = 2,
        norm: Norm | None = None,
        exploration: ExplorationSchedule | None = None,
    ) -> None:
        super().__init__()
        self.exploration = exploration or ExplorationSchedule()
        self.actions, self.context_width, self.kinds = actions, context_width, kinds(algorithm, actions, gamma)
        sizes = tuple(len(a.choices) for a in actions.choices)
        self.choice: DuelingQuantiles | DuelingCategorical | None = None
        self.bandit: LinearPosterior | None = None
        self.continuous: ContinuousHead | None = None
        if self.kinds.choice == "dqn":
            self.choice = DuelingQuantiles(context_width, sizes, hidden, quantiles, norm or "layer")
        elif self.kinds.choice == "c51":
            self.choice = DuelingCategorical(context_width, sizes, hidden)
        elif self.kinds.choice == "bandit":
            self.bandit = LinearPosterior(context_width, sizes)
        if self.kinds.continuous is not None:
            norms: dict[str, Norm] = {"crossq": "batch", "xqc": "unit", "sac": "layer"}
            usual = norms[self.kinds.continuous]
            self.continuous = ContinuousHead(context_width, actions.continuous, hidden, norm or usual, critics)
            self.continuous.factors = (self.exploration.excursions, self.exploration.noise)

    @torch.no_grad()
    def act(
        self,
        context_BC: Tensor,
        *,
        generator: torch.Generator,
        explore: bool | float = True,
        masks: Mapping[str, Tensor] | None = None,
    ) -> HeadOutput:
        """Choose an action for each actuator.

        Args:
            context_BC: the contexts.
            generator: the only source of chance.
            explore: False: the best action. True: as far as training has come. A number: epsilon for choices (over
                the critic's best, or mixed into the bandit's own), and a factor on the policy's continuous noise.
            masks: B,n bool for a choice actuator: which choices are allowed now.
        """
        out = HeadOutput({}, {}, context_BC.new_zeros(len(context_BC)))
        estimates: list[Tensor] = []
        if self.choice is not None or self.bandit is not None:
            estimates.append(self._choose(context_BC, generator, explore, masks or {}, out))
        if self.continuous is not None:
            estimates.append(self._move(context_BC, generator, explore, out))
        if estimates:
            out.value.copy_(torch.stack(estimates).mean(0))
        return out

    def _choose(
        self,
        context_BC: Tensor,
        generator: torch.Generator,
        explore: bool | float,  # noqa: FBT001 - as in act
        masks: Mapping[str, Tensor],
        out: HeadOutput,
    ) -> Tensor:
        """Fill in the choice actuators; return the value B of the choices taken."""
        taken: list[Tensor] = []
        for actuator, (scores_Bn, probabilities_Bn) in zip(
            self.actions.choices, self.preferences(context_BC, explore, masks), strict=True
        ):
            index_B = draw(probabilities_Bn, generator)
            out.values[actuator.name], out.scores[actuator.name] = index_B, scores_Bn
            out.choices[actuator.name] = probabilities_Bn
            out.probabilities[actuator.name] = probabilities_Bn.gather(-1, index_B.unsqueeze(-1)).squeeze(-1)
            taken.append(scores_Bn.gather(-1, index_B.unsqueeze(-1)).squeeze(-1))
        return torch.stack(taken).mean(0)

    @property
    def epsilon(self) -> float:
        """The share of random choices, which follows from how far training has come; 0 without a critic of choices.

        A conversion to a graph reads every property, so it must have a value for any heads.
        """
        return 0.0 if self.choice is None else self.exploration.random_choices_at(float(self.choice.epsilon))

    def exploration_share(self) -> float | None:
        """Return how much the heads explore now: the share of random choices, else the factor on the noise; None for a bandit."""
        if self.choice is not None:
            return self.epsilon
        if self.bandit is not None:
            return 0.0 if self.exploration.none else None
        return self.exploration.noise

    def choice_scores(self, context_BC: Tensor) -> list[Tensor]:
        """Return the value B,n of each choice, for every choice actuator."""
        if self.choice is not None:
            return self.choice.scores(context_BC)
        assert self.bandit is not None
        return [mean_Bn for mean_Bn, _ in self.bandit(context_BC)]

    def preferences(
        self,
        context_BC: Tensor,
        explore: bool | float,  # noqa: FBT001 - as in act
        masks: Mapping[str, Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """Return scores and probabilities, B,n each, for every choice actuator."""
        names = [a.name for a in self.actions.choices]
        if self.choice is not None:
            epsilon = self.epsilon if explore is True else float(explore)
            scores = self.choice_scores(context_BC)
            return [(s, epsilon_greedy(s, epsilon, masks.get(name))) for name, s in zip(names, scores, strict=True)]
        assert self.bandit is not None
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, (mean_Bn, std_Bn) in zip(names, self.bandit(context_BC), strict=True):
            mask_Bn = masks.get(name)
            if explore is False or (explore is True and self.exploration.none):
                pairs.append((mean_Bn, epsilon_greedy(mean_Bn, 0.0, mask_Bn)))
                continue
            bound_Bn = self.bandit.probabilities(mean_Bn, std_Bn, mask_Bn)
            uniform_Bn = epsilon_greedy(mean_Bn, 1.0, mask_Bn)
            mix = 0.0 if explore is True else float(explore)
            pairs.append((mean_Bn, torch.lerp(bound_Bn, uniform_Bn, mix)))
        return pairs

    def _move(
        self,
        context_BC: Tensor,
        generator: torch.Generator,
        explore: bool | float,  # noqa: FBT001 - as in act
        out: HeadOutput,
    ) -> Tensor:
        """Fill in the continuous actuators; return the critics' mean value B of the action taken."""
        head = self.continuous
        assert head is not None
        if explore is True:
            unit_BA, log_density_Ba = head.explore(context_BC, generator)
        else:
            unit_BA, log_density_Ba = head.act(context_BC, generator, float(explore))
        values = torch.split(head.to_units(unit_BA), list(head.widths), -1)
        for a, (actuator, value_BA) in enumerate(zip(self.actions.continuous, values, strict=True)):
            out.values[actuator.name] = value_BA
            out.probabilities[actuator.name] = log_density_Ba[:, a].double().clamp(max=MAX_LOG_DENSITY).exp()
        value_B: Tensor = head.critics(context_BC, unit_BA).mean(0)
        return value_B
