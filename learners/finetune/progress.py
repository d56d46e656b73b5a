"""Show the progress of a fine-tune on standard error: epoch, step, loss and the validation metric."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from learners.finetune.trainer import TrainingProgress


class Bar:
    """A context manager that shows the trainer's progress; call its value with each `Progress`."""

    def __init__(self, title: str, metric: str, console: Console | None = None) -> None:
        self._metric = metric
        self._bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"), console=console or Console(stderr=True),
        )  # fmt: skip
        self._job = self._bar.add_task(title, total=1.0, state="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        """Move the bar."""
        within = progress.step / progress.steps if progress.steps else 0.0
        score = "" if progress.score is None else f", {self._metric} {progress.score:.4f}"
        state = f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}, loss {progress.loss:.4f}{score}"
        self._bar.update(self._job, completed=(progress.epoch + within) / progress.epochs, state=state)
