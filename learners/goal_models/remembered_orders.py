"""Compare an order with the goals' descriptions, and with earlier orders for which a person set the goal. Pure.

Every description, each of its clauses, and every remembered order is an example of its goal. Each has the weight
`exp(SHARPNESS * (similarity - 1))`. A goal's score is the logarithm of the mean weight of its examples and of the square of the largest
one. So one correction counts at once, for orders like it, and needs no training. It is a mean, because a goal with hundreds of
corrections would win orders that are like none of them. The remembered orders also tell how much to trust a score. Each is answered from the others, and the mean probability of these answers is
scaled to the share that was right.

Shapes: N examples, M of them remembered orders, W width of a sentence, G goals, B orders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHARPNESS = 12.0
"""Of the similarity to one example: `bench_deliberator.py --only orders`, chosen on split seeds 100 to 102."""
LEAST = 20
"""Remembered orders with which their own answers say how much to trust a score."""
SCALES = np.arange(0.3, 5.0, 0.05)
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
class RememberedOrders:
    """Examples with their goals, and how scores become probabilities."""

    sentences_NW: Tensor
    """Of unit length."""
    goals_NG: Tensor
    """1 for the goal of an example, else 0."""
    scale: float

    def probabilities(self, sentences_BW: Tensor) -> Tensor:
        """Return the probability of each goal for orders of unit length, [B, G]."""
        scores_BG = _scores(sentences_BW @ self.sentences_NW.T, self.goals_NG)
        return torch.softmax(self.scale * scores_BG, -1)


def remember(
    goals: Sequence[str], given: Sequence[str], given_NW: Tensor, orders: Sequence[str], orders_MW: Tensor
) -> RememberedOrders:
    """Take in examples of descriptions, and remembered orders.

    Args:
        goals: all of them.
        given: the goal of each example of a description.
        given_NW: these examples, of unit length.
        orders: the goal of each remembered order.
        orders_MW: these orders, of unit length.
    """
    index = {goal: number for number, goal in enumerate(goals)}
    right_N = torch.tensor([index[goal] for goal in (*given, *orders)], dtype=torch.long)
    goals_NG = torch.nn.functional.one_hot(right_N, len(goals)).float()
    sentences_NW = torch.cat([given_NW, orders_MW])
    return RememberedOrders(sentences_NW, goals_NG, _trust(sentences_NW, goals_NG, len(orders)))


def _scores(similar_BN: Tensor, goals_NG: Tensor) -> Tensor:
    weights_BN = torch.exp(SHARPNESS * (similar_BN - 1.0))
    mean_BG = weights_BN @ goals_NG / goals_NG.sum(0)
    largest_BG = torch.stack([weights_BN[:, of_N].amax(-1) for of_N in goals_NG.T > 0], -1)
    return (mean_BG + largest_BG.square()).clamp(min=1e-12).log()


def _trust(sentences_NW: Tensor, goals_NG: Tensor, count: int) -> float:
    """Return the scale with which the answers to the last `count` examples, each from all others, are as sure as they are right."""
    if count < LEAST:
        return 1.0
    similar_MN = sentences_NW[-count:] @ sentences_NW.T
    similar_MN[torch.arange(count), torch.arange(len(sentences_NW) - count, len(sentences_NW))] = -torch.inf
    scores_MG = _scores(similar_MN, goals_NG)
    right = float((scores_MG.argmax(-1) == goals_NG[-count:].argmax(-1)).float().mean())
    sure = [float(torch.softmax(scale * scores_MG, -1).amax(-1).mean()) for scale in SCALES]
    return float(SCALES[int(np.argmin(np.abs(np.array(sure) - right)))])
