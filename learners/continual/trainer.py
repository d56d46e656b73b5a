"""Periodic fine-tuning of a task from labels that arrive while running, in a process of its own (`learners/worker/finetuning.py`).

Every `every_s`, with at least `min_labels` new labels: train a candidate on the new ones and a replay of earlier ones (class
by class, Rolnick et al. 2019: rehearsal against forgetting), and promote it or not. A fixed part of the labels never trains: as
validation it stops the training and chooses the epoch. The verdict is the operator's held-out file's alone (`holdout.py`, `verdicts.py`):
without one it is "inconclusive": the version is kept beside the live one, and its labels are learned again together with the next ones,
unless a person promotes it.

When a candidate fails, the source whose labels lowered the held-out metric is looked for (`blame.py`): if a candidate without it passes,
that one goes live. One that fails for forgetting alone, with nobody to blame, is taught once more, gently. Labels of a rejected candidate
are set aside for good.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from learners.config import FinetuneSettings, TaskSettings
from learners.continual.acceptance import (
    AcceptanceVerdict,
    Outcome,
    forgetting_reason,
    inconclusive_reason,
    rejection_reason,
)
from learners.continual.attribution import ALPHA, MIN_LABELS, by_source, single_source, sources_to_ablate
from learners.continual.candidate import CandidateTrainer, TrainedCandidate, options_of
from learners.continual.evaluation import (
    CandidateMetrics,
    agreed,
    contradicts,
    evaluate_candidate,
    known_classes,
    opinion,
    predict,
    score,
    sign_test,
)
from learners.continual.labels import Labelled, Labels
from learners.continual.splits import Holdout, classes
from learners.continual.versions import Version, Versions
from learners.experience.reader import Reader
from learners.files import write_atomically
from learners.finetune.trainer import Tell
from learners.model.encoders.bundled import resolve
from learners.tasks.base import PRETRAINED, DataError, Task
from learners.tasks.registry import open_task


@dataclass(slots=True)
class TrainerState:
    """What is kept between runs."""

    judged: int = 0
    """The last label that was learned or refused."""
    number: int = 0
    rejected: list[list[int]] = field(default_factory=list)
    """Ranges of label numbers set aside: first excluded, last included."""
    tried: int = 0
    """The last label of a version of which nothing is known."""

    def counts(self, label: Labelled) -> bool:
        """Whether a label is not set aside."""
        return not any(low < label.id <= high for low, high in self.rejected)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained candidate, with its figures; `judged` where there is a held-out file."""

    taught: TrainedCandidate
    figures: dict[str, Any]
    judged: CandidateMetrics | None


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """The labels of one run: the new ones, those known before, and what is asked meanwhile."""

    new: Sequence[Labelled]
    known: Sequence[Labelled]
    number: int
    tell: Tell | None
    stop: Callable[[], bool] | None

    def without(self, sources: Sequence[str]) -> LabelBatch:
        """The same without some sources."""
        new = [one for one in self.new if one.source not in sources]
        return replace(self, new=new, known=[one for one in self.known if one.source not in sources])


@dataclass(frozen=True, slots=True)
class SourceImpact:
    """What it is like without a suspect: the task, its held-out metric, and how likely the difference is by chance."""

    without: Task
    all_without: float
    chance: float


