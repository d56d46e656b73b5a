"""Compare random lives of an agent with a slow reading of what each stored row must say, and of what is drawn from it.

    python tests/benchmarks/bench_rows.py --rows 100000 --first-seed 1

`tests/row_lives.py` says what happens in a life. It prints the numbers of rows, lives and differences; the first difference ends
the run with the seed of its life.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from row_lives import compare  # noqa: E402 - after the path


def report(rows: int, lives: int) -> None:
    """Print how far it is."""
    print(f"{rows} rows of {lives} lives so far, 0 differences", flush=True)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="number of rows to compare at least")
    parser.add_argument("--first-seed", type=int, default=1, help="of the first life; each life has the next one")
    parser.add_argument("--folder", type=Path, default=None, help="for the database; a temporary one by default")
    given = parser.parse_args()
    began_s = time.process_time()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        try:
            rows, lives = compare(Path(folder), given.rows, given.first_seed, report)
        except AssertionError as error:
            print(f"a difference: {error}")
            sys.exit(1)
    print(f"{rows} rows of {lives} lives, 0 differences, {time.process_time() - began_s:.0f} s of processor time")


if __name__ == "__main__":
    main()
