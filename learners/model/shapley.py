"""Explain a decision: Shapley values of the streams for the score of the chosen action.

The value of a stream is its contribution to the score, averaged over every order in which streams could be shown to the policy
(Shapley 1953). A stream that is not shown has the tokens of one of K other ticks. This background distribution replaces
retraining (Lundberg & Lee 2017), in the interventional form of Janzing et al. 2020. The values sum to the score of this decision
minus the mean score of the background. A stream that never changes has the value 0, and a missing stream is no player. No encoder
runs.

The work is bounded by a number of fused ticks. For exact values, n players need 2^n * K * H of them. If that is too much, the
values are estimated from random orders, each with its reverse (antithetic permutation sampling, Mitchell et al. 2022). The
estimates have standard errors, and they still sum exactly.

Shapes: K background, H history, n players, R rows (mixed windows).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.actions import Choice, Value
from learners.experience.transition import Transition
from learners.model.recorded_arrays import FeatureArrays, recorded_arrays
from learners.model.spec import PolicySpec

BUDGET = 1_024
"""Ticks that one explanation may fuse: .2 to .6 s of one core with the default policy and 3 to 30 streams."""
LIMIT_S = 0.5
"""Seconds after which a live daemon draws no further random order: on a busy machine the errors grow, not the wait."""
BATCH_BYTES = 4 << 20
"""Features of one batch."""
BATCH_ROWS = 256


class Explainable(Protocol):
    """A policy as arrays; one in torch and one on graphs implement it."""

    @property
    def spec(self) -> PolicySpec:
        """Of the policy."""

    def contexts(self, windows: FeatureArrays) -> NDArray[np.float32]:
        """Return the contexts R,C of windows [R, H]."""

    def action_scores(self, context_RC: NDArray[np.float32], index: int) -> NDArray[Any]:
        """Return the critic's value R,n of each choice of the choice actuator with this number."""

    def action_log_density(self, context_RC: NDArray[np.float32], name: str, value: tuple[float, ...]) -> Any:
        """Return the log density R of a continuous action before squashing; None without such an actuator."""


class NotExplainable(ValueError):  # noqa: N818 - reads as what happened
    """The record does not hold what is needed; `str` says what is missing."""


@dataclass(frozen=True, slots=True)
class StreamContribution:
    """One actuator's score and what each stream contributed to it."""

    action: Value
    """Of which the score is: what was executed, or the proposal where nothing was."""
    score: float
    baseline: float
    """Mean score of the same action under the background."""
    streams: dict[str, float]
    """Shapley values; they sum to `score - baseline`."""
    score_kind: str
    """What the score is: `q` (value of the choice) or `log_density` (of the continuous action)."""
    method: Literal["exact", "sampled"] = "exact"
    errors: dict[str, float] = field(default_factory=dict)
    """Standard errors of sampled values."""


