"""Fine-tune a task periodically from labels that arrive while the daemon runs, in a separate process (`worker/finetuning.py`).

Every `every_s`, with at least `min_labels` new labels, the trainer trains a candidate. It uses the new labels and a sample of
earlier ones (rehearsal, Rolnick et al. 2019). A fixed share of the labels never trains: it is validation, which stops the
training and selects the epoch. Only the operator's held-out file approves a candidate (`splits.py`, `acceptance.py`). Without a
file the outcome is inconclusive. The version is then stored without going live, and its labels train again with the next ones
unless a person promotes it.

When a candidate fails, `source_ablation.py` searches the source of the labels that lowered the held-out metric. If a candidate
trained without that source passes, it is promoted instead. A candidate that fails for forgetting alone, without such a source, is
trained once more at a lower rate. Labels of a rejected candidate train again with the next ones, at most in `MAX_REJECTIONS` rejected
candidates. Where they are at fault, or their source is blamed, they never do.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.acceptance import (
    AcceptanceVerdict,
    Outcome,
    anchor_confidence,
    forgetting_reason,
    inconclusive_reason,
    labels_at_fault,
    more_needed,
    paired_bounds,
    rejection_reason,
    too_few_reason,
)
from learners.continual.candidate_figures import Candidate
from learners.continual.candidate_training import CandidateTrainer
from learners.continual.encoder_adaptation import EncoderAdaptation
from learners.continual.evaluation import (
    CandidateMetrics,
    agreed,
    contradicts,
    evaluate_candidate,
    known_classes,
    knows_nothing_of,
    more_held_out_needed,
    opinion,
    predict,
    score,
    sign_test,
    single_labels,
)
from learners.continual.evaluation_report import write_evaluation
from learners.continual.label_batch import LabelBatch, newest
from learners.continual.labels import Labels
from learners.continual.old_class_anchor import AnchoredRow, figures_of, scores_of
from learners.continual.source_ablation import ALPHA, MIN_LABELS, by_source, single_source, sources_to_ablate
from learners.continual.splits import Holdout, classes
from learners.continual.trainer_state import MAX_REJECTIONS, TrainerState
from learners.data_error import DataError
from learners.experience.reader import Reader
from learners.files import private_folder, write_atomically
from learners.finetune.error_analysis.slices import check_slice, shown, without_nan
from learners.finetune.example_checks.readable_examples import ReadableExamples
from learners.finetune.trainer import OnProgress
from learners.model.encoders.bundled_weights import resolve
from learners.task_kinds import KINDS
from learners.task_serving.options import options_of
from learners.task_serving.versions import TaskVersion, TaskVersionStore
from learners.tasks.base import Example, Task, saved, saved_as, saved_options
from learners.tasks.task_classes import open_task


@dataclass(frozen=True, slots=True)
class SourceImpact:
    """A candidate trained without a source: the task, its held-out metric, and how likely the difference is by chance."""

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
        options: further fields of `TrainerSettings`, for tests and benchmarks.
    """

    def __init__(
        self, name: str, settings: TaskSettings, finetune: FinetuneSettings, folder: Path, reader: Reader, *,
        seed: int = 0, clock: Callable[[], float] = time.monotonic, options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.settings, self.finetune = name, settings, finetune
        self.versions = TaskVersionStore(folder / name)
        self.labels = Labels(name, settings, reader)
        self.adaptation = EncoderAdaptation(name, settings, finetune, folder / name, reader, seed)
        self.candidate_trainer = CandidateTrainer(settings, finetune, seed, options or {}, self.adaptation.encoder)
        self._clock, self._last_s = clock, clock()

    @property
    def state(self) -> TrainerState:
        """What a trainer stores between runs."""
        path = self.versions.folder / "memory.json"
        return TrainerState.of(orjson.loads(path.read_bytes())) if path.is_file() else TrainerState()

    def _save_state(self, state: TrainerState) -> None:
        private_folder(self.versions.folder)
        write_atomically(self.versions.folder / "memory.json", orjson.dumps(asdict(state)))

    def holdout(self) -> Holdout:
        """Return the rule that splits the examples.

        Raises:
            DataError: the file of held-out examples cannot be read.
        """
        if self.settings.eval_file is None:
            return self._put_aside(list)
        return Holdout.of(self.settings.eval_file, self.finetune.validation_fraction, self.settings.kind)

    def _put_aside(self, readable: Callable[[list[Example]], list[Example]]) -> Holdout:
        """Return the rule of the labels that were put aside, as far as they are readable."""
        labels = [one for one in self.labels.held_out() if readable([one.example])]
        return Holdout.put_aside(labels, self.finetune.validation_fraction)

    def due(self) -> bool:
        """Return whether it is time, and the encoder is to be adapted or there are enough new labels."""
        if self._clock() - self._last_s < self.finetune.every_s:
            return False
        state = self.state
        waiting = self.labels.count(max(self._learned(state), state.tried))
        return waiting >= self.finetune.min_labels or self.adaptation_due()

    def adaptation_due(self) -> bool:
        """Return whether there is no version yet, and enough readings to adapt the encoder."""
        return self._live() is None and self.adaptation.due()

    def adapt(self, stop: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Adapt the encoder; return the fields of the event.

        Raises:
            DataError: the held-out file cannot be used.
            trainer.Stopped: `stop` returned True; nothing has changed.
        """
        return self.adaptation.run(self.holdout(), stop)

    def has_new_labels(self) -> bool:
        """Return whether a label arrived since the last run."""
        return self.labels.count(self._learned(self.state)) > 0

    def _live(self) -> TaskVersion | None:
        """Return the live version if it is of the settings' kind of task, and for several labels where they are; else None."""
        live = self.versions.live()
        if live is None or not saved_as(live.path, self.settings.kind):
            return None
        several = bool(saved_options(live.path).get("multi_label"))
        return live if several or not self.settings.multi_label else None

    def _start(self) -> TaskVersion | None:
        """Return the version that a candidate starts from: the live one, unless the settings name another model by now."""
        live = self._live()
        return live if live is not None and live.report.get("model") in (None, self.settings.model) else None

    def restart_timer(self) -> None:
        """Count `every_s` from now: a fine-tune starts."""
        self._last_s = self._clock()

    def _learned(self, state: TrainerState) -> int:
        """Return the last label that need not train: what was judged, or none where another model has learned nothing yet."""
        return 0 if self._live() is not None and self._start() is None else self._judged(state)

    def _judged(self, state: TrainerState) -> int:
        """Return the last label that was trained on or rejected; a version that a person promoted names its last one."""
        live = self._live()
        return max(state.judged, live.last_label if live is not None else 0)

    def run(
        self, *, on_progress: OnProgress | None = None, stop: Callable[[], bool] | None = None
    ) -> AcceptanceVerdict:
        """Train and evaluate a candidate on the labels that arrived since the last one.

        Raises:
            DataError: no new label is usable, the file of held-out examples is not, or it lacks the column of a slice.
            trainer.Stopped: `stop` returned True; nothing has changed.
        """
        self.restart_timer()
        start_s = time.monotonic()
        state, holdout = self.state, self.holdout()
        self._check_slices(state, holdout)
        before = self._before()
        readable = ReadableExamples(before or self._untrained())
        if holdout.origin == "labels":
            holdout = self._put_aside(readable)
        batch = self._batch(state, before, readable, on_progress, stop)
        attempt = self._attempt(batch, holdout, before)
        blamed: tuple[dict[str, Any], ...] = ()
        if attempt.evaluated is not None and rejection_reason(attempt.conclusive, self.finetune) is not None:
            attempt, blamed = self._attribute_failure(batch, holdout, before, attempt)
        if not blamed and self._fails_only_by_forgetting(attempt):
            attempt = self._retry_gently(batch, holdout, before, attempt)
        attempt.figures["wall_s"] = time.monotonic() - start_s
        return self._decide(state, holdout, attempt, batch, blamed)

    def _check_slices(self, state: TrainerState, holdout: Holdout) -> None:
        """Refuse a slice that no held-out example belongs to, before anything trains.

        Raises:
            DataError: no example has the column of a slice.
        """
        try:
            for rule in self.finetune.slices if holdout.file is not None else ():
                check_slice(rule, holdout.examples)
        except DataError:
            self._wait_for_more(state)
            raise

    def _wait_for_more(self, state: TrainerState) -> None:
        """Note that all present labels were tried: the next run waits for more."""
        state.tried = max((label.id for label in self.labels.reader.labels(self.name)), default=state.tried)
        self._save_state(state)

    def _before(self) -> Task | None:
        """Return the task that a candidate would replace; None for a head that never trained."""
        live = self._live()
        if live is not None:
            return open_task(self.settings.kind, live.path)
        if KINDS[self.settings.kind].pretrained:
            return open_task(self.settings.kind, resolve(self.settings.model), **options_of(self.settings))
        return None

    def _untrained(self) -> Task:
        """Return the task on its pretrained model, to see which examples it can read."""
        source = resolve(self.settings.model)
        labels = (*saved(source).get("labels", ()), *self.settings.labels)
        return open_task(self.settings.kind, source, labels=tuple(dict.fromkeys(labels)), **options_of(self.settings))

    def _batch(
        self, state: TrainerState, before: Task | None, readable: ReadableExamples, on_progress: OnProgress | None,
        stop: Callable[[], bool] | None,
    ) -> LabelBatch:  # fmt: skip
        """Collect new labels: those since the last run, and earlier ones of classes that the live version lacks.

        What cannot be read is left out: one label must not end the training of all others.
        """
        labels = [one for one in self.labels.all() if state.counts(one)]
        learned, knowing = self._learned(state), known_classes(before) if before is not None else frozenset()
        fresh = [one for one in labels if one.id > learned or not classes(one.example) <= knowing]
        if not any(one.id > learned for one in fresh):
            self._wait_for_more(state)
            raise DataError(f"task {self.name}: none of its new labels is usable: {dict(self.labels.skipped)}")
        ids = {one.id for one in fresh}
        known = [one for one in labels if one.id not in ids]
        new = [one for one in newest(fresh, self.finetune.per_source) if readable([one.example])]
        return LabelBatch(new, known, state.number, on_progress, stop, max(ids), readable)

    def _fails_only_by_forgetting(self, attempt: Candidate) -> bool:
        """Return whether forgetting is the only reason against a candidate."""
        reason_text = rejection_reason(attempt.conclusive, self.finetune) if attempt.evaluated is not None else None
        return reason_text is not None and reason_text == forgetting_reason(attempt.figures, self.finetune)

    def _retry_gently(self, batch: LabelBatch, holdout: Holdout, before: Task | None, failed: Candidate) -> Candidate:
        """Train a second candidate at a lower rate; return the better one, with what the first one lost."""
        second = self._attempt(batch, holdout, before, gently=True)
        better = second if rejection_reason(second.conclusive, self.finetune) is None else failed
        better.figures.update(tries=2.0, known_after_first=failed.figures["known_after"])
        return better

    def _attempt(self, batch: LabelBatch, holdout: Holdout, before: Task | None, *, gently: bool = False) -> Candidate:
        """Train a candidate and compute its figures."""
        parts = holdout.parts(batch.new, batch.known)
        if len(parts.new) < 2:
            uncovered = sorted(set(parts.uncovered))
            why = f"; the held-out file has no example of {uncovered[:8]}" if uncovered else ""
            why += f"; {parts.repeated} are of what the held-out file contains" if parts.repeated else ""
            why += f"; {batch.readable.count} cannot be read: {batch.readable.first}" if batch.readable.count else ""
            raise DataError(f"task {self.name}: {len(parts.new)} labels to train on; more are needed{why}")
        trained = self.candidate_trainer.train(
            self._start(), parts, batch.number, batch.on_progress, batch.stop, gently=gently,
            readable=batch.readable,
        )  # fmt: skip
        tried = agreed(trained.task, parts.tried, predict(trained.task, parts.tried))
        figures: dict[str, Any] = {"new_labels": float(len(batch.new)), **trained.figures}
        figures |= {f"skipped_{cause}": float(count) for cause, count in self.labels.skipped.items()}
        figures |= {f"skipped_{name}": value for name, value in batch.readable.figures.items()}
        figures |= {f"validation_{name}": value for name, value in tried.items()}
        figures |= {f"labels_{name}": value for name, value in self._opinion(batch, holdout, before).items()}
        if holdout.file is None:
            return Candidate(trained, figures, None)
        about = {name for row in parts.new for name in classes(row)}
        judged = evaluate_candidate(holdout, trained.task, before, about, self.finetune.slices)
        missing = {
            "held-out": more_held_out_needed(trained.task, holdout.examples, about),
            "validation": more_needed(single_labels(trained.task, parts.tried)),
        }
        figures |= judged.figures | self._against_anchor(holdout, judged.after)
        if judged.slices:
            figures["slices"] = judged.slices
        old = self._old_classes(holdout, trained.task, before, judged)
        return Candidate(trained, figures | figures_of(old), judged, old, missing)

    def _old_classes(
        self, holdout: Holdout, candidate: Task, before: Task | None, judged: CandidateMetrics
    ) -> dict[str, AnchoredRow]:
        """Compare a candidate on the classes that the version before knows with the best version of each; empty without one."""
        live = self._live()
        known = known_classes(before) if before is not None else frozenset[str]()
        if before is None or live is None or not known:
            return {}
        at = [i for i, example in enumerate(holdout.examples) if classes(example) <= known]
        some, found, old = ([rows[i] for i in at] for rows in (holdout.examples, judged.predictions, judged.earlier))
        return self.state.old_classes.of_version(live.name).compare(some, candidate, found, before, old)  # type: ignore[arg-type]

    def _against_anchor(self, holdout: Holdout, after: list[float]) -> dict[str, float]:
        """Compare a candidate with the anchor, example by example; empty without an anchor."""
        state = self.state.of_file(holdout.digest)
        if len(state.anchor_scores) != len(after):
            return {}
        upper = paired_bounds(after, state.anchor_scores)[1]
        lower = paired_bounds(after, state.anchor_scores, anchor_confidence(state.questions + 1))[0]
        return {"all_anchor": float(np.mean(state.anchor_scores)), "anchor_lower": lower, "anchor_upper": upper}

    def _opinion(self, batch: LabelBatch, holdout: Holdout, before: Task | None) -> dict[str, float]:
        """Measure how well the version before agrees with the new labels; empty where the file contradicts that version."""
        if before is None or knows_nothing_of(before, holdout.examples, MIN_LABELS):
            return {}
        return opinion(before, [one.example for one in batch.new], MIN_LABELS)

    def _attribute_failure(
        self, batch: LabelBatch, holdout: Holdout, before: Task | None, failed: Candidate
    ) -> tuple[Candidate, tuple[dict[str, Any], ...]]:
        """Return the candidate to continue with, and the sources of the labels that made the first one fail."""
        assert failed.evaluated is not None
        judge_by = before or failed.trained.task
        for group in sources_to_ablate(batch.new, lambda examples: score(judge_by, examples)):
            try:
                other = self._attempt(batch.without(group), holdout, before)
            except DataError:  # too little is left without them to learn or to judge from
                continue
            assert other.evaluated is not None
            if rejection_reason(other.conclusive, self.finetune) is None:
                harm = SourceImpact(
                    other.trained.task,
                    other.figures["all_after"],
                    sign_test(failed.evaluated.after, other.evaluated.after),
                )
                return other, self._blame(batch, group, failed.conclusive, harm)
        source = single_source(batch.new)
        if source is None or before is None or failed.evaluated.before is None:
            return failed, ()
        harm = SourceImpact(
            before, failed.figures["all_before"], sign_test(failed.evaluated.after, failed.evaluated.before)
        )
        return failed, self._blame(batch, (source,), failed.conclusive, harm)

    def _blame(
        self, batch: LabelBatch, group: Sequence[str], failed: dict[str, Any], harm: SourceImpact
    ) -> tuple[dict[str, Any], ...]:  # fmt: skip
        """Return an event for each source of a group, if its labels lowered the metric by more than chance."""
        sources, blamed = by_source(batch.new), []
        for source in group:
            opposed = contradicts(harm.without, sources[source], MIN_LABELS)
            if harm.chance <= ALPHA or opposed:
                blamed.append({
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
        return tuple(blamed)

    def _decide(
        self,
        state: TrainerState,
        holdout: Holdout,
        attempt: Candidate,
        batch: LabelBatch,
        blamed: tuple[dict[str, Any], ...],
    ) -> AcceptanceVerdict:
        """Promote, store or reject a candidate, and save the state; return the verdict."""
        judged, last = self._judged(state), batch.last
        state.number += 1
        if attempt.evaluated is not None:
            state = state.of_file(holdout.digest)
            state.questions += 1
            attempt.figures["questions"] = float(state.questions)
        reason = rejection_reason(attempt.conclusive, self.finetune) if holdout.file is not None else ""
        if "slices" in attempt.figures:
            attempt.figures["slices"] = shown(attempt.figures["slices"], self.finetune.max_slice_drop)
        outcome: Outcome = "rejected" if reason else "promoted"
        if holdout.file is None or (not reason and any(attempt.missing.values())):
            outcome = "inconclusive"
        version: TaskVersion | None = None
        if outcome == "rejected":
            for_good = bool(blamed) or labels_at_fault(attempt.conclusive)
            state.rejected += [[judged, last]] * (MAX_REJECTIONS if for_good else 1)
        else:
            write = partial(attempt.trained.describe, last=last, model=self.settings.model, figures=attempt.figures)
            version = self.versions.add(attempt.trained.task, state.number, write)
        if outcome == "promoted" and version is not None:
            self.versions.promote(version)
            state.judged = last
            self._follow_promotion(state, holdout, attempt, version.name)
        else:
            state.tried = last
        if version is not None and outcome == "inconclusive":
            reason = self._why_inconclusive(version.name, attempt)
        self._save_state(state)
        name = version.name if version is not None else None
        reason_text = reason or "no worse on the held-out file, and the new labels can be learned"
        verdict = AcceptanceVerdict(self.name, outcome, reason_text, name, attempt.figures, holdout.origin, blamed)
        self._write_evaluation(verdict, holdout, attempt, batch)
        return verdict

    @staticmethod
    def _follow_promotion(state: TrainerState, holdout: Holdout, attempt: Candidate, version: str) -> None:
        """Note the scores of a version that goes live: of the anchor, if it is better than that, and of old classes."""
        if attempt.evaluated is None:
            return
        task, after = attempt.trained.task, attempt.evaluated.after
        if attempt.figures.get("anchor_lower", 1.0) > 0.0:
            state.anchor, state.anchor_scores = version, after
        scores = scores_of(task, holdout.examples, without_nan(after))
        state.old_classes = state.old_classes.promoted(
            version, task, attempt.old_classes, scores, anchor_confidence(state.questions)
        )

    def _why_inconclusive(self, version: str, attempt: Candidate) -> str:
        if any(attempt.missing.values()):
            return too_few_reason(self.name, version, attempt.missing)
        return inconclusive_reason(self.name, version)

    def _write_evaluation(
        self, verdict: AcceptanceVerdict, holdout: Holdout, attempt: Candidate, batch: LabelBatch
    ) -> None:  # fmt: skip
        """Leave for people what the candidate knows and what it gets wrong."""
        facts = {
            **{name: verdict.fields[name] for name in ("task", "verdict", "reason", "version", "held_out")},
            "train": Counter(name for one in (*batch.new, *batch.known) for name in classes(one.example)),
            "held_out_counts": Counter(name for one in holdout.examples for name in classes(one)),
            "slices": attempt.figures.get("slices", []),
            "figures": {k: v for k, v in verdict.figures.items() if isinstance(v, float) and math.isfinite(v)},
        }
        found = attempt.evaluated.predictions if attempt.evaluated is not None else []
        write_evaluation(self.versions.folder, facts, holdout.examples, found, holdout.labels)
