"""A reward computed at every tick from what was seen and done: warm enough, without heating more than needed."""

from __future__ import annotations

from collections.abc import Mapping

from actuators.api import Value
from sensors.api import Observation, Telemetry

WANTED_C = 20.0
HEATING_COSTS = 0.1


def comfort(observation: Observation, actions: Mapping[str, Value]) -> float:
    """Minus the distance from 20 degrees, minus a little for heating; 0 while the temperature is unknown."""
    room = observation.readings.get("room")
    if not isinstance(room, Telemetry):
        return 0.0
    celsius = float(room.values[room.fields.index("celsius")])
    return -abs(celsius - WANTED_C) / 10 - (HEATING_COSTS if actions.get("heater") == "ON" else 0.0)
