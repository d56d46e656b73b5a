"""Settings of the deliberator. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from sensors.config import Name, Positive, Settings

GOAL = "goal"
"""Name of the stream and the topic that carry the goal in force; no other stream, task or actuator can have it."""
Trigger = Literal["orders", "goal_done", "surprise"]


class EmbeddingBackend(Settings):
    """Similarity of the newest order to the goals' descriptions, by a sentence encoder: the baseline without a language model."""

    kind: Literal["embedding"] = "embedding"
    model: str = Field(
        "bundled:minilm-l6",
        min_length=1,
        description="with `embedding`: a sentence encoder; with `decision`: any causal language model. `bundled:NAME`, a "
        "transformers id or a folder",
    )


class DecisionBackend(Settings):
    """A causal language model that scores the listed goals in one forward pass."""

    kind: Literal["decision"]
    model: str = Field(
        "bundled:smollm2-135m",
        min_length=1,
        description="the language model: `bundled:NAME`, a transformers id or a folder",
    )


class EndpointBackend(Settings):
    """A server that answers the questions."""

    kind: Literal["systemone", "openai"]
    url: str = Field(
        pattern=r"^https?://[^\s@?#]+$",
        description="address of the server without the last part, as `http://127.0.0.1:8000/v1`. `systemone` posts to "
        "`URL/systemone`, `openai` to `URL/chat/completions`",
    )
    model: str | None = Field(None, min_length=1, description="name of the model for the server; `openai` needs one")
    key: SecretStr | None = Field(None, description="bearer token, as `${env:NAME}`; default: none")

    @model_validator(mode="after")
    def _named(self) -> Self:
        try:
            parts = urlsplit(self.url)
            found = bool(parts.hostname) and parts.port != 0
        except ValueError:
            found = False
        if not found:
            raise ValueError(f"url: {self.url!r} names no host and port; write `http://HOST:PORT/v1`")
        if self.kind == "openai" and self.model is None:
            raise ValueError("model: missing; an OpenAI-compatible server needs the name of a model")
        return self


class TaskBackend(Settings):
    """A classification task that learned from goals that people set."""

    kind: Literal["task"]
    task: Name = Field(description="with `task`: a text-classification task of this file with the goals as its labels")


Backend = Annotated[EmbeddingBackend | DecisionBackend | EndpointBackend | TaskBackend, Field(discriminator="kind")]


Meaning = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]


class GoalSettings(Settings):
    """A goal with more than a description."""

    means: Meaning = Field(description="what the goal means, in words; the model reads it")
    done: str | None = Field(
        None,
        min_length=1,
        description="a condition over telemetry and actions with which the goal is done, as `room.temperature > 21`; then `default` "
        "is in force",
    )


class DeliberatorSettings(Settings):
    """A slow model above the policy that chooses among listed goals."""

    goals: dict[Name, Meaning | GoalSettings] = Field(
        min_length=2,
        max_length=26,
        description="the goals and what each means: words, or `{means: ..., done: ...}`. No other goal can be chosen",
    )
    default: str = Field(description="the goal at the start, and whenever nothing newer is known for `ttl_s`")
    every_s: Positive = Field(
        10.0,
        ge=0.5,
        description="time between two questions without a reason of `on`; while nothing but numbers changes, it grows tenfold each time, up to 15 minutes",
    )
    on: tuple[Trigger, ...] = Field(
        ("orders", "goal_done", "surprise"),
        description="what is a reason to ask at once, at most once a second: a new text (`orders`), or task result (`orders`), a goal that is done (`goal_done`), a drift (`surprise`)",
    )
    min_hold_s: float = Field(
        5.0, ge=0, description="a goal stays in force at least this long, unless it is done or a person sets another"
    )
    confidence: float = Field(
        0.4,
        ge=0,
        le=1,
        description="a less probable goal changes nothing, and the event `goal_requested` asks a person",
    )
    margin: float = Field(
        0.1, ge=0, le=1, description="another goal must be more probable than the one in force by at least this"
    )
    ttl_s: Positive = Field(1_800.0, description="a goal that was not confirmed for this long gives way to `default`")
    timeout_s: Positive = Field(10.0, le=120, description="an answer that takes longer counts as a failure")
    calls_per_hour: int = Field(
        360, ge=1, le=36_000, description="limit of questions in any hour; what is beyond is counted and not asked"
    )
    backend: Backend = Field(EmbeddingBackend(), description="what answers")
    then: tuple[Annotated[str, Field(min_length=1, max_length=40, pattern=r"\S")], ...] = Field(
        (),
        max_length=32,
        description="words that divide an order into steps, as `[then, after that, ;]`. The model is asked about one step at a time, "
        "and the next step follows when the goal of a step is done. Not with the backend `task`. Default: no order is divided",
    )
    corrections: Name | None = Field(
        None,
        description="a text-classification task with the goals as its labels: each goal that a person sets is a label of the newest "
        "text, and an answer below `confidence` requests one (`label_requested`). Default: the task of `backend`, or none",
    )

    @model_validator(mode="after")
    def _names(self) -> Self:
        if self.default not in self.goals:
            raise ValueError(f"default: {self.default!r} is not under goals: {sorted(self.goals)}")
        if self.default in self.conditions:
            raise ValueError(f"goals.{self.default}.done: the default goal is never done; leave it out")
        if len(set(self.meanings.values())) < len(self.goals):
            raise ValueError("goals: two goals have the same description, so no model can distinguish them")
        if self.ttl_s < self.every_s:
            raise ValueError(
                f"ttl_s: {self.ttl_s:g} is below every_s ({self.every_s:g}): every goal would end between two questions"
            )
        return self

    @property
    def meanings(self) -> dict[str, str]:
        """What each goal means, in words."""
        return {name: goal if isinstance(goal, str) else goal.means for name, goal in self.goals.items()}

    @property
    def conditions(self) -> dict[str, str]:
        """By goal, the condition with which it is done."""
        return {name: goal.done for name, goal in self.goals.items() if isinstance(goal, GoalSettings) and goal.done}

    @property
    def correction_task(self) -> str | None:
        """The task that goals of people train; None without one."""
        return self.corrections or (self.backend.task if isinstance(self.backend, TaskBackend) else None)
