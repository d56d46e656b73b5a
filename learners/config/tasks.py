"""Settings of supervised tasks and of their continual fine-tuning."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

import regex
from pydantic import Field, field_validator, model_validator

from learners.class_names import class_name
from learners.output_grammar import GenerationSettings, OutputSettings
from learners.task_kinds import KINDS, Augmentation, TaskKind
from sensors.config import Settings

Train = Literal["frozen", "top", "lora", "full"]


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

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names as files and messages have them, each once."""
        named = tuple(map(class_name, labels))
        if not all(named):
            raise ValueError("a label is empty; write its name or delete it")
        if double := [name for name, count in Counter(named).items() if count > 1]:
            raise ValueError(f"the label {double[0]!r} is there twice; delete one of the two")
        return named

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
