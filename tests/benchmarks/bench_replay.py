"""Replay in figures: `python tests/benchmarks/bench_replay.py [RECORDINGS] [SEED]` (default 100 and 0).

RECORDINGS recordings are begun at random moments of sessions that explore, swap policies and the encoder, restart, and lose
streams (`tests/recording_world.py` says what of it is real). Each is replayed; then each is cut at a random byte, as a crash cuts
it, and replayed again. Exit code 1 when a decision differs, or a cut recording is not replayed to its last whole chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from recording_world import World, record  # noqa: E402 - after the path

from runtime.recording.reader import Recording  # noqa: E402
from runtime.recording.replay import ReplayReport  # noqa: E402

PER_SESSION = 10


def cut(path: Path, chance: random.Random) -> Path:
    """A copy without its end; at least its metadata and snapshot are there."""
    data = path.read_bytes()
    made = path.with_suffix(".cut")
    made.write_bytes(data[: chance.randrange(len(data) // 3, len(data))])
    return made


async def replays(world: World, chance: random.Random) -> tuple[list[ReplayReport], list[ReplayReport], int]:
    """Reports of whole recordings and of cut ones, and how many cut ones were not read to their last chunk."""
    whole = [await world.replay(path) for path in world.paths]
    pieces = [cut(path, chance) for path in world.paths]
    counts = [len(list(Recording(path).ticks())) for path in pieces]
    torn = [await world.replay(path) for path in pieces]
    short = sum(report.decisions != count for report, count in zip(torn, counts, strict=True))
    return whole, torn, short


def main() -> int:
    """Run, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=100, help="recordings")
    parser.add_argument("seed", nargs="?", type=int, default=0, help="of all that is random")
    given = parser.parse_args()
    count, seed = given.count, given.seed
    with tempfile.TemporaryDirectory() as folder:
        sessions = max(1, count // PER_SESSION)
        world = asyncio.run(record(Path(folder), seed, sessions, min(count, PER_SESSION)))
        whole, torn, short = asyncio.run(replays(world, random.Random(seed)))
    table = Table("recordings", "number", "decisions", "that differ", "recordings with a difference")
    for name, reports in (("whole", whole), ("cut at a random byte", torn)):
        bad = [report for report in reports if not report.same]
        numbers = (len(reports), sum(r.decisions for r in reports), sum(len(r.different) for r in reports), len(bad))
        table.add_row(name, *(f"{number:,}" for number in numbers))
    console = Console()
    console.print(table)
    console.print(f"cut recordings that were not replayed to their last whole chunk: {short}")
    for report in (*whole, *torn):
        if not report.same:
            console.print(report.text())
    return int(short > 0 or any(not report.same for report in (*whole, *torn)))


if __name__ == "__main__":
    sys.exit(main())
