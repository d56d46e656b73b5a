"""Periodic fine-tuning of a task from labels that arrive while running; the learner process calls it between its updates.

Every `every_s`, with at least `min_labels` new labels: train a candidate on the new ones and a replay of earlier ones (class
by class, Rolnick et al. 2019: rehearsal against forgetting), judge it on the part that never trains, and promote it or not.
A candidate is promoted if, on held-out labels,

1. the new labels can be learned: it agrees with them more than two independent raters of the same habits would (Wilson's
   lower bound of the agreement at 95 % above chance agreement, as in Cohen's kappa): shuffled labels fail here;
2. it is no worse than the live version on all of them, within `margin`;
3. it loses at most `forget_margin` on the earlier ones.

When a candidate fails and its new labels come from several sources, another is trained without the source that the live version
agrees with least (`blame.py`): if that one passes, the source is what lowered the held-out metric. It is named, and the candidate
without it goes live. Labels of a rejected candidate are set aside for good. The epoch is chosen on a slice of the training part, so the held-out
part judges only. What is held out is `holdout.py`'s: a file of the operator's, or a part of the labels.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from learners.blame import suspects
from learners.config import FinetuneSettings, TaskSettings
from learners.files import write_atomically
from learners.finetune import Splits, tune
from learners.holdout import Holdout
from learners.labels import Labelled, Labels
from learners.model.bundled import resolve
from learners.reader import Reader
from learners.tasks.base import DataError, Example, Options, Task, saved
from learners.tasks.registry import modality_of, open_task, task_class
from learners.trainer import Settings, Tell
from learners.versions import Version, Versions

MIN_STEPS = 60
"""Updates a fine-tune takes at least: few labels see more epochs, with early stopping."""
PATIENCE = 5
"""Epochs without a better score before it stops, at least."""
INNER = 6
"""One in so many training examples chooses the epoch."""
Z95 = 1.645


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a candidate, with its numbers; `fields` is what an event carries."""

    task: str
    promoted: bool
    reason: str
    version: str | None
    figures: dict[str, float]
    held_out: str = "labels"
    """Where what judged came from: a `file`, or the `labels` themselves."""
    blamed: dict[str, Any] | None = None
    """The source whose labels lowered the held-out metric, as `source_quarantined` tells it."""

    @property
    def event(self) -> str:
        """`task_promoted` or `task_rejected`."""
        return "task_promoted" if self.promoted else "task_rejected"

    @property
    def fields(self) -> dict[str, Any]:
        """Everything, flat."""
        return {
            "task": self.task,
            "reason": self.reason,
            "version": self.version,
            "held_out": self.held_out,
            **self.figures,
        }


@dataclass(slots=True)
class Memory:
    """What is kept between runs."""

    judged: int = 0
    """The last label that a candidate was judged with."""
    number: int = 0
    rejected: list[list[int]] = field(default_factory=list)
    """Ranges of label numbers set aside: first excluded, last included."""

    def counts(self, label: Labelled) -> bool:
        """Whether a label is not set aside."""
        return not any(low < label.id <= high for low, high in self.rejected)


