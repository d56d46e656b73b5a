"""Rewards and corrections that come after their row has left reach the fleet's store, once, whatever comes first."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_world import BEGUN_S, IDENTITY, database, fill, queue, ticks

from fakes import FakeClock
from learners.experience.reader import Reader, Row
from learners.experience.records import Credit, Mark
from learners.experience.transition import Transition
from learners.fleet_data.merging import merged_database
from learners.fleet_data.merging.experience_merger import ExperienceMerger
from learners.fleet_data.parquet_log import ParquetLog, read_positions
from learners.fleet_data.segment import AMENDMENTS, SegmentHeader, SentRow, amendment, pack, unpack
from learners.fleet_data.storage.compaction import compact
from learners.fleet_data.trust.agent_trust import AgentTrust
from learners.fleet_data.uplink_amendments import SETTLE_S
from learners.fleet_data.uplink_queue import UplinkQueue


class Device:
    """A device with 100 rows that left, its uplink and its fleet."""

    def __init__(self, folder: Path) -> None:
        self.state, self.log, self.clock = folder / "robot", ParquetLog(folder, "arms"), FakeClock(BEGUN_S + 3_600)
        self.group, self.store = folder / "arms", folder / "store"
        fill(self.state, ticks(0, 100))
        self.uplink = self.opened()
        self.outcomes = self.send()

    def opened(self) -> UplinkQueue:
        return queue(self.state, monotonic=self.clock.now)

    def send(self) -> list[str]:
        """Send what there is; return lanes and outcomes."""
        sent = []
        while (pending := self.uplink.next(IDENTITY)) is not None:
            stored = self.log.append(unpack(pending.payload))
            assert self.uplink.acknowledge(pending.digest, stored.last)
            sent.append(f"{pending.header.lane} {stored.outcome}")
        return sent

    def settle(self) -> list[str]:
        """Send what there is after late changes have settled."""
        first = self.send()
        self.clock.advance(SETTLE_S)
        return first + self.send()

    def change(self, *changes: Credit | Mark) -> None:
        db = database(self.state)
        with db:
            for each in changes:
                assert db.credit(each, 0.0) if isinstance(each, Credit) else db.mark(each)
        db.close()

    def merger(self) -> ExperienceMerger:
        return ExperienceMerger(self.group, self.store, wall=self.clock.now)

    def merged(self) -> dict[int, Transition]:
        merger = self.merger()
        while merger.merge():
            pass
        merger.close()
        with Reader(self.store) as reader:
            rows = [row.transition for row in reader.rows(0, 1 << 30)]
        assert len({row.tick for row in rows}) == len(rows)
        return {row.tick: row for row in rows}


def send(
    log: ParquetLog, transitions: Sequence[Transition], *, first: int = 1, lane: str = "rest", agent: str = "robot"
) -> None:
    rows = [SentRow(Row(number, each)) for number, each in enumerate(transitions, first)]
    header = SegmentHeader.model_validate({
        "group": "arms", "agent": agent, "boot": "b" * 16, "spec": "5" * 64, "daemon": "0.1.0", "lane": lane,
        "first": first, "last": first + len(rows) - 1, "encoder_versions": {"joints": "v1"},
    })  # fmt: skip
    assert log.append(unpack(pack(header, rows))).outcome == "stored"


def test_a_late_reward_and_a_correction_arrive_once(tmp_path: Path) -> None:
    device = Device(tmp_path)
    assert not device.merged()[5].reward
    device.change(Credit(2.0, "s-5"), Credit(1.5, "s-5", source="other"), Mark("s-7", intervention=True))
    device.change(Credit(1.0, "s-99"))  # in the open block: it goes with its row
    assert device.settle() == ["amendments stored"]
    rows = device.merged()
    assert (rows[5].reward, rows[7].intervention, len(rows)) == (3.5, True, 95)
    with Reader(device.store) as reader:
        assert reader.last_change() == 2
    assert device.settle() == []
    device.change(Credit(-0.5, "s-5", done=True, outcome="failure"))
    device.uplink.close()
    device.uplink = device.opened()  # restarted before the change was seen
    assert device.settle() == ["amendments stored"]
    rows = device.merged()
    assert (rows[5].reward, rows[5].done, rows[5].failure) == (3.0, True, True)
    shutil.rmtree(device.store)  # merged again from the files, rows and amendments
    assert device.merged()[5].reward == 3.0
    device.uplink.close()


def test_a_repeated_amendment_changes_nothing_and_one_on_its_way_survives_a_restart(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.change(Credit(2.0, "s-5"))
    device.uplink.next(IDENTITY)
    device.clock.advance(SETTLE_S)
    pending = device.uplink.next(IDENTITY)
    assert pending is not None
    assert pending.header.lane == AMENDMENTS
    assert device.log.append(unpack(pending.payload)).outcome == "stored"
    device.change(Credit(1.0, "s-5"))  # while the answer is lost
    device.uplink.close()
    device.uplink = device.opened()
    assert device.uplink.next(IDENTITY) == pending
    assert device.settle() == ["amendments duplicate", "amendments stored"]
    assert device.merged()[5].reward == 3.0
    device.uplink._begin_boot()  # restored from a backup: everything is sent again, with the rewards of now
    assert set(device.settle()) == {"rest stored", "urgent stored"}
    merger = device.merger()
    merger.merge()
    assert merger.counts["repeated"] == 95
    merger.close()
    assert device.merged()[5].reward == 3.0
    device.uplink.close()


def test_an_amendment_waits_for_its_row_and_waiting_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, made = ParquetLog(tmp_path, "arms"), list(ticks(0, 20))
    monkeypatch.setattr(merged_database, "MOST_AWAITING", 8)
    late = [amendment(replace(each, reward=float(each.tick), success=True)) for each in made[:12]]
    send(log, late, lane=AMENDMENTS)
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == 0
    assert (merger.counts["awaiting_rows"], merger.counts["amendments_dropped"]) == (12, 4)
    merger.close()
    send(log, made)
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == 20
    assert merger.database.awaiting("robot") == 0
    merger.close()
    with Reader(tmp_path / "store") as reader:
        rows = [row.transition for row in reader.rows(0, 100)]
    assert [row.reward for row in rows] == [0.0] * 4 + [float(tick) for tick in range(4, 12)] + [0.0] * 8
    assert [row.tick for row in rows if row.success] == list(range(4, 12))
    assert all(row.tokens for row in rows)


def test_amendments_are_compacted_as_rows_are(tmp_path: Path) -> None:
    log, made = ParquetLog(tmp_path, "arms"), list(ticks(0, 20))
    send(log, made)
    for number in range(4):
        send(log, [amendment(replace(made[3], reward=number + 1.0))], first=number + 1, lane=AMENDMENTS)
    assert compact(tmp_path / "arms", "2100-01-01", read_positions).written_files == 1
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == 20
    merger.close()
    with Reader(tmp_path / "store") as reader:
        assert reader.rows(4, 5)[0].transition.reward == 4.0


def test_an_agent_that_flips_its_rewards_by_amendments_is_excluded(tmp_path: Path) -> None:
    log, trust = ParquetLog(tmp_path, "arms"), AgentTrust(50.0, window=64)
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store", trust=trust)

    def rewarded(agent: int, start: int, sign: float) -> list[Transition]:
        made = ticks(start, start + 70, begun_s=BEGUN_S + agent)
        return [replace(each, reward=sign * (1 + 0.5 * float(each.tokens["joints"][0, 0]))) for each in made]

    for part in range(4):
        for agent in range(4):
            send(log, rewarded(agent, part * 70, 1.0), first=part * 70 + 1, agent=f"arm-{agent}")
        merger.merge()
    assert not merger.newly_excluded
    for part in range(4):
        for agent, sign in ((0, -1.0), (1, 1.1)):  # the second amends honestly
            late = [amendment(each) for each in rewarded(agent, part * 70, sign)]
            send(log, late, first=part * 70 + 1, lane=AMENDMENTS, agent=f"arm-{agent}")
        merger.merge()
    assert [name for name, _ in merger.newly_excluded] == ["arm-0"]
    assert merger.counts["amended"] == 280 + 3 * 70  # named with the third part
    merger.close()
