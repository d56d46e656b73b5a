"""What late commands cost the experience of a daemon behind a simulated device, in virtual time.

Each environment runs with 0 %, 1 % and 5 % of the commands one to two periods late. Printed: stored rows for each step of the
environment; the share of rows that hold more than one step (their reward is the sum, and the discount counts the skipped ticks); the
share of the environment's rewards that reached a row.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from wire_world import Wire, lock_step  # noqa: E402 - the path comes first

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(
        "| environment | late commands | rows a step | rows of several steps | rewards stored |\n|---|---|---|---|---|"
    )
    for environment in ENVIRONMENTS:
        spec, _ = lock_step(environment, given.seed, 10)
        for overruns in (0.0, 0.01, 0.05):
            with tempfile.TemporaryDirectory() as folder:
                wire = Wire(environment, given.seed, Path(folder), overruns)
                rows = wire.run(spec, given.ticks)
            gaps = [two.tick - one.tick for one, two in itertools.pairwise(rows)]
            several = sum(gap > 1 for gap in gaps) / len(gaps)
            stored = sum(row.reward for row in rows) / wire.earned
            print(f"| {environment} | {overruns:.0%} | {len(rows) / wire.steps:.3f} | {several:.1%} | {stored:.1%} |")


if __name__ == "__main__":
    main()