def explain(
    policy: Explainable,
    window: Sequence[Transition],
    background: Sequence[Sequence[Transition]],
    *,
    budget: int = BUDGET,
    limit_s: float = math.inf,
) -> dict[str, StreamContribution]:
    """Compute the contribution of each stream to each actuator's action at the last tick of `window`.

    The action is the executed one. Where nothing was executed, as in the mode shadow, it is what the policy proposed.

    Args:
        policy: the version that decided.
        window: that tick and up to `history - 1` before it, oldest first.
        background: windows of other ticks, K of them; the more, the finer the mean.
        budget: ticks that may be fused.
        limit_s: seconds after which no further random order is drawn; the standard errors show the effect.

    Raises:
        NotExplainable: tokens are missing, or of another encoder version than the decision's.
    """
    until_s = time.monotonic() + limit_s
    subject = _features(policy, window)
    if not background:
        raise NotExplainable("there are no other ticks to compare with yet")
    for each in (window, *background):
        _check_versions(window[-1], each)
    others = _joined([_features(policy, each) for each in background])
    players = [s for s in range(len(policy.spec.streams)) if bool(subject.present[0, :, s].any())]
    actions = {**window[-1].proposed, **window[-1].actions}
    game = _Game(policy, subject, others, players, actions)
    exact = 2 ** len(players) * len(background) * policy.spec.history <= budget
    found = _exact(game) if exact else _sampled(game, budget // policy.spec.history, until_s)
    return {
        name: _part(policy, players, *values, exact=exact, name=name, action=actions[name])
        for name, values in found.items()
    }


def same_encoders(one: Transition, other: Transition) -> bool:
    """Return whether the encoders that read both ticks had the same versions."""
    shared = one.encoder_versions.keys() & other.encoder_versions.keys()
    return all(one.encoder_versions[name] == other.encoder_versions[name] for name in shared)


def _check_versions(decision: Transition, window: Sequence[Transition]) -> None:
    for tick in window:
        if not same_encoders(decision, tick):
            raise NotExplainable(
                f"{tick.decision} has tokens of another encoder version than {decision.decision}: they cannot be compared"
            )


_Values = tuple[float, float, list[float], list[float]]
"""Score, baseline, parts by player, and their standard errors (none where they are exact)."""


def _part(
    policy: Explainable,
    players: Sequence[int],
    score: float,
    baseline: float,
    parts: Sequence[float],
    errors: Sequence[float],
    *,
    exact: bool,
    name: str,
    action: Value,
) -> StreamContribution:
    names = [policy.spec.names[s] for s in players]
    return StreamContribution(
        action=action,
        score=score,
        baseline=baseline,
        streams=dict.fromkeys(policy.spec.names, 0.0) | dict(zip(names, parts, strict=True)),
        score_kind="q" if any(a.name == name for a in policy.spec.actions.choices) else "log_density",
        method="exact" if exact else "sampled",
        errors={} if exact else dict(zip(names, errors, strict=True)),
    )


def _exact(game: _Game) -> dict[str, _Values]:
    """Score every coalition with every background."""
    n, count = len(game.players), game.background
    coalitions = np.arange(2**n)
    shown_Cn = (coalitions[:, None] >> np.arange(n)) & 1 == 1
    scores = game.scores(np.repeat(shown_Cn, count, 0), np.tile(np.arange(count), len(coalitions)))
    means = {name: values.reshape(-1, count).mean(1) for name, values in scores.items()}
    return {name: (float(worth[-1]), float(worth[0]), shapley(worth), []) for name, worth in means.items()}


def _sampled(game: _Game, rows: int, until_s: float) -> dict[str, _Values]:
    """Estimate the values from random orders and their reverses, with one more player at each step.

    Takes at most `rows` rows, and no further orders after `until_s` (monotonic), but two orders at least.
    """
    n = len(game.players)
    pairs = max(2, (rows - 1) // (2 * n - 1))
    chance = np.random.default_rng(0)
    orders_Pn = np.argsort(chance.random((pairs, n)), axis=1)
    ranks_Pn = np.argsort(orders_Pn, axis=1)
    backgrounds_P = chance.permutation(np.resize(np.arange(game.background), pairs))
    steps = np.arange(n)
    forward_PSn = ranks_Pn[:, None, :] < steps[:, None]
    reverse_PSn = (n - 1 - ranks_Pn)[:, None, :] < steps[1:, None]  # its empty set is the forward one's
    shown_PRn = np.concatenate((forward_PSn, reverse_PSn), axis=1)
    whole = {name: float(values[0]) for name, values in game.scores(np.ones((1, n), bool), np.zeros(1, int)).items()}
    at_once = max(2, game.batch_rows // (2 * n - 1))
    worths: dict[str, list[NDArray[np.float64]]] = {name: [] for name in whole}
    done = 0
    while done < pairs and (done < 2 or time.monotonic() < until_s):
        batch = slice(done, done + at_once)
        shown_Rn = shown_PRn[batch].reshape(-1, n)
        for name, values in game.scores(shown_Rn, np.repeat(backgrounds_P[batch], 2 * n - 1)).items():
            worths[name].append(values.reshape(-1, 2 * n - 1))
        done += at_once
    ranks_Pn = ranks_Pn[:done]
    found: dict[str, _Values] = {}
    for name, score in whole.items():
        worth_PR = np.concatenate(worths[name])
        last_P1 = np.full((len(worth_PR), 1), score)
        forward_PS = np.diff(np.concatenate((worth_PR[:, :n], last_P1), axis=1))
        reverse_PS = np.diff(np.concatenate((worth_PR[:, :1], worth_PR[:, n:], last_P1), axis=1))
        gains_Pn = (
            np.take_along_axis(forward_PS, ranks_Pn, 1) + np.take_along_axis(reverse_PS, n - 1 - ranks_Pn, 1)
        ) / 2
        errors_n = gains_Pn.std(0, ddof=1) / math.sqrt(len(gains_Pn))
        found[name] = (score, float(worth_PR[:, 0].mean()), gains_Pn.mean(0).tolist(), errors_n.tolist())
    return found


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


def _features(policy: Explainable, window: Sequence[Transition]) -> FeatureArrays:
    """A window as features [1, H]; a short one repeats its oldest tick."""
    if not window:
        raise NotExplainable("the decision is no longer stored")
    spec = policy.spec
    padded = [window[0]] * (spec.history - len(window)) + list(window)[-spec.history :]
    flat = recorded_arrays(spec, [t.tokens for t in padded], [t.present for t in padded], [t.ages_s for t in padded])
    return FeatureArrays({name: x[None] for name, x in flat.tokens.items()}, flat.present[None], flat.ages[None])


def _joined(items: Sequence[FeatureArrays]) -> FeatureArrays:
    """Join along the first dimension."""
    tokens = {name: np.concatenate([one.tokens[name] for one in items]) for name in items[0].tokens}
    return FeatureArrays(
        tokens, np.concatenate([one.present for one in items]), np.concatenate([one.ages for one in items])
    )


@dataclass(slots=True)
class _Game:
    """Scores windows in which some players show the decision's ticks and the others those of a background window."""

    policy: Explainable
    subject: FeatureArrays
    """[1, H]."""
    others: FeatureArrays
    """[K, H]."""
    players: Sequence[int]
    actions: Mapping[str, Value]

    @property
    def background(self) -> int:
        """How many background windows there are."""
        return len(self.others.present)

    @property
    def batch_rows(self) -> int:
        """How many rows are scored at once."""
        spec = self.policy.spec
        row_bytes = 4 * spec.history * sum(s.tokens * s.width for s in spec.streams)
        return max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))

    def scores(self, shown_Rn: NDArray[np.bool_], background_R: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Score each actuator's action for each row; one without a head is left out."""
        size = self.batch_rows
        judges = {name: judge for name, value in self.actions.items() if (judge := self._judge(name, value))}
        found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in judges}
        for start in range(0, len(shown_Rn), size):
            batch = slice(start, start + size)
            context_RC = self.policy.contexts(self._mixed(shown_Rn[batch], background_R[batch]))
            for name, judge in judges.items():
                found[name].append(judge(context_RC).astype(np.float64))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _mixed(self, shown_Rn: NDArray[np.bool_], background_R: NDArray[np.int64]) -> FeatureArrays:
        """The windows [R, H]."""
        spec = self.policy.spec
        shown_RS = np.ones((len(shown_Rn), len(spec.streams)), bool)
        shown_RS[:, list(self.players)] = shown_Rn
        tokens = {
            name: np.where(
                shown_RS[:, s].reshape(-1, 1, 1, 1), self.subject.tokens[name], self.others.tokens[name][background_R]
            )
            for s, name in enumerate(spec.names)
        }
        shown_R1S = shown_RS[:, None]
        present = np.where(shown_R1S, self.subject.present, self.others.present[background_R])
        return FeatureArrays(tokens, present, np.where(shown_R1S, self.subject.ages, self.others.ages[background_R]))

    def _judge(self, name: str, value: Value) -> Callable[[NDArray[np.float32]], NDArray[Any]] | None:
        """What scores one actuator's action from a context; None for an actuator without a head."""
        policy, actions = self.policy, self.policy.spec.actions
        choices = {a.name: (n, a) for n, a in enumerate(actions.choices)}
        if name in choices and isinstance(value, str):
            index, actuator = choices[name]
            position = _position(actuator, value)
            return lambda context_RC: policy.action_scores(context_RC, index)[:, position]
        if actions.continuous and isinstance(value, tuple):
            return lambda context_RC: _log_density(policy, context_RC, name, value)
        return None


def _position(actuator: Choice, value: str) -> int:
    if value not in actuator.choices:
        raise NotExplainable(f"{actuator.name}: {value!r} is not one of its choices any more")
    return actuator.choices.index(value)


def _log_density(
    policy: Explainable, context_RC: NDArray[np.float32], name: str, value: tuple[float, ...]
) -> NDArray[Any]:
    """Log density of one continuous action before squashing: a monotone measure of how much the policy wants it."""
    found: NDArray[Any] | None = policy.action_log_density(context_RC, name, value)
    if found is None:
        raise NotExplainable(f"{name}: the policy has no such actuator")
    return found
