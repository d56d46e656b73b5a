"""Adapt the encoder of a task to its stream before the first version: continued pretraining on stored readings without labels.

It happens when `finetune.adapt` readings are stored. Readings of the evidence are left out. The adapted encoder is used only if the
evidence shows a gain. A head is fitted to each frozen encoder on four fifths of it and tested on the last one, five times. The lower
bound of the paired difference at 97.5 % must be above 0. No encoder is trained on the evidence. The evidence is the held-out file or
the labels that were put aside; without both, all labels. It approves no version: the encoder is only where training starts.

What was found belongs to one model with its weights, one stream and one number of readings. With any other, the adapted encoder is
not used. A result is tested again when there is twice as much evidence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.acceptance import paired_bounds
from learners.continual.evaluation import predict
from learners.continual.labels import Labels
from learners.continual.splits import Holdout
from learners.data_error import DataError
from learners.experience.reader import Reader
from learners.experience.reading_similarity import content_digest
from learners.experience.records import Label, Raw
from learners.files import draft_folder, publish_folder, source_and_split
from learners.finetune.error_analysis.scores import each
from learners.finetune.example_checks.near_duplicates import NearDuplicates
from learners.finetune.example_checks.readable_examples import ReadableExamples
from learners.finetune.few_labels.continued_pretraining import adapt, can_adapt
from learners.finetune.labelled_files.equal_content import content_key, normalized_text
from learners.finetune.linear_probe import fit_head
from learners.finetune.transfer import weights_of
from learners.model.encoders.bundled_packages import BundledError
from learners.model.encoders.bundled_weights import resolve
from learners.task_kinds import KINDS
from learners.task_serving.options import options_of
from learners.task_serving.reading_inputs import inputs_of_text
from learners.tasks.base import EncodedMedia, Example
from learners.tasks.classifier import Classifier
from learners.tasks.layers.heads import output_layer
from learners.tasks.task_classes import open_task, task_class

Origin = Literal["file", "labels put aside", "labels"]
FOLDER, REPORT = "adapted", "adaptation.json"
FOLDS = 5
LEAST_HELD = 20
"""Examples of the evidence below which no gain can be shown."""
MORE = 2
"""Times as many labels as before, from which a result is tested again."""


@dataclass(frozen=True, slots=True)
class AdaptationEvidence:
    """The examples that test an encoder; no content is there twice."""

    origin: Origin
    examples: Sequence[Example]
    groups: Sequence[str]
    """Of each example. A group is never on both sides of a test: pictures and sounds of one stream within some seconds."""
    media: NearDuplicates
    """Recognises its pictures and sounds."""

    @property
    def name(self) -> str:
        """What it is called in an event."""
        return "the held-out file" if self.origin == "file" else f"the {self.origin}"

    @property
    def lacks(self) -> str | None:
        """Return what is missing before a gain can be shown; None where nothing is."""
        if len(self.examples) < LEAST_HELD:
            return f"{len(self.examples)} different examples in {self.name}, and {LEAST_HELD} are needed"
        if len(set(self.groups)) < FOLDS:
            return f"examples of {len(set(self.groups))} moments in {self.name}, and {FOLDS} are needed"
        return None


@dataclass(frozen=True, slots=True)
class EncoderAdaptation:
    """The adaptation of one task's encoder.

    Args:
        name: of the task.
        settings: of the task.
        finetune: `adapt` is the number of readings.
        folder: of the task, `state_dir/learner/tasks/NAME`.
        reader: of the experience folder.
        seed: of everything random.
    """

    name: str
    settings: TaskSettings
    finetune: FinetuneSettings
    folder: Path
    reader: Reader
    seed: int = 0

    def encoder(self) -> Path | None:
        """Return the folder of the adapted encoder; None where it is not used, or was made from another model or other settings."""
        found = self._report()
        used = self._applies() and bool(found.get("used")) and found.get("of") == self._identity()
        return self.folder / FOLDER / "model" if used else None

    def due(self) -> bool:
        """Return whether enough readings and enough evidence are there, and more than when it was last tested."""
        count, stream = self.finetune.adapt, self.settings.stream
        if not self._applies() or stream is None or len(self.reader.raw_stamps(stream, count)) < count:
            return False
        try:
            of = self._identity()
        except (BundledError, OSError):
            return False  # a fine-tune reports that the model is not there
        found = self._report()
        if found.get("of") != of:
            return self._has_evidence()
        if self.settings.eval_file is not None:
            return not found.get("conclusive") and found.get("evidence") != self._evidence()
        return self._has_evidence() and int(self._evidence()) >= MORE * int(found.get("evidence", 0))

    def _applies(self) -> bool:
        """Return whether the settings ask for an adaptation that is possible."""
        known = self.settings.stream is not None and self.settings.context is None
        return bool(self.finetune.adapt) and known and can_adapt(self.settings.kind)

    def _identity(self) -> dict[str, Any]:
        """Return what an adapted encoder was made from and for."""
        return {
            "model": self.settings.model, "weights": weights_of(self.settings.model), "kind": self.settings.kind,
            "stream": self.settings.stream, "readings": self.finetune.adapt,
        }  # fmt: skip

    def _origin(self) -> Origin:
        """Return what tests the encoder: the held-out file, enough labels that were put aside, else all labels."""
        if self.settings.eval_file is not None:
            return "file"
        return "labels put aside" if len(self._labels(held_out=True)) >= LEAST_HELD else "labels"

    def _labels(self, *, held_out: bool) -> list[Label]:
        return self.reader.labels(self.name, held_out=held_out)

    def _evidence(self) -> str:
        """Return a word that changes with the evidence: the state of the held-out file, or the number of labels."""
        if self.settings.eval_file is None:
            aside = len(self._labels(held_out=True))
            return str(aside if aside >= LEAST_HELD else aside + len(self._labels(held_out=False)))
        path, _ = source_and_split(self.settings.eval_file)
        some = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        return " ".join(f"{one.stat().st_size}-{one.stat().st_mtime_ns}" for one in some if one.exists())

    def _has_evidence(self) -> bool:
        return self.settings.eval_file is not None or int(self._evidence()) >= LEAST_HELD

    def _report(self) -> dict[str, Any]:
        path = self.folder / FOLDER / REPORT
        return dict(orjson.loads(path.read_bytes())) if path.is_file() else {}

    def run(self, holdout: Holdout, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Adapt the encoder, decide whether it is used, store that, and return the fields of `task_adapted`.

        Raises:
            DataError: an example of the held-out file cannot be read.
            trainer.Stopped: `stop` returned True; nothing was stored.
        """
        found: dict[str, Any] = {"task": self.name, "model": self.settings.model, "used": False}
        task, evidence = self._opened(holdout)
        if evidence.lacks is not None:
            return self._store(found | {"reason": f"inconclusive: {evidence.lacks}"}, None)
        plain = copy.deepcopy(task)
        readings, unreadable, named = self._readings(evidence)
        found |= {"unreadable": unreadable, "unreadable_reason": named} if unreadable else {}
        try:
            made = adapt(task, readings, seed=self.seed, stop=stop)
            found |= {"objective": made.objective, "readings": made.readings, "loss": made.losses[-1]}
            if made.unreadable:
                found |= {
                    "unreadable": unreadable + made.unreadable, "unreadable_reason": named or made.unreadable_reason,
                }  # fmt: skip
            rows, groups = evidence.examples, evidence.groups
            after, before = (probe_scores(one, rows, self.seed, groups) for one in (task, plain))
        except DataError as reason:
            return self._store(found | {"reason": str(reason)}, None)
        lower, upper = paired_bounds(after, before)
        found |= {"before": float(np.mean(before)), "after": float(np.mean(after)), "lower": lower, "upper": upper}
        if not lower > 0.0:
            return self._store(found | {"reason": f"no gain is shown on {evidence.name}"}, None, conclusive=True)
        return self._store(found | {"used": True, "reason": f"better on {evidence.name}"}, task, conclusive=True)

    def _opened(self, holdout: Holdout) -> tuple[Classifier, AdaptationEvidence]:
        """Return the task, and what tests it.

        Raises:
            DataError: an example of the held-out file cannot be read.
        """
        labels = Labels(self.name, self.settings, self.reader)
        origin, held = self._origin(), [(example, content_key(example)) for example in holdout.examples]
        if origin != "file":
            some = [*labels.held_out(), *(labels.all() if origin == "labels" else ())]
            held = [(one.example, one.block or one.part) for one in some]
        task = self._open([example for example, _ in held])
        readable = ReadableExamples(task)
        fitting = {id(example) for example in readable([example for example, _ in held])}
        if readable.count and origin == "file":
            raise DataError(f"{self.settings.eval_file}: {readable.count} examples cannot be read; {readable.first}")
        once = {content_key(example): (example, group) for example, group in held[::-1] if id(example) in fitting}
        found = list(once.values())[::-1]
        examples = [example for example, _ in found]
        media = holdout.media if origin == "file" else NearDuplicates(examples)
        return task, AdaptationEvidence(origin, examples, [group for _, group in found], media)

    def _open(self, held: Sequence[Example]) -> Classifier:
        names = tuple(dict.fromkeys([*self.settings.labels, *task_class(self.settings.kind).labels_of(held)]))
        options = options_of(self.settings)
        task = open_task(self.settings.kind, resolve(self.settings.model), labels=names or ("a", "b"), **options)
        assert isinstance(task, Classifier)
        return task

    def _readings(self, evidence: AdaptationEvidence) -> tuple[list[Example], int, str]:
        """Return the newest stored readings without those of the evidence, the number of unreadable ones, and why the first is."""
        assert self.settings.stream is not None
        stamps = self.reader.raw_stamps(self.settings.stream, self.finetune.adapt)
        held = {normalized_text(example) for example in evidence.examples} - {""}
        found: list[Example] = []
        unreadable, named = 0, ""
        for number, stamp_s in stamps:
            raw = self.reader.raw_by_number([number]).get(number)
            if raw is None:
                continue
            try:
                example = self._example(raw)
                known = normalized_text(example) in held or evidence.media.has(content_digest(raw).hex(), example)
            except Exception as error:  # noqa: BLE001 - decoders raise anything for what is unfit; one reading must not end it
                unreadable += 1
                named = named or f"the reading of {stamp_s:.3f}: {type(error).__name__}: {str(error)[:200]}"
                continue
            if not known:
                found.append(example)
        return found, unreadable, named

    def _example(self, raw: Raw) -> Example:
        """Return a stored reading as an example of the task.

        Raises:
            DataError: it is of another kind, or it cannot be decoded.
        """
        kind, modality = self.settings.kind, KINDS[self.settings.kind].modality
        if raw.encoding == "utf-8":
            if modality != "text":
                raise DataError(f"{kind} reads a {modality}, not a text")
            return inputs_of_text(kind, raw.data.decode(errors="replace"))
        media = EncodedMedia(raw.encoding, raw.data)
        if modality == "text" or modality not in media.decode():
            raise DataError(f"{kind} reads a {modality}, not a {raw.encoding}")
        return {str(modality): media}

    def _store(self, found: dict[str, Any], task: Classifier | None, *, conclusive: bool = False) -> dict[str, Any]:
        body = found | {"of": self._identity(), "evidence": self._evidence(), "conclusive": conclusive}
        with draft_folder(self.folder, FOLDER) as draft:
            if task is not None:
                task.save(draft / "model")
            (draft / REPORT).write_bytes(orjson.dumps(body))
            publish_folder(draft, self.folder / FOLDER, replace=True)
        return {name: value for name, value in found.items() if not isinstance(value, float) or math.isfinite(value)}


