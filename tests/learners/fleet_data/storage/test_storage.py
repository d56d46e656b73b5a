"""Small files become large ones and old rows go, and the learner still has each row once, whatever is killed."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fleet_world import BEGUN_S, ticks

from fakes import eventually
from learners.experience.reader import Reader, Row
from learners.experience.transition import Transition
from learners.fleet_data.merging.experience_merger import ExperienceMerger
from learners.fleet_data.merging.lane_reader import Files, LaneReader
from learners.fleet_data.parquet_log import ParquetLog, read_positions
from learners.fleet_data.row_files import agent_files, day_folders, folder_files
from learners.fleet_data.segment import SegmentHeader, SentRow, pack, unpack
from learners.fleet_data.storage import compaction
from learners.fleet_data.storage.compaction import compact
from learners.fleet_data.storage.keeper import LEARNER_STORE, StorageKeeper
from learners.fleet_data.storage.retention import StorageLimits
from learners.fleet_data.stored_bytes import read_usage
from runtime.fleet.serve import keep_storage
from runtime.fleet.server_settings import FleetServerSettings

ROOT = Path(__file__).resolve().parents[4]
DAY_S = 86_400.0
KILLS = int(os.environ.get("STORAGE_KILLS", "2"))
KEEP_CHILD = """
import sys
from pathlib import Path
from learners.fleet_data.storage.keeper import StorageKeeper
from learners.fleet_data.storage.retention import StorageLimits
keeper = StorageKeeper(Path(sys.argv[1]), StorageLimits(max_bytes=float(sys.argv[2])), wall=lambda: float(sys.argv[3]))
print("ready", flush=True)
while True:
    keeper.run()
"""


@pytest.fixture(autouse=True)
def without_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power, and hundreds of small files would wait for a slow disk."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def send(log: ParquetLog, transitions: Iterable[Transition], *, agent: str = "robot", first: int, **header: str) -> str:
    """Store rows as one segment; return what became of it."""
    rows = [SentRow(Row(number, each)) for number, each in enumerate(transitions, first)]
    head = {"group": "arms", "agent": agent, "boot": "b" * 16, "spec": "5" * 64, "daemon": "0.1.0", "lane": "rest"}
    named = {
        **head, "first": first, "last": first + len(rows) - 1,
        "encoder_versions": dict(rows[0].row.transition.encoder_versions), **header,
    }  # fmt: skip
    return log.append(unpack(pack(SegmentHeader.model_validate(named), rows))).outcome


def days(log: ParquetLog, count: int, *, agent: str = "robot", segments: int = 4, size: int = 25) -> int:
    """Store some days of an agent's rows; return how many."""
    row = 0
    for day in range(count):
        for _ in range(segments):
            made = ticks(row, row + size, begun_s=BEGUN_S + day * DAY_S - 0.02 * row, session=f"d{day}")
            assert send(log, made, agent=agent, first=row + 1) == "stored"
            row += size
    return row


def opened(group: Path) -> ExperienceMerger:
    return ExperienceMerger(group, group / LEARNER_STORE, wall=lambda: BEGUN_S)


def merged(group: Path) -> list[tuple[str, int]]:
    reader = Reader(group / LEARNER_STORE)
    rows = [(row.transition.session, row.transition.tick) for row in reader.rows(0, 1 << 30)]
    reader.close()
    return rows


def numbers_on_disk(group: Path, agent: str = "robot") -> list[int]:
    """Row numbers in the files that count."""
    found = [pq.ParquetFile(each.path).read(columns=["row"]) for each in agent_files(group, agent)]
    return [row for table in found for row in table.column("row").to_pylist()]


def today(offset_days: float) -> float:
    return BEGUN_S + offset_days * DAY_S


def day(offset_days: float) -> str:
    return datetime.fromtimestamp(today(offset_days), UTC).strftime("%Y-%m-%d")


def test_small_files_of_past_days_become_one_each_and_the_merger_reads_on_within(tmp_path: Path) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    count = days(log, 3, segments=40)
    assert send(log, ticks(0, 5), agent="other", first=1) == "stored"
    merger = opened(group)
    reference = merger._reference()
    assert reference is not None
    assert merger._merge_agent("robot", reference, 300) == (300, False)
    counts = compact(group, day(2), read_positions)
    assert (counts.read_files, counts.written_files) == (80, 2)
    assert len(agent_files(group, "robot")) == 2 + 40  # the third day is not over
    assert numbers_on_disk(group) == list(range(1, count + 1))
    while merger.merge():
        pass
    assert merger.counts["merged"] == count + 5
    assert not merger.counts["repeated"]
    merger.close()
    assert len(set(merged(group))) == len(merged(group)) == count + 5
    assert compact(group, day(3), read_positions).written_files == 1
    assert compact(group, day(3), read_positions).written_files == 0
    again = opened(group)
    assert again.merge() == 0
    again.close()


