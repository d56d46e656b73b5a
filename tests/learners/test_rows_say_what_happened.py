"""Whatever arrives in whatever order, each row says what happened: the store and the replay buffer against a slow reading.

`row_lives` draws the lives and reads them. `ROW_CASES` sets the number of rows: 1,000 in `make test`, 100,000 in `make fuzz`;
tests/benchmarks/bench_rows.py takes the number and the seeds as options.
"""

from __future__ import annotations

import os
from pathlib import Path

from row_lives import compare

CASES = int(os.environ.get("ROW_CASES", "1000"))


def test_rows_and_batches_say_what_happened(tmp_path: Path) -> None:
    compared, lives = compare(tmp_path, CASES)
    assert compared >= CASES
    assert lives > 1
