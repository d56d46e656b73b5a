"""Settings of rewards: their four kinds, their sources, and which source has more authority."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from sensors.config import Settings

LARGEST_REWARD = 1e12
"""Largest limit of a reward: squares and sums of larger ones are not finite in training and in experiments."""


RANKS: Mapping[str, int] = {"sensor": 1, "program": 2, "operator": 3}
"""By name of an authority: its rank."""


def rank_of(authority: str | int | None) -> int | None:
    """Return the rank of an authority: of two sources that contradict each other, the one of the lower rank is quarantined."""
    return authority if isinstance(authority, int) else RANKS.get(str(authority))


class SourceSettings(Settings):
    """One source of rewards: what it rates, and its authority."""

    rates: str = Field(
        min_length=1,
        description="what the source rates. Sources that rate the same are compared with each other; `tick`: compared with the "
        "rewards computed at the tick",
    )
    authority: Literal["operator", "program", "sensor"] | int | None = Field(
        None,
        description="of two sources that contradict each other, the one with less authority is quarantined: `operator` (3) above "
        "`program` (2) above `sensor` (1), or a number. Without it, or if both are equal, an event reports both",
    )


class TopicReward(Settings):
    """Rewards that arrive on the topic `reward`."""

    name: str = Field(description="name of this reward, distinct among `rewards`")
    kind: Literal["topic"]
    scale: float = Field(1.0, gt=0, description="factor on every reward, so that the usual ones are within `clip`")
    clip: float = Field(
        10.0,
        gt=0,
        le=LARGEST_REWARD,
        description="scaled rewards are clipped to [-clip, clip]; the event `reward_clipped` says so",
    )
    silence: Literal["zero", "unknown"] = Field(
        "zero", description="what a tick without a reward means in an experiment: a reward of 0, or nothing"
    )
    max_per_s: float = Field(
        100.0, gt=0, description="rewards per second accepted from one source; the rest is dropped and counted"
    )
    sources: dict[str, SourceSettings] = Field(
        {},
        description="by name of the source: what it rates and its authority. A source without an entry is compared with no other",
    )


class ExpressionReward(Settings):
    """A reward computed at every tick from telemetry and actions."""

    name: str = Field(description="name of this reward, distinct among `rewards`")
    kind: Literal["expression"]
    value: str = Field(description="arithmetic expression over telemetry fields and actuator names")
    clip: float = Field(10.0, gt=0, le=LARGEST_REWARD, description="rewards are clipped to [-clip, clip]")


class PluginReward(Settings):
    """A reward from a Python function of the entry point group `reflexd.rewards`."""

    name: str = Field(description="name of this reward, distinct among `rewards`")
    kind: Literal["plugin"]
    plugin: str = Field(description="name of the entry point")
    clip: float = Field(10.0, gt=0, le=LARGEST_REWARD, description="rewards are clipped to [-clip, clip]")


class DecisionReward(Settings):
    """A reward that the deliberator's model gives: how probable it is that the answer to a question about the state is yes."""

    name: str = Field(description="name of this reward, distinct among `rewards`")
    kind: Literal["decision"]
    question: str = Field(
        min_length=1,
        max_length=300,
        pattern=r"\S",
        description="a question that is answered with yes or no, as `Does the person look content?`. The model reads the state in words",
    )
    every_s: float = Field(5.0, ge=1, description="time between two questions")
    scale: float = Field(
        1.0,
        gt=0,
        le=10,
        description="reward of a certain yes; of a certain no it is the same below 0, and in between 0",
    )
    rates: str = Field(
        "tick",
        min_length=1,
        description="what it rates, as under `sources` of a `topic` reward. `tick`: compared with the rewards computed at the tick",
    )
    authority: Literal["operator", "program", "sensor"] | int = Field(
        "sensor",
        description="its authority, as under `sources` of a `topic` reward; not `operator`, and not above a source with `operator` or "
        "a number that rates the same: that may be a person, and a model quarantines no person",
    )

    @property
    def source(self) -> str:
        """The name of its source of rewards."""
        return f"{BY_MODEL}{self.name}"


BY_MODEL = "model:"
"""Before the name of a source of rewards that a model gives: they train the policy, and judge no version of it."""


AnyReward = Annotated[TopicReward | ExpressionReward | PluginReward | DecisionReward, Field(discriminator="kind")]
