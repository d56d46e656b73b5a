"""Why a decision was taken: exact Shapley values over streams for the score of the chosen action.

A stream's part is what it adds to the score, averaged over every order in which streams could be told to the policy (Shapley
1953; with a background distribution instead of retraining: Lundberg & Lee 2017, in the interventional form of Janzing et al.
2020). Not told means: the stream shows what it showed at one of K other ticks, averaged over them. So the parts sum to the
score of this decision minus the mean score of the background, a stream that never changes gets 0, and one that was missing is
no player. n streams need 2^n * K passes of the fused part, in batches, on remembered tokens; no encoder runs.

Shapes: K background, H history, n players, C coalitions (2^n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actuators.actions import Choice, Value
from learners.experience.transition import Transition
from learners.model.features import Features, recorded, stack
from learners.model.policy import Policy

MAX_PLAYERS = 10
"""Streams present at once: 2^10 coalitions; more would need sampling, which is not exact."""
ROWS = 2_048
"""Rows of one pass."""


class NotExplainable(ValueError):  # noqa: N818 - reads as what happened
    """The record does not hold what is needed; `str` says what is missing."""


@dataclass(frozen=True, slots=True)
class Part:
    """One actuator's score and what each stream contributed to it."""

    score: float
    baseline: float
    """Mean score of the same action under the background."""
    streams: dict[str, float]
    """Shapley values; they sum to `score - baseline`."""
    told: str
    """What the score is: `q` (value of the choice) or `log_density` (of the continuous action)."""


def explain(
    policy: Policy, window: Sequence[Transition], background: Sequence[Sequence[Transition]]
) -> dict[str, Part]:
    """Shapley values of each actuator's executed action at the last tick of `window`.

    Args:
        policy: the version that decided.
        window: that tick and up to `history - 1` before it, oldest first.
        background: windows of other ticks, K of them; the more, the finer the mean.

    Raises:
        NotExplainable: tokens are missing, or there are too many streams.
    """
    spec = policy.spec
    subject = _features(policy, window)
    others = [_features(policy, each) for each in background]
    if not others:
        raise NotExplainable("there are no other ticks to compare with yet")
    players = [s for s in range(len(spec.streams)) if bool(subject.present[0, :, s].any())]
    if len(players) > MAX_PLAYERS:
        raise NotExplainable(f"{len(players)} streams are present; exact values are computed for at most {MAX_PLAYERS}")
    scores = {
        name: _coalition_scores(policy, subject, others, players, name, value)
        for name, value in window[-1].actions.items()
    }
    return {
        name: Part(
            score=float(values[-1]),
            baseline=float(values[0]),
            streams=dict.fromkeys(spec.names, 0.0)
            | {spec.names[s]: p for s, p in zip(players, shapley(values), strict=True)},
            told="q" if any(a.name == name for a in spec.actions.choices) else "log_density",
        )
        for name, values in scores.items()
        if values is not None
    }


def shapley(values: NDArray[np.float64]) -> list[float]:
    """Shapley values of n players from the worth of every coalition; entry `c` is the coalition with the bits of `c`."""
    n = int(math.log2(len(values)))
    coalitions = np.arange(len(values))
    sizes = np.array([int(c).bit_count() for c in coalitions])
    weight = np.array([math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n) for k in range(n)])
    parts = []
    for player in range(n):
        without = coalitions[(coalitions >> player) & 1 == 0]
        parts.append(float((weight[sizes[without]] * (values[without | (1 << player)] - values[without])).sum()))
    return parts


def _features(policy: Policy, window: Sequence[Transition]) -> Features:
    """A window as features [1, H]; a short one repeats its oldest tick."""
    if not window:
        raise NotExplainable("the decision is not in the record any more")
    spec = policy.spec
    padded = [window[0]] * (spec.history - len(window)) + list(window)[-spec.history :]
    flat = recorded(spec, [t.tokens for t in padded], [t.present for t in padded], [t.ages_s for t in padded])
    return flat.map(lambda x: x.unsqueeze(0))


@torch.no_grad()
def _coalition_scores(
    policy: Policy, subject: Features, others: Sequence[Features], players: Sequence[int], name: str, value: Value
) -> NDArray[np.float64] | None:
    """The action's mean score over the background, for every coalition of players, in the order of their bits."""
    means = []
    rows: list[Features] = []
    for coalition in range(2 ** len(players)):
        told = [player for bit, player in enumerate(players) if coalition >> bit & 1]
        rows.extend(_mixed(policy, subject, other, players, told) for other in others)
        if len(rows) >= ROWS or coalition == 2 ** len(players) - 1:
            scores = _scores(policy, _joined(rows), name, value)
            if scores is None:
                return None
            means.extend(scores.reshape(-1, len(others)).double().mean(1).tolist())
            rows = []
    return np.array(means)


def _mixed(policy: Policy, subject: Features, other: Features, players: Sequence[int], told: Sequence[int]) -> Features:
    """The subject with the players that are not told as they were in `other`."""
    names = policy.spec.names
    hidden = [player for player in players if player not in told]
    tokens = {name: (other if s in hidden else subject).tokens[name] for s, name in enumerate(names)}
    present, ages = subject.present.clone(), subject.ages.clone()
    for s in hidden:
        present[..., s], ages[..., s] = other.present[..., s], other.ages[..., s]
    return Features(tokens, present, ages)


def _joined(rows: Sequence[Features]) -> Features:
    return stack([row[0] for row in rows])


def _scores(policy: Policy, features: Features, name: str, value: Value) -> Tensor | None:
    """The score of one action for each row; None for an actuator without a head."""
    heads = policy.heads
    context_BC = policy.encode(features)
    choices = {a.name: (n, a) for n, a in enumerate(heads.actions.choices)}
    if name in choices and isinstance(value, str):
        index, actuator = choices[name]
        return _choice_scores(policy, context_BC, index)[:, _position(actuator, value)]
    if heads.continuous is not None and isinstance(value, tuple):
        return _log_density(policy, context_BC, name, value)
    return None


def _choice_scores(policy: Policy, context_BC: Tensor, index: int) -> Tensor:
    heads = policy.heads
    if heads.choice is not None:
        quantiles_BnK: Tensor = heads.choice(context_BC)[index]
        return quantiles_BnK.mean(-1)
    assert heads.bandit is not None
    scores_Bn: Tensor = heads.bandit(context_BC)[index][0]
    return scores_Bn


def _position(actuator: Choice, value: str) -> int:
    if value not in actuator.choices:
        raise NotExplainable(f"{actuator.name}: {value!r} is not one of its choices any more")
    return actuator.choices.index(value)


def _log_density(policy: Policy, context_BC: Tensor, name: str, value: tuple[float, ...]) -> Tensor:
    """Log density of one continuous action before squashing: a monotone measure of how much the policy wants it."""
    head = policy.heads.continuous
    assert head is not None
    mean_BA, log_std_BA = head.actor(context_BC)
    start = 0
    for actuator in policy.heads.actions.continuous:
        width = len(actuator.low)
        if actuator.name == name:
            part = slice(start, start + width)
            unit_A = (torch.tensor(value) - head.centre[part]) / head.reach[part]
            raw_A = torch.atanh(unit_A.clamp(-0.999, 0.999))
            z_BA = (raw_A - mean_BA[:, part]) / log_std_BA[:, part].exp()
            log_BA: Tensor = -0.5 * z_BA.square() - log_std_BA[:, part] - 0.5 * math.log(2 * math.pi)
            return log_BA.sum(-1)
        start += width
    raise NotExplainable(f"{name}: the policy has no such actuator")
