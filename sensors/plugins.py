"""Load what an installed package offers under an entry point: sensors, encoders and rewards of third parties.

Actuators look up their plants by themselves, because sensors and actuators may not import each other.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any


class PluginError(ValueError):
    """A plug-in is missing, ambiguous or cannot be imported; `str` says which and what is installed."""


def load_plugin(group: str, name: str) -> Any:
    """Import the object that the entry point `name` of `group` names.

    Raises:
        PluginError: no installed package offers it, several do, or its import fails.
    """
    found = {point.value: point for point in entry_points(group=group, name=name)}
    if not found:
        installed = sorted({point.name for point in entry_points(group=group)})
        raise PluginError(f"no entry point {name!r} in {group}; installed: {', '.join(installed) or 'none'}")
    if len(found) > 1:
        raise PluginError(
            f"{len(found)} packages offer {name!r} in {group}: {', '.join(sorted(found))}; keep one of them"
        )
    value, point = next(iter(found.items()))
    try:
        return point.load()
    except Exception as error:  # foreign code fails with whatever it likes
        raise PluginError(
            f"{name!r} in {group} cannot be loaded from {value}: {type(error).__name__}: {error}"
        ) from error
