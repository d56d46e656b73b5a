"""Define the action space of each actuator, and its values.

A choice is one of a few words, a continuous action a vector inside a box, a text action a string. Values are plain
Python (str, tuple of float), so the gate needs neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings

Value = str | tuple[float, ...]
"""A choice or text is a str, a continuous action a tuple of floats."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `choices`, which are distinct and at least two."""

    name: str
    choices: tuple[str, ...]

    def mask(self, allowed: Collection[str] | None) -> tuple[bool, ...] | None:
        """Return n flags: which choices are allowed; None where all are, or where none of them is known to be.

        Args:
            allowed: the names of the choices that the gate would let pass; None where it named none.
        """
        flags = tuple(choice in allowed for choice in self.choices) if allowed is not None else ()
        return flags if any(flags) and not all(flags) else None


@dataclass(frozen=True, slots=True)
class Continuous:
    """A vector with `low[i] <= value[i] <= high[i]`."""

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def is_symmetric(self) -> bool:
        """Whether the negative of every allowed value is allowed."""
        return all(low == -high for low, high in zip(self.low, self.high, strict=True))


@dataclass(frozen=True, slots=True)
class Utterance:
    """A string written by the language task called `task`."""

    name: str
    task: str


Actuator = Choice | Continuous | Utterance


@dataclass(frozen=True, slots=True)
class ActionSpace:
    """Every actuator, in the order of the settings."""

    actuators: tuple[Actuator, ...]

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The choice actuators, in order."""
        return tuple(a for a in self.actuators if isinstance(a, Choice))

    @property
    def continuous(self) -> tuple[Continuous, ...]:
        """The continuous actuators, in order."""
        return tuple(a for a in self.actuators if isinstance(a, Continuous))


@dataclass(frozen=True, slots=True)
class Action:
    """One actuator's part of a decision: the value, and the probability (density, if continuous) of drawing it."""

    value: Value
    probability: float


def action_space(actuators: Mapping[str, AnyActuator]) -> ActionSpace:
    """Build the action space from the settings, in their order."""
    return ActionSpace(tuple(_actuator(name, each) for name, each in actuators.items()))


def _actuator(name: str, settings: AnyActuator) -> Actuator:
    if isinstance(settings, ChoiceSettings):
        return Choice(name, settings.choices)
    if isinstance(settings, ContinuousSettings):
        return Continuous(name, settings.low, settings.high)
    return Utterance(name, settings.task)