class Online:
    """The periodic fine-tuning of one task.

    Args:
        name: of the task.
        settings: of the task.
        finetune: when and how.
        folder: `state_dir/learner/tasks`.
        reader: of the experience folder.
        seed: of everything random.
        clock: monotonic seconds.
        options: further fields of `trainer.Settings`, for tests and benchmarks.
    """

    def __init__(
        self, name: str, settings: TaskSettings, finetune: FinetuneSettings, folder: Path, reader: Reader, *,
        seed: int = 0, clock: Callable[[], float] = time.monotonic, options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.settings, self.finetune, self.seed = name, settings, finetune, seed
        self.versions = Versions(folder / name)
        self.labels = Labels(name, settings, reader)
        self._clock, self._last_s, self._options = clock, clock(), options or {}

    @property
    def memory(self) -> Memory:
        """What is kept between runs."""
        path = self.versions.folder / "memory.json"
        return Memory(**orjson.loads(path.read_bytes())) if path.is_file() else Memory()

    def _remember(self, memory: Memory) -> None:
        self.versions.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.versions.folder / "memory.json", orjson.dumps(asdict(memory)))

    def holdout(self) -> Holdout:
        """What judges.

        Raises:
            DataError: the file of held-out examples cannot be read.
        """
        return Holdout.of(self.settings.heldout, self.finetune.holdout)

    def held_out(self) -> list[dict[str, Any]]:
        """The examples that judge now.

        Raises:
            DataError: as `holdout`.
        """
        memory = self.memory
        return self.holdout().examples([one for one in self.labels.all() if memory.counts(one)])

    def due(self) -> bool:
        """Whether it is time and there are enough new labels."""
        if self._clock() - self._last_s < self.finetune.every_s:
            return False
        return self.labels.count(self.memory.judged) >= self.finetune.min_labels

    def run(self, *, tell: Tell | None = None, stop: Callable[[], bool] | None = None) -> Verdict:
        """Train and judge a candidate on what has arrived since the last one.

        Raises:
            DataError: no new label is usable, or the file of held-out examples is not.
            trainer.Stopped: `stop` said so; nothing has changed.
        """
        self._last_s = self._clock()
        memory, labels = self.memory, self.labels.all()
        known = [one for one in labels if one.id <= memory.judged and memory.counts(one)]
        new = [one for one in labels if one.id > memory.judged]
        if not new:
            raise DataError(f"task {self.name}: none of its new labels is usable: {dict(self.labels.skipped)}")
        start_s = time.monotonic()
        candidate, figures = self._attempt(new, known, memory, tell, stop)
        blamed = None
        if refusal(figures, self.finetune) is not None:
            for suspect in suspects(new, self._judge_of(candidate)):
                found = self._without(suspect, new, known, memory, figures, tell, stop)
                if found is not None:
                    candidate, figures, blamed = found
                    break
        figures["wall_s"] = time.monotonic() - start_s
        verdict = self._decide(memory, candidate, max(one.id for one in new), figures)
        return replace(verdict, blamed=blamed)

    def _attempt(
        self,
        new: Sequence[Labelled],
        known: Sequence[Labelled],
        memory: Memory,
        tell: Tell | None,
        stop: Callable[[], bool] | None,
    ) -> tuple[Task, dict[str, float]]:
        """A candidate and its figures."""
        parts = self.holdout().parts(new, known)
        train, held = parts.train_new, parts.held_new
        replayed = replay(parts.train_known, round(self.finetune.replay * len(train)), self.seed + memory.number)
        if len(train) < 2 or not held:
            raise DataError(
                f"task {self.name}: {len(train)} labels to train on and {len(held)} held out; more are needed"
            )
        candidate = self._train([*train, *replayed], [*known, *new], tell, stop)
        figures = {"new_labels": float(len(new)), "trained_on": float(len(train)), "replayed": float(len(replayed))}
        return candidate, figures | self._judge(candidate, held, parts.held_known)

    def _judge_of(self, candidate: Task) -> Callable[[Sequence[Example]], float]:
        """Who says how well labels agree with what was learned before: the live version, else the candidate itself."""
        live = self.versions.live()
        task = open_task(self.settings.kind, live.path) if live is not None else candidate
        return lambda examples: score(task, examples)

    def _without(
        self,
        suspect: str,
        new: Sequence[Labelled],
        known: Sequence[Labelled],
        memory: Memory,
        before: dict[str, float],
        tell: Tell | None,
        stop: Callable[[], bool] | None,
    ) -> tuple[Task, dict[str, float], dict[str, Any]] | None:
        """A candidate without a source's labels; None when that does not help."""
        rest = [one for one in new if one.source != suspect]
        try:
            candidate, figures = self._attempt(
                rest, [one for one in known if one.source != suspect], memory, tell, stop
            )
        except DataError:
            return None
        if refusal(figures, self.finetune) is not None:
            return None
        told = {
            "source": f"label:{suspect}",
            "kind": "labels",
            "task": self.name,
            "labels": len(new) - len(rest),
            "reason": refusal(before, self.finetune),
            "held_out_with": before["all_after"],
            "held_out_without": figures["all_after"],
            "held_out": self.holdout().origin,
        }
        return candidate, figures, told

    def _train(
        self,
        examples: list[dict[str, Any]],
        labels: Sequence[Labelled],
        tell: Tell | None,
        stop: Callable[[], bool] | None,
    ) -> Task:
        # new rows of the head must not depend on what was drawn before
        torch.manual_seed(self.seed + 2)
        task = self._open(labels)
        inner = [e for i, e in enumerate(examples) if i % INNER == INNER - 1] or examples
        outer = [e for i, e in enumerate(examples) if i % INNER != INNER - 1]
        batch = self.finetune.batch
        steps = math.ceil(len(outer) / batch)
        rate = self.finetune.learning_rate or task.recipe.rates.get(self.settings.train, 1e-4)
        epochs = max(self.finetune.epochs, math.ceil(MIN_STEPS / steps))
        # a small slice stands still for a few epochs before it improves again
        settings = Settings(
            epochs=epochs, batch=batch, learning_rate=rate, seed=self.seed, patience=max(PATIENCE, epochs // 2)
        )
        settings = replace(settings, **self._options)
        tune(
            task,
            Splits(outer, inner),
            settings,
            self.settings.train,
            rank=self.settings.lora_rank,
            tell=tell,
            stop=stop,
        )
        return task

    def _open(self, labels: Sequence[Labelled]) -> Task:
        """The live version, or the pretrained model, with a head for every label in use."""
        live = self.versions.live()
        source = live.path if live is not None else resolve(self.settings.model)
        examples = [one.example for one in labels]
        modality = modality_of(examples)
        cls = task_class(self.settings.kind, modality)
        before = [*saved(source).get("labels", ()), *self.settings.labels]
        names = tuple(dict.fromkeys([*before, *cls.labels_of(examples)]))
        return open_task(self.settings.kind, source, modality=modality, labels=names, **options_of(self.settings))

    def _judge(self, candidate: Task, new: Sequence[Example], known: Sequence[Example]) -> dict[str, float]:
        """The figures of candidate and live version on held-out labels."""
        live = self.versions.live()
        old = open_task(self.settings.kind, live.path) if live is not None else None
        figures = {"held_new": float(len(new)), "held_known": float(len(known))}
        for part, examples in {"new": new, "known": known, "all": [*known, *new]}.items():
            if examples:
                figures[f"{part}_after"] = score(candidate, examples)
                figures[f"{part}_before"] = score(old, examples) if old is not None else 0.0
        if self.settings.kind in ("classify", "relate") and not self.settings.multi_label:
            wanted = [str(example["label"]) for example in new]
            figures |= agreement(wanted, [str(p.value) for p in candidate.predict([bare(e) for e in new])])
        return figures

    def _decide(self, memory: Memory, candidate: Task, last: int, figures: dict[str, float]) -> Verdict:
        reason = refusal(figures, self.finetune)
        memory.number += 1
        version: Version | None = None
        if reason is None:
            version = self.versions.add(candidate, memory.number)
            self.versions.promote(version)
        else:
            memory.rejected.append([memory.judged, last])
        memory.judged = last
        self._remember(memory)
        name = version.name if version is not None else None
        said = reason or "no worse, and the new labels can be learned"
        return Verdict(self.name, reason is None, said, name, figures, self.holdout().origin)


def refusal(figures: dict[str, float], settings: FinetuneSettings) -> str | None:
    """Why a candidate is not promoted; None if it is."""
    if figures.get("agreement_low", 1.0) <= figures.get("chance", 0.0):
        return (
            f"the new labels cannot be learned: agreement {figures['agreement']:.3f} (at least {figures['agreement_low']:.3f})"
            f" against {figures['chance']:.3f} by chance"
        )
    if figures["all_after"] < figures["all_before"] - settings.margin:
        return f"worse on held-out labels: {figures['all_after']:.3f} after {figures['all_before']:.3f}"
    if "known_before" in figures and figures["known_after"] < figures["known_before"] - settings.forget_margin:
        return f"forgets: {figures['known_after']:.3f} after {figures['known_before']:.3f} on earlier labels"
    return None


def agreement(wanted: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Agreement, its lower bound (Wilson 1927, one-sided 95 %), and chance agreement (Cohen 1960).

    With one label alone there is nothing to confuse: chance is then one half.
    """
    n = len(wanted)
    agreed = sum(w == f for w, f in zip(wanted, found, strict=True)) / n
    chance = sum((wanted.count(label) / n) * (list(found).count(label) / n) for label in set(wanted))
    if len(set(wanted)) == 1:
        chance = 0.5
    centre = agreed + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(agreed * (1 - agreed) / n + Z95**2 / (4 * n * n))
    return {"agreement": agreed, "agreement_low": (centre - spread) / (1 + Z95**2 / n), "chance": chance}


def replay(examples: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """At most `count` earlier examples, as evenly over their labels as they allow."""
    by_label: dict[str, list[dict[str, Any]]] = defaultdict(list)
    generator = np.random.default_rng(seed)
    for i in generator.permutation(len(examples)):
        by_label[str(examples[i].get("label", ""))].append(examples[i])
    picked: list[dict[str, Any]] = []
    while len(picked) < min(count, len(examples)):
        for label in sorted(by_label):
            if by_label[label] and len(picked) < count:
                picked.append(by_label[label].pop())
    return picked


def bare(example: Example) -> Example:
    """An example without its answer, so that a head that does not know a label can still be asked."""
    return {name: value for name, value in example.items() if name not in ("label", "tags")}


def score(task: Task, examples: Sequence[Example]) -> float:
    """The task's selection metric."""
    return task.metrics(examples, task.predict([bare(example) for example in examples]))[task.selection]


def options_of(settings: TaskSettings) -> dict[str, Any]:
    """What the settings say of the task's options."""
    told = {"multi_label": settings.multi_label, "max_new_tokens": settings.max_new_tokens, "system": settings.system}
    return Options.known(told)
