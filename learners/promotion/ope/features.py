"""Run a candidate and the live policy on the same logged decisions: probabilities of the executed actions, and features.

A linear value function of state and action is fitted on the features (`fitted_q.py`). A choice actuator contributes the choice,
the choice times a few numbers of the state, and the score of the live critic. A continuous actuator contributes the motion, its
square, the motion times the state, and the score of the live critic. The numbers of the state are a fixed random projection of
the live policy's context, and its values. The average over a policy's own actions describes that policy. The candidate's critic is no
feature: it learned these rows, so it would be evidence for itself.

Shapes: N decisions, B of a chunk, n choices, A components, M draws, C context, K numbers of the state, D features.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.model.heads import Heads
from learners.promotion.ope.logged_data import ActingPolicy, Logged
from learners.promotion.ope.propensities import Preference, motions, preferences, taken, unit_actions

PROJECTED = 12
"""Numbers that the context is projected to, at most; fewer decisions allow fewer."""
NEGLIGIBLE = 0.005
"""Share of decisions that an action may gain without having been tried."""
LEAST_TRIES = 5
"""Tries of a single action, below which nothing is known of it."""
DRAWS = 8
"""Motions that a continuous actor's average is taken over."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedFeatures:
    """What both make of N decisions.

    `logged`, `candidate`, `live`: probability N of the actions that were the policy's own, all actuators together; 1 where
    none was. `taken`: features N,D of what was done; `by_candidate`, `by_live`: of what each would do, averaged.
    """

    logged: Array
    candidate: Array
    live: Array
    taken: Array
    by_candidate: Array
    by_live: Array
    untried: tuple[str, ...] = ()
    """Actions with too few tries where the candidate prefers them more than the live policy, as `actuator=choice`."""


@dataclass(frozen=True, slots=True)
class _Side:
    heads: Heads
    context: Tensor
    masks: Mapping[str, Tensor]
    """B,n by choice actuator: what the gate would have let pass; absent where these were all."""
    choices: dict[str, Preference]
    draws: Tensor | None
    """M,B,A."""


