"""Define a supervised task: a head on a pretrained model, with its loss, collation, metrics and prediction.

A task holds a transformers model (`AutoModelFor...`) and what turns examples into its inputs. An example is a mapping
with the fields of its kind (`text`, `label`, ...); a feature is one model input made from it; an example may give several
features (long contexts). The loop that trains it is `learners/finetune/trainer.py`; which parameters move is `learners/finetune/trainable_layers.py`.
Adding a task is adding one file here: the registry finds its class.

Shapes: B batch, T tokens, L labels.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import orjson
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from learners.data_error import DataError
from learners.files import write_atomically
from learners.task_kinds import FORMER_KINDS, KINDS, KindDeclaration, PredictionOfExample, TaskKind
from learners.tasks.layers.heads import output_layer, quiet, with_labels
from learners.tasks.layers.pooling import add_layer, declared, without_layer
from sensors.codecs.readings import decode_media

Example = Mapping[str, Any]
Feature = dict[str, Any]
Batch = dict[str, Tensor]
NAME = "task.json"
FORMER_MODALITIES = ("text", "picture", "sound")
"""What a folder of the former kind `classify` says of itself, in the order of `FORMER_KINDS`."""
SPARE = 8
"""Tokens that a generated text may be longer than the longest target."""
IGNORED = -100
"""The target that cross-entropy leaves out."""


@dataclass(frozen=True, slots=True)
class EncodedMedia:
    """A picture or sound as it was stored; it is decoded when a feature is made, so that memory holds few bytes of each."""

    encoding: str
    data: bytes

    def decode(self) -> dict[str, Any]:
        """Return `picture`, or `sound` and `rate_hz`.

        Raises:
            DataError: it cannot be decoded.
        """
        try:
            return decode_media(self.encoding, self.data)
        except ValueError as error:
            raise DataError(f"a stored {self.encoding} cannot be decoded: {error}") from None


LOCAL: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
"""How models are loaded: no code that comes with the weights is ever run."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a task; they are saved next to the weights, because prediction needs the same ones."""

    max_length: int = 128
    multi_label: bool = False
    threshold: float = 0.5
    """Probability from which a label of a multi-label task counts."""
    tune_threshold: bool = True
    """Select the threshold on validation."""
    unanswerable: bool = False
    """Question answering: a context may hold no answer; set when training examples have none."""
    longest_answer: int = 30
    """Question answering: pieces that an answer may have; raised to those of the longest answer that trains."""
    label_smoothing: float = 0.0
    dropout: float | None = None
    """Instead of the model's own."""
    window_s: float | None = None
    """Sounds: length the model sees; default: whole seconds that hold 99 % of the training sounds."""
    augment: Sequence[str] | None = None
    """Names of augmentations; None for those that the kind has by default."""
    flip: bool = False
    """Pictures: mirrored ones mean the same."""
    tiles: int = 1
    """Pictures: rows and columns of overlapping tiles that are read besides the whole picture; 1 for the picture alone."""
    case: bool = True
    """Tags: give a lower-casing model the capitalisation through its token types."""
    max_new_tokens: int = 64
    language: str | None = None
    """Speech: the language that is spoken, as `en`; None where the model knows one language, or detects it."""
    system: str | None = None
    """Chat: the system prompt."""
    output: Mapping[str, Any] | None = None
    """The form of generated texts, as `OutputSettings` without what is None."""
    stop: Sequence[str] = ()
    """Generated texts end before the first of these."""
    banned: Sequence[str] = ()
    """Words that no generated text contains."""
    temperature: float = 0.0
    """0 for the most probable token."""
    sampling_seed: int = 0
    """Of random tokens."""

    @classmethod
    def known(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of `given` that are options; `augment` was a truth value in folders of older programs."""
        names = {f.name for f in fields(cls)}
        found = {name: value for name, value in given.items() if name in names}
        if isinstance(switch := found.get("augment"), bool):
            found["augment"] = None if switch else ()
        return found


@dataclass(frozen=True, slots=True)
class Recipe:
    """Default training settings of a kind of task; `rates` is the learning rate by mode."""

    epochs: int = 5
    batch: int = 32
    rates: Mapping[str, float] = field(
        default_factory=lambda: {"frozen": 2e-3, "top": 3e-4, "lora": 1e-3, "full": 1e-4}
    )
    patience: int = 3
    """Epochs without a better validation score before it stops."""
    layer_decay: float = 1.0
    head_rates: Mapping[str, float] = field(default_factory=dict)
    """Mode -> learning rate of the head as a multiple of `rates`; 1 by default."""
    options: Mapping[str, Any] = field(default_factory=dict)


Prediction = PredictionOfExample
"""Defined where the agent can import it without torch."""


class Task(ABC):
    """One task with its model. Not safe for use by several threads at once."""

    kind: ClassVar[TaskKind]
    selection: str
    """The validation metric that chooses the epoch; higher is better."""
    recipe: ClassVar[Recipe] = Recipe()
    auto: ClassVar[Any]
    """The AutoModelFor... class."""
    extra_trainable: tuple[str, ...] = ()
    """Modules of the encoder that are initialised here, and therefore trained in every mode that reaches them."""
    pools: ClassVar[bool] = False
    """Whether one token represents a whole text: see `pooling`."""

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        self.source, self.options, self.labels = source, options, tuple(labels)
        self.notes: list[str] = []
        """What a person should know about how the model was opened; the report has them."""
        self.learned: frozenset[str] | None = None
        """The classes that it was trained on; None where no one wrote them down, so that all its labels count."""
        self.new_head = False
        """Whether the head was initialised at random, and not loaded with the model."""
        self.processor = self.load_processor(source)
        self.model: Any = self.load_model(source)  # transformers' classes are untyped in strict mode
        self.model.eval()

    @classmethod
    def declaration(cls) -> KindDeclaration:
        """Return what this kind of task takes and makes."""
        return KINDS[cls.kind]

    @property
    def augmentations(self) -> tuple[str, ...]:
        """What changes the training examples: as given, or as the kind has it by default."""
        return self.declaration().augmented if self.options.augment is None else tuple(self.options.augment)

    @classmethod
    def open(cls, source: Path | str, *, labels: Sequence[str] = (), **options: Any) -> Self:
        """Load the task from a transformers id or folder, or from a folder of `save`, with its options as defaults."""
        saved = saved_options(source)
        if "multi_label" not in saved and names_several_labels(source):
            saved["multi_label"] = True
        made = cls(source, replace(Options(**{**cls.recipe.options, **saved}), **options), labels)
        made.learned = learned_by(source)
        return made

    @abstractmethod
    def load_processor(self, source: Path | str) -> Any:
        """Load the tokenizer or feature extractor."""

    def configure(self, config: PreTrainedConfig) -> None:
        """Change the model's configuration before it is built."""
        if self.options.dropout is not None:
            for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
                if hasattr(config, name):
                    setattr(config, name, self.options.dropout)
            for name in ("dropout", "dropout_rate", "attention_dropout"):
                if hasattr(config, name):
                    setattr(config, name, self.options.dropout)

    def outputs_named(self) -> tuple[str, ...]:
        """Return the names of the head's outputs; empty if the head is part of the pretrained model."""
        return self.labels

    def load_model(self, source: Path | str) -> Any:
        """Load the pretrained model with a head for `labels`; a saved head passes on the rows of the labels that it knows."""
        with quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            self.configure(config)
            if not self.pools:
                without_layer(config)
            if not (wanted := self.outputs_named()):
                return self.auto.from_pretrained(source, config=config, **LOCAL)
            known = [str(config.id2label[i]) for i in sorted(config.id2label)] if config.id2label else []
            if known == list(wanted):
                return self.auto.from_pretrained(source, config=config, **LOCAL)
            if (Path(source) / NAME).is_file() or set(known) & set(wanted):
                old, loaded = self.auto.from_pretrained(source, config=config, output_loading_info=True, **LOCAL)
                if not any(name.startswith(output_layer(old)) for name in _drawn(loaded)):
                    return with_labels(old, wanted)
            config.id2label = dict(enumerate(wanted))
            config.label2id = {name: i for i, name in enumerate(wanted)}
            self.new_head = True
            made, loaded = self.auto.from_pretrained(
                source, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **LOCAL
            )
            if not any(name.startswith(output_layer(made)) for name in _drawn(loaded)):
                made.get_submodule(output_layer(made)).reset_parameters()  # it was a head for other labels
            if self.pools and declared(source):
                add_layer(made)
            return made

    def prior(self, examples: Sequence[Example]) -> Tensor | None:
        """Return the bias [L] with which an untrained head is right on average; None leaves the bias unchanged."""
        del examples
        return None

    @abstractmethod
    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Model inputs of one example, with targets where it has a label; `rng` augments, for training only."""

    @abstractmethod
    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return a padded batch."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """Return the mean training loss of a batch; `model` is this task's model, possibly with adapters."""

    @abstractmethod
    def outputs(self, model: torch.nn.Module, batch: Batch) -> list[Any]:
        """Return the model's outputs for each feature of a batch."""

    @abstractmethod
    def prediction(self, example: Example, features: Sequence[Feature], outputs: Sequence[Any]) -> Prediction:
        """Combine the outputs of all features of an example into a prediction."""

    @abstractmethod
    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the usual metrics of the task: fractions in [0, 1], except `bleu` and `perplexity`."""

    def tie_break(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
        """Return what chooses among epochs with equal selection metrics; more is better. 0 where nothing does."""
        del examples, predictions
        return 0.0

    def no_choice(self, examples: Sequence[Example]) -> str:
        """Return why these examples measure every epoch alike, whatever it learned; empty where they do not."""
        del examples
        return ""

    def tuned(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Set what is selected on validation (a threshold), and return the predictions with it."""
        del examples
        return list(predictions)

    def weight(self, batch: Batch) -> float:
        """Return the number of targets in a batch, by which accumulated batches count."""
        labels = batch["labels"]
        return float(len(labels) if labels.is_floating_point() else (labels != IGNORED).sum())

    @classmethod
    def labels_of(cls, examples: Sequence[Example]) -> tuple[str, ...]:
        """Return the labels in use, in a fixed order; empty for tasks without labels."""
        del examples
        return ()

    @classmethod
    def fitting_new_tokens(cls, source: Path | str, examples: Sequence[Example]) -> int | None:
        """Return the tokens that the longest target takes, so that what is learned can be generated; None without such a limit."""
        del source, examples
        return None

    @classmethod
    def fitting_answer(cls, source: Path | str, examples: Sequence[Example]) -> int | None:
        """Return the pieces that the longest answer takes; None for kinds that find none in a context."""
        del source, examples
        return None

    @classmethod
    def fitting_window_s(cls, examples: Sequence[Example]) -> float | None:
        """Return the seconds of sound that one input of the model should hold; None for kinds without such a length."""
        del examples
        return None

    @property
    def varying(self) -> bool:
        """Whether features of an example differ from epoch to epoch."""
        return False

    def unread(self, example: Example) -> float:
        """Return the share of an example that is cut, because it is longer than all that the task reads; 0 if nothing is."""
        del example
        return 0.0

    def length(self, feature: Feature) -> int:
        """Return the length by which batches are grouped."""
        return len(feature.get("input_ids", ()))

    @torch.inference_mode()
    def predict(
        self, examples: Sequence[Example], *, batch: int = 32, model: torch.nn.Module | None = None
    ) -> list[Prediction]:
        """Return predictions in order; features of similar length share a batch.

        Raises:
            FloatingPointError: the model computes values that are no numbers.
        """
        model = self.model if model is None else model
        features = [self.features(example) for example in examples]
        found: dict[tuple[int, int], Any] = {}
        for ats in self.batches_of(features, batch):
            inputs = to_device(self.collate([features[i][j] for i, j in ats]), self.device)
            found.update(zip(ats, self.outputs(model, inputs), strict=True))
        made = [
            self.prediction(example, some, [found[i, j] for j in range(len(some))])
            for i, (example, some) in enumerate(zip(examples, features, strict=True))
        ]
        if any(one.confidence is not None and math.isnan(one.confidence) for one in made):
            raise FloatingPointError(
                "the model computes values that are no numbers; its weights or the input are damaged"
            )
        return made

    def batches_of(self, features: Sequence[Sequence[Feature]], size: int) -> list[list[tuple[int, int]]]:
        """Return batches of example and window, by length; windows of a model that cannot mask padding share one by equal length."""
        flat = [(i, j) for i, some in enumerate(features) for j in range(len(some))]
        flat.sort(key=lambda at: self.length(features[at[0]][at[1]]))
        if not self.pads_change_outputs:
            return [flat[at : at + size] for at in range(0, len(flat), size)]
        groups = itertools.groupby(flat, lambda at: self.length(features[at[0]][at[1]]))
        equal = [list(group) for _, group in groups]
        return [group[at : at + size] for group in equal for at in range(0, len(group), size)]

    @property
    def pads_change_outputs(self) -> bool:
        """Whether padding changes what the model computes."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = self.model.device
        return found

    def save(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` of transformers and `open` load."""
        with quiet():
            self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        body: dict[str, Any] = {"kind": self.kind, "labels": self.labels, "options": asdict(self.options)}
        if self.learned is not None:
            body["learned"] = sorted(self.learned)
        write_atomically(folder / NAME, orjson.dumps(body, option=orjson.OPT_INDENT_2), durable=False)


def _drawn(loaded: Mapping[str, Any]) -> set[str]:
    """Return the names of the weights that were drawn at random, because the folder lacks them or has other sizes."""
    return {*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])}


