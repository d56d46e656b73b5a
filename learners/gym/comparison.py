"""Compare trainings over several seeds: mean, interquartile mean with a bootstrap interval, and failed seeds (`reflexd compare`).

The interquartile mean is the mean of the middle half of the seeds. Its interval is the percentile bootstrap over seeds.

Source: Agarwal et al. 2021 (rliable).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import orjson
from matplotlib import pyplot as plt
from scipy import stats

mpl.use("Agg")

RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One training: its seed, its final mean return, and its evaluations; the return is None where it failed."""

    folder: Path
    environment: str
    algorithm: str
    steps: int
    seed: int
    score: float | None
    curve: tuple[tuple[float, float], ...] = ()
    """Steps and mean return of each evaluation."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """The seeds of one environment, algorithm and number of steps below one folder."""

    name: str
    results: tuple[SeedResult, ...]

    @property
    def scores(self) -> list[float]:
        """The final mean returns of the seeds that ended."""
        return [one.score for one in self.results if one.score is not None]

    def failed(self, least: float | None) -> list[SeedResult]:
        """Return the seeds that did not end, or ended below `least`."""
        return [one for one in self.results if one.score is None or (least is not None and one.score < least)]

    def row(self, least: float | None) -> str:
        """Return the group as a line of the table."""
        failed = self.failed(least)
        named = f"failed: {', '.join(str(one.seed) for one in failed)}" if failed else "none failed"
        if not self.scores:
            return f"{self.name}  {len(self.results)} seeds  no result  {named}"
        middle, low, high = interquartile_mean(self.scores)
        return (
            f"{self.name}  {len(self.results)} seeds  mean {np.mean(self.scores):.1f}  IQM {middle:.1f} "
            f"[{low:.1f}, {high:.1f}]  lowest {min(self.scores):.1f}  {named}"
        )


def interquartile_mean(scores: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the interquartile mean of the scores, and the bounds of its bootstrap interval."""
    found = np.asarray(scores, dtype=float)
    drawn = np.random.default_rng(seed).choice(found, (RESAMPLES, len(found)))
    means = stats.trim_mean(drawn, 0.25, axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(stats.trim_mean(found, 0.25)), float(low), float(high)


def read(folder: Path) -> list[SeedResult]:
    """Return the trainings in a folder and in the folders below it.

    Raises:
        ValueError: there is no `results.json`, or one is not of `reflexd train`.
    """
    paths = sorted([*folder.glob("results.json"), *folder.glob("*/results.json")])
    if not paths:
        raise ValueError(
            f"{folder}: no results.json here or one folder below; `reflexd train --out {folder}` writes it"
        )
    return [_read(path) for path in paths]


def _read(path: Path) -> SeedResult:
    try:
        body: dict[str, Any] = orjson.loads(path.read_bytes())
        final = body["final"]
        return SeedResult(
            path.parent,
            str(body["environment"]),
            str(body["algorithm"]),
            int(body["steps"]),
            int(body["seed"]),
            None if final is None or body.get("stopped") else float(final["mean"]),
            tuple((float(e["step"]), float(e["mean"])) for e in body["evaluations"]),
            str(body.get("stopped") or ""),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a result of `reflexd train`: {error!r}") from None


def groups(folders: Sequence[Path]) -> list[SeedGroup]:
    """Return the trainings below the folders, grouped by folder, environment, algorithm and steps."""
    found: dict[str, list[SeedResult]] = {}
    for folder in folders:
        for one in read(folder):
            name = f"{folder.name}: {one.environment} {one.algorithm} {one.steps} steps"
            found.setdefault(name, []).append(one)
    return [SeedGroup(name, tuple(sorted(results, key=lambda one: one.seed))) for name, results in found.items()]


def plot(path: Path, compared: Sequence[SeedGroup]) -> None:
    """Write a PNG with one panel for each environment: the mean of the seeds' evaluations, and the middle half of them."""
    environments = list(dict.fromkeys(group.results[0].environment for group in compared))
    figure, panels = plt.subplots(len(environments), 1, figsize=(7, 3.5 * len(environments)), squeeze=False)
    for environment, axes in zip(environments, panels[:, 0], strict=True):
        for group in compared:
            if group.results[0].environment == environment:
                _curve(axes, group)
        axes.set(title=environment, xlabel="environment steps", ylabel="return")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _curve(axes: Any, group: SeedGroup) -> None:
    curves = [dict(one.curve) for one in group.results if one.curve]
    if not curves:
        return
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    returns = np.array([[curve[step] for step in steps] for curve in curves])
    low, high = np.quantile(returns, [0.25, 0.75], axis=0)
    axes.plot(steps, returns.mean(0), label=f"{group.name} ({len(curves)} seeds)")
    axes.fill_between(steps, low, high, alpha=0.2)
