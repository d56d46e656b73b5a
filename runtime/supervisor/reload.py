"""New settings for a running daemon: what differs, which children must be restarted for it, and what a reload cannot change.

Only compares; the supervisor does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.config.schema import Config
from runtime.supervisor.child_processes import has_models_process

RESTART_REQUIRED = ("agent", "state_dir", "tick", "mqtt", "actuators", "gate", "plant", "metrics")
"""Settings that the gate, the broker or the plant were built from."""
LIVE = {"dashboard": ("dashboard",), "mode": (), "storage": ("agent",), "fleet": ("uplink",)}
"""Settings that only some children have; any other one restarts agent, learner and models."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What lies between two settings files."""

    changed: list[str]
    """Settings that differ."""
    restart_required: list[str]
    """Those of them that need a new daemon. While there are any, nothing is changed: half of a change is worse than none."""
    children: set[str]
    """Who has to be restarted for the others."""


def compare(old: Config, new: Config) -> Changes:
    """Return what must be done to get from the old settings to the new ones."""
    changed = [key for key in Config.model_fields if getattr(old, key) != getattr(new, key)]
    required = [key for key in changed if key in RESTART_REQUIRED]
    if old.required_streams != new.required_streams:
        required.append("streams")
    if (old.fleet is None) != (new.fleet is None):
        required.append("fleet")
    if bool(old.tasks) != bool(new.tasks):
        required.append("tasks")
    elif has_models_process(old) != has_models_process(new):
        required += sorted({"tasks", "streams", "deliberator"} & {*changed} - {*required})
    return Changes(
        changed, required, {name for key in changed for name in LIVE.get(key, ("agent", "learner", "models"))}
    )
