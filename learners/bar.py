"""The progress bar of a fine-tune on standard error: epoch, step, loss and the validation metric."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from learners.trainer import Progress


class Bar:
    """A context whose value takes the trainer's progress."""

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

    def __call__(self, told: Progress) -> None:
        """Move the bar."""
        within = told.step / told.steps if told.steps else 0.0
        score = "" if told.score is None else f", {self._metric} {told.score:.4f}"
        state = f"epoch {min(told.epoch + 1, told.epochs)}/{told.epochs}, loss {told.loss:.4f}{score}"
        self._bar.update(self._job, completed=(told.epoch + within) / told.epochs, state=state)
