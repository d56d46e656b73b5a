"""Build a simulated plant by its name.

A plug-in is an entry point of the group `reflexd.actuators`: a callable with the keywords `agent`, `seed` and `rate_hz`
that returns a `Plant`; `reflexd plant NAME` runs it.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from actuators.sim.plant import Plant
from actuators.sim.room_plant import RoomPlant
from actuators.sim.rooms_plant import RoomsPlant

PANORAMA = "panorama"
ROOM = "room"
ROOMS = "rooms"
GROUP = "reflexd.actuators"


def build_plant(
    environment: str, *, agent: str, seed: int = 0, rate_hz: float | None = None, simulated_overrides: bool = False
) -> Plant:
    """Build the plant `environment`: `panorama`, `room`, `rooms`, an entry point of `reflexd.actuators`, or a gymnasium id.

    Raises:
        ValueError: there is no such environment, or its spaces cannot be put on the wire.
    """
    if environment == PANORAMA:
        from actuators.sim.panorama_plant import PanoramaPlant  # noqa: PLC0415 - it loads pictures and sounds

        return PanoramaPlant(agent, seed, simulated_overrides=simulated_overrides)
    if environment == ROOM:
        return RoomPlant(seed)
    if environment == ROOMS:
        return RoomsPlant(agent, seed)
    for point in entry_points(group=GROUP, name=environment):
        return _plugin(environment, point.load()(agent=agent, seed=seed, rate_hz=rate_hz))
    return _environment(environment, agent, seed, rate_hz)


def plant_settings(environment: str, *, agent: str, rate_hz: float | None = None) -> dict[str, Any]:
    """Return a settings file, as plain values, for an agent that controls `environment`.

    Raises:
        ValueError: there is no such environment, or its spaces cannot be put on the wire.
    """
    from actuators.sim import gym_plant, panorama_plant  # noqa: PLC0415 - as above

    if environment == PANORAMA:
        return panorama_plant.settings(agent)
    return gym_plant.settings(environment, agent, rate_hz)


def _environment(environment: str, agent: str, seed: int, rate_hz: float | None) -> Plant:
    from actuators.sim.gym_plant import GymPlant  # noqa: PLC0415 - as above

    return GymPlant(environment, agent, seed, rate_hz)


def _plugin(name: str, plant: object) -> Plant:
    if not isinstance(plant, Plant):
        raise ValueError(f"{name}: the entry point of {GROUP} returned {type(plant).__name__}; a Plant is required")  # noqa: TRY004 - a wrong plug-in is a wrong setting
    return plant
