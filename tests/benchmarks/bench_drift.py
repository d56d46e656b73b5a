"""How soon the drift watch finds a changed source, how often it is wrong, and what it costs a tick.

`python tests/benchmarks/bench_drift.py --first 5000 --trials 100 --weeks 1`. Simulated sources, one reading a second, a reference of
`--reference` seconds; the real watch. The constants were chosen on seeds 300 to 319, 1000 to 1002 and 5000 to 5019 of `numbers`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402 - after the path
from drifting import Senses, numbers  # noqa: E402

from runtime.config.schema import DriftSettings  # noqa: E402
from runtime.drift.detector import DriftDetector  # noqa: E402
from runtime.drift.watch import WEEK_S, DriftWatch  # noqa: E402

CHANGES: tuple[tuple[str, str, float, str], ...] = (
    ("camera turned by a tenth of its width", "turned", 6, "front"),
    ("camera darkened by a quarter", "light", 0.75, "front"),
    ("thermometer .5 K off (noise .1 K)", "offset", 0.5, "meter"),
    ("microphone at half its gain", "gain", 0.5, "room"),
)
SOURCES = 5
"""Streams of the simulated agent, and the policy."""


class Trial:
    """One agent with new senses."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.senses, self.second, self.noticed = Senses(np.random.default_rng(seed)), 0, list[tuple[int, str]]()
        self.rng = np.random.default_rng(seed)
        self.watch = DriftWatch(
            DriftSettings(),
            ("front", "room", "meter", "orders"),
            lambda: "v",
            folder,
            self._emit,
            time.time,
            SimpleNamespace(),
        )
        self.seconds_of_cpu = list[float]()

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "drift_noticed":
            self.noticed.append((self.second, data["stream"]))

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.second += 1
            readings = self.senses.at(self.second)
            decided = SimpleNamespace(
                tokens=self.senses.tokens(readings),
                encoder_versions={},
                policy="v",
                value=float(self.rng.normal()),
                choices={"head": {"left": 0.7, "right": 0.3}},
            )
            result = SimpleNamespace(
                observation=SimpleNamespace(stamp_s=float(self.second), readings=readings), decided=decided
            )
            began_s = time.perf_counter()
            self.watch.ticked(result)
            self.seconds_of_cpu.append(time.perf_counter() - began_s)


def found(
    change: tuple[str, str, float, str], first: int, trials: int, reference: int
) -> tuple[list[int], int, list[float]]:
    """Return the seconds until each trial found the change, the alarms before it, and seconds of CPU of every reading of all streams."""
    delays, false, costs = list[int](), 0, list[float]()
    for seed in range(first, first + trials):
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(seed, Path(folder))
            trial.run(reference)
            false += len(trial.noticed)
            trial.noticed.clear()
            setattr(trial.senses, change[1], change[2])
            trial.run(60)
            delays += [at - reference for at, stream in trial.noticed[:1] if stream == change[3]]
            costs += trial.seconds_of_cpu
    return delays, false, costs


def false_alarms(kind: str, seed: int, weeks: float) -> tuple[int, float]:
    """Return the alarms of one stationary source, and the most evidence as a share of what raises one."""
    rng = np.random.default_rng(seed)
    detector = DriftDetector((), WEEK_S * SOURCES, rng)
    alarms, most = 0, 0.0
    for values in numbers(kind, int(weeks * WEEK_S), rng):
        alarms += detector.add(values) and detector.drifting
        most = max(most, detector.evidence)
    return alarms, most


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=5_000, help="first seed")
    parser.add_argument("--trials", type=int, default=100, help="trials a change")
    parser.add_argument("--reference", type=int, default=1_800, help="seconds before a change")
    parser.add_argument("--weeks", type=float, default=1.0, help="length of the stationary sources; 0 leaves them out")
    arguments = parser.parse_args()
    costs = list[float]()
    print("| change | found within 60 s | median, worst (s) | false alarms before |\n|---|---|---|---|", flush=True)
    for change in CHANGES:
        delays, false, cpu = found(change, arguments.first, arguments.trials, arguments.reference)
        costs += cpu
        when = f"{statistics.median(delays):.0f}, {max(delays)}" if delays else "-"
        print(f"| {change[0]} | {len(delays)} of {arguments.trials} | {when} | {false} |", flush=True)
    mean, worst = 1e3 * statistics.fmean(costs), 1e3 * float(np.percentile(costs, 99))
    print(f"\nfour streams and the policy, a reading of each: mean {mean:.3f} ms, p99 {worst:.3f} ms, once a second")
    if arguments.weeks:
        print(f"\n| stationary source, {arguments.weeks:g} weeks | alarms | most evidence |\n|---|---|---|", flush=True)
        for kind in ("independent", "correlated", "heavy", "scenes"):
            alarms, most = false_alarms(kind, arguments.first, arguments.weeks)
            print(f"| {kind} | {alarms} | {most:.2f} |", flush=True)


if __name__ == "__main__":
    main()
