"""Settings of the actuators and of the gate in front of them."""

from __future__ import annotations

import math
from string import Template
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of every settings model: unknown keys and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ActuatorSettings(Settings):
    """Settings that every actuator has."""

    topic: str | None = Field(None, description="a foreign command topic; the default is `act/<actuator>/set`")
    payload: str | None = Field(
        None, description='a string.Template text for foreign devices, e.g. \'{"state": "${value}"}\''
    )
    state_topic: str | None = Field(None, description="where the device reports; the default is `act/<actuator>/state`")
    state_value: str = Field("value", description="key or JSON pointer of the value in the device's report")
    ttl_ms: int = Field(300, gt=0, le=60_000, description="a command older than this is dropped by gate and device")
    min_interval_s: float = Field(0.0, ge=0, description="two commands are at least this far apart")
    requires: tuple[str, ...] | None = Field(
        None,
        description="streams that must be fresh to move this actuator; default: every stream with `required: true`",
    )

    @field_validator("topic", "state_topic")
    @classmethod
    def _plain_topic(cls, topic: str | None) -> str | None:
        if topic is not None and (not topic or any(c in topic for c in "+#\0") or len(topic.encode()) > 65_535):
            raise ValueError("a topic to publish to may not be empty or contain + or #")
        return topic

    @field_validator("payload")
    @classmethod
    def _template(cls, payload: str | None) -> str | None:
        if payload is None:
            return None
        if not Template(payload).is_valid():
            raise ValueError("not a valid template; write ${value} for the value and $$ for a dollar sign")
        unknown = set(Template(payload).get_identifiers()) - {
            "value",
            "decision",
            "seq",
            "boot",
            "stamp",
            "ttl_ms",
            "policy",
        }
        if unknown:
            raise ValueError(
                f"unknown placeholder {sorted(unknown)}; use value, decision, seq, boot, stamp, ttl_ms or policy"
            )
        return payload


class ChoiceSettings(ActuatorSettings):
    """One of a few words."""

    kind: Literal["choice"]
    choices: tuple[str, ...] = Field(min_length=2, max_length=1_024)
    safe: str = Field(description="what the gate sends when in doubt: one of the choices, or `hold` to send nothing")
    min_hold_s: float = Field(0.0, ge=0, description="a value stays at least this long before it may change")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError("choices must be distinct")
        if self.safe != "hold" and self.safe not in self.choices:
            raise ValueError(f"safe: {self.safe!r} is not one of the choices {list(self.choices)} and not 'hold'")
        return self


class ContinuousSettings(ActuatorSettings):
    """A vector inside a box."""

    kind: Literal["continuous"]
    low: tuple[Finite, ...] = Field(min_length=1, max_length=1_024)
    high: tuple[Finite, ...] = Field(min_length=1, max_length=1_024)
    max_rate: tuple[Finite, ...] | None = Field(None, description="largest change a second of each component")
    safe: Literal["hold"] | tuple[Finite, ...] = "hold"
    out_of_range: Literal["clamp", "refuse"] = "refuse"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.low) != len(self.high):
            raise ValueError(
                f"low has {len(self.low)} numbers and high has {len(self.high)}; give one for each component"
            )
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("every low must be below its high")
        if self.max_rate is not None and (len(self.max_rate) != len(self.low) or min(self.max_rate) <= 0):
            raise ValueError("max_rate needs one positive number for each component")
        if self.safe != "hold":
            if len(self.safe) != len(self.low):
                raise ValueError("safe needs one number for each component, or 'hold'")
            inside = (a <= v <= b for a, v, b in zip(self.low, self.safe, self.high, strict=True))
            if not all(inside) or not all(map(math.isfinite, self.safe)):
                raise ValueError("safe must lie between low and high")
        return self


class UtteranceSettings(ActuatorSettings):
    """Text spoken or shown by a device."""

    kind: Literal["text"]
    task: str = Field(description="the task under `tasks` that writes the text")
    safe: Literal["hold"] = "hold"
    max_chars: int = Field(1_000, gt=0, le=100_000)


AnyActuator = Annotated[ChoiceSettings | ContinuousSettings | UtteranceSettings, Field(discriminator="kind")]


class GateSettings(Settings):
    """The gate: the only writer of actuator topics."""

    deadman_ms: int = Field(150, gt=0, le=10_000, description="beyond the tick period, without a sign of life: safe")
    arm: Literal["auto", "request"] = Field(
        "auto", description="after reconciliation and again when the agent is back, or by a person"
    )
    forbid: tuple[str, ...] = Field(
        (), description="expressions over actuator names; a combination that makes one true is refused"
    )
    reconcile_s: float = Field(2.0, ge=0, description="how long to wait at start for the devices' reported states")
