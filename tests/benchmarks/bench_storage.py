"""Measure the bytes that the demo's promotions leave, an hour and a day: `python tests/benchmarks/bench_storage.py [PROMOTIONS]`.

Writes versions of the demo's size (8 MB of policy) as fast as the disk allows, at the demo's rate of one every 20 s, and
prints the folder's size with the retention of the program and without one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from learners.checkpoints.store import open_checkpoints
from learners.config.learner import PromotionSettings
from runtime.monitoring.disk_budget import measure

POLICY_BYTES = 8_000_000
EVERY_S = 20.0


def main(promotions: int) -> None:
    """Promote, and print a line of figures each tenth."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = open_checkpoints(folder, PromotionSettings.model_validate({}))
        written = 0
        for n in range(1, promotions + 1):
            version = checkpoints.save({"policy": {"w": torch.randn(POLICY_BYTES // 4)}}, {"spec": {"n": n}})
            written += sum(path.stat().st_size for path in (folder / "checkpoints" / version).iterdir())
            checkpoints.promote(version)
            if n % max(1, promotions // 10) == 0:
                hours = n * EVERY_S / 3_600
                held = measure(folder)["checkpoints"]
                print(
                    f"{hours:6.2f} h  {n:5d} promotions  written {written / 1e6:8.1f} MB  on disk {held / 1e6:7.1f} MB "
                    f"(without deletion {written / hours / 1e6:.0f} MB/h)"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "promotions", nargs="?", type=int, default=180, help="versions to promote, one every 20 s of simulated time"
    )
    main(parser.parse_args().promotions)
