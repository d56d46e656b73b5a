"""Compare trainings over several seeds: mean, interquartile mean with a bootstrap interval, and failed seeds (`reflexd compare`).

The interquartile mean is the mean of the middle half of the seeds. Its interval is the percentile bootstrap over seeds.

Source: Agarwal et al. 2021 (rliable).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import orjson
from matplotlib import pyplot as plt

from learners.gym.results_file import NAME, NOT_ENDED

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
    """Why it has no return."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeedGroup:
    """The seeds of one environment, number of steps and set of settings below one folder."""

    name: str
    results: tuple[SeedResult, ...]

    @property
    def scores(self) -> list[float]:
        """The final mean returns of the seeds that ended."""
        return [one.score for one in self.results if one.score is not None]

    def failed(self, least: float | None) -> list[SeedResult]:
        """Return the seeds that did not end, or ended below `least`."""
        return [one for one in self.results if one.score is None or (least is not None and one.score < least)]

    def facts(self, least: float | None) -> dict[str, Any]:
        """Return the group as plain values."""
        one = self.results[0]
        middle, low, high = interquartile_mean(self.scores) if self.scores else (None, None, None)
        return {
            "name": self.name,
            "environment": one.environment,
            "algorithm": one.algorithm,
            "steps": one.steps,
            "scores": {str(each.seed): each.score for each in self.results},
            "mean": float(np.mean(self.scores)) if self.scores else None,
            "interquartile_mean": middle,
            "low": low,
            "high": high,
            "failed": [each.seed for each in self.failed(least)],
        }

    def row(self, least: float | None) -> str:
        """Return the group as a line of the table."""
        failed = [
            f"{one.seed} ({NOT_ENDED})" if one.problem == NOT_ENDED else str(one.seed) for one in self.failed(least)
        ]
        named = f"failed: {', '.join(failed)}" if failed else "none failed"
        ended = f"{self.name}  {len(self.scores)} of {len(self.results)} seeds ended"
        if not self.scores:
            return f"{ended}  no result  {named}"
        middle, low, high = interquartile_mean(self.scores)
        return (
            f"{ended}  mean {np.mean(self.scores):.1f}  IQM {middle:.1f} "
            f"[{low:.1f}, {high:.1f}]  lowest {min(self.scores):.1f}  {named}"
        )


def interquartile_mean(scores: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the interquartile mean of the scores, and the bounds of its bootstrap interval.

    A score that lies partly in the middle half counts with that part, so that any number of scores is cut by half.
    """
    found, count = np.asarray(scores, dtype=float), len(scores)
    edges = np.clip(np.arange(count + 1) / count, 0.25, 0.75)
    weights = np.diff(edges) * 2
    drawn = np.random.default_rng(seed).choice(found, (RESAMPLES, count))
    means = np.sort(drawn, axis=1) @ weights
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(np.sort(found) @ weights), float(low), float(high)


def read(folder: Path) -> list[SeedResult]:
    """Return the trainings in a folder and in the folders below it.

    Raises:
        ValueError: there is no `results.json`, or one is not of `reflexd train`.
    """
    paths = sorted([*folder.glob(NAME), *folder.glob(f"*/{NAME}")])
    if not paths:
        raise ValueError(
            f"{folder}: no results.json here or one folder below; `reflexd train --out {folder}` writes it"
        )
    return [read_one(path) for path in paths]


def read_one(path: Path) -> SeedResult:
    """Return one training.

    Args:
        path: of its `results.json`.

    Raises:
        ValueError: the file is not of `reflexd train`.
        OSError: the file cannot be read.
    """
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
            dict(body.get("settings") or {}),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a result of `reflexd train`: {error!r}") from None


def groups(folders: Sequence[Path]) -> list[SeedGroup]:
    """Return the trainings below the folders, grouped by folder, environment, steps and settings."""
    resolved = dict.fromkeys(folder.resolve() for folder in folders)
    return grouped((folder, one) for folder in resolved for one in read(folder))


def grouped(results: Iterable[tuple[Path, SeedResult]]) -> list[SeedGroup]:
    """Return groups of trainings, each named by its folder and by what differs between the groups of that folder.

    Args:
        results: each with the absolute folder to which it belongs.
    """
    found: dict[tuple[Path, str, int, str], list[SeedResult]] = {}
    for folder, one in results:
        # The settings decide the algorithm; a training that has not started knows it only as `auto`.
        settings = orjson.dumps(one.settings, option=orjson.OPT_SORT_KEYS).decode() if one.settings else one.algorithm
        found.setdefault((folder, one.environment, one.steps, settings), []).append(one)
    folders = list(dict.fromkeys(key[0] for key in found))
    names = {key: f"{_suffix(key[0], folders)}: {_task(members)}" for key, members in found.items()}
    compared = []
    for key, members in found.items():
        alike = [found[other][0].settings for other, name in names.items() if name == names[key]]
        name = " ".join([names[key], *_differences(members[0].settings, alike)])
        compared.append(SeedGroup(name, tuple(sorted(members, key=lambda one: one.seed))))
    return compared


def _task(members: Sequence[SeedResult]) -> str:
    """Return environment, algorithm and steps; the algorithm of a member that has started, if there is one."""
    known = [one.algorithm for one in members if one.algorithm != "auto"]
    return f"{members[0].environment} {known[0] if known else 'auto'} {members[0].steps} steps"


def _suffix(folder: Path, folders: Sequence[Path]) -> str:
    """Return the shortest last part of a path that no other folder has."""
    parts = folder.parts
    for count in range(1, len(parts)):
        if all(other == folder or other.parts[-count:] != parts[-count:] for other in folders):
            return str(Path(*parts[-count:]))
    return str(folder)


def _differences(settings: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return `NAME=VALUE` of each setting that is not the same in all of `alike`."""
    return [f"{key}={value}" for key, value in settings.items() if any(other.get(key) != value for other in alike)]


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
