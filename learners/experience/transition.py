"""Define one stored tick, and its form on disk.

A transition contains the input of the policy (tokens of every encoder, masks, ages), the executed action with its origin and
probability, and the reward. Successors are not stored: the successor is the next transition of the same session, so
every array is stored once. Knows neither the database nor torch.

Shapes: tokens of an encoder are float16 [T, W], telemetry is float32 [T, W] (T = 1).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from actuators.actions import Value

By = Literal["policy", "override", "gate", "none"]
"""Who moved an actuator at this tick."""

Outcome = Literal["success", "failure"]
PROPOSAL_RULES = frozenset({"out_of_range", "too_soon", "min_hold", "too_fast", "forbidden"})
"""Refusals of the gate that a proposal itself causes. For the policy they are part of the world, so it learns from them."""
FORMER_BY: dict[str, By] = {"nobody": "none"}
"""Words in rows that were stored before 0.1.0."""
FORMAT = 1
_DTYPES = {"float16": np.float16, "float32": np.float32}


class Malformed(ValueError):  # noqa: N818 - reads as what happened
    """A stored record or a new transition is incomplete; `str` is the reason."""


@dataclass(frozen=True, slots=True)
class Transition:
    """What one tick saw and did.

    `actions` is what was executed (a person's or the gate's value where they acted); an actuator that is absent was not
    moved. A transition without any action only ends a session: it carries the last observation. `done` says that the
    state after this tick is terminal; an episode that was merely cut is a session without a successor.
    """

    session: str
    tick: int
    decision: str
    stamp_s: float
    """Unix seconds."""
    policy: str
    tokens: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    encoder_versions: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, bool] = field(default_factory=dict)
    ages_s: Mapping[str, float] = field(default_factory=dict)
    actions: Mapping[str, Value] = field(default_factory=dict)
    proposed: Mapping[str, Value] = field(default_factory=dict)
    """What the policy proposed to the gate; empty where there is no gate, or where an older version wrote the row."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """The gate's rule that refused the proposal, by actuator."""
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The choices that the gate would let pass, by actuator, as the policy knew them; absent where these were all."""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """Of the proposal as drawn, exploration included; a density where the action is continuous."""
    by: Mapping[str, By] = field(default_factory=dict)
    armed: bool = True
    """The gate allowed movement: it was armed and not stopped, and it answered in time."""
    reward: float = 0.0
    done: bool = False
    intervention: bool = False
    demonstration: bool = False
    truncated: bool = False
    """The episode was cut off after this tick: its value goes on, and the next tick belongs to another episode."""
    success: bool = False
    failure: bool = False
    """The episode ended well, or badly; `done` implies neither."""
    value: float = 0.0

    def overridden(self, values: Mapping[str, Value]) -> Transition:
        """Return this tick with what a person commanded before the next one as its actions."""
        if not values:
            return self
        by: dict[str, By] = {**self.by, **dict.fromkeys(values, "override")}
        return replace(self, actions={**self.actions, **values}, by=by, intervention=True)

    def changed(self, columns: Mapping[str, float]) -> Transition:
        """Return this tick with what a reward or a mark may change after it: reward, end, outcome and flags.

        Args:
            columns: by name; `truncated` and `success` may be absent, as in changes of before 0.1.0.
        """
        return replace(
            self,
            reward=columns["reward"],
            done=bool(columns["done"]),
            intervention=bool(columns["intervention"]),
            demonstration=bool(columns["demonstration"]),
            failure=bool(columns["failure"]),
            truncated=bool(columns.get("truncated", 0)),
            success=bool(columns.get("success", 0)),
        )

    def credited(self, actuator: str) -> Value | None:
        """Return the action of an actuator that training credits with the reward; None if neither policy nor person acted.

        An operator's action and a demonstration count as executed. The policy's action counts as proposed: what the gate made of it
        is part of the world. The gate's safe actions are rest.
        """
        if not self.armed:
            return None
        if self.is_proposal(actuator):
            return self.proposed[actuator]
        is_row_of_policy = self.by.get(actuator, "policy") == "policy" and actuator not in self.proposed
        return self.actions.get(actuator) if is_row_of_policy or self.by.get(actuator) == "override" else None

    def is_proposal(self, actuator: str) -> bool:
        """Return whether the credited action is the policy's proposal."""
        if not self.armed or actuator not in self.proposed or self.by.get(actuator) == "override":
            return False
        rule = self.refused.get(actuator)
        # without a rule of its own, a safe action came because another actuator went to rest
        return self.by.get(actuator) != "gate" if rule is None else rule in PROPOSAL_RULES

    @property
    def at_rest(self) -> bool:
        """Whether no actuator was moved by the policy or an operator."""
        return all(self.credited(name) is None for name in (*self.actions, *self.proposed))

    @property
    def reserved(self) -> bool:
        """Whether the reserve of the store keeps it."""
        return self.intervention or self.demonstration or self.failure or self.success or self.done

    @property
    def outcome(self) -> Outcome | None:
        """How the episode ended with this tick, where that is known."""
        return "failure" if self.failure else "success" if self.success else None


