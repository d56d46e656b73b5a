"""Build the retained `info` payload: everything that a stranger on the broker needs to show and command this agent.

The payload comes from the settings alone. Sources lose user names and passwords; what came from the environment or from a
secret file never appears.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from actuators.config import AnyActuator
from learners.task_kinds import KINDS
from runtime.config.schema import Config
from sensors.config import AnyStream, fields_of, public_source


@dataclass(frozen=True, slots=True)
class InfoBuilder:
    """Builds the `info` payload.

    Args:
        config: the settings.
        version: of reflexd.
        text: of the settings file, for its digest.
    """

    config: Config
    version: str
    text: str = ""

    def build(self, policy: str, mode: str) -> dict[str, Any]:
        """Build the payload for this policy version and mode."""
        return describe(self.config, version=self.version, policy=policy, text=self.text) | {"mode": mode}


def describe(config: Config, *, version: str, policy: str, text: str = "") -> dict[str, Any]:
    """Return the `info` payload: `version`, `config` digest, `streams`, `actuators`, `tasks`, `policy`, `mode`, `rate_hz`, `gate`."""
    return {
        "agent": config.agent,
        "version": version,
        "config": hashlib.sha256(text.encode() or config.model_dump_json().encode()).hexdigest()[:12],
        "rate_hz": config.tick.rate_hz,
        "mode": config.mode,
        "policy": policy,
        "streams": {name: _stream(stream) for name, stream in config.streams.items()},
        "actuators": {name: _actuator(actuator) for name, actuator in config.actuators.items()},
        "tasks": {
            name: {
                "kind": task.kind,
                "stream": task.stream,
                "labels": list(task.labels),
                "modality": KINDS[task.kind].modality,
                "inputs": list(KINDS[task.kind].inputs),
                "output": KINDS[task.kind].output,
            }
            for name, task in config.tasks.items()
        },
        "gate": {
            "arm": config.gate.arm,
            "deadman_ms": config.gate.deadman_ms,
            "forbid": list(config.gate.forbid),
        },
        "learner": {"enabled": config.learner.enabled},
        "simulated_overrides": bool(config.plant and config.plant.simulated_overrides),
    }


def _stream(stream: AnyStream) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "kind": stream.kind,
        "required": stream.required,
        "max_age_s": stream.max_age_s,
        "encoder": stream.encoder,
    }
    if fields := fields_of(stream):
        shown["fields"] = list(fields)
    if stream.kind == "microphone":
        shown["rate_hz"] = stream.rate_hz
    shown["source"] = stream.plugin if stream.kind == "plugin" else public_source(stream.source)
    return shown


def _actuator(actuator: AnyActuator) -> dict[str, Any]:
    shown: dict[str, Any] = {"kind": actuator.kind, "safe": actuator.safe, "ttl_ms": actuator.ttl_ms}
    for key in ("choices", "low", "high", "max_rate", "task", "topic", "state_topic", "state_value"):
        value = getattr(actuator, key, None)
        if value is not None:
            shown[key] = list(value) if isinstance(value, tuple) else value
    return shown
