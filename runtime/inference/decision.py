"""Define the result of one inference, and build it from the heads' output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actuators.actions import Action, Choice, Continuous, Value
from learners.model.spec import PolicySpec

Masks = Mapping[str, NDArray[np.bool_]]
"""By choice actuator, which of its n choices are allowed; absent where all are."""


class HeadRow(Protocol):
    """The heads' output for one context: arrays or tensors with one row, as `learners.model.heads.HeadOutput` has them."""

    @property
    def values(self) -> Any:
        """By actuator: the index of the choice [1], or the vector [1, A] in the actuator's units."""

    @property
    def probabilities(self) -> Any:
        """By actuator [1]."""

    @property
    def value(self) -> Any:
        """The expected return [1]."""

    @property
    def scores(self) -> Any:
        """By choice actuator [1, n]."""

    @property
    def choices(self) -> Any:
        """By choice actuator, the probability of each choice [1, n]."""


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """The result of one inference for one tick."""

    policy: str
    actions: dict[str, Action]
    value: float
    tokens: dict[str, NDArray[Any]]
    """By stream, those of every present one: float16 [T, W]; telemetry is raw float32 [1, W]."""
    encoder_versions: dict[str, str]
    scores: dict[str, list[float]]
    """The critic's value of each choice."""
    latency_s: float
    encoded: tuple[str, ...] = ()
    """Streams that were encoded at this tick; the others came from the cache."""
    choices: dict[str, dict[str, float]] = field(default_factory=dict)
    """By choice actuator, the probability of every choice; they sum to 1."""
    encode_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each encoder took, of those that ran at this tick."""
    encoders: dict[str, str] = field(default_factory=dict)
    """The version of every encoder at this tick, by its name, also where its streams are missing."""
    not_finite: tuple[str, ...] = ()
    """Streams with tokens that are not finite; they count as missing."""

    def actions_message(self) -> dict[str, dict[str, Any]]:
        """Return the actions as the `decision` message has them: value, probability, and the probabilities of all choices."""
        return {
            name: {"value": action.value, "probability": action.probability}
            | ({"probabilities": self.choices[name]} if name in self.choices else {})
            for name, action in self.actions.items()
        }


def actions_of(spec: PolicySpec, out: HeadRow) -> tuple[dict[str, Action], dict[str, list[float]]]:
    """Convert the heads' output to actions, and to the critic's value of each choice."""
    learned: list[Choice | Continuous] = [*spec.actions.choices, *spec.actions.continuous]
    actions = {one.name: Action(_value(one, out), float(out.probabilities[one.name][0])) for one in learned}
    return actions, {name: row[0].tolist() for name, row in out.scores.items()}


def _value(actuator: Choice | Continuous, out: HeadRow) -> Value:
    row = out.values[actuator.name][0]
    return actuator.choices[int(row)] if isinstance(actuator, Choice) else tuple(row.tolist())


def masks_of(spec: PolicySpec, allowed: Mapping[str, tuple[str, ...]]) -> Masks:
    """Return which choices a policy may take, by what the gate would let pass."""
    flags = {a.name: a.mask(allowed.get(a.name)) for a in spec.actions.choices} if allowed else {}
    return {name: np.array(mask) for name, mask in flags.items() if mask is not None}


def choices_of(spec: PolicySpec, out: HeadRow) -> dict[str, dict[str, float]]:
    """Return the probability of every choice, by actuator and choice."""
    return {
        a.name: dict(zip(a.choices, out.choices[a.name][0].tolist(), strict=True))
        for a in spec.actions.choices
        if a.name in out.choices
    }