def probe_scores(
    task: Classifier, examples: Sequence[Example], seed: int, groups: Sequence[str] | None = None
) -> list[float]:
    """Return the score of each example by a head that was fitted to the frozen encoder on the other folds; the task changes its head.

    Args:
        task: with the encoder.
        examples: with labels.
        seed: of the folds.
        groups: of the examples; a group is in one fold. None for a group of each.

    Raises:
        DataError: no head can be fitted to the model.
    """
    named = [str(at) for at in range(len(examples))] if groups is None else list(groups)
    different = list(dict.fromkeys(named))
    order = np.random.default_rng(seed).permutation(len(different)).tolist()
    fold_of = {different[group]: place % FOLDS for place, group in enumerate(order)}
    head: Any = task.model.get_submodule(output_layer(task.model))
    start = copy.deepcopy(head.state_dict())
    scores = [0.0] * len(examples)
    try:
        for fold in range(FOLDS):
            tested = [at for at, group in enumerate(named) if fold_of[group] == fold]
            rest = [example for example, group in zip(examples, named, strict=True) if fold_of[group] != fold]
            if not tested:
                continue
            head.load_state_dict(start)
            if fit_head(task, rest) is None:
                raise DataError(
                    f"{task.model.config.model_type}: no head can be fitted to its encoder; set finetune.adapt to 0"
                )
            some = [examples[at] for at in tested]
            for at, score in zip(tested, each(task, some, predict(task, some)), strict=True):
                scores[at] = score
    finally:
        head.load_state_dict(start)
    return scores
