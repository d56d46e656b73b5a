"""Learn which goal an order means, from the goals' descriptions and from earlier orders for which a person set the goal. Pure.

Three things add up to a goal's score:

- a linear function of the sentence, fitted by regularised least squares to all examples: every description, each of its clauses, and
  every remembered order. All goals weigh the same together, so a goal with hundreds of corrections takes no orders from the others.
- the similarity to the goal's description, so that a goal without corrections is still found.
- the similarity to the most similar remembered order. It counts only where both say nearly the same, and then it decides: what a person
  corrected once stays corrected.

Each remembered order is also answered as if neither it nor one in nearly the same words had been seen, which least squares give without a second fit
(Allen 1974). Under these answers the penalty and the scale are chosen by which the true goals are most probable. Orders in nearly the same
words count as one there: people repeat themselves, and ten repetitions tell nothing of a new order. Few orders leave both near what was usual on other orders
(`bench_deliberator.py --only orders`, split seeds 10 to 19). So the time of a fit hardly depends on the number of orders.

Shapes: N examples, M of them remembered orders, D of them of descriptions, W width of a sentence, V is W + 1, G goals, B orders. K orders in
nearly the same words, E such groups of one size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DESCRIBED, DESCRIPTION_SHARPNESS = 0.25, 12.0
"""Share of the similarity to a description in a score, and its sharpness."""
SAME_SHARPNESS = 60.0
"""Of the similarity to one remembered order: at a similarity of .95 it adds a twentieth of what the same text adds."""
PENALTIES = (0.3, 1.0, 3.0, 10.0)
SCALES = tuple(math.exp(math.log(60.0) * step / 59) for step in range(60))
USUAL_PENALTY, PENALTY_SPREAD = 2.0, 1.0
USUAL_SCALE, SCALE_SPREAD = 10.0, 0.35
"""Median, and standard deviation of the logarithm."""
ALIKE = 0.8
"""Similarity from which orders are in nearly the same words."""
MOST_SOLVED = 64
"""Orders in nearly the same words above which a second fit takes less time."""
MOST = 2_000
"""Newest orders that are remembered."""
_CLAUSES = re.compile(r"[:;,.]")


def described(goals: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the examples that the descriptions give, each with its goal: the whole text, and each of its clauses."""
    found: list[tuple[str, str]] = []
    for goal, text in goals.items():
        parts = [part.strip() for part in _CLAUSES.split(text)]
        found += [(text, goal), *((part, goal) for part in parts if part and part != text)]
    return found


@dataclass(frozen=True, slots=True)
class GoalExamples:
    """Sentences of unit length with their goals."""

    sentences_NW: Tensor
    goals_NG: Tensor
    """1 for the goal of an example, else 0."""


@dataclass(frozen=True, slots=True)
class RememberedOrders:
    """What was learned from descriptions and remembered orders."""

    given: GoalExamples
    """Of the descriptions."""
    orders: GoalExamples
    centre_W: Tensor
    weights_VG: Tensor
    """Of the linear function of a sentence from `centre_W`; the last row does not depend on the sentence."""
    penalty: float
    scale: float
    """Of the scores, for the softmax."""

    def probabilities(self, sentences_BW: Tensor) -> Tensor:
        """Return the probability of each goal for orders of unit length, [B, G]."""
        linear_BG = _moved(sentences_BW, self.centre_W) @ self.weights_VG
        similar_BM = sentences_BW @ self.orders.sentences_NW.T
        scores_BG = linear_BG + _described(sentences_BW, self.given) + _same(similar_BM, self.orders.goals_NG)
        return torch.softmax(self.scale * scores_BG, -1)


def remember(
    goals: Sequence[str], given: Sequence[str], given_DW: Tensor, orders: Sequence[str], orders_MW: Tensor
) -> RememberedOrders:
    """Learn from examples of descriptions, and from remembered orders, of which there is at least one.

    Args:
        goals: all of them; each has a description.
        given: the goal of each example of a description.
        given_DW: these examples, of unit length.
        orders: the goal of each remembered order.
        orders_MW: these orders, of unit length.
    """
    index = {goal: number for number, goal in enumerate(goals)}

    def examples(of: Sequence[str], sentences: Tensor) -> GoalExamples:
        numbers = torch.tensor([index[goal] for goal in of], dtype=torch.long)
        return GoalExamples(sentences, F.one_hot(numbers, len(goals)).to(sentences.dtype))

    described_by, people = examples(given, given_DW), examples(orders, orders_MW)
    centre_W = torch.cat([orders_MW, given_DW]).mean(0)
    similar_MM = orders_MW @ orders_MW.T
    alike_M = _alike(similar_MM)
    similar_MM.masked_fill_(alike_M[:, None] == alike_M, -torch.inf)  # each is answered from the others
    beside_MG = _described(orders_MW, described_by) + _same(similar_MM, people.goals_NG)
    right_M = people.goals_NG.argmax(-1)
    groups = [torch.nonzero(alike_M == first)[:, 0] for first in sorted(set(alike_M.tolist()))]
    counts_M = 1.0 / torch.bincount(alike_M, minlength=len(alike_M))[alike_M]
    best: tuple[float, float, float, Tensor] | None = None
    for penalty in PENALTIES:
        weights_VG, unseen_MG = _fit(people, described_by, centre_W, penalty, groups)
        scores_MG = unseen_MG + beside_MG
        for scale in SCALES:
            surprise = float((counts_M * F.cross_entropy(scale * scores_MG, right_M, reduction="none")).sum())
            surprise += _unusual(penalty, USUAL_PENALTY, PENALTY_SPREAD) + _unusual(scale, USUAL_SCALE, SCALE_SPREAD)
            if best is None or surprise < best[0]:
                best = (surprise, penalty, scale, weights_VG)
    assert best is not None
    return RememberedOrders(described_by, people, centre_W, best[3], best[1], best[2])