def encode(transition: Transition) -> tuple[bytes, bytes]:
    """Header (JSON) and body (raw arrays) of everything that never changes after the tick.

    Raises:
        Malformed: an array is not finite, not float16/float32, or not two-dimensional.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in transition.tokens.items()}
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES or array.ndim != 2:
            raise Malformed(f"tokens of {name}: {array.dtype} {array.shape}; float16 or float32 [T, W] is stored")
        if not np.isfinite(array).all():
            raise Malformed(f"tokens of {name} are not finite")
    numbers = [transition.reward, transition.value, transition.stamp_s, *transition.probabilities.values()]
    if not all(map(math.isfinite, numbers)):
        raise Malformed(f"reward, value, stamp or a probability of {transition.decision} is not finite")
    head = {
        "format": FORMAT,
        "tokens": [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()],
        "encoder_versions": dict(transition.encoder_versions),
        "present": dict(transition.present),
        "ages_s": {name: age if math.isfinite(age) else None for name, age in transition.ages_s.items()},
        "actions": dict(transition.actions),
        "proposed": dict(transition.proposed),
        "refused": dict(transition.refused),
        "allowed": dict(transition.allowed),
        "probabilities": dict(transition.probabilities),
        "by": dict(transition.by),
        "armed": transition.armed,
    }
    return orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY), b"".join(a.tobytes() for a in arrays.values())


def decode_head(head: bytes) -> dict[str, Any]:
    """Decode the header into the arguments of `Transition`; `tokens` has only shapes and types.

    Raises:
        Malformed: not ours.
    """
    try:
        fields = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"header: {error}") from None
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise Malformed(f"header: not format {FORMAT}")
    fields["ages_s"] = {name: math.inf if age is None else age for name, age in fields["ages_s"].items()}
    fields["by"] = {name: FORMER_BY.get(by, by) for name, by in fields["by"].items()}
    fields["allowed"] = {name: tuple(map(str, choices)) for name, choices in fields.get("allowed", {}).items()}
    for kind in ("actions", "proposed"):
        fields[kind] = {
            name: tuple(map(float, value)) if isinstance(value, list) else value
            for name, value in fields.get(kind, {}).items()
        }
    return fields


def decode_body(described: list[list[Any]], body: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of a body, as read-only views of it.

    Raises:
        Malformed: the body is shorter or longer than described.
    """
    arrays: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, dtype, shape in described:
        count = math.prod(shape)
        size = count * np.dtype(_DTYPES[dtype]).itemsize
        if offset + size > len(body):
            raise Malformed(f"body ends within {name}")
        arrays[name] = np.frombuffer(body, _DTYPES[dtype], count, offset).reshape(shape)
        offset += size
    if offset != len(body):
        raise Malformed(f"body has {len(body) - offset} bytes too many")
    return arrays


def checksum(identity: str, head: bytes, body: bytes) -> int:
    """CRC-32 over what never changes; SQLite's pages carry none."""
    return zlib.crc32(body, zlib.crc32(head, zlib.crc32(identity.encode())))
