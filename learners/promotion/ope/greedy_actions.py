"""Compute the best actions of a policy on logged observations: are they finite, within limits, how often each, how alike?

Shapes: N decisions, A components of one continuous actuator.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from learners.model.heads import HeadOutput
from learners.model.spec import PolicySpec
from learners.promotion.ope.logged_data import ActingPolicy, Logged

Values = Mapping[str, NDArray[np.float64]]
"""By actuator: index N of the choice, or motions N,A in its units."""


@dataclass(frozen=True, slots=True)
class Actions:
    """Of N decisions."""

    values: Values
    sound: bool
    """Every value, score and estimate is finite."""
    outside: int
    """Motions outside their limits and choices that do not exist."""


def act(policy: ActingPolicy, logged: Logged, *, masked: bool = True) -> Generator[None, None, Actions]:
    """Go through the observations chunk by chunk; the generator returns the whole.

    Args:
        policy: chooses the greedy actions.
        logged: the observations.
        masked: leave out the choices that the gate would not have let pass.
    """
    generator = torch.Generator().manual_seed(0)
    parts: list[Values] = []
    sound = True
    for rows in logged.chunks():
        with torch.no_grad():
            context_BC, masks = logged.contexts(policy, rows), logged.masks(rows) if masked else None
            out = policy.heads.act(context_BC, generator=generator, explore=False, masks=masks)
        sound &= is_sound(out)
        parts.append({name: value.double().numpy() for name, value in out.values.items()})
        yield
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    return Actions(joined, sound, outside(logged.spec, joined))


def is_sound(out: HeadOutput) -> bool:
    """Return whether every number of the heads is finite."""
    return all(bool(x.isfinite().all()) for x in (*out.values.values(), *out.scores.values(), out.value))


def outside(spec: PolicySpec, values: Values) -> int:
    """Return how many actions are outside their limits."""
    count = 0
    for choice in spec.actions.choices:
        index_N = values[choice.name]
        count += int(((index_N < 0) | (index_N >= len(choice.choices))).sum())
    for motion in spec.actions.continuous:
        low, high = np.array(motion.low), np.array(motion.high)
        slack, value_NA = 1e-6 * (high - low), values[motion.name]
        count += int(((value_NA < low - slack) | (value_NA > high + slack)).any(-1).sum())
    return count


def shares(spec: PolicySpec, values: Values) -> dict[str, dict[str, float]]:
    """Return the share of each choice; for motions, under `deviation`, their mean deviation as a share of the range."""
    figures: dict[str, dict[str, float]] = {}
    for actuator in spec.actions.choices:
        index_N = values[actuator.name].astype(int)
        counts = np.bincount(index_N, minlength=len(actuator.choices)) / max(1, len(index_N))
        figures[actuator.name] = {c: round(float(n), 4) for c, n in zip(actuator.choices, counts, strict=True)}
    for motion in spec.actions.continuous:
        figures[motion.name] = {"deviation": round(deviation(spec, motion.name, values), 5)}
    return figures


def agreement(spec: PolicySpec, one: Values, two: Values) -> dict[str, float]:
    """Share of equal choices; for motions 1 minus the mean distance as a share of the range."""
    figures = {a.name: float((one[a.name] == two[a.name]).mean()) for a in spec.actions.choices}
    for motion in spec.actions.continuous:
        away = np.abs(one[motion.name] - two[motion.name]) / _range(spec, motion.name)
        figures[motion.name] = 1 - float(away.mean())
    return {name: round(value, 4) for name, value in figures.items()}


def deviation(spec: PolicySpec, name: str, values: Values) -> float:
    """Return the mean deviation of a motion, as a share of its range."""
    return float((values[name].std(0) / _range(spec, name)).mean())


def _range(spec: PolicySpec, name: str) -> NDArray[np.float64]:
    actuator = next(a for a in spec.actions.continuous if a.name == name)
    return np.subtract(actuator.high, actuator.low, dtype=np.float64)