class ContinualTrainer:
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
        self.name, self.settings, self.finetune = name, settings, finetune
        self.versions = Versions(folder / name)
        self.labels = Labels(name, settings, reader)
        self.lesson = CandidateTrainer(settings, finetune, seed, options or {})
        self._clock, self._last_s = clock, clock()

    @property
    def memory(self) -> TrainerState:
        """What is kept between runs."""
        path = self.versions.folder / "memory.json"
        return TrainerState(**orjson.loads(path.read_bytes())) if path.is_file() else TrainerState()

    def _remember(self, memory: TrainerState) -> None:
        self.versions.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.versions.folder / "memory.json", orjson.dumps(asdict(memory)))

    def holdout(self) -> Holdout:
        """What judges.

        Raises:
            DataError: the file of held-out examples cannot be read.
        """
        return Holdout.of(self.settings.eval_file, self.finetune.validation_fraction)

    def due(self) -> bool:
        """Whether it is time and there are enough new labels."""
        if self._clock() - self._last_s < self.finetune.every_s:
            return False
        memory = self.memory
        return self.labels.count(max(self._learned(memory), memory.tried)) >= self.finetune.min_labels

    def restart_timer(self) -> None:
        """Count `every_s` from now: a fine-tune starts."""
        self._last_s = self._clock()

    def _learned(self, memory: TrainerState) -> int:
        """The last label that was learned or refused; a version that a person promoted says which it learned."""
        live = self.versions.live()
        return max(memory.judged, live.last_label if live is not None else 0)

    def run(self, *, tell: Tell | None = None, stop: Callable[[], bool] | None = None) -> AcceptanceVerdict:
        """Train and judge a candidate on what has arrived since the last one.

        Raises:
            DataError: no new label is usable, or the file of held-out examples is not.
            trainer.Stopped: `stop` said so; nothing has changed.
        """
        self.restart_timer()
        start_s = time.monotonic()
        memory, holdout, before = self.memory, self.holdout(), self._before()
        wave = self._wave(memory, before, tell, stop)
        attempt = self._attempt(wave, holdout, before)
        blamed: tuple[dict[str, Any], ...] = ()
        if attempt.judged is not None and rejection_reason(attempt.figures, self.finetune) is not None:
            attempt, blamed = self._attribute_failure(wave, holdout, before, attempt)
        if not blamed and self._fails_only_by_forgetting(attempt):
            attempt = self._retry_gently(wave, holdout, before, attempt)
        attempt.figures["wall_s"] = time.monotonic() - start_s
        return replace(self._decide(memory, holdout, attempt, wave), blamed=blamed)

    def _before(self) -> Task | None:
        """The task a candidate would replace; a head that never trained is none."""
        live = self.versions.live()
        if live is not None:
            return open_task(self.settings.kind, live.path)
        if self.settings.kind in PRETRAINED:
            return open_task(self.settings.kind, resolve(self.settings.model), **options_of(self.settings))
        return None

    def _wave(
        self, memory: TrainerState, before: Task | None, tell: Tell | None, stop: Callable[[], bool] | None
    ) -> LabelBatch:  # fmt: skip
        """What is new: labels that came since, and earlier ones of classes that the live version lacks."""
        labels = [one for one in self.labels.all() if memory.counts(one)]
        learned, knowing = self._learned(memory), known_classes(before) if before is not None else frozenset()
        fresh = [one for one in labels if one.id > learned or not classes(one.example) <= knowing]
        if not any(one.id > learned for one in fresh):
            raise DataError(f"task {self.name}: none of its new labels is usable: {dict(self.labels.skipped)}")
        ids = {one.id for one in fresh}
        known = [one for one in labels if one.id not in ids]
        return LabelBatch(newest(fresh, self.finetune.per_source), known, memory.number, tell, stop)

    def _fails_only_by_forgetting(self, attempt: Candidate) -> bool:
        """Whether what a candidate lost of earlier classes is all that is held against it."""
        said = rejection_reason(attempt.figures, self.finetune) if attempt.judged is not None else None
        return said is not None and said == forgetting_reason(attempt.figures, self.finetune)

    def _retry_gently(self, wave: LabelBatch, holdout: Holdout, before: Task | None, failed: Candidate) -> Candidate:
        """A second candidate, taught gently: the attempt to go on with, which says what the first one lost."""
        second = self._attempt(wave, holdout, before, gently=True)
        better = second if rejection_reason(second.figures, self.finetune) is None else failed
        better.figures.update(tries=2.0, known_after_first=failed.figures["known_after"])
        return better

    def _attempt(self, wave: LabelBatch, holdout: Holdout, before: Task | None, *, gently: bool = False) -> Candidate:
        """A candidate and its figures."""
        parts = holdout.parts(wave.new, wave.known)
        if len(parts.new) < 2:
            uncovered = sorted(set(parts.uncovered))
            why = f"; the held-out file has no example of {uncovered[:8]}" if uncovered else ""
            raise DataError(f"task {self.name}: {len(parts.new)} labels to train on; more are needed{why}")
        taught = self.lesson.teach(self.versions.live(), parts, wave.number, wave.tell, wave.stop, gently=gently)
        tried = agreed(parts.tried, predict(taught.task, parts.tried))
        figures: dict[str, Any] = {"new_labels": float(len(wave.new)), **taught.figures}
        figures |= {f"validation_{name}": value for name, value in tried.items()}
        figures |= {f"labels_{name}": value for name, value in self._opinion(wave, holdout, before).items()}
        if holdout.file is None:
            return Candidate(taught, figures, None)
        judged = evaluate_candidate(holdout, taught.task, before, {name for row in parts.new for name in classes(row)})
        return Candidate(taught, figures | judged.figures, judged)

    def _opinion(self, wave: LabelBatch, holdout: Holdout, before: Task | None) -> dict[str, float]:
        """How well the version before agrees with the new labels; nothing where the file does not bear it out itself."""
        if before is None or contradicts(before, holdout.examples, MIN_LABELS):
            return {}
        return opinion(before, [one.example for one in wave.new], MIN_LABELS)

    def _attribute_failure(
        self, wave: LabelBatch, holdout: Holdout, before: Task | None, failed: Candidate
    ) -> tuple[Candidate, tuple[dict[str, Any], ...]]:
        """The attempt to go on with, and the sources to blame for the failed one."""
        assert failed.judged is not None
        judge_by = before or failed.taught.task
        for group in sources_to_ablate(wave.new, lambda examples: score(judge_by, examples)):
            try:
                other = self._attempt(wave.without(group), holdout, before)
            except DataError:  # too little is left without them to learn or to judge from
                continue
            assert other.judged is not None
            if rejection_reason(other.figures, self.finetune) is None:
                harm = SourceImpact(
                    other.taught.task, other.figures["all_after"], sign_test(failed.judged.after, other.judged.after)
                )
                return other, self._told(wave, group, failed.figures, harm)
        source = single_source(wave.new)
        if source is None or before is None or failed.judged.before is None:
            return failed, ()
        harm = SourceImpact(before, failed.figures["all_before"], sign_test(failed.judged.after, failed.judged.before))
        return failed, self._told(wave, (source,), failed.figures, harm)

    def _told(
        self, wave: LabelBatch, group: Sequence[str], failed: dict[str, Any], harm: SourceImpact
    ) -> tuple[dict[str, Any], ...]:  # fmt: skip
        """Of those of a group that are to blame, what the event says; the others were unlucky."""
        sources, told = by_source(wave.new), []
        for source in group:
            opposed = contradicts(harm.without, sources[source], MIN_LABELS)
            if harm.chance <= ALPHA or opposed:
                told.append({
                    "source": f"label:{source}",
                    "kind": "labels",
                    "task": self.name,
                    "labels": len(sources[source]),
                    "reason": rejection_reason(failed, self.finetune),
                    "held_out_with": failed["all_after"],
                    "held_out_without": harm.all_without,
                    "chance": float(f"{harm.chance:.3g}"),
                    "alpha": ALPHA,
                    "contradicts": opposed,
                    "held_out": "file",
                })  # fmt: skip
        return tuple(told)

    def _decide(
        self, memory: TrainerState, holdout: Holdout, attempt: Candidate, wave: LabelBatch
    ) -> AcceptanceVerdict:
        learned, last = self._learned(memory), max(one.id for one in wave.new)
        memory.number += 1
        version: Version | None = None
        reason = rejection_reason(attempt.figures, self.finetune) if holdout.file is not None else ""
        outcome: Outcome = "inconclusive" if holdout.file is None else ("rejected" if reason else "promoted")
        if outcome == "rejected":
            memory.rejected.append([learned, last])
        else:
            write = partial(attempt.taught.describe, last=last, model=self.settings.model, figures=attempt.figures)
            version = self.versions.add(attempt.taught.task, memory.number, write)
        if outcome == "promoted" and version is not None:
            self.versions.promote(version)
        if version is not None and outcome == "inconclusive":
            memory.tried, reason = last, inconclusive_reason(self.name, version.name)
        else:
            memory.judged = last
        self._remember(memory)
        name = version.name if version is not None else None
        said = reason or "no worse on the held-out file, and the new labels can be learned"
        return AcceptanceVerdict(self.name, outcome, said, name, attempt.figures, holdout.origin)


def newest(labels: Sequence[Labelled], per_source: int) -> list[Labelled]:
    """At most so many of each source, the newest; in their order."""
    seen: Counter[str] = Counter()
    kept = []
    for one in reversed(labels):
        seen[one.source] += 1
        if seen[one.source] <= per_source:
            kept.append(one)
    return kept[::-1]
