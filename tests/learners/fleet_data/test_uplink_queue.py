"""Which rows leave a device, in which order, and that each of them is on the fleet's disk once."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fleet_world import BEGUN_S, FAILURES, IDENTITY, closed_rows, fill, queue, rows_on_disk, ticks

from fakes import FakeClock
from learners.config.learner import ExperienceSettings
from learners.experience.reader import Reader
from learners.experience.records import Mark
from learners.experience.store import Store
from learners.fleet_data.parquet_log import ParquetLog
from learners.fleet_data.segment import MAX_BYTES, unpack
from learners.fleet_data.uplink_queue import UplinkQueue


def send(uplink: UplinkQueue, log: ParquetLog) -> bool:
    """Send one segment, and pass the answer on; False where there is none."""
    pending = uplink.next(IDENTITY)
    if pending is None:
        return False
    stored = log.append(unpack(pending.payload))
    uplink.acknowledge(pending.digest, stored.last)
    return True


def drain(uplink: UplinkQueue, log: ParquetLog) -> int:
    return sum(iter(lambda: send(uplink, log), False))


def test_failures_go_first_and_every_closed_row_arrives_once(tmp_path: Path) -> None:
    fill(tmp_path / "state", ticks(0, 1_000))
    uplink, log = queue(tmp_path / "state"), ParquetLog(tmp_path / "data", "arms")
    first = uplink.next(IDENTITY)
    assert first is not None
    assert first.header.lane == "urgent"
    sent = unpack(first.payload).table.column("row").to_pylist()
    assert {failure + 1 for failure in FAILURES} <= set(sent)
    assert len(sent) == 2 * 32
    drain(uplink, log)
    found = rows_on_disk(tmp_path / "data" / "arms")
    assert sorted(row["row"] for row in found) == closed_rows(1_000)
    assert all(row["probabilities"] == [("head", 0.25)] for row in found)
    assert uplink.backlog_rows() < 64
    uplink.close()


def test_rewards_that_a_model_gave_stay_on_the_device(tmp_path: Path) -> None:
    """The learner of the fleet could not tell them from other rewards, and would judge versions by them."""
    fill(tmp_path / "state", ticks(0, 200))
    with Reader(tmp_path / "state" / "experience") as reader:
        before = {row.row: row.transition.reward for row in reader.newest(200)}
        rewarded = reader.newest(150)[0]
    store = Store(tmp_path / "state" / "experience", ExperienceSettings())
    store.credit(5.0, decision=rewarded.transition.decision, source="model:content")
    assert store.flush()
    store.close()
    with Reader(tmp_path / "state" / "experience") as reader:
        assert reader.rows(rewarded.row, rewarded.row + 1)[0].transition.reward == before[rewarded.row] + 5.0
    uplink, log = queue(tmp_path / "state"), ParquetLog(tmp_path / "data", "arms")
    drain(uplink, log)
    uplink.close()
    found = {row["row"]: row["reward"] for row in rows_on_disk(tmp_path / "data" / "arms")}
    assert rewarded.row in found
    assert found == {number: before[number] for number in found}


def test_killed_devices_and_ingests_lose_and_repeat_no_row(tmp_path: Path) -> None:
    """Any step may be the last one of a process: the queue is opened again, and an answer is lost."""
    choose, state = random.Random(5), tmp_path / "state"
    log, stored = ParquetLog(tmp_path / "data", "arms"), 0
    uplink = queue(state)
    for _ in range(40):
        if choose.random() < 0.3 and stored < 1_500:
            marked = [Mark(f"s-{choose.randrange(stored)}", failure=True)] if stored else []
            fill(state, ticks(stored, stored + 150, width=64), marked)
            stored += 150
        pending = uplink.next(IDENTITY)
        event = choose.random()
        if pending is not None and event < 0.8:
            answer = log.append(unpack(pending.payload))
            if event < 0.5:
                uplink.acknowledge(pending.digest, answer.last)
        if choose.random() < 0.4:
            uplink.close()
            uplink = queue(state)
    drain(uplink, log)
    found = [row["row"] for row in rows_on_disk(tmp_path / "data" / "arms")]
    assert sorted(found) == closed_rows(stored)
    assert stored >= 600
    uplink.close()


def test_a_late_correction_moves_no_row_to_the_other_lane(tmp_path: Path) -> None:
    state = tmp_path / "state"
    fill(state, ticks(500, 700))
    uplink, log = queue(state), ParquetLog(tmp_path / "data", "arms")
    pending = uplink.next(IDENTITY)
    assert pending is not None
    fill(state, (), [Mark("s-520", intervention=True)])
    uplink.close()
    uplink = queue(state)
    drain(uplink, log)
    assert sorted(row["row"] for row in rows_on_disk(tmp_path / "data" / "arms")) == closed_rows(200)
    uplink.close()


def test_a_small_budget_thins_whole_blocks_and_says_with_which_probability(tmp_path: Path) -> None:
    state = tmp_path / "state"
    fill(state, ticks(0, 3_200, width=16))
    uplink, log = queue(state, bytes_per_hour=250_000), ParquetLog(tmp_path / "data", "arms")
    drain(uplink, log)
    found = rows_on_disk(tmp_path / "data" / "arms")
    urgent = {failure // 32 for failure in FAILURES}
    rest = [row for row in found if row["row"] // 32 not in urgent and row["row"] > 31]
    probabilities = {row["sampling_probability"] for row in rest}
    assert len(probabilities) == 1
    probability = probabilities.pop()
    assert 0.2 < probability < 0.8
    assert abs(len(rest) / 3_200 - probability) < 0.15
    assert len(rest) % 32 == 0
    assert {row["row"] // 32 for row in found} >= urgent
    assert uplink.counts["thinned"] > 0
    uplink.close()


def test_large_rows_stay_below_the_limit_of_a_segment(tmp_path: Path) -> None:
    state = tmp_path / "state"
    fill(state, ticks(1_000, 1_129, width=4_300))
    uplink, log = queue(state), ParquetLog(tmp_path / "data", "arms")
    sizes = []
    while (pending := uplink.next(IDENTITY)) is not None:
        sizes.append(len(pending.payload))
        log.append(unpack(pending.payload))
        assert uplink.acknowledge(pending.digest, pending.header.last)
    assert max(sizes) <= MAX_BYTES
    assert len(sizes) >= 8
    assert sorted(row["row"] for row in rows_on_disk(tmp_path / "data" / "arms")) == closed_rows(129)
    uplink.close()


def test_another_store_and_a_fleet_that_lost_its_rows_begin_another_boot(tmp_path: Path) -> None:
    state = tmp_path / "state"
    fill(state, ticks(1_000, 1_100))
    uplink = queue(state)
    drain(uplink, ParquetLog(tmp_path / "data", "arms"))
    boot = uplink.position.boot
    fill(state, ticks(1_100, 1_200))
    drain(uplink, ParquetLog(tmp_path / "other", "arms"))
    assert uplink.position.boot != boot
    assert sorted(row["row"] for row in rows_on_disk(tmp_path / "other" / "arms")) == closed_rows(200)
    uplink.close()
    for path in (state / "experience").iterdir():
        path.unlink()
    fill(state, ticks(0, 100, session="t"))
    boot, uplink = uplink.position.boot, queue(state)
    drain(uplink, ParquetLog(tmp_path / "data", "arms"))
    assert uplink.position.boot != boot
    uplink.close()


def test_rows_of_another_encoder_are_set_apart_with_the_reason(tmp_path: Path) -> None:
    state = tmp_path / "state"
    fill(state, ticks(1_000, 1_100))
    fill(state, ticks(1_100, 1_200, version="v2"))
    uplink, log = queue(state), ParquetLog(tmp_path / "data", "arms")
    reasons = []
    while (pending := uplink.next(IDENTITY)) is not None:
        answer = log.append(unpack(pending.payload))
        reasons.append(answer.reason)
        uplink.acknowledge(pending.digest, answer.last)
    assert reasons == ["", "encoder of stream joints has version v2, the fleet has v1"]
    group = tmp_path / "data" / "arms"
    assert [row["row"] for row in rows_on_disk(group)] == list(range(1, 101))
    assert [row["row"] for row in rows_on_disk(group, "apart")] == list(range(101, 192))
    uplink.close()


def test_few_rows_wait_until_a_segment_is_half_full(tmp_path: Path) -> None:
    state = tmp_path / "state"
    fill(state, ticks(1_000, 1_100))
    newest_s = 0.02 * 1_100
    early = queue(state, after_s=newest_s + 30)
    assert early.next(IDENTITY) is None
    early.close()
    late = queue(state, after_s=newest_s + 80)
    assert late.next(IDENTITY) is not None
    late.close()


def move_rows(state: Path, behind: int, by: int) -> None:
    """Give rows larger numbers, as if those before had been evicted."""
    with closing(sqlite3.connect(state / "experience" / "experience.db")) as db, db:
        db.execute("UPDATE transitions SET row = -row - ? WHERE row > ?", (by, behind))
        db.execute("UPDATE transitions SET row = -row WHERE row < 0")


def test_any_number_of_evicted_rows_is_jumped(tmp_path: Path) -> None:
    """A full store of an old robot begins far behind row 1, and one that was long without its fleet has a gap."""
    state, log = tmp_path / "state", ParquetLog(tmp_path / "data", "arms")
    fill(state, ticks(0, 320))
    move_rows(state, 0, 3_200_000)
    uplink = queue(state)
    assert uplink.backlog_rows() == 320
    drain(uplink, log)
    fill(state, ticks(320, 640))
    move_rows(state, 3_200_320, 6_400_000)
    drain(uplink, log)
    expected = [3_200_000 + row for row in range(1, 321)] + [9_600_000 + row for row in range(321, 640)]
    assert sorted(row["row"] for row in rows_on_disk(tmp_path / "data" / "arms")) == expected
    uplink.close()


def test_a_stamp_in_the_future_holds_up_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    fill(state, (replace(t, stamp_s=t.stamp_s + (3e8 if t.tick == 50 else 0)) for t in ticks(0, 640)))
    uplink = queue(state)
    drain(uplink, ParquetLog(tmp_path / "data", "arms"))
    assert sorted(row["row"] for row in rows_on_disk(tmp_path / "data" / "arms")) == closed_rows(640)
    uplink.close()


def test_rows_that_all_have_stamps_in_the_future_leave_once_they_are_settled(tmp_path: Path) -> None:
    state, clock = tmp_path / "state", FakeClock(100.0)
    fill(state, (replace(t, stamp_s=t.stamp_s + 3e8) for t in ticks(1_000, 1_320)))
    uplink, log = queue(state, monotonic=clock.now), ParquetLog(tmp_path / "data", "arms")
    assert drain(uplink, log) == 0
    clock.time_s += 9
    assert drain(uplink, log) == 0
    clock.time_s += 2
    drain(uplink, log)
    assert sorted(row["row"] for row in rows_on_disk(tmp_path / "data" / "arms")) == closed_rows(320)
    uplink.close()


def test_a_restored_position_begins_another_boot_with_the_rows_that_the_fleet_lacks(tmp_path: Path) -> None:
    """The folder is copied and put back by hand: the fleet has other rows under the numbers that are used again."""
    state, log = tmp_path / "state", ParquetLog(tmp_path / "data", "arms")
    fill(state, ticks(1_000, 1_320, session="a"))
    uplink = queue(state)
    drain(uplink, log)
    uplink.close()
    shutil.copytree(state, tmp_path / "copy")
    fill(state, ticks(1_320, 1_640, session="a"))
    uplink = queue(state)
    drain(uplink, log)
    uplink.close()
    shutil.rmtree(state)
    (tmp_path / "copy").rename(state)
    fill(state, ticks(1_320, 1_480, session="b"))
    uplink = queue(state)
    boot = uplink.position.boot
    drain(uplink, log)
    assert uplink.position.boot != boot
    found = [row["row"] for row in rows_on_disk(tmp_path / "data" / "arms") if row["session"] == "b"]
    assert sorted(found) == list(range(321, 480))
    uplink.close()


def test_rows_that_no_segment_can_carry_are_skipped_at_once_and_counted(tmp_path: Path) -> None:
    state = tmp_path / "state"
    fill(state, (*ticks(1_000, 1_066, width=150_000), *ticks(1_066, 1_200)))
    uplink = queue(state)
    found = uplink.next(IDENTITY)
    assert found is not None
    assert unpack(found.payload).table.column("row").to_pylist()[0] == 67
    assert uplink.counts["too_large"] == 66
    uplink.close()


def test_rows_from_before_the_spec_are_counted(tmp_path: Path) -> None:
    state, log = tmp_path / "state", ParquetLog(tmp_path / "data", "arms")
    fill(state, ticks(1_000, 1_320))
    uplink, identity = queue(state), replace(IDENTITY, spec_since_s=BEGUN_S + 0.02 * 1_099.5)
    while (pending := uplink.next(identity)) is not None:
        uplink.acknowledge(pending.digest, log.append(unpack(pending.payload)).last)
    assert sorted(row["row"] for row in rows_on_disk(tmp_path / "data" / "arms")) == list(range(101, 320))
    assert uplink.counts["before_spec"] == 100
    uplink.close()
