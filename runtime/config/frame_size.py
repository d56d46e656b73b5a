"""Bound the messages between the agent and the gate: the largest that given settings permit must fit into one.

A message that is too large cannot be sent, and without messages the gate lets nothing move.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping

from actuators.config import AnyActuator, conditions_of
from actuators.expressions import Expression, ExpressionError
from sensors.config import AnyStream

MAX_FRAME = 262_144
"""Bytes of the largest message."""
FIXED = 16_384
"""For everything that the settings do not determine: versions, identifiers, reasons, names of fields."""
NUMBER = 25
"""The longest number in JSON, and a comma."""
CHARACTER = 6
"""The longest character in JSON: an escaped one."""
OUTCOME = 1_024
"""For one actuator: what became of it, and its refusals by rule."""


def check_frames(streams: Mapping[str, AnyStream], actuators: Mapping[str, AnyActuator], forbid: Iterable[str]) -> None:
    """Check that the largest messages fit.

    Raises:
        ValueError: one does not; it names the setting with the largest share.
    """
    values = {f"actuators.{name}": len(name) + _value(each) for name, each in actuators.items()}
    conditions = {entry for each in actuators.values() for entry in conditions_of(each.requires)}
    proposal = values | {
        "streams": sum(len(name) + 3 for name in streams),
        "actuators": sum(map(_text, conditions)),
        "gate.forbid": sum(_text(field) + NUMBER for field in named_fields(forbid, streams)),
    }
    verdict = {
        f"actuators.{name}": 2 * values[f"actuators.{name}"] + OUTCOME + _allowed(each)
        for name, each in actuators.items()
    }  # in force, of a person since the last tick, and what the next tick may propose
    for parts in (proposal, verdict):
        total = FIXED + sum(parts.values())
        if total > MAX_FRAME:
            largest = max(parts, key=parts.__getitem__)
            raise ValueError(
                f"{largest}: messages between agent and gate could have {total} bytes, {parts[largest]} of them from here; "
                f"at most {MAX_FRAME} are possible. Use fewer components, fields or conditions, or a lower max_chars"
            )


def named_fields(forbid: Iterable[str], streams: Collection[str]) -> set[tuple[str, str]]:
    """Return the fields of telemetry that rules name: stream and field. A rule that cannot be read names none."""
    found = set[tuple[str, str]]()
    for text in forbid:
        try:
            parts = Expression(text).parts
        except ExpressionError:  # the loader reports it with its position
            continue
        found.update((root, part) for root, part in parts if root in streams and isinstance(part, str))
    return found


def _value(actuator: AnyActuator) -> int:
    if actuator.kind == "continuous":
        return NUMBER * len(actuator.low) + 8
    if actuator.kind == "text":
        return CHARACTER * actuator.max_chars + 8
    return max(map(_text, actuator.choices))


def _allowed(actuator: AnyActuator) -> int:
    return sum(map(_text, actuator.choices)) if actuator.kind == "choice" else 0


def _text(text: str | tuple[str, str]) -> int:
    return len(json.dumps(text)) + 4
