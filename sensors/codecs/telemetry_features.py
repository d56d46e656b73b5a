"""Turn the numbers of a telemetry stream into what the policy reads: angles to sine and cosine, enums to a number a word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.config import AngleField, EnumField, FieldKind

TURN = {"degrees": 360.0, "radians": math.tau, "turns": 1.0}
"""One full turn in each unit."""


def policy_numbers(
    fields: tuple[str, ...], values: NDArray[Any], kinds: Mapping[str, FieldKind]
) -> NDArray[np.float32]:
    """Return the numbers of one reading as the policy reads them, in the order of `sensors.config.policy_fields_of`.

    Args:
        fields: names of the values.
        values: the reading's, one a field; of an enum the place of its word.
        kinds: of the fields that are no plain numbers.
    """
    if not kinds:
        return values.astype(np.float32)
    numbers: list[float] = []
    for field, value in zip(fields, values.tolist(), strict=True):
        match kinds.get(field):
            case AngleField(unit=unit):
                turn = math.tau * math.fmod(value / TURN[unit], 1.0)
                numbers += [math.sin(turn), math.cos(turn)]
            case EnumField(words=words):
                numbers += [float(place == value) for place in range(len(words))]
            case _:
                numbers.append(value)
    return np.array(numbers, np.float32)