def test_a_merged_file_is_read_by_row_groups(tmp_path: Path) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    days(log, 1, segments=25, size=100)
    compact(group, day(1), read_positions)
    (file,) = agent_files(group, "robot")
    assert pq.ParquetFile(file.path).num_row_groups > 1
    merger = opened(group)
    sizes = [merger.merge() for _ in range(4)]
    assert sizes == [1_024, 1_024, 452, 0]
    merger.close()
    assert [tick for _, tick in merged(group)] == list(range(2_500))


def test_only_acknowledged_neighbours_without_gaps_are_merged(tmp_path: Path) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    days(log, 1, segments=3, size=10)
    send(log, ticks(30, 40, version="v2"), first=31)  # apart
    send(log, ticks(40, 50), first=41)
    send(log, ticks(50, 60), first=51)
    position = group / "agents" / "robot" / "position.json"
    before = position.read_bytes()
    send(log, ticks(60, 70), first=61)
    position.write_bytes(before)  # as if the ingest was killed before it
    compact(group, day(1), read_positions)
    ranges = [(each.first, each.last) for each in agent_files(group, "robot")]
    assert ranges == [(1, 30), (41, 60), (61, None)]
    assert send(log, ticks(60, 70), first=61) == "stored"
    assert numbers_on_disk(group) == [*range(1, 31), *range(41, 71)]


def test_what_a_killed_pass_left_is_not_read_and_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    count = days(log, 1)
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_delete", lambda *_: None)
        compact(group, day(1), read_positions)
    (folder,) = (each / "agent=robot" for each in day_folders(group, "rows"))
    counted, covered = folder_files(folder)
    assert (len(counted), len(covered)) == (1, 4)
    assert numbers_on_disk(group) == list(range(1, count + 1))
    merger = opened(group)
    assert merger.merge() == count
    merger.close()
    assert compact(group, day(1), read_positions).left_over == 4
    assert [each.name for each in folder.iterdir()] == [counted[0].path.name]


def test_an_agent_with_a_broken_position_does_not_stop_the_others(tmp_path: Path) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    for agent in ("arm-1", "robot"):
        days(log, 1, agent=agent)
    (group / "agents" / "arm-1" / "position.json").write_bytes(b"{")
    counts = compact(group, day(1), read_positions)
    assert (counts.written_files, counts.unreadable) == (1, 1)
    assert [len(agent_files(group, agent)) for agent in ("arm-1", "robot")] == [4, 1]


