"""The picture of a training run: mean return of the greedy policy against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def plot(path: Path, title: str, evaluations: Sequence[Mapping[str, float]], final: Mapping[str, float]) -> None:
    """Write a PNG: mean, one standard deviation, lowest and highest, and the delivered policy's mean as a line."""
    steps = [e["step"] for e in evaluations]
    mean = [e["mean"] for e in evaluations]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.fill_between(
        steps, [e["min"] for e in evaluations], [e["max"] for e in evaluations], alpha=0.12, label="min to max"
    )
    axes.fill_between(
        steps,
        [e["mean"] - e["std"] for e in evaluations],
        [e["mean"] + e["std"] for e in evaluations],
        alpha=0.25,
        label="one deviation",
    )
    axes.plot(steps, mean, label="mean of the evaluation episodes")
    axes.axhline(final["mean"], linestyle="--", color="black", linewidth=1, label=f"delivered: {final['mean']:.1f}")
    axes.set(title=title, xlabel="environment steps", ylabel="return")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
