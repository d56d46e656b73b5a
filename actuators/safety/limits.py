"""Limits of a single value: its shape, its range and its pace. Pure functions; the gate calls them.

They check that numbers are finite before they compare them, because `max(-1, min(1, nan))` is 1. A refusal names its rule;
events and counters use the same names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, UtteranceSettings

SLACK = 1e-9
"""Rounding allowed when a step is compared with the largest step."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The rule that refused a value, and the reason."""

    rule: str
    reason: str


def check(settings: AnyActuator, value: object) -> Value | Refusal:
    """Return `value` as the actuator accepts it: of the right type, finite, and in range (or clamped, if set so)."""
    if isinstance(settings, ContinuousSettings):
        return _vector(settings, value)
    if not isinstance(value, str):
        return Refusal("wrong_type", f"expected a string, got {type(value).__name__}")
    if isinstance(settings, ChoiceSettings):
        if value not in settings.choices:
            return Refusal("unknown_choice", f"{value[:40]!r} is not one of {list(settings.choices)}")
        return value
    return _text(settings, value)


def _text(settings: UtteranceSettings, value: str) -> Value | Refusal:
    if len(value) > settings.max_chars:
        return Refusal("too_long", f"{len(value)} characters; at most {settings.max_chars}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        return Refusal("wrong_type", "unpaired surrogate: not valid UTF-8")
    return value


def _vector(settings: ContinuousSettings, value: object) -> Value | Refusal:
    numbers = vector(value, len(settings.low))
    if isinstance(numbers, Refusal):
        return numbers
    inside = clamped(settings, numbers)
    if inside != numbers and settings.out_of_range == "refuse":
        return Refusal("out_of_range", f"{list(numbers)} is not between {list(settings.low)} and {list(settings.high)}")
    return inside


def clamped(settings: ContinuousSettings, numbers: Sequence[float]) -> tuple[float, ...]:
    """Return the numbers, each at most as far as the nearest limit of its component."""
    return tuple(map(clamp, settings.low, numbers, settings.high))


def clamp(low: float, number: float, high: float) -> float:
    """Return the number, or the limit that it lies beyond."""
    return min(high, max(low, number))


def vector(value: object, size: int) -> tuple[float, ...] | Refusal:
    """Return `value` as `size` finite floats of any range; a single number is a vector of one."""
    items = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in items):
        return Refusal("wrong_type", f"expected {size} numbers")
    if len(items) != size:
        return Refusal("wrong_type", f"expected {size} numbers, got {len(items)}")
    try:
        numbers = tuple(float(item) for item in items)
    except OverflowError:
        return Refusal("not_finite", "a number is beyond a double")
    if not all(map(math.isfinite, numbers)):
        return Refusal("not_finite", f"{list(numbers)} has a component that is not finite")
    return numbers


@dataclass(frozen=True, slots=True)
class LastCommand:
    """The newest command of an actuator, and every value from which the next step is measured."""

    value: Value | None
    since_sent_s: float
    since_change_s: float
    steps: Sequence[tuple[Value, float]] = ()
    """Values with their ages in seconds; none when nothing is known."""


def pace(
    settings: AnyActuator, value: Value, last: LastCommand, longest_s: float, *, approach: bool
) -> Value | Refusal:
    """Return `value`, or as much of the way to it as the pace allows.

    Args:
        settings: the actuator's.
        value: what `check` let through.
        last: the newest command.
        longest_s: time since a command counts at most this much, so that a pause does not save up a jump.
        approach: a step that is too large is shortened, whatever the settings say: a person's hand is followed.
    """
    if last.since_sent_s < settings.min_interval_s:
        return Refusal(
            "too_soon", f"{last.since_sent_s:.3f} s after the last command; at least {settings.min_interval_s:g}"
        )
    if isinstance(settings, ChoiceSettings):
        if value != last.value and last.since_change_s < settings.min_hold_s:
            return Refusal("min_hold", f"{last.value!r} is held for {settings.min_hold_s:g} s")
        return value
    if isinstance(settings, ContinuousSettings) and settings.max_rate is not None:
        return _rate(settings, settings.max_rate, value, last, longest_s, approach=approach)
    return value


def _rate(
    settings: ContinuousSettings,
    rates: tuple[float, ...],
    value: Value,
    last: LastCommand,
    longest_s: float,
    *,
    approach: bool,
) -> Value | Refusal:
    if not last.steps:
        remedy = "let the device report, or give the actuator a safe value"
        return Refusal("unknown_state", f"max_rate cannot be applied: the present value is unknown; {remedy}")
    assert isinstance(value, tuple)
    starts = [(start, min(longest_s, age_s)) for start, age_s in last.steps]
    near = []
    for index, wanted in enumerate(value):
        lowest = max(float(start[index]) - rates[index] * span_s for start, span_s in starts)
        highest = min(float(start[index]) + rates[index] * span_s for start, span_s in starts)
        if lowest > highest + SLACK:
            return Refusal("too_fast", "no value is within one step of every command that is not yet acknowledged")
        near.append(clamp(lowest, wanted, highest))
    if all(abs(reached - value[index]) <= SLACK for index, reached in enumerate(near)):
        return value
    if settings.out_of_range == "refuse" and not approach:
        start, span_s = starts[-1]
        return Refusal(
            "too_fast", f"from {list(start)} to {list(value)} in {span_s:.3f} s; at most {list(rates)} a second"
        )
    return clamped(settings, near)
