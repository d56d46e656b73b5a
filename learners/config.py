"""Settings of what is learned: encoders, policy, rewards, tasks, learner, experience, fine-tuning, promotion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import regex
from pydantic import Field, field_validator, model_validator

from learners.output_grammar import GenerationSettings, OutputSettings
from learners.task_kinds import KINDS, Augmentation, TaskKind
from sensors.config import Settings

Train = Literal["frozen", "top", "lora", "full"]
LARGEST_REWARD = 1e12
"""Largest limit of a reward: squares and sums of larger ones are not finite in training and in experiments."""


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


class TaskSettings(Settings):
    """A supervised task on a stream."""

    kind: TaskKind = Field(description="the kind of task, by its name on the Hugging Face hub")
    model: str = Field(min_length=1, description="the pretrained model: `bundled:NAME`, a transformers id or a folder")
    stream: str | None = Field(None, description="the stream that the task reads; default: none")
    context: str | None = Field(
        None,
        description="a text stream with the second text of a task that reads two: the context of a question, the other text of a "
        "pair; readings of `stream` are then the first text. Default: a reading is a JSON object with both",
    )
    labels: tuple[str, ...] = Field((), description="names of the classes; default: those in the labels it trains on")
    train: Train = Field(
        "lora",
        description="which weights train: `frozen` (head only), `top` (head and last layers), `lora` (head and adapters), `full`",
    )
    lora_rank: int = Field(8, gt=0, le=256, description="rank of the adapters with `train: lora`")
    multi_label: bool = Field(False, description="an example can have several labels")
    feeds_policy: bool = Field(
        False,
        description="publish the probabilities of `labels` to the policy as a telemetry stream with the task's name; "
        "it stays valid as long as the reading of the task",
    )
    query_confidence: float | None = Field(
        None, ge=0, le=1, description="publish `label_requested` when the confidence is below this; default: never"
    )
    eval_file: str | None = Field(
        None,
        min_length=1,
        description="held-out file or folder, in a format of `reflexd finetune`. Only its examples approve a fine-tuned version, "
        "so no label from outside can influence the approval. Labels of classes missing in it are not trained. Without it, a "
        "version waits until an operator promotes it",
    )
    max_new_tokens: int | None = Field(
        None,
        gt=0,
        le=4_096,
        description="length limit of generated text, in tokens; default: that of the model's folder, 64 without one, and more where "
        "the task learns longer texts",
    )
    language: str | None = Field(
        None,
        pattern="^[a-z]{2,3}$",
        description="automatic-speech-recognition: the language that is spoken, as `en`. A model of several languages needs it to "
        "learn. Default: the only one of the model, or the one that it detects",
    )
    system: str | None = Field(None, description="system prompt of a text-generation task")
    output: OutputSettings | None = Field(
        None,
        description="the form that every generated text has, so that it can always be parsed; for translation, summarization and "
        "text-generation. A text that reaches `max_new_tokens` is brought to a permitted end. Default: any text",
    )
    generation: GenerationSettings = Field(
        GenerationSettings(), description="how translation, summarization and text-generation write a text"
    )

    @model_validator(mode="after")
    def _hears(self) -> Self:
        if self.language is not None and self.kind != "automatic-speech-recognition":
            raise ValueError(f"language: {self.kind} transcribes no speech; leave it out")
        return self

    @model_validator(mode="after")
    def _writes(self) -> Self:
        changed = [
            name for name in ("output", "generation") if getattr(self, name) != TaskSettings.model_fields[name].default
        ]
        if changed and not KINDS[self.kind].written:
            writing = " and ".join(kind for kind, declared in KINDS.items() if declared.written)
            raise ValueError(f"{changed[0]}: {self.kind} does not write a text by it; leave it out, or use {writing}")
        given = [name for name in ("stop", "banned") if getattr(self.generation, name)]
        if self.output is not None and given:
            raise ValueError(f"generation.{given[0]}: not together with `output`; leave one of the two out")
        return self


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


class FinetuneSettings(Settings):
    """Continual fine-tuning: periodic training of the tasks from new labels."""

    every_s: float = Field(3_600.0, gt=0, description="shortest time between two fine-tunes of a task")
    min_labels: int = Field(32, ge=1, description="new labels that start a fine-tune")
    epochs: int = Field(3, ge=1, description="largest number of passes over the labels")
    learning_rate: float | None = Field(
        None, gt=0, description="learning rate of the optimizer; default: by the kind of task and `tasks.X.train`"
    )
    batch: int = Field(16, ge=1, description="labels in each update")
    validation_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of labels that never trains. It stops the training early and selects the epoch; `tasks.X.eval_file` "
        "approves the promotion",
    )
    per_source: int = Field(1_000, ge=1, description="newest labels of each source that one fine-tune reads")
    rehearsal_ratio: float = Field(
        1.0,
        ge=0,
        le=4,
        description="earlier labels of each class that are trained again, as a multiple of the new labels of a class",
    )
    max_metric_drop: float = Field(
        0.0, ge=0, description="largest drop of the metric on the held-out file that still permits a promotion"
    )
    max_forgetting: float = Field(
        0.03,
        ge=0,
        description="largest drop of the metric on the held-out classes that the live version knows; of one label, the most probable "
        "known class counts",
    )
    max_confusion: float = Field(
        0.1,
        ge=0,
        le=1,
        description="largest share of the held-out examples of known classes that a version takes for classes that are new to it",
    )
    slices: tuple[Annotated[str, Field(min_length=1, max_length=500)], ...] = Field(
        (),
        max_length=16,
        description="how the held-out examples are divided for the report: `COLUMN`, such as speaker; `COLUMN~PATTERN`, where the "
        "first group of the regular expression names the slice, such as `file~_([a-z]+)_`; or `length`. A slice of 20 rows that is "
        "shown to lose more than `max_slice_drop` prevents a promotion",
    )
    augment: tuple[Augmentation | Literal["auto"], ...] | None = Field(
        None,
        description="how training examples are changed, by name; names that a kind of task does not have are left out. `[]`: not at "
        "all. `[auto]`: each one is on or off by validation, which trains once more for each. Default: by the kind of task",
    )
    adapt: int = Field(
        0,
        ge=0,
        le=100_000,
        description="unlabelled readings of a classification's stream on which the encoder's pretraining continues before the first "
        "version. It is used only if the held-out file, or without one at least 20 labels, shows a gain. They must be stored: "
        "`experience.raw_retention_s`. 0: never",
    )
    max_slice_drop: float = Field(
        0.03, ge=0, description="largest drop of the metric of a slice that still permits a promotion"
    )

    @field_validator("slices")
    @classmethod
    def _patterns(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        for rule in slices:
            column, separator, pattern = rule.partition("~")
            if not column.strip() or (separator and not pattern):
                raise ValueError(f"{rule!r} is neither COLUMN nor COLUMN~PATTERN; write speaker or file~_([a-z]+)_")
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ValueError(f"{rule!r}: no regular expression: {error}") from None
        read = [(column.strip(), pattern) for column, _, pattern in (rule.partition("~") for rule in slices)]
        if repeated := [rule for at, rule in enumerate(slices) if read[at] in read[:at]]:
            raise ValueError(f"{repeated[0]!r} is given twice; remove one of them")
        return slices


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
