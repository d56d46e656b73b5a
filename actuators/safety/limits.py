"""What one actuator can take: shape, range and pace of a single value. Pure; the gate asks, this answers.

Finiteness comes before any comparison, because `max(-1, min(1, nan))` is 1. Rules are the names under which refusals are
counted and told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, UtteranceSettings

SLACK = 1e-9
"""Rounding allowed when a step is compared with the largest step."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule that said no, and the reason in words."""

    rule: str
    reason: str


def check(settings: AnyActuator, value: object) -> Value | Refusal:
    """`value` as this actuator can take it: right type, finite, inside its range (or clamped into it, if set so)."""
    if isinstance(settings, ContinuousSettings):
        return _vector(settings, value)
    if not isinstance(value, str):
        return Refusal("wrong_type", f"a word is wanted, not {type(value).__name__}")
    if isinstance(settings, ChoiceSettings):
        if value not in settings.choices:
            return Refusal("unknown_choice", f"{value[:40]!r} is not one of {list(settings.choices)}")
        return value
    return _text(settings, value)


def _text(settings: UtteranceSettings, value: str) -> Value | Refusal:
    if len(value) > settings.max_chars:
        return Refusal("too_long", f"{len(value)} characters; at most {settings.max_chars}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        return Refusal("wrong_type", "half of a character: the text cannot be written as UTF-8")
    return value


def _vector(settings: ContinuousSettings, value: object) -> Value | Refusal:
    numbers = vector(value, len(settings.low))
    if isinstance(numbers, Refusal):
        return numbers
    inside = tuple(
        min(high, max(low, number)) for low, number, high in zip(settings.low, numbers, settings.high, strict=True)
    )
    if inside != numbers and settings.out_of_range == "refuse":
        return Refusal("out_of_range", f"{list(numbers)} is not between {list(settings.low)} and {list(settings.high)}")
    return inside


def vector(value: object, size: int) -> tuple[float, ...] | Refusal:
    """`value` as `size` finite floats, whatever their range; a single number is a vector of one."""
    items = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in items):
        return Refusal("wrong_type", f"{size} numbers are wanted")
    if len(items) != size:
        return Refusal("wrong_type", f"{size} numbers are wanted, not {len(items)}")
    try:
        numbers = tuple(float(item) for item in items)
    except OverflowError:
        return Refusal("not_finite", "a number is beyond a double")
    if not all(map(math.isfinite, numbers)):
        return Refusal("not_finite", f"{list(numbers)} has a component that is not finite")
    return numbers


@dataclass(frozen=True, slots=True)
class LastCommand:
    """What the actuator was last known to do, and how long ago."""

    value: Value | None
    since_sent_s: float
    since_change_s: float


def pace(
    settings: AnyActuator, value: Value, past: LastCommand, longest_s: float, *, approach: bool = False
) -> Value | Refusal:
    """`value`, or as much of the way to it as the pace allows.

    Args:
        settings: the actuator's.
        value: what `check` let through.
        past: what it does now.
        longest_s: time since the last command counts at most this much, so that a pause does not save up a jump.
        approach: a step that is too large is shortened, whatever the settings say: a person's hand is followed.
    """
    if past.since_sent_s < settings.min_interval_s:
        return Refusal(
            "too_soon", f"{past.since_sent_s:.3f} s after the last command; at least {settings.min_interval_s:g}"
        )
    if isinstance(settings, ChoiceSettings):
        if value != past.value and past.since_change_s < settings.min_hold_s:
            return Refusal("min_hold", f"{past.value!r} is held for {settings.min_hold_s:g} s")
        return value
    if isinstance(settings, ContinuousSettings) and settings.max_rate is not None:
        return _rate(settings, settings.max_rate, value, past, longest_s, approach=approach)
    return value


def _rate(
    settings: ContinuousSettings,
    rates: tuple[float, ...],
    value: Value,
    past: LastCommand,
    longest_s: float,
    *,
    approach: bool,
) -> Value | Refusal:
    if not isinstance(past.value, tuple) or not isinstance(value, tuple):
        return value  # nothing is known to measure the step from
    span_s = min(longest_s, past.since_sent_s)
    steps = [rate * span_s for rate in rates]
    near = tuple(
        min(now + step, max(now - step, wanted)) for now, step, wanted in zip(past.value, steps, value, strict=True)
    )
    if all(abs(a - b) <= SLACK for a, b in zip(near, value, strict=True)):
        return value
    if settings.out_of_range == "refuse" and not approach:
        return Refusal(
            "too_fast", f"from {list(past.value)} to {list(value)} in {span_s:.3f} s; at most {list(rates)} a second"
        )
    return tuple(
        min(high, max(low, number)) for low, number, high in zip(settings.low, near, settings.high, strict=True)
    )
