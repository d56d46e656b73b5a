"""What a fleet's server stores a second: ingest, compaction and merge on one core, and a table for more agents on paper.

    python tests/benchmarks/bench_fleet_storage.py --rows 4000 --widths 500 4250 --agents 8

Segments of random float32 tokens are packed as an uplink packs them, at about half of their largest size. One ingest, without its broker, accepts
them: it validates, writes Parquet with fsync, and stores the position. Then the files are compacted, and the learner's store merges them. With
equal numbers of bytes real tokens compress better than random ones.

Printed for each width: milliseconds of a segment until it is on disk (median, 99th percentile), processor seconds of 1,000 rows in
each part, bytes on disk over bytes received, and files before and after compaction. Below, for up to 10,000 agents: rows and megabytes a second,
cores for the ingests, cores for the merge, disk a day, and files a day before compaction. These are products of the measured figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402 - after the path
from fleet_world import BEGUN_S, ticks  # noqa: E402

from learners.experience.reader import Row  # noqa: E402
from learners.fleet_data.merging.experience_merger import ExperienceMerger  # noqa: E402
from learners.fleet_data.parquet_log import ParquetLog, read_positions  # noqa: E402
from learners.fleet_data.row_files import agent_files  # noqa: E402
from learners.fleet_data.segment import SegmentHeader, SentRow, pack  # noqa: E402
from learners.fleet_data.storage.compaction import compact  # noqa: E402
from runtime.fleet.ingest import Ingest  # noqa: E402
from runtime.fleet.topics import FleetTopics  # noqa: E402
from runtime.mqtt import Address  # noqa: E402

SEGMENT_BYTES = 131_072
DAY_S = 86_400


@dataclass
class Cost:
    """Processor and wall seconds of a part."""

    cpu_s: float = 0.0
    wall_s: float = 0.0


@contextmanager
def measured(cost: Cost) -> Iterator[None]:
    """Add what the block takes."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    yield
    cost.cpu_s += time.process_time() - cpu_s
    cost.wall_s += time.perf_counter() - wall_s


@dataclass
class Figures:
    """What one width takes."""

    rows: int
    wire_bytes: int
    disk_bytes: int
    files: int
    accept: Cost
    compact: Cost
    merge: Cost


def measure(width: int, rows: int, agents: int, folder: Path) -> Figures:
    """Store, compact and merge rows of one width; print what it takes."""
    in_segment = max(1, SEGMENT_BYTES // (4 * width + 200))
    log, packing, accept, compacting, merging = ParquetLog(folder, "arms"), Cost(), Cost(), Cost(), Cost()
    ingest = Ingest("ingest-0", Address("127.0.0.1", 1), log, FleetTopics("arms"), wall=lambda: BEGUN_S)
    latencies_ms: list[float] = []
    wire_bytes = stored = 0
    for start in range(0, rows // agents, in_segment):
        for agent in range(agents):
            name = f"arm-{agent}"
            made = list(ticks(start, min(start + in_segment, rows // agents), width=width, session=name))
            header = SegmentHeader(
                group="arms", agent=name, boot=f"{agent:016x}", lane="rest", first=start + 1, last=start + len(made),
                spec="5" * 64, encoder_versions={"joints": "v1"}, daemon="0.1.0",
            )  # fmt: skip
            with measured(packing):
                payload = pack(header, [SentRow(Row(number, each)) for number, each in enumerate(made, start + 1)])
            begun = time.perf_counter()
            with measured(accept):
                answer = ingest.accept(name, payload)
            if answer is None or answer.last != header.last:
                raise RuntimeError(f"a segment was not stored: {answer}")
            latencies_ms.append(1e3 * (time.perf_counter() - begun))
            wire_bytes += len(payload)
            stored += len(made)
    group = folder / "arms"
    before = [each for agent in range(agents) for each in agent_files(group, f"arm-{agent}")]
    with measured(compacting):
        compact(group, "2100-01-01", read_positions)
    after = [each for agent in range(agents) for each in agent_files(group, f"arm-{agent}")]
    merger = ExperienceMerger(group, folder / "store")
    merged = 0
    with measured(merging):
        while (came := merger.merge()) > 0:
            merged += came
    merger.close()
    if merged != stored:
        raise RuntimeError(f"{merged} of {stored} rows were merged")
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    per = 1e3 / stored
    disk_bytes = sum(each.bytes for each in after)
    print(
        f"width {width}: {stored} rows of {wire_bytes / stored:.0f} bytes on the wire, {in_segment} in a segment\n"
        f"  on disk after {p50:.0f} ms (99th percentile {p99:.0f} ms), {stored / accept.wall_s:.0f} rows a second\n"
        f"  processor seconds of 1,000 rows: pack {packing.cpu_s * per:.2f}, ingest {accept.cpu_s * per:.2f}, "
        f"compaction {compacting.cpu_s * per:.2f}, merge {merging.cpu_s * per:.2f}\n"
        f"  files {len(before)}, compacted {len(after)}; bytes on disk over received "
        f"{sum(each.bytes for each in before) / wire_bytes:.2f}, compacted {disk_bytes / wire_bytes:.2f}"
    )
    return Figures(stored, wire_bytes, disk_bytes, len(before), accept, compacting, merging)


def paper(figures: Figures, rate_hz: float, agents: list[int]) -> None:
    """Print the table for more agents, as products of what was measured."""
    print(f"  | agents at {rate_hz:g} Hz | rows/s | MB/s | ingest cores | merge cores | GB a day | files a day |")
    print("  |---|---|---|---|---|---|---|")
    for count in agents:
        rows_s = count * rate_hz
        parts = (
            f"{count:,}", f"{rows_s:,.0f}", f"{rows_s * figures.wire_bytes / figures.rows / 1e6:,.1f}",
            f"{rows_s * (figures.accept.cpu_s + figures.compact.cpu_s) / figures.rows:,.1f}",
            f"{rows_s * figures.merge.cpu_s / figures.rows:,.1f}",
            f"{rows_s * DAY_S * figures.disk_bytes / figures.rows / 1e9:,.0f}",
            f"{rows_s * DAY_S * figures.files / figures.rows:,.0f}",
        )  # fmt: skip
        print(f"  | {' | '.join(parts)} |")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000, help="of all agents")
    parser.add_argument("--widths", type=int, nargs="+", default=[500, 4_250], help="float32 numbers of a row")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--rate-hz", type=float, default=10.0, help="ticks a second of an agent, for the table")
    parser.add_argument("--paper", type=int, nargs="+", default=[10, 100, 1_000, 10_000], help="agents of the table")
    given = parser.parse_args()
    for width in given.widths:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(width, given.rows, given.agents, Path(folder))
        paper(figures, given.rate_hz, given.paper)
    return 0


if __name__ == "__main__":
    sys.exit(main())
