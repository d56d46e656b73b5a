"""Define the wire contract: the name of every topic and the shape of every payload.

Payloads are JSON if nothing else is documented. `decode` validates every payload from outside: it refuses non-finite numbers,
payloads that are too large or nested too deep, and wrong shapes, each with a reason. Stamps on the wire are Unix seconds,
because devices on other machines must compare them with their own clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, ValidationError

from sensors.base import PayloadRefused
from sensors.codecs.json_payload import parse_json

MAX_JSON_BYTES = 65_536


class Refused(ValueError):  # noqa: N818 - reads as what happened
    """A payload was refused; `str` is the reason."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one agent."""

    agent: str

    @property
    def base(self) -> str:
        """`reflexd/<agent>`."""
        return f"reflexd/{self.agent}"

    def __call__(self, *parts: str) -> str:
        """Return a topic below the base: `topics("in", "front")` is `reflexd/<agent>/in/front`."""
        return "/".join((self.base, *parts))

    def command(self, actuator: str) -> str:
        """Return the command topic of an actuator, which only the gate writes."""
        return self("act", actuator, "set")

    def state(self, actuator: str) -> str:
        """Return the topic on which the device reports its state."""
        return self("act", actuator, "state")


class Payload(BaseModel):
    """A message from outside: its shape is validated, and unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Status(Payload):
    """`status`: the state of the daemon. It is retained, and also the MQTT last will."""

    state: Literal["starting", "online", "degraded", "stopped", "offline"]
    reasons: list[str] = []


class Reward(Payload):
    """`reward`: credited to `decision`, or, without it, to the tick at `stamp` (Unix seconds) or at the arrival."""

    value: float = Field(strict=True)
    decision: str | None = Field(None, max_length=128)
    stamp: float | None = None
    done: bool = False
    """The state that follows is terminal."""
    truncated: bool = False
    """The episode was cut off here (time limit, reset by an operator): its value goes on."""
    outcome: Literal["success", "failure"] | None = None
    """How the episode ended; `done` implies neither."""
    source: str = Field("default", max_length=64)


class LabelPayload(Payload):
    """`label`: one labelled example of a task. `id` names the `label_requested` event that it answers."""

    task: str = Field(max_length=64)
    label: str | list[str] = Field()
    text: str | None = Field(None, max_length=100_000)
    decision: str | None = Field(None, max_length=128)
    id: str | None = Field(None, max_length=128)
    source: str = Field("default", max_length=64)


class Override(Payload):
    """`override/<actuator>`: a person's command, valid for `hold_s` seconds."""

    value: str | StrictFloat | list[StrictFloat]
    hold_s: StrictFloat = Field(1.0, ge=0, le=3_600)
    source: str = Field("default", max_length=64)


class GoalOverride(Payload):
    """`override/goal`: a person's goal, in force for `hold_s` seconds; afterwards the deliberator's model chooses again."""

    value: str = Field(max_length=64)
    hold_s: StrictFloat = Field(60.0, ge=0, le=86_400)
    source: str = Field("default", max_length=64)


class Stop(Payload):
    """`stop`: engage or release the software stop."""

    engaged: bool = Field(strict=True)


class CommandPayload(Payload):
    """`act/<actuator>/set`: a command from the gate to a device."""

    value: str | list[float]
    decision: str | None
    boot: str
    seq: int
    stamp: float
    ttl_ms: int
    policy: str


class DeviceState(Payload):
    """`act/<actuator>/state`: the state that a device reports."""

    value: str | float | list[float] | None
    seq: int | None = None
    boot: str | None = None
    stamp: float | None = None
    """Unix seconds by the device's clock: the gate reports a clock with which commands are too old, or from the future."""


Model = TypeVar("Model", bound=BaseModel)


def parse(payload: bytes, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse untrusted JSON of at most `limit` bytes (`sensors.codecs.json_payload`).

    Raises:
        Refused: the JSON is too large, malformed, not finite, nested too deep, or has a repeated key.
    """
    try:
        return parse_json(payload, limit)
    except PayloadRefused as refusal:
        raise Refused(str(refusal)) from None


def decode(model: type[Model], payload: bytes, limit: int = MAX_JSON_BYTES) -> Model:
    """Parse untrusted JSON of at most `limit` bytes into a payload model.

    Raises:
        Refused: the payload does not fit the model; the text names the field and the reason.
    """
    try:
        return model.model_validate(parse(payload, limit))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "payload"
        raise Refused(f"{where}: {first['msg']}") from None


def encode(value: BaseModel | dict[str, Any]) -> bytes:
    """Return a payload as JSON bytes; numpy scalars are allowed, non-finite numbers become null."""
    plain = value.model_dump() if isinstance(value, BaseModel) else value
    return orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)


class PreviewRequest(Payload):
    """`preview/subscribe`: a request for previews of some streams."""

    streams: list[str] = Field(max_length=512)
