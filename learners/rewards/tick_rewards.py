"""Compute rewards at every tick: arithmetic on telemetry and actions, and Python functions from `reflexd.rewards`.

The reward of a decision depends on its executed actions and on what the next tick sees of them. A reward that cannot be computed (a missing
stream, a division by zero, a failing plug-in) is 0, and the failure is counted by name. Knows nothing of the topic `reward`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from actuators.actions import Value
from actuators.config import AnyActuator
from actuators.expressions import Expression, ExpressionError, Known
from learners.config.rewards import AnyReward, ExpressionReward, PluginReward
from sensors.config import AnyStream, fields_of
from sensors.plugins import PluginError, load_plugin
from sensors.readings import Observation, Telemetry

GROUP = "reflexd.rewards"
MAX_REASON = 200
"""Characters of a reason."""
Plugin = Callable[[Observation, Mapping[str, Value]], float]
_PLUGIN_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors that a faulty plug-in may raise; the reward is then 0. Any other error stops the agent, because its cause is unclear."""


class RewardUnknown(LookupError):  # noqa: N818 - reads as what happened
    """No installed package provides the named reward; `str` lists the installed ones."""


def expression_names(streams: Mapping[str, AnyStream], actuators: Mapping[str, AnyActuator]) -> Known:
    """Return the names that an expression may use: telemetry fields, and actions with their components."""
    names: dict[str, Any] = {name: fields_of(s) for name, s in streams.items() if fields_of(s)}
    for name, actuator in actuators.items():
        names[name] = len(actuator.low) if actuator.kind == "continuous" else None
    return names


class TickRewards:
    """The rewards of kind `expression` and `plugin` among `settings`.

    Raises:
        actuators.expressions.ExpressionError: an expression cannot be used.
        RewardUnknown: a plug-in is not installed.
    """

    def __init__(
        self, settings: Iterable[AnyReward], names: Known | None = None, plugins: Mapping[str, Plugin] | None = None
    ) -> None:
        self.faults: Counter[str] = Counter()
        """Ticks at which a reward could not be computed, by its name."""
        self.reasons: dict[str, str] = {}
        """Why a reward could not be computed the last time, by its name."""
        self.clipped: Counter[str] = Counter()
        """Rewards beyond their limit, by name."""
        self.beyond: dict[str, tuple[float, float]] = {}
        """The last such value and the limit, by name."""
        self.latest: dict[str, float] = {}
        """The last tick's rewards by name."""
        self._expressions: list[tuple[ExpressionReward, Expression]] = []
        self._plugins: list[tuple[PluginReward, Plugin]] = []
        for reward in settings:
            if isinstance(reward, ExpressionReward):
                self._expressions.append((reward, Expression(reward.value, names)))
            elif isinstance(reward, PluginReward):
                self._plugins.append((reward, _plugin(reward.plugin, plugins)))

    def __bool__(self) -> bool:
        """Return whether there is any such reward."""
        return bool(self._expressions or self._plugins)

    def at(self, observation: Observation, actions: Mapping[str, Value]) -> float:
        """Return the sum of all rewards of `actions` by what is observed after them, each clipped to its own limit."""
        self.latest = {}
        if self._expressions:
            values = expression_values(observation, actions)
            for setting, expression in self._expressions:
                self._take(setting, partial(expression.evaluate, values))
        for plugged, plugin in self._plugins:
            self._take(plugged, partial(plugin, observation, actions))
        return sum(self.latest.values())

    def _take(self, setting: ExpressionReward | PluginReward, compute: Callable[[], float]) -> None:
        try:
            value = float(compute())
        except (ExpressionError, *_PLUGIN_FAULTS) as error:
            value = self._fault(setting.name, f"{type(error).__name__}: {error}")
        if not math.isfinite(value):  # before any clip: min and max let a NaN through
            value = self._fault(setting.name, f"{value} is not a finite number")
        limited = max(-setting.clip, min(setting.clip, value))
        if limited != value:
            self.clipped[setting.name] += 1
            self.beyond[setting.name] = (value, setting.clip)
        self.latest[setting.name] = limited

    def _fault(self, name: str, reason: str) -> float:
        self.faults[name] += 1
        self.reasons[name] = reason[:MAX_REASON]
        return 0.0


def build_rewards(
    settings: Iterable[AnyReward], streams: Mapping[str, AnyStream], actuators: Mapping[str, AnyActuator]
) -> TickRewards:
    """Build the rewards of one settings file.

    Raises:
        actuators.expressions.ExpressionError: an expression cannot be used.
        RewardUnknown: a plug-in is not installed.
    """
    return TickRewards(settings, expression_names(streams, actuators))


def expression_values(observation: Observation, actions: Mapping[str, Value]) -> dict[str, Any]:
    """Return what an expression may use: the actions, and the numbers of each telemetry stream that is present."""
    values: dict[str, Any] = dict(actions)
    for name, reading in observation.readings.items():
        if isinstance(reading, Telemetry):
            values[name] = dict(zip(reading.fields, reading.values.tolist(), strict=True))
    return values


def _plugin(name: str, given: Mapping[str, Plugin] | None) -> Plugin:
    if given is not None and name in given:
        return given[name]
    try:
        plugin: Plugin = load_plugin(GROUP, name)
    except PluginError as error:
        raise RewardUnknown(f"reward plugin: {error}") from error
    return plugin
