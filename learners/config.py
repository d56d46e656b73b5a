"""Settings of what is learned: encoders, policy, rewards, tasks, learner, experience, fine-tuning, promotion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sensors.config import Settings

Train = Literal["frozen", "top", "lora", "full"]
TaskKind = Literal[
    "text-classification",
    "image-classification",
    "audio-classification",
    "token-classification",
    "relation-extraction",
    "question-answering",
    "translation",
    "summarization",
    "text-generation",
]
"""The task names of the Hugging Face hub, and `relation-extraction`."""
CLASSIFICATION: frozenset[TaskKind] = frozenset({"text-classification", "image-classification", "audio-classification"})
FORMER_KINDS: dict[str, tuple[TaskKind, ...]] = {
    "classify": ("text-classification", "image-classification", "audio-classification"),
    "tag": ("token-classification",),
    "relate": ("relation-extraction",),
    "answer": ("question-answering",),
    "translate": ("translation",),
    "summarize": ("summarization",),
    "chat": ("text-generation",),
}
"""Names of task kinds before 0.1.0; `classify` stands for one kind of each modality."""


class EncoderSettings(Settings):
    """A pretrained encoder."""

    model: str = Field(min_length=1, description="`bundled:NAME`, a transformers id or a folder")
    follow_task: bool = Field(
        False,
        description="take over the weights of a fine-tuned task with the same model that reads one of its streams",
    )
    plugin: str | None = Field(None, description="an entry point of `reflexd.encoders` instead of a transformers model")


class PolicySettings(Settings):
    """The fused model."""

    fusion: Literal["latent-attention", "low-rank-bilinear"] = Field(
        "latent-attention",
        description="latent-attention: latents attend to the tokens of all streams; low-rank-bilinear: locates in the image what "
        "sound or text refers to",
    )
    hidden: tuple[Annotated[int, Field(ge=8, le=4_096)], ...] = Field(
        (256, 256), min_length=1, max_length=8, description="hidden layers of every actor and critic"
    )
    width: int = Field(256, ge=16, le=2_048)
    latents: int = Field(4, ge=1, le=64)
    layers: int = Field(2, ge=1, le=12)
    heads: int = Field(4, ge=1, le=32)
    tokens: int = Field(4, ge=1, le=64, description="pooled tokens each encoder contributes")
    history: int = Field(4, ge=1, le=64, description="recent states the heads see")
    gamma: float = Field(0.99, ge=0, le=1)
    modality_dropout: float = Field(0.1, ge=0, lt=1, description="how often training leaves a whole stream out")
    feature_dropout: float = Field(
        0.3, ge=0, lt=1, description="share of an encoder's features that training leaves out of a batch"
    )
    algorithm: Literal["auto", "dqn", "sac", "crossq", "bandit"] = "auto"
    query_margin: float | None = Field(
        None,
        gt=0,
        le=1,
        description="publish label_requested when the best choice leads the second by less than this share of the usual lead",
    )


class TopicReward(Settings):
    """Rewards that arrive on the `reward` topic."""

    name: str
    kind: Literal["topic"]
    clip: float = Field(10.0, gt=0)
    max_per_s: float = Field(100.0, gt=0, description="more than this from one source is dropped and counted")


class ExpressionReward(Settings):
    """Arithmetic on telemetry and actions, at every tick."""

    name: str
    kind: Literal["expression"]
    value: str
    clip: float = Field(10.0, gt=0)


class PluginReward(Settings):
    """A Python function that comes through the entry point `reflexd.rewards`."""

    name: str
    kind: Literal["plugin"]
    plugin: str
    clip: float = Field(10.0, gt=0)


AnyReward = Annotated[TopicReward | ExpressionReward | PluginReward, Field(discriminator="kind")]


class TaskSettings(Settings):
    """A supervised task on a stream."""

    kind: TaskKind
    model: str = Field(min_length=1, description="`bundled:NAME`, a transformers id or a folder")
    stream: str | None = None
    labels: tuple[str, ...] = ()
    train: Train = "lora"
    lora_rank: int = Field(8, gt=0, le=256)
    multi_label: bool = False
    feeds_policy: bool = Field(
        False,
        description="the probabilities of its `labels` are a token of the fusion: a telemetry stream of the task's name, in force as long "
        "as what the task read",
    )
    query_confidence: float | None = Field(
        None, ge=0, le=1, description="publish label_requested when the confidence is below this"
    )
    eval_file: str | None = Field(
        None,
        min_length=1,
        description="a file or folder that `reflexd finetune` reads: its examples alone judge a fine-tune, so that no label from "
        "outside can shape what judges, and labels of classes that are not in it are not learned; without one a fine-tuned version "
        "waits until a person promotes it",
    )
    max_new_tokens: int = Field(64, gt=0, le=4_096)
    system: str | None = Field(None, description="system prompt of a text-generation task")


class LearnerSettings(Settings):
    """The background process."""

    enabled: bool = True
    update_every_s: float = Field(1.0, gt=0, description="how often new experience is fetched")
    updates_per_step: float = Field(1.0, gt=0, le=64)
    promote_every_s: float = Field(60.0, gt=0)
    demonstration_fraction: float = Field(
        0.5, ge=0, le=1, description="share of a batch from demonstrations and overrides, once there are any"
    )
    batch: int = Field(256, ge=8, le=65_536)
    warmup: int | None = Field(
        None,
        ge=1,
        description="transitions before the first update; default: 256, and 1,000 where no actuator is a choice",
    )
    threads: int = Field(1, ge=1, le=64)
    priority: Literal["idle", "nice", "normal"] = Field(
        "idle", description="idle: only when nobody else wants the core; normal: cores or a GPU of its own"
    )
    seed: int = 0
    memory_fraction: float = Field(0.5, gt=0, le=1, description="share of the GPU's memory the learner may take")
    n_step: int = Field(3, ge=1, le=64, description="steps of reward before the critic's own estimate takes over")
    replay_gb: float = Field(0.5, gt=0, description="memory of the transitions that batches are drawn from")
    mirror_augmentation: tuple[str, ...] = Field(
        (),
        description="actuators and telemetry streams that change sides in a mirror: half of the experience is learned mirrored; "
        "a choice must list its choices from side to side",
    )
    center_rewards: bool = Field(
        False,
        description="subtract the mean reward: for tasks that go on whatever is done, not where an episode's length counts",
    )
    reward_delay_s: float = Field(
        1.0, ge=0, description="newer transitions are not sampled: their rewards may still arrive"
    )
    save_every_s: float = Field(30.0, gt=0, description="how often the training state is saved for an exact resume")


class ExperienceSettings(Settings):
    """The durable store."""

    max_gb: float = Field(4.0, gt=0)
    reserved_fraction: float = Field(
        0.25, ge=0, lt=1, description="share reserved for terminal transitions, interventions and demonstrations"
    )
    raw_retention_s: float = Field(600.0, ge=0, description="how long raw frames and sounds are kept for re-encoding")


class FinetuneSettings(Settings):
    """Periodic fine-tuning from labels."""

    every_s: float = Field(3_600.0, gt=0)
    min_labels: int = Field(32, ge=1)
    epochs: int = Field(3, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    batch: int = Field(16, ge=1)
    validation_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of labels that never trains: it stops the training early and selects the epoch; `tasks.X.eval_file` "
        "decides on promotion",
    )
    per_source: int = Field(
        1_000, ge=1, description="newest labels of one source that one fine-tune learns from; older ones are left out"
    )
    rehearsal_ratio: float = Field(
        1.0, ge=0, le=4, description="earlier labels mixed in: of each of their classes, for each new label of a class"
    )
    max_metric_drop: float = Field(
        0.0, ge=0, description="largest drop of the metric on the held-out file with which a version is promoted"
    )
    max_forgetting: float = Field(
        0.03,
        ge=0,
        description="largest drop of the metric on the classes of the held-out file that the live version knows",
    )


class PromotionSettings(Settings):
    """What a candidate must pass, and how it is watched once live."""

    margin: float = Field(
        0.05, ge=0, description="how much a candidate may be worse: in reward a tick, or in a task's held-out metric"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1)
    min_effective_samples: float = Field(50.0, gt=0, description="less evidence than this is not a pass")
    ope_decisions: int = Field(2_048, ge=64, description="newest logged decisions for off-policy evaluation")
    sanity_observations: int = Field(512, ge=1, description="recorded observations for the sanity step")
    shadow_s: float = Field(10.0, ge=0)
    probation_s: float = Field(
        60.0, ge=0, description="how long a promoted version is compared with the one before it; 0 switches it off"
    )
    keep_last: int = Field(5, ge=1)
    keep_best: int = Field(3, ge=0)
    steps: tuple[Literal["integrity", "latency", "sanity", "held_out", "ope", "shadow"], ...] = (
        "integrity",
        "latency",
        "sanity",
        "held_out",
        "ope",
        "shadow",
    )