def without_target(example: Example) -> dict[str, Any]:
    """Return an example without its label or tags: a head need not know every label that is measured."""
    return {name: value for name, value in example.items() if name not in ("label", "tags")}


def saved(source: Path | str) -> dict[str, Any]:
    """Return what `save` wrote next to the weights, with the present name of its kind; empty for any other model."""
    path = Path(source) / NAME
    body = dict(orjson.loads(path.read_bytes())) if path.is_file() else {}
    if kinds := FORMER_KINDS.get(str(body.get("kind"))):
        body["kind"] = kinds[FORMER_MODALITIES.index(body.get("modality", "text"))] if len(kinds) > 1 else kinds[0]
    return body


def learned_by(source: Path | str) -> frozenset[str] | None:
    """Return the classes that a folder's model was trained on; None where the folder does not say so."""
    found = saved(source).get("learned")
    return None if found is None else frozenset(map(str, found))


def saved_as(source: Path | str, kind: str) -> dict[str, Any]:
    """Return what `save` wrote if it was for this kind of task; empty for any other model: its head means something else."""
    document = saved(source)
    return document if document.get("kind") == kind else {}


def _config(source: Path | str) -> dict[str, Any]:
    """Return the configuration of a model's folder; empty where there is none."""
    path = Path(source) / "config.json"
    return dict(orjson.loads(path.read_bytes())) if path.is_file() else {}


def names_several_labels(source: Path | str) -> bool:
    """Return whether a folder says that an example of its task can have several labels."""
    given = saved_options(source).get("multi_label")
    return _config(source).get("problem_type") == "multi_label_classification" if given is None else bool(given)


def saved_options(source: Path | str) -> dict[str, Any]:
    """Return the options among `saved`."""
    return Options.known(saved(source).get("options", {}))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the batch to the model's device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Return rows of different length as one int64 tensor, padded at the right."""
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return padded
