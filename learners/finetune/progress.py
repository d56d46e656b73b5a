"""Show the progress of a fine-tune on standard error: epoch, step, loss and the validation metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
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


def plot(
    path: Path, losses: Sequence[float], scores: Sequence[float], *, metric: str, best_epoch: int, title: str
) -> None:
    """Write the picture; the best epoch is marked."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    left.plot(range(1, len(losses) + 1), losses, color="tab:gray", marker="o", label="training loss")
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right = left.twinx()
    right.plot(range(1, len(scores) + 1), scores, color="tab:blue", marker="o", label=f"validation {metric}")
    right.set_ylabel(f"validation {metric}", color="tab:blue")
    if 0 < best_epoch <= len(scores):
        right.plot([best_epoch], [scores[best_epoch - 1]], "*", color="tab:orange", markersize=14)
    figure.savefig(path, dpi=120)
