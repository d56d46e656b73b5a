"""Settings of the policy: its encoders, its exploration and the fused model."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from sensors.config import Settings


class EncoderSettings(Settings):
    """A pretrained encoder."""

    model: str = Field(min_length=1, description="the pretrained model: `bundled:NAME`, a transformers id or a folder")
    follow_task: bool = Field(
        False,
        description="load the fine-tuned weights of a task that has the same `model` and reads a stream of this encoder",
    )
    plugin: str | None = Field(
        None, description="entry point in the group `reflexd.encoders`; its encoder replaces the transformers model"
    )
    when: Literal["tick", "arrival"] = Field(
        "tick",
        description="when new readings are encoded: `tick`: in the tick, which waits for the tokens; `arrival`: beside the tick when a "
        "reading arrives; a tick uses the newest reading that has tokens, with its age. For encoders that are slower than a tick",
    )


TIME = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h)")


SECONDS = {"s": 1.0, "min": 60.0, "h": 3_600.0}


EXPLORE_DECISIONS, EXPLORE_S = 2_000, 600.0
"""Default of `policy.exploration.over`: decisions, and seconds where that is shorter."""


class ExplorationSettings(Settings):
    """How much the policy explores; nothing in the mode `assist`."""

    initial: float | None = Field(
        None,
        ge=0,
        le=1,
        description="before training: the share of random choices, default 1. For continuous actuators a factor on the share of slow "
        "excursions, which happen while rewards contain nothing but the cost of acting",
    )
    final: float | None = Field(
        None,
        ge=0,
        le=1,
        description="after training: the share of random choices, default 0.02. For continuous actuators a factor on the policy's own "
        "noise, default 1. With 0, a trained policy does not explore",
    )
    over: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=f"^{TIME.pattern}$")] | None = Field(
        None,
        description="how long it takes from `initial` to `final`: a number of decisions that train, or a time such as `10 min`. Default: "
        "2,000 decisions, or 10 minutes if that is shorter. An imported policy starts where its training has come to",
    )

    def decisions(self, rate_hz: float) -> int:
        """Return `over` in decisions."""
        if isinstance(self.over, int):
            return self.over
        if self.over is None:
            return max(1, min(EXPLORE_DECISIONS, round(EXPLORE_S * rate_hz)))
        found = TIME.fullmatch(self.over)
        assert found is not None
        return max(1, round(float(found[1]) * SECONDS[found[2]] * rate_hz))


class PolicySettings(Settings):
    """The fused model."""

    fusion: Literal["latent-attention", "low-rank-bilinear"] = Field(
        "latent-attention",
        description="`latent-attention`: learned latents attend to the tokens of all streams; `low-rank-bilinear`: finds the "
        "place in the image that sound or text refers to",
    )
    hidden: tuple[Annotated[int, Field(ge=8, le=4_096)], ...] = Field(
        (256, 256), min_length=1, max_length=8, description="units of each hidden layer in every actor and critic"
    )
    width: int = Field(256, ge=16, le=2_048, description="length of each token vector; a multiple of `heads`")
    latents: int = Field(4, ge=1, le=64, description="number of latents of `latent-attention`")
    layers: int = Field(2, ge=1, le=12, description="number of attention layers of `latent-attention`")
    heads: int = Field(4, ge=1, le=32, description="number of attention heads of `latent-attention`")
    tokens: int = Field(4, ge=1, le=64, description="number of pooled tokens from each encoder")
    history: int = Field(4, ge=1, le=64, description="number of recent states that the heads read")
    gamma: float = Field(
        0.99, ge=0, le=1, description="discount of future rewards for each tick; 0 selects one-step feedback (a bandit)"
    )
    align: Literal["newest", "common"] = Field(
        "newest",
        description="`newest`: each stream's newest reading; `common`: readings captured at about the same moment, as late as the slowest "
        "stream allows",
    )
    modality_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="probability with which training masks a whole stream, so that a lost sensor is tolerated",
    )
    feature_dropout: float = Field(
        0.3, ge=0, lt=1, description="share of an encoder's features that training masks in each batch"
    )
    algorithm: Literal["auto", "dqn", "sac", "crossq", "xqc", "bandit"] = Field(
        "auto",
        description="`auto`: crossq for continuous actuators; for choices dqn, or bandit with `gamma: 0`. `xqc`: one categorical "
        "critic with normalised returns for both kinds",
    )
    exploration: ExplorationSettings = Field(ExplorationSettings(), description="how much the policy explores")
    query_margin: float | None = Field(
        None,
        gt=0,
        le=1,
        description="publish `label_requested` when the margin between the two best choices is below this share of its "
        "median over the last minute; default: never",
    )
