"""How the demo's state folder grows: bytes on disk by part, every ten seconds, as a table, a CSV file and a plot.

`python tests/benchmarks/state_growth.py --minutes 60 --out runs/growth`. Real daemon, broker, world and learner, from nothing. Exit code 1
if the folder was ever above its budget (`storage.max_gb`).
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import matplotlib as mpl  # noqa: E402 - after the path

mpl.use("Agg")
from end_to_end.demo import Demo, running_demo  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from runtime.config.loader import load  # noqa: E402
from runtime.monitoring.disk_budget import measure  # noqa: E402

EVERY_S = 10.0
TABLE_EVERY = 30
"""Samples from one line of the table to the next."""


def watch(demo: Demo, minutes: float) -> list[tuple[float, dict[str, int]]]:
    """Sample the state folder until the time is over; prints a line each five minutes."""
    began_s, samples = time.monotonic(), list[tuple[float, dict[str, int]]]()
    print("| minutes | MB | parts |\n|---|---|---|", flush=True)
    while (now_s := time.monotonic() - began_s) < minutes * 60:
        parts = measure(demo.folder / "state")
        if len(samples) % TABLE_EVERY == 0:
            shown = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sorted(parts.items()))
            print(f"| {now_s / 60:.0f} | {sum(parts.values()) / 1e6:.1f} | {shown} |", flush=True)
        samples.append((now_s, parts))
        if demo.process.poll() is not None:
            raise SystemExit(f"the daemon has ended with code {demo.process.returncode}")
        time.sleep(max(0.0, len(samples) * EVERY_S - (time.monotonic() - began_s)))
    return samples


def write(samples: list[tuple[float, dict[str, int]]], budget: int, out: Path) -> None:
    """Write `growth.csv` and `growth.png`."""
    out.mkdir(parents=True, exist_ok=True)
    names = sorted({name for _, parts in samples for name in parts})
    with (out / "growth.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["seconds", *names])
        table.writerows([round(at_s), *(parts.get(name, 0) for name in names)] for at_s, parts in samples)
    figure, axes = plt.subplots(figsize=(8, 4))
    minutes = [at_s / 60 for at_s, _ in samples]
    axes.stackplot(minutes, [[parts.get(name, 0) / 1e6 for _, parts in samples] for name in names], labels=names)
    axes.axhline(budget / 1e6, color="black", linestyle="--", label="storage.max_gb")
    axes.set_xlabel("minutes")
    axes.set_ylabel("MB on disk")
    axes.legend(loc="upper left", fontsize="small")
    figure.tight_layout()
    figure.savefig(out / "growth.png", dpi=120)


def main() -> None:
    """Run the demo and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), help="folder for growth.csv and growth.png")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_demo(Path(name)) as demo:
        budget = round(load(demo.config).config.storage.max_gb * 1e9)
        samples = watch(demo, given.minutes)
        write(samples, budget, given.out)  # before the daemon ends: a busy machine may end it late
    most = max(sum(parts.values()) for _, parts in samples)
    print(f"largest {most / 1e6:.1f} MB of {budget / 1e6:.0f} MB; {given.out}/growth.png")
    sys.exit(most > budget)


if __name__ == "__main__":
    main()
