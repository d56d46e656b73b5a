"""Entry point of one fine-tune: `python -m learners.worker.finetune_process TASK PARENT`, with the settings on standard input.

The learner starts it (`finetuning.py`). It trains and evaluates one candidate, writes its progress to `learner/finetuning.json`,
posts the outcome to the learner's outbox and ends. SIGTERM ends it after the current update.

Events: `task_adapted`, `task_promoted`, `task_rejected`, `task_awaiting_approval`, `source_quarantined`, `finetune_skipped`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from setproctitle import setproctitle

from learners.continual.acceptance import AcceptanceVerdict
from learners.continual.trainer import ContinualTrainer
from learners.data_error import DataError
from learners.experience.reader import Reader
from learners.files import storage_problem, write_atomically
from learners.finetune.trainer import Stopped, TrainingProgress
from learners.ipc.outbox import Outbox
from learners.ipc.settings import LearnerConfig
from learners.worker.finetuning import STORAGE, progress_path
from learners.worker.torch_limits import limit_torch
from sensors.drivers.parent_death import die_with

WRITE_EVERY_S = 1.0
MAX_REASON = 500
"""Characters of the reason in an event."""


def main(arguments: list[str]) -> int:
    """Fine-tune one task as a process; returns the exit code."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m learners.worker.finetune_process TASK PARENT < SETTINGS.json\n")
        return 2
    task, parent = arguments[0], int(arguments[1])
    if not die_with(parent):
        return 1
    inputs = LearnerConfig.model_validate(orjson.loads(sys.stdin.buffer.read()))
    setproctitle("reflexd: fine-tuning")  # the learner's priority is inherited
    limit_torch(inputs.learner.threads)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    trainer = tasks_of(inputs, Reader(inputs.state_dir / "experience"))[task]
    if trainer.adaptation_due():
        code = adapt(task, trainer, inputs.state_dir, stop)
        if code or not trainer.has_new_labels():
            return code
    return finetune(task, trainer.run, inputs.state_dir, stop)


def adapt(task: str, trainer: ContinualTrainer, state_dir: Path, stop: threading.Event) -> int:
    """Adapt the encoder of a task and post the outcome; return the exit code as `finetune` does."""

    def run(*, stop: Callable[[], bool], **_: Any) -> dict[str, Any]:
        return trainer.adapt(stop)

    def post(outbox: Outbox, found: dict[str, Any]) -> None:
        outbox.post("task_adapted", found)

    return _posted(task, run, post, state_dir, stop)


def tasks_of(inputs: LearnerConfig, reader: Reader) -> dict[str, ContinualTrainer]:
    """Build the fine-tuning of every task, by name."""
    folder = inputs.state_dir / "learner" / "tasks"
    return {
        name: ContinualTrainer(name, settings, inputs.finetune, folder, reader, seed=inputs.learner.seed)
        for name, settings in inputs.tasks.items()
    }


def finetune(task: str, run: Callable[..., AcceptanceVerdict], state_dir: Path, stop: threading.Event) -> int:
    """Run one fine-tune and post its outcome; return the exit code, `STORAGE` if the disk refused the result.

    Args:
        task: its name.
        run: `ContinualTrainer.run`.
        state_dir: where progress and events go.
        stop: ends it.
    """

    def post(outbox: Outbox, verdict: AcceptanceVerdict) -> None:
        outbox.post(verdict.event, {"task": task, **verdict.fields})
        for source in verdict.blamed:
            outbox.post("source_quarantined", source)

    return _posted(task, run, post, state_dir, stop)


def _posted(
    task: str, run: Callable[..., Any], post: Callable[[Outbox, Any], None], state_dir: Path, stop: threading.Event
) -> int:
    """Run something and post its outcome, or why it was skipped; return the exit code.

    Models, tokenizers and labels make libraries raise anything, and an operator needs the reason; the stack is in the log.
    """
    outbox = Outbox(state_dir / "learner" / "outbox")
    try:
        verdict = run(on_progress=ProgressFile(task, progress_path(state_dir)), stop=stop.is_set)
    except (DataError, Stopped) as reason:
        outbox.post("finetune_skipped", {"task": task, "reason": str(reason)})
        return 0
    except Exception as error:  # noqa: BLE001 - as above
        problem = storage_problem(error, state_dir) if isinstance(error, OSError) else None
        if problem is not None:
            sys.stderr.write(f"fine-tuning of {task}: {problem}\n")
            return STORAGE  # the learner posts it, once the disk accepts events
        traceback.print_exc()
        outbox.post("finetune_skipped", {"task": task, "reason": f"{type(error).__name__}: {error}"[:MAX_REASON]})
        return 0
    post(outbox, verdict)
    return 0


class ProgressFile:
    """Writes the progress of a fine-tune, at most once every `WRITE_EVERY_S`."""

    def __init__(self, task: str, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.task, self.path, self._clock = task, path, clock
        self._written_s = -float("inf")
        self.unwritten = 0
        """Times that the disk refused the file."""

    def __call__(self, progress: TrainingProgress) -> None:
        """Write epoch, step, loss and validation score if it is time."""
        moment = self._clock()
        if moment - self._written_s < WRITE_EVERY_S:
            return
        self._written_s = moment
        body: dict[str, Any] = {"task": self.task, **asdict(progress)}
        try:
            write_atomically(self.path, orjson.dumps(body), durable=False)
        except OSError as error:
            if storage_problem(error, self.path.parent) is None:
                raise
            self.unwritten += 1  # the fine-tune itself needs no disk until it ends


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # the outcome is on disk; the libraries' own end takes seconds on a busy core