def test_a_full_disk_leaves_the_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    count = days(log, 1)

    class Full:
        def __init__(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", Full)
        with pytest.raises(OSError, match="No space"):
            compact(group, day(1), read_positions)
    assert len(agent_files(group, "robot")) == 4
    assert not list(group.rglob(".draft-*"))
    assert numbers_on_disk(group) == list(range(1, count + 1))


def test_a_file_that_is_merged_while_it_is_read_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    count = days(log, 2)
    merger = opened(group)
    listed = LaneReader.files

    def late(reader: LaneReader, agent: str) -> Files:
        files = listed(reader, agent)
        compact(group, day(3), read_positions)
        return files

    monkeypatch.setattr(LaneReader, "files", late)
    assert merger.merge() == count
    assert not merger.counts["unreadable_files"]
    merger.close()
    assert len(set(merged(group))) == count


def test_the_oldest_merged_rows_go_first_and_unmerged_ones_stay(tmp_path: Path) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    days(log, 4)
    merger = opened(group)
    reference = merger._reference()
    assert reference is not None
    merger._merge_agent("robot", reference, 150)  # a day and a half
    merger.close()
    size = sum(each.bytes for each in agent_files(group, "robot"))
    keeper = StorageKeeper(group, StorageLimits(max_bytes=0.8 * size), wall=lambda: today(4))
    assert keeper.run()["deleted_files"] == 4
    assert numbers_on_disk(group)[0] == 101
    keeper = StorageKeeper(group, StorageLimits(max_bytes=1.0), wall=lambda: today(4))
    done = keeper.run()
    assert done["unmerged_files"] > 0
    assert numbers_on_disk(group)[0] <= 151  # no row that the learner has not
    assert numbers_on_disk(group)[-1] == 400
    merger = opened(group)
    while merger.merge():
        pass
    merger.close()
    assert [tick for _, tick in merged(group)] == list(range(400))
    assert StorageKeeper(group, StorageLimits(max_bytes=1.0), wall=lambda: today(4)).run()["deleted_files"] > 0
    assert not agent_files(group, "robot")
    assert read_usage(group) == (0, {"robot": 0})
    assert send(log, ticks(400, 410), first=401) == "stored"


@pytest.mark.parametrize(("clock_days", "left"), [(5.0, 3), (-400.0, 5), (40_000.0, 3)])
def test_an_age_is_counted_from_the_newest_rows(tmp_path: Path, clock_days: float, left: int) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    days(log, 5)
    limits = StorageLimits(max_age_days=2.0, delete_unmerged=True)
    StorageKeeper(group, limits, wall=lambda: today(clock_days)).run()
    assert len(day_folders(group, "rows")) == left


def test_an_agent_has_a_quota_and_the_group_a_limit(tmp_path: Path) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    for agent in ("robot", "arm-2"):
        days(log, 2, agent=agent)
    sizes = {name: sum(each.bytes for each in agent_files(group, name)) for name in ("robot", "arm-2")}
    limits = StorageLimits(agent_bytes=sizes["robot"] / 2)
    StorageKeeper(group, limits, wall=lambda: today(0)).run()  # nothing is merged, so nothing goes
    bounded = ParquetLog(tmp_path, "arms", agent_bytes=limits.agent_bytes)
    with pytest.raises(OSError, match=r"robot has .* GB of rows, storage.agent_gb is"):
        send(bounded, ticks(200, 210), first=201)
    merger = opened(group)
    while merger.merge():
        pass
    merger.close()
    StorageKeeper(group, limits, wall=lambda: today(0)).run()
    assert all(used <= limits.agent_bytes for used in read_usage(group)[1].values())
    assert numbers_on_disk(group)[-1] == 200
    assert send(bounded, ticks(200, 210), first=201) == "stored"
    with pytest.raises(OSError, match=r"the group has .* storage.max_gb is"):
        send(ParquetLog(tmp_path, "arms", max_bytes=1_000), ticks(210, 220), first=211)


async def test_the_server_tries_again_after_a_pass_that_failed(tmp_path: Path) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    for part in range(4):
        made = ticks(10 * part, 10 * part + 10, begun_s=BEGUN_S - 400 * DAY_S)
        assert send(log, made, first=10 * part + 1) == "stored"
    (folder,) = (each / "agent=robot" for each in day_folders(group, "rows"))
    storage = {"max_age_days": 30_000, "max_gb": 1}
    settings = FleetServerSettings.model_validate({"group": "arms", "data": str(tmp_path), "storage": storage})
    position, usage = group / "agents" / "robot" / "position.json", group / "storage.json"
    content = position.read_bytes()
    position.write_bytes(b"")
    keeping = asyncio.create_task(keep_storage(settings, pause_s=0.01))
    try:
        await eventually(usage.exists, "a pass without the position")
        assert len(folder_files(folder)[0]) == 4
        position.write_bytes(content)
        await eventually(lambda: len(folder_files(folder)[0]) == 1, "one file")
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


def test_kill_9_of_the_keeper_loses_and_doubles_no_row(tmp_path: Path) -> None:
    log, group = ParquetLog(tmp_path, "arms"), tmp_path / "arms"
    environment, moments = os.environ | {"PYTHONPATH": str(ROOT)}, random.Random(5)
    merger, row = opened(group), 0
    for kill in range(KILLS):
        command = [sys.executable, "-c", KEEP_CHILD, str(group), "60000", str(today(KILLS + 9))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            until = time.monotonic() + moments.uniform(0.2, 0.6)
            while time.monotonic() < until:
                made = ticks(row, row + 25, begun_s=today(kill) - 0.02 * row, session=f"d{kill}")
                assert send(log, made, first=row + 1) == "stored"
                row += 25
                if moments.random() < 0.2:
                    merger.merge()
            child.send_signal(signal.SIGKILL)
    while merger.merge():
        pass
    assert not merger.counts["repeated"]
    assert not merger.counts["unreadable_files"]
    merger.close()
    assert [tick for _, tick in merged(group)] == list(range(row))
    StorageKeeper(group, StorageLimits(), wall=lambda: today(KILLS + 9)).run()
    numbers = numbers_on_disk(group)
    assert numbers == sorted(set(numbers))
    assert not list(group.rglob(".draft-*.parquet*"))
