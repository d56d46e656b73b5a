"""The wire contract: the name of every topic and the shape of every payload.

Payloads are JSON unless said otherwise. Anything from outside goes through `decode`, which refuses what is not finite,
too large, too deep or not of the declared shape, and says why. Stamps on the wire are Unix seconds, because devices on
other machines must judge them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sensors.base import PayloadRefused
from sensors.codecs.json_payload import parse_json

MAX_JSON_BYTES = 65_536


class Refused(ValueError):  # noqa: N818 - reads as what happened
    """A payload was not taken; `str` says why."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one agent."""

    agent: str

    @property
    def base(self) -> str:
        """`reflexd/<agent>`."""
        return f"reflexd/{self.agent}"

    def __call__(self, *parts: str) -> str:
        """A topic below the base: `topics("in", "front")` is `reflexd/<agent>/in/front`."""
        return "/".join((self.base, *parts))

    def command(self, actuator: str) -> str:
        """Where the gate writes."""
        return self("act", actuator, "set")

    def state(self, actuator: str) -> str:
        """Where the device reports."""
        return self("act", actuator, "state")


class Payload(BaseModel):
    """A message from outside: strict about shape, silent about keys it does not know."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Status(Payload):
    """`status`, retained, and the will."""

    state: Literal["starting", "online", "degraded", "stopped", "offline"]
    reasons: list[str] = []


class Reward(Payload):
    """`reward`: credited to the named decision, else to the tick that `stamp` (Unix s) or the arrival falls in."""

    value: float = Field(strict=True)
    decision: str | None = Field(None, max_length=128)
    stamp: float | None = None
    done: bool = False
    source: str = Field("default", max_length=64)


class Label(Payload):
    """`label`: one labelled example; `id` answers a `label_requested` event."""

    task: str = Field(max_length=64)
    label: str | list[str] = Field()
    text: str | None = Field(None, max_length=100_000)
    decision: str | None = Field(None, max_length=128)
    id: str | None = Field(None, max_length=128)
    source: str = Field("default", max_length=64)


class Override(Payload):
    """`override/<actuator>`: a person acts for `hold_s` seconds."""

    value: str | float | list[float]
    hold_s: float = Field(1.0, ge=0, le=3_600)
    source: str = Field("default", max_length=64)


class Stop(Payload):
    """`stop`: the software stop."""

    engaged: bool = Field(strict=True)


class Command(Payload):
    """`act/<actuator>/set`, as the gate writes it and a device reads it."""

    value: str | list[float]
    decision: str | None
    boot: str
    seq: int
    stamp: float
    ttl_ms: int
    policy: str


class DeviceState(Payload):
    """`act/<actuator>/state`, as a device reports it."""

    value: str | float | list[float] | None
    seq: int | None = None
    boot: str | None = None


Model = TypeVar("Model", bound=BaseModel)


def parse(payload: bytes, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse untrusted JSON of at most `limit` bytes (`sensors.codecs.json_payload`).

    Raises:
        Refused: too large, malformed, not finite, nested too deep, or with a repeated key.
    """
    try:
        return parse_json(payload, limit)
    except PayloadRefused as refusal:
        raise Refused(str(refusal)) from None


def decode(model: type[Model], payload: bytes, limit: int = MAX_JSON_BYTES) -> Model:
    """Untrusted JSON as a payload model.

    Raises:
        Refused: with the field and the reason.
    """
    try:
        return model.model_validate(parse(payload, limit))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "payload"
        raise Refused(f"{where}: {first['msg']}") from None


def encode(value: BaseModel | dict[str, Any]) -> bytes:
    """A payload as JSON bytes; numpy scalars are taken, non-finite numbers become null."""
    plain = value.model_dump() if isinstance(value, BaseModel) else value
    return orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)


class PreviewRequest(Payload):
    """`preview/subscribe`: the streams to preview."""

    streams: list[str] = Field(max_length=64)