def compare(
    candidate: ActingPolicy, live: ActingPolicy, logged: Logged, seed: int = 0
) -> Generator[None, None, PairedFeatures]:
    """Go through the decisions chunk by chunk; the generator returns the whole."""
    projected = min(PROJECTED, len(logged) // 50)
    parts: list[tuple[Array, ...]] = []
    tries = {actuator.name: np.zeros((3, len(actuator.choices))) for actuator in logged.spec.actions.choices}
    for rows in logged.chunks():
        with torch.no_grad():
            masks = logged.masks(rows)
            sides = [
                _side(policy, logged.contexts(policy, rows), masks, seed + rows.start) for policy in (candidate, live)
            ]
            actions = logged.actions(rows)
            own = {name: own_N[rows] for name, own_N in logged.own.items()}
            joint = [_joint(side, actions, own) for side in sides]
            logged_B = np.prod([p_N[rows] for p_N in logged.probability.values()], axis=0)
            parts.append((logged_B, *joint, *_features(sides, actions, projected)))
            for name in tries:
                tries[name] += _tries(sides, name, actions, own[name], logged.probability[name][rows])
        yield
    logged_N, candidate_N, live_N, taken, by_candidate, by_live = map(np.concatenate, zip(*parts, strict=True))
    untried = tuple(
        f"{actuator.name}={choice}"
        for actuator in logged.spec.actions.choices
        for i, choice in enumerate(actuator.choices)
        if _is_untried(tries[actuator.name][:, i], len(logged))
    )
    return PairedFeatures(logged_N, candidate_N, live_N, taken, by_candidate, by_live, untried)


def _tries(
    sides: list[_Side], name: str, actions: Mapping[str, Tensor], own: NDArray[np.bool_], logged_B: Array
) -> Array:
    """Return, for each choice, the candidate's rise of probability, and sum and sum of squares of the weights of its tries."""
    candidate, live = (side.choices[name].probabilities.double().numpy() for side in sides)
    rise_Bn = np.maximum(candidate - live, 0.0)
    done_Bn = np.eye(rise_Bn.shape[1])[actions[name].numpy()] * own[:, None]
    weight_Bn = done_Bn * rise_Bn / logged_B[:, None]
    return np.stack((rise_Bn.sum(0), weight_Bn.sum(0), np.square(weight_Bn).sum(0)))


def _is_untried(sums_3: Array, count: int) -> bool:
    rise, total, squares = (float(x) for x in sums_3)
    if rise < NEGLIGIBLE * count:
        return False
    tries = total * total / squares if squares > 0 else 0.0
    return tries < LEAST_TRIES or total < 0.5 * rise


def _side(policy: ActingPolicy, context_BC: Tensor, masks: Mapping[str, Tensor], seed: int) -> _Side:
    """The same seed for both sides: the noise of their draws then cancels in the difference."""
    head = policy.heads.continuous
    generator = torch.Generator().manual_seed(seed)
    draws = None if head is None else motions(head, context_BC, DRAWS, generator)
    return _Side(policy.heads, context_BC, masks, preferences(policy.heads, context_BC, masks), draws)


def _joint(side: _Side, actions: Mapping[str, Tensor], own: Mapping[str, NDArray[np.bool_]]) -> Array:
    """Probability B of the actions that were the policy's own."""
    product_B = np.ones(len(side.context))
    for name, probability_B in taken(side.heads, side.context, actions, side.masks).items():
        product_B *= np.where(own[name], probability_B.numpy(), 1.0)
    return product_B


def _features(sides: list[_Side], actions: Mapping[str, Tensor], projected: int) -> tuple[Array, Array, Array]:
    """Return features B,D of the executed actions and of each side's own actions."""
    state_BK = _state(sides, projected)
    done: list[Tensor] = []
    would: list[list[Tensor]] = [[] for _ in sides]
    for name in sides[0].choices:
        scores_Bn = sides[1].choices[name].scores
        done.append(_choice_features(torch.eye(scores_Bn.shape[-1])[actions[name]], scores_Bn, state_BK))
        for columns, side in zip(would, sides, strict=True):
            columns.append(_choice_features(side.choices[name].probabilities, scores_Bn, state_BK))
    if sides[0].draws is not None:
        done.append(_motion_features(unit_actions(sides[0].heads, actions).unsqueeze(0), sides[1], state_BK))
        for columns, side in zip(would, sides, strict=True):
            assert side.draws is not None
            columns.append(_motion_features(side.draws, sides[1], state_BK))
    joined = [torch.cat([torch.ones(len(state_BK), 1), *columns], -1).double().numpy() for columns in (done, *would)]
    return joined[0], joined[1], joined[2]


def _state(sides: list[_Side], projected: int) -> Tensor:
    """Return numbers B,K of the state."""
    context_BC = sides[1].context.clamp(-10, 10)
    width = context_BC.shape[-1]
    matrix_CK = torch.randn(width, projected, generator=torch.Generator().manual_seed(1)) / width**0.5
    live = sides[1]
    values = [preference.scores.amax(-1, keepdim=True) for preference in live.choices.values()]
    values += [_critics(live, live.draws).unsqueeze(-1)] if live.draws is not None else []
    return torch.cat((context_BC @ matrix_CK, *values), dim=-1)


def _choice_features(chosen_Bn: Tensor, scores_Bn: Tensor, state_BK: Tensor) -> Tensor:
    """Return features B,D of `chosen_Bn`: a choice, or how probable each is."""
    crossed_BnK = chosen_Bn.unsqueeze(-1) * state_BK.unsqueeze(-2)
    score_B1 = (chosen_Bn * scores_Bn).sum(-1, keepdim=True)
    return torch.cat((chosen_Bn, crossed_BnK.flatten(1), score_B1), dim=-1)


def _motion_features(unit_MBA: Tensor, live: _Side, state_BK: Tensor) -> Tensor:
    """Averaged over M motions."""
    mean_BA, square_BA = unit_MBA.mean(0), unit_MBA.square().mean(0)
    crossed_BAK = mean_BA.unsqueeze(-1) * state_BK.unsqueeze(-2)
    critic_B1 = _critics(live, unit_MBA).unsqueeze(-1)
    return torch.cat((mean_BA, square_BA, state_BK, crossed_BAK.flatten(1), critic_B1), dim=-1)


def _critics(side: _Side, unit_MBA: Tensor) -> Tensor:
    """Return the critics' mean value B of M motions."""
    head = side.heads.continuous
    assert head is not None
    values = [head.critics(side.context, unit_BA).mean(0) for unit_BA in unit_MBA]
    return torch.stack(values).mean(0)
