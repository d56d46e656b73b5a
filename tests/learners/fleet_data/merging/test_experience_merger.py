"""The rows of a group's Parquet files reach one experience store, each once, whatever is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_world import BEGUN_S, fill, queue, ticks

from learners.experience.reader import Reader, Row
from learners.experience.transition import Transition
from learners.fleet_data.merging.experience_merger import ABSENT_S, OVER_SHARE, ExperienceMerger
from learners.fleet_data.merging.lane_reader import RUN_ROWS
from learners.fleet_data.parquet_log import MAX_BOOTS, FleetReference, ParquetLog
from learners.fleet_data.segment import SegmentHeader, SentRow, pack, unpack
from learners.fleet_data.trust.agent_trust import AgentTrust
from learners.fleet_data.uplink_queue import UplinkIdentity

ROOT = Path(__file__).resolve().parents[3]
MERGE_CHILD = """
import sys
from pathlib import Path
from learners.fleet_data.merging.experience_merger import ExperienceMerger
merger = ExperienceMerger(Path(sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
while merger.merge():
    pass
print("whole", flush=True)
"""


def send(
    log: ParquetLog, transitions: Iterable[Transition], *, agent: str = "robot", first: int = 1, **header: str
) -> None:
    """Store rows as one segment of a device."""
    rows = [SentRow(Row(number, each)) for number, each in enumerate(transitions, first)]
    head = {"group": "arms", "agent": agent, "boot": "b" * 16, "spec": "5" * 64, "daemon": "0.1.0", "lane": "rest"}
    named = {
        **head, "first": first, "last": first + len(rows) - 1,
        "encoder_versions": dict(rows[0].row.transition.encoder_versions), **header,
    }  # fmt: skip
    assert log.append(unpack(pack(SegmentHeader.model_validate(named), rows))).outcome in {"stored", "apart"}


def merged_rows(folder: Path) -> list[Transition]:
    reader = Reader(folder)
    rows = [row.transition for row in reader.rows(0, 1 << 30)]
    reader.close()
    return rows


def test_both_lanes_of_two_devices_arrive_in_order_and_once(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    for agent in ("robot", "arm-2"):
        fill(tmp_path / agent, ticks(0, 352))
        uplink = queue(tmp_path / agent)
        identity = UplinkIdentity("arms", agent, "5" * 64, "0.1.0")
        while (pending := uplink.next(identity)) is not None:
            stored = log.append(unpack(pending.payload))
            assert uplink.acknowledge(pending.digest, stored.last)
        uplink.close()
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    count = merger.merge()
    assert merger.merge() == 0
    merger.close()
    again = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert again.merge() == 0
    again.close()
    rows = merged_rows(tmp_path / "store")
    assert len(rows) == count == 2 * 351
    for agent in ("robot", "arm-2"):
        own = [row.tick for row in rows if row.session.startswith(f"{agent}/")]
        assert own == list(range(351))  # 40 and 300 fail: their blocks came in the other lane


def test_a_later_lane_continues_behind_what_was_merged(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == 0
    send(log, ticks(0, 10))
    assert merger.merge() == 10
    send(log, ticks(10, 20), first=11)
    send(log, ticks(20, 25), first=1, lane="urgent")
    send(log, ticks(0, 5, session="t"), boot="c" * 16)
    assert merger.merge() == 20
    assert merger.merge() == 0
    merger.close()
    rows = merged_rows(tmp_path / "store")
    assert len({(row.session, row.tick) for row in rows}) == len(rows) == 30
    assert {row.session for row in rows} == {"robot/s", "robot/t"}


def test_a_restored_device_that_sends_its_rows_again_doubles_none(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    send(log, ticks(0, 20))
    assert merger.merge() == 20
    send(log, ticks(5, 30), boot="c" * 16)
    assert merger.merge() == 10
    assert +merger.counts == {"merged": 30, "repeated": 15}
    merger.close()
    assert [row.tick for row in merged_rows(tmp_path / "store")] == list(range(30))


def test_rows_of_another_spec_or_encoder_are_left_out_after_a_change_of_the_reference(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    send(log, ticks(0, 10))
    send(log, ticks(10, 20, version="v2"), first=11)  # apart
    reference = FleetReference(spec="6" * 64, encoder_versions={"joints": "v1"})
    (tmp_path / "arms" / "reference.json").write_text(reference.model_dump_json())
    send(log, ticks(20, 30), agent="arm-2", spec="6" * 64)
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == 10
    assert +merger.counts == {"merged": 10, "other": 10}
    merger.close()
    assert {row.session.partition("/")[0] for row in merged_rows(tmp_path / "store")} == {"arm-2"}


def test_a_segment_repeated_under_another_reference_is_on_disk_once(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    send(log, ticks(0, 10))
    (tmp_path / "arms" / "agents" / "robot" / "position.json").unlink()  # as if killed before it
    reference = FleetReference(spec="6" * 64, encoder_versions={"joints": "v1"})
    (tmp_path / "arms" / "reference.json").write_text(reference.model_dump_json())
    send(log, ticks(0, 10))
    assert [path.parts[-4] for path in (tmp_path / "arms").rglob("*.parquet")] == ["apart"]


def test_kill_9_at_any_moment_loses_and_doubles_no_row(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    for part in range(10):
        send(log, ticks(part * 250, part * 250 + 250), first=part * 250 + 1)
    moments, whole, kills = random.Random(3), False, 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    while not whole:
        command = [sys.executable, "-c", MERGE_CHILD, str(tmp_path / "arms"), str(tmp_path / "store")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            if kills < 1:
                time.sleep(moments.uniform(0.0, 0.2))  # the moment of the kill, not a wait for anything
                child.send_signal(signal.SIGKILL)
                kills += 1
            whole = child.stdout.readline() == b"whole\n"
    rows = merged_rows(tmp_path / "store")
    assert [row.tick for row in rows] == list(range(2_500))


def test_a_broken_store_and_a_broken_file_are_set_aside(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    send(log, ticks(0, 100))
    send(log, ticks(100, 110), first=101)
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == 110
    merger.close()
    (tmp_path / "store" / "experience.db").write_bytes(b"no database" * 1_000)
    next((tmp_path / "arms").rglob("*-000000000101.parquet")).write_bytes(b"torn")
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == 100
    assert +merger.counts == {"set_aside": 1, "merged": 100, "unreadable_files": 1}
    merger.close()


def test_an_excluded_agent_leaves_the_store_and_may_return(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    send(log, ticks(0, 20))
    send(log, ticks(0, 10), agent="arm-2")
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == 30
    merger.exclude("robot", "by hand")
    send(log, ticks(20, 30), first=21)
    assert merger.merge() == 0
    assert len(merged_rows(tmp_path / "store")) == 10
    merger.readmit("robot")
    assert merger.merge() == 30
    merger.close()
    assert len(merged_rows(tmp_path / "store")) == 40


@pytest.mark.parametrize("kind", ["read", "position"])
def test_an_agent_that_cannot_be_read_now_waits_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    log = ParquetLog(tmp_path, "arms")
    for agent in ("arm-1", "robot"):
        send(log, ticks(0, 20), agent=agent)
        send(log, ticks(20, 40), agent=agent, first=21)
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    position = tmp_path / "arms" / "agents" / "arm-1" / "position.json"
    content, opened = position.read_bytes(), Path.open

    def refused(path: Path, mode: str) -> object:
        if path.parent.name == "agent=arm-1" and "000000000021" in path.name:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, mode)

    if kind == "read":
        monkeypatch.setattr(Path, "open", refused)
    else:
        position.write_bytes(b"")
    assert [merger.merge(), merger.merge()] == [40, 0]
    assert list(merger.waiting) == ["arm-1"]
    assert merger.counts["waits"] == 2
    assert not merger.counts["unreadable_files"]
    monkeypatch.undo()
    position.write_bytes(content)
    assert merger.merge() == 40
    assert not merger.waiting
    merger.close()


def test_rows_of_more_boots_than_positions_remember_train_once(tmp_path: Path) -> None:
    log, boots = ParquetLog(tmp_path, "arms"), 2 * MAX_BOOTS
    for boot in range(boots):
        send(log, ticks(0, 10, session=f"s{boot}"), boot=f"{boot:016x}")
        send(log, ticks(10, 20, session=f"s{boot}"), boot=f"{boot:016x}", first=11)
    for count in (20 * boots, 0):
        merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
        assert merger.merge() == count
        assert merger.merge() == 0
        assert not merger.counts["repeated"]
        merger.close()
    assert len(merged_rows(tmp_path / "store")) == 20 * boots


def test_a_boot_without_files_is_forgotten_and_a_long_one_is_merged_in_turns(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    send(log, ticks(0, RUN_ROWS, session="long"), boot="a" * 16)
    send(log, ticks(RUN_ROWS, RUN_ROWS + 9, session="long"), boot="a" * 16, first=RUN_ROWS + 1)
    for boot in range(MAX_BOOTS):
        send(log, ticks(0, 1, session=f"s{boot}"), boot=f"{boot:016x}")
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store")
    assert merger.merge() == RUN_ROWS
    assert [merger.merge(), merger.merge()] == [9 + MAX_BOOTS, 0]
    for path in (tmp_path / "arms").rglob("aaaa*.parquet"):
        path.unlink()
    send(log, ticks(0, 1, session="new"), boot="f" * 16)
    assert merger.merge() == 1
    assert set(merger.database.positions("robot", "a" * 16).values()) == {0}
    merger.close()
    assert len(merged_rows(tmp_path / "store")) == RUN_ROWS + 9 + MAX_BOOTS + 1


def test_rows_with_tokens_of_another_width_than_the_spec_do_not_train(tmp_path: Path) -> None:
    log = ParquetLog(tmp_path, "arms")
    send(log, [*ticks(0, 10), *ticks(10, 12, width=5), *ticks(12, 20)])
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store", shapes={"joints": (1, 4)})
    assert merger.merge() == 18
    assert merger.counts["other"] == 2
    merger.close()


def rewarded(agent: int, start: int, stop: int, sign: float, *, rate_hz: float = 50.0) -> list[Transition]:
    """Ticks with a reward that follows the first number, as one agent sends it."""
    made = ticks(start, stop, begun_s=1_800_000_000.0 + agent)
    return [
        replace(t, reward=sign * (1.0 + 0.5 * float(t.tokens["joints"][0, 0])), stamp_s=1_800_000_000 + t.tick / rate_hz)
        for t in made
    ]  # fmt: skip


@pytest.mark.parametrize("liars", [0, 1])
def test_an_agent_that_flips_its_rewards_is_named_and_excluded(tmp_path: Path, liars: int) -> None:
    log, trust = ParquetLog(tmp_path, "arms"), AgentTrust(50.0, window=64)
    merger = ExperienceMerger(tmp_path / "arms", tmp_path / "store", trust=trust)
    for part in range(3):
        for agent in range(4):
            sign = -1.0 if agent < liars else 1.0
            rows = rewarded(agent, part * 70, part * 70 + 70, sign)
            send(log, rows, agent=f"arm-{agent}", first=part * 70 + 1)
        merger.merge()
    assert [name for name, _ in merger.newly_excluded] == [f"arm-{agent}" for agent in range(liars)]
    sessions = {row.session.partition("/")[0] for row in merged_rows(tmp_path / "store")}
    assert sessions == {f"arm-{agent}" for agent in range(liars, 4)}
    merger.close()


def test_an_agent_with_too_many_rows_a_second_is_named(tmp_path: Path) -> None:
    trust = AgentTrust(10.0)
    trust.add("fast", rewarded(0, 0, 1_100, 1.0, rate_hz=50.0))
    for name in ("right", "slow"):
        trust.add(name, rewarded(0, 0, 1_100, 1.0, rate_hz=10.0))
    assert trust.untrusted() == {"fast": "rate: 50 rows a second of its own stamps, its ticks have 10"}
    trust.forget("fast")
    assert not trust.untrusted()


def test_further_rows_of_a_chatty_agent_wait_until_the_others_bring_theirs(tmp_path: Path) -> None:
    names = ("chatty", "arm-1", "arm-2", "arm-3")
    log, now_s = ParquetLog(tmp_path, "arms"), [BEGUN_S]
    for name in names:
        send(log, ticks(0, 100, session=name), agent=name)
    for start in range(100, 1_900, 300):
        send(log, ticks(start, start + 300, session="chatty"), agent="chatty", first=start + 1)
    for name in names:
        os.utime(tmp_path / "arms" / "agents" / name / "position.json", (BEGUN_S, BEGUN_S))

    def opened() -> ExperienceMerger:
        return ExperienceMerger(tmp_path / "arms", tmp_path / "store", wall=lambda: now_s[0])

    merger = opened()
    while merger.merge():
        pass
    merger.close()
    merger = opened()  # shares are those of the stored rows
    assert merger.merge() == 0
    assert merger.waiting == {"chatty": OVER_SHARE}
    assert merger.shares.held == {"chatty": RUN_ROWS, "arm-1": 100, "arm-2": 100, "arm-3": 100}
    now_s[0] += ABSENT_S
    os.utime(tmp_path / "arms" / "agents" / "chatty" / "position.json", (now_s[0], now_s[0]))
    while merger.merge():
        pass
    assert not merger.waiting
    merger.close()
    own = [row.tick for row in merged_rows(tmp_path / "store") if row.session == "chatty/chatty"]
    assert own == list(range(1_900))
