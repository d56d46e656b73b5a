"""Validate the daemon's messages for its clients: the dashboard and the terminal.

A client trusts no other client of the broker. A message of another shape is refused and counted; unknown keys are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_ENTRIES, MAX_STREAMS = 64, 512
"""Streams, actuators or tasks of one agent that a client shows."""
Name = Annotated[str, Field(min_length=1, max_length=64)]
Short = Annotated[str, Field(max_length=256)]
Shown = Annotated[str, Field(max_length=8_192)] | float | list[float] | None
"""A value of an actuator."""


class Published(BaseModel):
    """Base of everything that a client reads."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class StreamInfo(Published):
    """One stream in `info`."""

    kind: Literal["camera", "microphone", "text", "telemetry", "plugin"]
    required: bool = False
    max_age_s: float = Field(1.0, gt=0)
    source: str = Field("", max_length=1_024)
    fields: list[Short] = Field([], max_length=4_096)


class ActuatorInfo(Published):
    """One actuator in `info`."""

    kind: Literal["choice", "continuous", "text"]
    safe: Shown = None
    ttl_ms: float = Field(300.0, gt=0)
    choices: list[Short] = Field([], max_length=1_024)
    low: list[float] = Field([], max_length=1_024)
    high: list[float] = Field([], max_length=1_024)
    topic: Short | None = None
    state_topic: Short | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "choice" and not self.choices:
            raise ValueError("a choice without choices")
        if self.kind == "continuous" and (not self.low or len(self.low) != len(self.high)):
            raise ValueError("low and high must have the same number of components, at least one")
        return self


class TaskInfo(Published):
    """One task in `info`."""

    kind: Short = ""
    stream: Short | None = None
    labels: list[Short] = Field([], max_length=4_096)
    modality: Short = "text"
    inputs: list[Short] = Field([], max_length=8)
    output: Short = "label"


class Info(Published):
    """`info`."""

    version: Short | None = None
    rate_hz: float | None = Field(None, gt=0)
    mode: Short | None = None
    policy: Short | None = None
    streams: dict[Name, StreamInfo] = Field({}, max_length=MAX_STREAMS)
    actuators: dict[Name, ActuatorInfo] = Field({}, max_length=MAX_ENTRIES)
    tasks: dict[Name, TaskInfo] = Field({}, max_length=MAX_ENTRIES)


class StatusMessage(Published):
    """`status`."""

    state: Short
    reasons: list[Short] = Field([], max_length=MAX_STREAMS)


class TickHealth(Published):
    """The control loop in `health`."""

    p50_ms: float | None = None
    p99_ms: float | None = None
    overruns: int | None = None
    count: int | None = None


class StreamHealth(Published):
    """One stream in `health`."""

    age_s: float | None = None
    stale: bool = False
    drops: dict[Short, int] = Field({}, max_length=MAX_STREAMS)
    last_refusal: Short | None = None
    stamp_source: Short | None = None
    """Where the time of capture is from: `arrival`, `sender` or `device`."""


class GateHealth(Published):
    """The gate in `health`."""

    refusals: dict[Short, int] = Field({}, max_length=MAX_ENTRIES)


class HealthMessage(Published):
    """`health`."""

    tick: TickHealth = TickHealth()
    streams: dict[Name, StreamHealth] = Field({}, max_length=MAX_STREAMS)
    learner: dict[Short, Any] = Field({}, max_length=MAX_ENTRIES)
    gate: GateHealth = GateHealth()
    policy: Short | None = None
    mode: Short | None = None
    armed: bool | None = None
    stopped: bool | None = None
    memory_mb: float | None = None


class ActionMessage(Published):
    """One action in `decision`."""

    value: Shown = None
    probability: float | None = None
    probabilities: dict[Short, float] | None = Field(None, max_length=1_024)


class DecisionMessage(Published):
    """`decision`."""

    id: str = Field(min_length=1, max_length=128)
    stamp: float
    policy: Short | None = None
    mode: Short | None = None
    actions: dict[Name, ActionMessage] = Field({}, max_length=MAX_ENTRIES)
    value: float | None = None
    ages_ms: dict[Name, float | None] = Field({}, max_length=MAX_STREAMS)
    skew_ms: float | None = None
    """How far apart the readings of the decision were captured."""
    missing: list[Name] = Field([], max_length=MAX_STREAMS)
    latency_ms: float | None = None


class EventMessage(Published):
    """`event`."""

    type: Name
    stamp: float | None = None
    data: dict[Short, Any] = Field({}, max_length=MAX_ENTRIES)


class ProposalMessage(Published):
    """`proposal/<actuator>`."""

    value: Shown
    decision: Short | None = None
    stamp: float | None = None


class HoldMessage(Published):
    """`hold/<actuator>`: the value that a person holds, and until when in Unix seconds; both None without a hold."""

    value: Shown = None
    until: float | None = None


class PastGoalEntry(Published):
    """A goal that was in force before, in `goal`."""

    goal: Name
    outcome: Short = ""
    lasted_s: float | None = None


class StepEntry(Published):
    """The step of an order that is due, in `goal`; steps are counted from 1."""

    number: int
    of: int
    text: str = Field("", max_length=1_000)


class GoalMessage(Published):
    """`goal`: the goal in force, why, and the probability of each goal by the newest answer."""

    goal: Name
    goals: list[Name] = Field([], max_length=MAX_ENTRIES)
    why: Short = ""
    confidence: float | None = None
    probabilities: dict[Name, float] = Field({}, max_length=MAX_ENTRIES)
    model: Short = ""
    since: float | None = None
    held_s: float | None = None
    step: StepEntry | None = None
    past: list[PastGoalEntry] = Field([], max_length=MAX_ENTRIES)
