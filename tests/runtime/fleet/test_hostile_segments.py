"""No segment ends the ingest, and no agent starves the others."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
import zstandard
from fleet_world import BEGUN_S, one_payload, rows_on_disk

from fakes import eventually
from learners.experience.transition import checksum
from learners.fleet_data.parquet_log import ParquetLog, StoredSegment
from learners.fleet_data.segment import SCHEMA, Segment, unpack
from runtime.fleet.ingest import BURST_S, WAITING, Ingest
from runtime.fleet.serve import keep_running
from runtime.fleet.topics import FleetTopics, SegmentAnswer
from runtime.mqtt import Address, Message


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return one_payload(tmp_path_factory.mktemp("segment"))


def ingest_in(folder: Path, kind: type[Ingest] = Ingest) -> Ingest:
    return kind(
        "ingest-0", Address("127.0.0.1", 1), ParquetLog(folder, "arms"), FleetTopics("arms"), wall=lambda: BEGUN_S
    )


def changed(payload: bytes, **values: object) -> bytes:
    """The segment with other values in its first row, whatever the schema says of nulls."""
    segment = unpack(payload)
    rows = segment.table.to_pylist()
    rows[0] |= values
    rows[0]["crc"] = checksum(rows[0]["session"] + rows[0]["decision"], rows[0]["head"], rows[0]["body"])
    schema = SCHEMA.with_metadata({b"reflexd": orjson.dumps(segment.header.model_dump())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    compressed: bytes = zstandard.compress(bytes(sink.getvalue()))
    return compressed


async def test_a_null_row_number_is_refused_and_the_next_segment_stored(tmp_path: Path, payload: bytes) -> None:
    ingest = ingest_in(tmp_path)
    answer = ingest.accept("robot", changed(payload, row=None))
    assert answer is not None
    assert answer.refused == "column row has nulls"
    stored = ingest.accept("robot", payload)
    assert stored is not None
    assert stored.last == 63
    assert len(rows_on_disk(tmp_path / "arms")) == 63


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"reward": 1.1e6}, "the reward 1.1e\\+06 is outside"),
        ({"reward": -1e308}, "the reward -1e\\+308 is outside"),
        ({"value": 1e13}, "the value is outside"),
        ({"stamp_s": BEGUN_S + 2 * 86_400.0}, "the stamp is 86400 s later than is accepted"),
    ],
)
async def test_a_value_that_would_spoil_training_is_refused(
    tmp_path: Path, payload: bytes, values: dict[str, float], reason: str
) -> None:
    answer = ingest_in(tmp_path).accept("robot", changed(payload, **values))
    assert answer is not None
    assert re.search(reason, answer.refused or "")
    assert not rows_on_disk(tmp_path / "arms")


async def test_rows_above_the_ticks_of_an_agent_wait(tmp_path: Path, payload: bytes) -> None:
    ingest = ingest_in(tmp_path)
    ingest.rate_hz = 62.5 / BURST_S
    assert ingest.accept("robot", payload) is None
    assert ingest.counts["not_stored"] == 1
    ingest.rate_hz = 63.5 / BURST_S
    answer = ingest.accept("robot", payload)
    assert answer is not None
    assert answer.last == 63


async def test_a_group_may_have_larger_rewards(tmp_path: Path, payload: bytes) -> None:
    ingest = ingest_in(tmp_path)
    ingest.max_reward = 1e9
    answer = ingest.accept("robot", changed(payload, reward=1e8))
    assert answer is not None
    assert answer.refused is None


async def test_a_huge_key_costs_few_characters_in_log_and_answer(
    tmp_path: Path, payload: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = unpack(payload).table.to_pylist()
    huge = orjson.dumps({**orjson.loads(rows[0]["head"]), "A" * 7_000_000: 1})
    answer = ingest_in(tmp_path).accept("robot", changed(payload, head=huge))
    assert answer is not None
    assert answer.refused is not None
    assert "Extra inputs" in answer.refused
    shown = capsys.readouterr()
    assert len(shown.out) + len(shown.err) < 2_000


async def test_refusals_of_one_agent_are_counted_but_fill_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest = ingest_in(tmp_path)
    for number in range(100):
        ingest.accept("bad", b"no segment %d" % number)
    ingest.accept("other", b"no segment")
    assert ingest.counts["refused"] == 101
    assert capsys.readouterr().out.count("ingest.refused") == 2


class Broken(ParquetLog):
    """A log with a fault of its program."""

    def append(self, segment: Segment) -> StoredSegment:
        raise RuntimeError(f"{segment.header.agent} " + "x" * 10_000)


async def test_whatever_the_log_raises_is_counted_and_the_device_repeats(tmp_path: Path, payload: bytes) -> None:
    ingest = ingest_in(tmp_path)
    ingest.store = Broken(tmp_path, "arms")
    assert ingest.accept("robot", payload) is None
    assert ingest.counts["not_stored"] == 1


async def test_a_duplicate_is_answered_before_its_rows_are_decoded(tmp_path: Path, payload: bytes) -> None:
    ingest = ingest_in(tmp_path)
    ingest.accept("robot", payload)
    answer = ingest.accept("robot", changed(payload, row=None))  # would be refused, if its rows were read
    assert answer is not None
    assert (answer.last, answer.refused) == (63, None)
    assert ingest.counts["duplicate"] == 1


class Recording(Ingest):
    """An ingest that notes the order of its work."""

    def accept(self, agent: str, payload: bytes) -> SegmentAnswer | None:
        self.counts[f"{self.counts.total()}: {agent} {payload.decode()}"] += 1
        return None


async def test_an_agent_that_floods_delays_each_other_agent_by_one_segment(tmp_path: Path) -> None:
    ingest = ingest_in(tmp_path, Recording)
    for number in range(50):
        ingest._received(Message("reflexd/fleet/arms/up/bad", str(number).encode(), 1, False))
        if number == 1:
            ingest._received(Message("reflexd/fleet/arms/up/robot", b"rows", 1, False))
    assert ingest.counts.pop("dropped") == 49
    storing = asyncio.create_task(ingest._store())
    try:
        await eventually(lambda: ingest.counts.total() == 2, "both segments")
        assert list(ingest.counts) == ["0: bad 49", "1: robot rows"]
    finally:
        storing.cancel()


async def test_agents_that_wait_are_bounded(tmp_path: Path) -> None:
    ingest = ingest_in(tmp_path)
    for number in range(WAITING + 3):
        ingest._received(Message(f"reflexd/fleet/arms/up/agent-{number}", b"rows", 1, False))
    assert len(ingest._waiting) == WAITING
    assert ingest.counts["dropped"] == 3


async def test_two_runs_of_an_ingest_have_random_identifiers(tmp_path: Path) -> None:
    first, second = ingest_in(tmp_path).link.identifier, ingest_in(tmp_path).link.identifier
    assert first != second
    assert len(first) >= len("reflexd-arms-ingest-0-") + 16


async def test_a_failed_run_of_an_ingest_starts_again(capsys: pytest.CaptureFixture[str]) -> None:
    runs, third = list[int](), asyncio.Event()

    async def run() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise TypeError("x" * 100_000)
        third.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(keep_running(run, (0.0, 0.0)))
    await asyncio.wait_for(third.wait(), 10)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert len(capsys.readouterr().out) < 3_000