def _alike(similar_MM: Tensor) -> Tensor:
    """Return for each order the first one with nearly its words, of those that are the first with theirs: [M]."""
    near_MM = similar_MM >= ALIKE
    alike_M = torch.full((len(near_MM),), -1, dtype=torch.long)
    for order in range(len(near_MM)):
        if alike_M[order] < 0:
            alike_M[near_MM[order] & (alike_M < 0)] = order
            alike_M[order] = order
    return alike_M


def _fit(
    people: GoalExamples, given: GoalExamples, centre_W: Tensor, penalty: float, groups: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the weights [V, G] of the linear function, and its values [M, G] for each remembered order without its group.

    Args:
        people: the remembered orders.
        given: of the descriptions.
        centre_W: from which sentences count.
        penalty: of the weights.
        groups: the places of the orders in nearly the same words, [K] each; every order is in one.
    """
    sentences_NW = torch.cat([people.sentences_NW, given.sentences_NW]).double()
    goals_NG = torch.cat([people.goals_NG, given.goals_NG]).double()
    weight_N1 = (goals_NG @ (len(goals_NG) / goals_NG.shape[1] / goals_NG.sum(0)))[:, None]
    moved_NV = _moved(sentences_NW, centre_W.double())
    target_NG = goals_NG - 1.0 / goals_NG.shape[1]
    square_VV = moved_NV.T @ (weight_N1 * moved_NV)
    square_VV += penalty * torch.eye(len(square_VV), dtype=torch.double)
    factor_VV = torch.linalg.cholesky(square_VV)
    right_VG = moved_NV.T @ (weight_N1 * target_NG)
    weights_VG = torch.cholesky_solve(right_VG, factor_VV)
    known = slice(0, len(people.goals_NG))
    solved_VM = torch.cholesky_solve(moved_NV[known].T, factor_VV)
    missed_MG = target_NG[known] - moved_NV[known] @ weights_VG
    own_M1 = weight_N1[known] * (moved_NV[known] * solved_VM.T).sum(-1, keepdim=True)
    unseen_MG = target_NG[known] - missed_MG / (1.0 - own_M1).clamp(min=1e-6)
    solved_MV = solved_VM.T.contiguous()
    by_size: dict[int, list[Tensor]] = {}
    for group_K in groups:
        by_size.setdefault(len(group_K), []).append(group_K)
    for size, alike in by_size.items():
        if size == 1:
            continue
        if size <= MOST_SOLVED:
            places_EK = torch.stack(alike)
            weight_E1K = weight_N1[places_EK].transpose(1, 2)
            own_EKK = (moved_NV[places_EK] @ solved_MV[places_EK].transpose(1, 2)) * weight_E1K
            left_EKK = torch.eye(size, dtype=torch.double) - own_EKK
            unseen_MG[places_EK] = target_NG[places_EK] - torch.linalg.solve(left_EKK, missed_MG[places_EK])
            continue
        for group_K in alike:
            moved_KV, weight_K1 = moved_NV[group_K], weight_N1[group_K]
            others_VV = torch.linalg.cholesky(square_VV - moved_KV.T @ (weight_K1 * moved_KV))
            others_VG = torch.cholesky_solve(right_VG - moved_KV.T @ (weight_K1 * target_NG[group_K]), others_VV)
            unseen_MG[group_K] = moved_KV @ others_VG
    return weights_VG.float(), unseen_MG.float()


def _moved(sentences_BW: Tensor, centre_W: Tensor) -> Tensor:
    """Return sentences from the centre, and a column of ones: [B, V]."""
    return torch.cat([sentences_BW - centre_W, sentences_BW.new_ones(len(sentences_BW), 1)], -1)


def _described(sentences_BW: Tensor, given: GoalExamples) -> Tensor:
    """Return what the similarity to the descriptions adds to a score, [B, G]."""
    weights_BD = torch.exp(DESCRIPTION_SHARPNESS * (sentences_BW @ given.sentences_NW.T - 1.0))
    mean_BG = weights_BD @ given.goals_NG / given.goals_NG.sum(0)
    score_BG = mean_BG.clamp(min=1e-12).log() / DESCRIPTION_SHARPNESS
    return DESCRIBED * (score_BG - score_BG.mean(-1, keepdim=True))


def _same(similar_BM: Tensor, goals_MG: Tensor) -> Tensor:
    """Return what the most similar remembered order of a goal adds to its score, [B, G]: 1 for the same text."""
    weights_BM = torch.exp(SAME_SHARPNESS * (similar_BM - 1.0))
    columns = [
        weights_BM[:, of_M].amax(-1) if of_M.any() else weights_BM.new_zeros(len(weights_BM)) for of_M in goals_MG.T > 0
    ]
    return torch.stack(columns, -1)


def _unusual(value: float, usual: float, spread: float) -> float:
    return 0.5 * (math.log(value / usual) / spread) ** 2
