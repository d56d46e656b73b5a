"""Settings of the actuators and of the gate in front of them."""

from __future__ import annotations

import math
import re
from string import Template
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Settings(BaseModel):
    """Base of every settings model; it refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ActuatorSettings(_Settings):
    """Settings that every actuator has."""

    topic: str | None = Field(None, description="command topic of the device; default: `act/<actuator>/set`")
    payload: str | None = Field(
        None,
        description='template of the command for a device with its own format, as \'{"state": "${value}"}\'; default: JSON',
    )
    state_topic: str | None = Field(
        None, description="topic on which the device reports its state; default: `act/<actuator>/state`"
    )
    state_value: str = Field("value", description="key or JSON pointer of the value in the device's report")
    ttl_ms: int = Field(300, gt=0, le=60_000, description="age in ms above which gate and device drop a command")
    min_interval_s: float = Field(0.0, ge=0, description="shortest time between two commands")
    requires: tuple[Annotated[str, Field(max_length=128)], ...] | None = Field(
        None,
        max_length=64,
        description="streams that must be fresh for this actuator to act, and conditions on telemetry that must hold, as "
        "`window.open == 0`; default: every stream with `required: true`, which also holds beside conditions alone",
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
        if "value" not in Template(payload).get_identifiers():
            raise ValueError("no ${value}: every command, the safe one too, would be the same message")
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


class MovingSettings(ActuatorSettings):
    """What actuators that the policy moves have in common."""

    refresh_s: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="the policy's command is sent again after this many seconds while it does not change and the broker or the device "
        "has acknowledged it; 0 sends it at every tick, as devices need that rest without commands",
    )


_STREAM = re.compile(r"[a-z0-9_-]{1,64}")


def conditions_of(requires: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the entries of `requires` that are conditions on telemetry, not names of streams."""
    return tuple(entry for entry in requires or () if not _STREAM.fullmatch(entry))


def requirements(requires: tuple[str, ...] | None, required_streams: frozenset[str]) -> frozenset[str]:
    """Return the streams and conditions without which an actuator does not act.

    Args:
        requires: the setting.
        required_streams: the streams with `required: true`; they hold where `requires` names no stream.
    """
    if requires is None:
        return required_streams
    conditions = frozenset(conditions_of(requires))
    streams = frozenset(requires) - conditions
    return conditions | (streams if streams or not conditions else required_streams)


class ChoiceSettings(MovingSettings):
    """An actuator with a fixed list of values."""

    kind: Literal["choice"]
    choices: tuple[str, ...] = Field(min_length=2, max_length=1_024, description="the values, all distinct")
    safe: str = Field(
        description="safe action, sent if the policy must not act: one of the choices, or `hold` to send nothing"
    )
    min_hold_s: float = Field(0.0, ge=0, description="shortest time for which a value stays before it may change")
    state_words: dict[str, str] = Field(
        default_factory=dict,
        description='what the device reports for a choice, where that is another word, as `{"on": "true", "off": "false"}`',
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError("choices must be distinct")
        if self.safe != "hold" and self.safe not in self.choices:
            raise ValueError(f"safe: {self.safe!r} is not one of the choices {list(self.choices)} and not 'hold'")
        if unknown := sorted(set(self.state_words) - set(self.choices)):
            raise ValueError(f"state_words: {unknown} are not among the choices {list(self.choices)}")
        if len({self.state_words.get(choice, choice) for choice in self.choices}) != len(self.choices):
            raise ValueError("state_words: two choices would be reported by one word; give each its own")
        return self


class ContinuousSettings(MovingSettings):
    """An actuator with one or more numbers, each between two limits."""

    kind: Literal["continuous"]
    low: tuple[Finite, ...] = Field(min_length=1, max_length=1_024, description="lower limit of each component")
    high: tuple[Finite, ...] = Field(min_length=1, max_length=1_024, description="upper limit of each component")
    max_rate: tuple[Finite, ...] | None = Field(
        None, description="largest change per second of each component; default: no limit"
    )
    safe: Literal["hold"] | tuple[Finite, ...] = Field(
        "hold", description="safe action, sent if the policy must not act: numbers, or `hold` to send nothing"
    )
    out_of_range: Literal["clamp", "refuse"] = Field(
        "refuse",
        description="`refuse` refuses an action outside the limits or too far for `max_rate`; `clamp` moves it to the nearest limit; "
        "with `max_rate` the default is `clamp`",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_of_max_rate(cls, settings: object) -> object:
        """Shorten steps that are too large by default: a policy that is refused at every tick does not move."""
        if isinstance(settings, dict) and settings.get("max_rate") is not None and "out_of_range" not in settings:
            return {**settings, "out_of_range": "clamp"}
        return settings

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
    """An actuator that speaks or shows the text of a task."""

    kind: Literal["text"]
    task: str = Field(description="the task under `tasks` that generates the text")
    safe: Literal["hold"] = Field("hold", description="the safe action: send nothing")
    max_chars: int = Field(1_000, gt=0, le=100_000, description="largest length of a text, in characters")


AnyActuator = Annotated[ChoiceSettings | ContinuousSettings | UtteranceSettings, Field(discriminator="kind")]


class GateSettings(_Settings):
    """The gate: the only writer of actuator topics."""

    deadman_ms: int = Field(
        150,
        gt=0,
        le=10_000,
        description="time in ms beyond the tick period without a heartbeat of the agent, after which the gate sends safe actions",
    )
    arm: Literal["auto", "request"] = Field(
        "auto",
        description="`auto`: the gate arms after reconciliation and when the agent is back; `request`: only an operator arms",
    )
    forbid: tuple[str, ...] = Field(
        (),
        description="expressions over actuators and telemetry, as `heater == 'ON' and window.open`; the gate refuses an action that "
        "makes one true, and sends safe actions when telemetry makes one true or is missing",
    )
    reconcile_s: float = Field(
        2.0, ge=0, description="how long the gate waits at start for the reported states of the devices"
    )
