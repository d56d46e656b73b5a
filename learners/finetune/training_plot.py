"""Draw the training loss and the validation metric of a fine-tune over its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


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
