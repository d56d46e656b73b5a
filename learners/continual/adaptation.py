"""Adapt the encoder of a task to its stream before the first version: continued pretraining on stored readings without labels.

It happens once, when `finetune.adapt` readings are stored. Readings of the held-out file are left out. The adapted encoder is used only
if the file shows a gain. A head is fitted to each frozen encoder on four fifths of the file and tested on the last one, five times. The
lower bound of the paired difference at 97.5 % must be above 0. No encoder is trained on the file.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from learners.config import FinetuneSettings, TaskSettings
from learners.continual.acceptance import paired_bounds
from learners.continual.evaluation import predict
from learners.continual.splits import Holdout, normalized_text
from learners.experience.reader import Reader
from learners.experience.reading_similarity import content_digest
from learners.files import draft_folder, publish_folder
from learners.finetune.error_analysis.scores import each
from learners.finetune.few_labels.adaptation import adapt, can_adapt
from learners.finetune.linear_probe import fit_head
from learners.model.encoders.bundled_weights import resolve
from learners.task_kinds import KINDS
from learners.task_serving.options import options_of
from learners.task_serving.reading_inputs import inputs_of_text
from learners.tasks.base import DataError, EncodedMedia, Example
from learners.tasks.layers.heads import output_layer
from learners.tasks.task_classes import open_task, task_class
from learners.tasks.text_classification import Classifier

FOLDER, REPORT = "adapted", "adaptation.json"
FOLDS = 5
LEAST_HELD = 20
"""Examples of the held-out file below which no gain can be shown."""


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

    @property
    def encoder(self) -> Path:
        """The folder of the adapted encoder; not there where it is not used."""
        return self.folder / FOLDER / "model"

    def due(self) -> bool:
        """Return whether enough readings are stored, and this model's encoder was not adapted yet."""
        count, stream = self.finetune.adapt, self.settings.stream
        if not count or stream is None or self.settings.context is not None or not can_adapt(self.settings.kind):
            return False
        return (
            self._report().get("model") != self.settings.model and len(self.reader.raw_stamps(stream, count)) >= count
        )

    def _report(self) -> dict[str, Any]:
        path = self.folder / FOLDER / REPORT
        return dict(orjson.loads(path.read_bytes())) if path.is_file() else {}

    def run(self, holdout: Holdout, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Adapt the encoder, decide whether it is used, store that, and return the fields of `task_adapted`.

        Raises:
            trainer.Stopped: `stop` returned True; nothing was stored.
        """
        found: dict[str, Any] = {"task": self.name, "model": self.settings.model, "used": False}
        task = self._open(holdout.examples)
        plain = copy.deepcopy(task)
        try:
            made = adapt(task, self._readings(holdout), seed=self.seed, stop=stop)
        except DataError as reason:
            return self._store(found | {"reason": str(reason)}, None)
        found |= {"objective": made.objective, "readings": made.readings, "loss": made.losses[-1]}
        if len(holdout.examples) < LEAST_HELD:
            few = f"inconclusive: the held-out file has {len(holdout.examples)} examples, and {LEAST_HELD} are needed"
            return self._store(found | {"reason": few}, None)
        after, before = (probe_scores(one, holdout.examples, self.seed) for one in (task, plain))
        lower, upper = paired_bounds(after, before)
        found |= {"before": float(np.mean(before)), "after": float(np.mean(after)), "lower": lower, "upper": upper}
        if not lower > 0.0:
            return self._store(found | {"reason": "no gain is shown on the held-out file"}, None)
        return self._store(found | {"used": True, "reason": "better on the held-out file"}, task)

    def _open(self, held: Sequence[Example]) -> Classifier:
        names = tuple(dict.fromkeys([*self.settings.labels, *task_class(self.settings.kind).labels_of(held)]))
        options = options_of(self.settings)
        task = open_task(self.settings.kind, resolve(self.settings.model), labels=names or ("a", "b"), **options)
        assert isinstance(task, Classifier)
        return task

    def _readings(self, holdout: Holdout) -> list[dict[str, Any]]:
        """Return the newest stored readings, without those of the held-out file."""
        assert self.settings.stream is not None
        stamps = self.reader.raw_stamps(self.settings.stream, self.finetune.adapt)
        held = {normalized_text(example) for example in holdout.examples} - {""}
        found = []
        for number, _ in stamps:
            raw = self.reader.raw_by_number([number]).get(number)
            if raw is None:
                continue
            try:
                example: dict[str, Any] = (
                    inputs_of_text(self.settings.kind, raw.data.decode(errors="replace"))
                    if raw.encoding == "utf-8"
                    else {str(KINDS[self.settings.kind].modality): EncodedMedia(raw.encoding, raw.data)}
                )
                if normalized_text(example) not in held and not holdout.media.has(content_digest(raw).hex(), example):
                    found.append(example)
            except DataError:
                continue
        return found

    def _store(self, found: dict[str, Any], task: Classifier | None) -> dict[str, Any]:
        with draft_folder(self.folder, FOLDER) as draft:
            if task is not None:
                task.save(draft / "model")
            (draft / REPORT).write_bytes(orjson.dumps(found))
            publish_folder(draft, self.folder / FOLDER, replace=True)
        return {name: value for name, value in found.items() if not isinstance(value, float) or math.isfinite(value)}


def probe_scores(task: Classifier, examples: Sequence[Example], seed: int) -> list[float]:
    """Return the score of each example by a head that was fitted to the frozen encoder on the other folds; the task changes its head."""
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    head: Any = task.model.get_submodule(output_layer(task.model))
    start = copy.deepcopy(head.state_dict())
    scores = [0.0] * len(examples)
    for fold in range(FOLDS):
        tested = order[fold::FOLDS]
        rest = sorted(set(order) - set(tested))
        head.load_state_dict(start)
        fit_head(task, [examples[at] for at in rest])
        some = [examples[at] for at in tested]
        for at, score in zip(tested, each(task, some, predict(task, some)), strict=True):
            scores[at] = score
    head.load_state_dict(start)
    return scores
