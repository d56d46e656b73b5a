"""Settings of the learner: training, the store of experience, and promotion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sensors.config import Settings


class LearnerSettings(Settings):
    """The learner: the background process that trains the policy and the tasks."""

    enabled: bool = Field(True, description="run the learner; without it, the daemon acts but does not train")
    update_every_s: float = Field(1.0, gt=0, description="interval at which the learner reads new experience")
    updates_per_step: float = Field(1.0, gt=0, le=64, description="training updates for each new transition")
    promote_every_s: float = Field(60.0, gt=0, description="shortest time between two candidates")
    demonstration_fraction: float = Field(
        0.5, ge=0, le=1, description="share of each batch from demonstrations and overrides, if any are stored"
    )
    batch: int = Field(256, ge=8, le=65_536, description="transitions in each update")
    warmup: int | None = Field(
        None,
        ge=1,
        description="transitions before the first update; default: 256, or 1,000 if no actuator is a choice",
    )
    threads: int = Field(1, ge=1, le=64, description="CPU threads of the learner")
    priority: Literal["idle", "nice", "normal"] = Field(
        "idle",
        description="`idle`: runs only on idle cores; `nice`: low priority; `normal`: for a learner with its own cores or GPU",
    )
    seed: int = Field(0, description="seed of initial weights and of sampling")
    memory_fraction: float = Field(0.5, gt=0, le=1, description="share of the GPU's memory that the learner may use")
    n_step: int = Field(3, ge=1, le=64, description="rewards summed before the critic's estimate of the rest is added")
    replay_gb: float = Field(0.5, gt=0, description="memory of the replay buffer, in GB")
    mirror_augmentation: tuple[str, ...] = Field(
        (),
        description="actuators and telemetry streams that change sides in a mirror; half of each batch is mirrored. "
        "List the choices of a choice actuator from one side to the other",
    )
    center_rewards: bool = Field(
        False,
        description="subtract the mean reward. Use it if episodes end independently of the actions; do not use it if the length "
        "of an episode is part of its success",
    )
    reward_delay_s: float = Field(
        1.0, ge=0, description="transitions younger than this are not sampled, because their rewards may still arrive"
    )
    save_every_s: float = Field(
        30.0, gt=0, description="interval at which the training state is saved for an exact resume"
    )


class ExperienceSettings(Settings):
    """The durable store of transitions, labels and raw readings."""

    max_gb: float = Field(
        4.0,
        gt=0,
        description="size on disk, in GB, at which the oldest experience is deleted. It also gives way to the rest of "
        "`state_dir` within `storage.max_gb`",
    )
    reserved_fraction: float = Field(
        0.25, ge=0, lt=1, description="share reserved for terminal transitions, interventions and demonstrations"
    )
    raw_retention_s: float = Field(600.0, ge=0, description="how long raw images and sounds are stored for re-encoding")


class PromotionSettings(Settings):
    """The promotion steps that a candidate must pass, and the live experiment that decides."""

    margin: float = Field(
        0.05, ge=0, description="how much worse a candidate may be, in reward per tick or in a task's held-out metric"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence of the bounds in off-policy evaluation")
    min_effective_samples: float = Field(
        50.0, gt=0, description="effective samples below which off-policy evaluation is inconclusive"
    )
    ope_decisions: int = Field(2_048, ge=64, description="newest logged decisions for off-policy evaluation")
    sanity_observations: int = Field(512, ge=1, description="recorded observations for the step `sanity`")
    shadow_s: float = Field(10.0, ge=0, description="length of the step `shadow`")
    experiments: bool = Field(
        True,
        description="compare a candidate with the live version in blocks that alternate at random, and promote it only if it is "
        "proved better or as good. `false`: every candidate that passes the steps goes live",
    )
    alternate: bool = Field(
        True,
        description="versions may take turns within seconds. `false`: they act in blocks of a minute in a fixed order, which is "
        "weaker evidence",
    )
    anchor_share: float = Field(
        0.05,
        ge=0,
        le=0.5,
        description="share of blocks in which the last version that was proved better acts beside a live version that is only as "
        "good; 0 switches the guard off",
    )
    max_pairs: int = Field(
        1_000,
        ge=8,
        description="pairs of blocks after which an experiment without a proof ends, and the live version remains",
    )
    false_alarms_per_month: float = Field(
        1.0, gt=0, description="how often the guard may take a live version back without a cause"
    )
    keep_last: int = Field(
        5, ge=1, description="newest checkpoints, and newest versions that were live, that are not deleted"
    )
    keep_best: int = Field(3, ge=0, description="checkpoints with the best scores that are not deleted")
    steps: tuple[Literal["integrity", "latency", "sanity", "held_out", "ope", "shadow"], ...] = Field(
        ("integrity", "latency", "sanity", "held_out", "ope", "shadow"),
        description="the promotion steps, in order; the first failed step rejects the candidate",
    )

    @field_validator("steps")
    @classmethod
    def _each_once(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(steps)) < len(steps):
            raise ValueError("a step is listed twice; list each step once")
        return steps
