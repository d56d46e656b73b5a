"""Count how many first versions are promoted that learned from noise, and from honest labels, in every kind of task.

Run `python -m tests.benchmarks.bench_noise --help`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import noise


def main() -> None:
    """Print one line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--kinds", default=",".join(noise.KINDS), help="names of kinds, separated by commas")
    parser.add_argument("--labels", type=int, default=160, help="labels of each run")
    given = parser.parse_args()
    for name in given.kinds.split(","):
        promoted = {True: 0, False: 0}
        for seed in range(given.first, given.first + given.seeds):
            for is_noise in promoted:
                with tempfile.TemporaryDirectory() as folder:
                    verdict = noise.first_version(Path(folder), name, seed, noise=is_noise, labels=given.labels)
                promoted[is_noise] += verdict.promoted
        print(f"{name}: noise promoted {promoted[True]} of {given.seeds}, honest {promoted[False]}", flush=True)


if __name__ == "__main__":
    main()
