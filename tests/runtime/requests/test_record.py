"""A recording goes on in another file after a failed write, after a gap, and at its limit where the settings ask for it."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from disks import small_disk
from mcap.reader import make_reader
from recording_world import Stage, World

from fakes import eventually
from learners.checkpoints.store import open_checkpoints
from runtime.inference.build import build_engine
from runtime.inference.engine import UNTRAINED
from runtime.recording.reader import Recording
from runtime.requests.record import GAP_S, NOTE, RETRY_S, daemon_identity


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a chunk every few milliseconds."""
    monkeypatch.setattr("runtime.recording.recorder.CHUNK_S", 0.02)


@asynccontextmanager
async def stage_of(folder: Path, seed: int, **settings: Any) -> AsyncIterator[Stage]:
    """A control loop of real parts that explores and swaps its policy; see `recording_world`."""
    world = World(folder, seed)
    world.config = world.config.model_copy(update={"record": world.config.record.model_copy(update=settings)})
    await asyncio.to_thread(world.prepare)
    checkpoints = open_checkpoints(world.config.state_dir, world.config.promotion)
    engine = await asyncio.to_thread(build_engine, world.config, checkpoints)
    try:
        yield Stage(world, engine)
    finally:
        engine.close()


def events(stage: Stage, *kinds: str) -> list[dict[str, Any]]:
    return [event["data"] for event in stage.link.events if event["type"] in kinds]


def files(stage: Stage) -> list[Path]:
    return sorted(
        (stage.world.config.state_dir / "recordings").glob("*.mcap"), key=lambda path: path.stat().st_mtime_ns
    )


def ticks(path: Path) -> list[int]:
    return [body["tick"] for _, body in Recording(path).ticks()]


async def written(stage: Stage) -> None:
    """Wait until the recorder has written, or has failed to write, what it was given."""
    recorder = stage.reporter.recorder
    assert recorder is not None
    await eventually(lambda: recorder.ended or not (recorder._queue.qsize() or recorder._unflushed))
    await asyncio.sleep(0)


async def test_a_full_disk_is_an_event_and_the_recording_goes_on_once_there_is_space(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with small_disk(tmp_path / "state" / "recordings", "size=512k") as disk:
        async with stage_of(tmp_path, 3) as stage:
            await stage.ticks(5)
            await stage.controller.begin()
            await stage.ticks(20)
            await written(stage)
            disk.fill()
            for _ in range(40):
                await stage.ticks(5)
                await written(stage)
                if stage.reporter.recorder is not None and stage.reporter.recorder.ended:
                    break
            assert "cannot be written" in stage.control.degraded["recording"]
            for _ in range(4):  # the disk goes on refusing: one event, no heap of empty files
                stage.clock.advance(RETRY_S)
                await stage.controller.check()
                await stage.ticks(1)
            assert len(events(stage, "recording_failed")) == 1
            assert "recording" in stage.control.degraded
            disk.free()
            stage.clock.advance(RETRY_S)
            await stage.controller.check()
            assert "recording" not in stage.control.degraded
            await stage.ticks(15)
            facts = await stage.controller.end()
            await asyncio.sleep(0)
            (went_on,) = events(stage, "recording_continued")
            first, second = files(stage)
            assert (went_on["before"] != went_on["path"], went_on["path"]) == (True, str(second))
            assert went_on["dropped"] > 0
            assert facts["dropped"] == went_on["dropped"]
            assert len(ticks(first)) >= 20, "to its last whole chunk"
            assert ticks(second) == list(range(stage.count - 15, stage.count)), "no tick is lost once it goes on"
            for path in (first, second):
                report = await stage.world.replay(path)
                assert report.same, report.text()
                assert report.decisions == len(ticks(path))


async def test_the_oldest_files_go_first_where_the_settings_say_so(tmp_path: Path) -> None:
    async with stage_of(tmp_path, 4, max_gb=0.00012, when_full="delete_oldest") as stage:
        old = [tmp_path / "state" / "recordings" / f"2025-{n}.mcap" for n in range(4)]
        old[0].parent.mkdir()
        for age, path in enumerate(reversed(old)):
            path.write_bytes(bytes(25_000))
            os.utime(path, (1e9 - age, 1e9 - age))
        await stage.controller.begin()
        for _ in range(12):
            await stage.ticks(10)
            await written(stage)
            await stage.controller.check()
        assert sum(path.stat().st_size for path in files(stage)) <= 120_000
        await stage.ticks(3)
        await stage.controller.end()
        await asyncio.sleep(0)
        assert "recording" not in stage.control.degraded
        assert not events(stage, "recording_full", "recording_failed", "recording_gap")
        deleted = sum(event["deleted"] for event in events(stage, "recordings_deleted"))
        assert deleted > 0
        assert [path.exists() for path in old] == [n >= deleted for n in range(4)], "the oldest first"
        stored = [path for path in files(stage) if path not in old]
        numbers = [ticks(path) for path in stored]
        assert len(stored) > 2
        for before, after in itertools.pairwise(numbers):
            assert after[0] <= before[-1] + 1, "no tick is in neither file"
        assert numbers[-1][-1] == stage.count - 1
        for path in stored:
            report = await stage.world.replay(path)
            assert report.same, report.text()


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[None]:
    """What the agent does about recordings from its start on."""
    task = asyncio.create_task(stage.controller.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_recording_goes_on_when_the_agent_is_restarted_and_not_in_another_daemon(tmp_path: Path) -> None:
    world = World(tmp_path, 6)
    await asyncio.to_thread(world.prepare)

    async def agent(*, other_daemon: bool = False) -> tuple[Stage, list[dict[str, Any]]]:
        """Start the agent, let it record for some ticks, and end it in the middle of one, as SIGTERM does."""
        if other_daemon:
            boot = daemon_identity()[-1]  # in a container the next daemon has the same process id
            note = world.config.state_dir / "recordings" / NOTE
            note.write_bytes(orjson.dumps(orjson.loads(note.read_bytes()) | {"daemon": [str(os.getppid()), "1", boot]}))
        engine = await asyncio.to_thread(
            build_engine, world.config, open_checkpoints(world.config.state_dir, world.config.promotion)
        )
        stage = Stage(world, engine)
        async with running(stage):
            if not files(stage):
                await stage.controller.begin()
            kinds = ("recording_started", "recording_continued", "recording_ended")
            await eventually(lambda: events(stage, *kinds), "what became of the recording")
            ticking = asyncio.create_task(stage.ticks(1_000))
            await eventually(lambda: stage.count > 20, "some ticks")
            ticking.cancel()
            await asyncio.wait([ticking])
        if stage.reporter.recorder is not None:
            await asyncio.to_thread(stage.reporter.recorder.close)
        engine.close()
        return stage, events(stage, "recording_continued", "recording_ended")

    first, none = await agent()
    second, (went_on,) = await agent()
    assert none == []
    assert (went_on["before"], went_on["reason"]) == (str(files(first)[0]), "the agent was restarted")
    third, (ended,) = await agent(other_daemon=True)
    assert ended == {"path": went_on["path"], "reason": "the daemon was restarted"}
    assert third.reporter.recorder is None
    assert not (world.config.state_dir / "recordings" / NOTE).exists()
    assert len(files(second)) == 2
    for path in files(second):
        report = await world.replay(path)
        assert report.same, report.text()
        assert report.decisions == len(ticks(path)) > 10


async def test_at_the_limit_a_recording_ends_and_stays_ended_by_default(tmp_path: Path) -> None:
    async with stage_of(tmp_path, 5, max_gb=0.00001) as stage:
        await stage.controller.begin()
        for _ in range(4):
            await stage.ticks(10)
            await written(stage)
            stage.clock.advance(RETRY_S)
            await stage.controller.check()
        assert len(events(stage, "recording_full")) == 1
        assert "limit" in stage.control.degraded["recording"]
        facts = await stage.controller.end()
        assert facts["files"] == 1
        assert not (tmp_path / "state" / "recordings" / NOTE).exists(), "a restarted agent does not begin it again"
        assert facts["dropped"] > 0
        assert "limit" in facts["reason"]
        assert "recording" not in stage.control.degraded


async def test_after_a_gap_another_file_follows_and_replays_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.recording.recorder.QUEUE", 4)
    async with stage_of(tmp_path, 6) as stage:
        await stage.controller.begin()
        recorder = stage.reporter.recorder
        assert recorder is not None
        await stage.ticks(6)
        await written(stage)
        encode, held = type(recorder)._encode, threading.Event()
        with monkeypatch.context() as slow:
            slow.setattr(type(recorder), "_encode", lambda self, *item: _wait(held, lambda: encode(self, *item)))
            await stage.ticks(12)  # the writer waits: the queue is full
        held.set()
        await written(stage)
        await stage.ticks(6)
        await stage.controller.check()
        assert stage.reporter.recorder is recorder, "not before a minute"
        stage.clock.advance(GAP_S)
        await stage.controller.check()
        await stage.ticks(10)
        await stage.controller.end()
        await asyncio.sleep(0)
        assert len(events(stage, "recording_gap")) == 1
        first, second = files(stage)
        report = await stage.world.replay(first)
        assert any("gap" in note for note in report.notes), report.text()
        assert report.same, report.text()
        report = await stage.world.replay(second)
        assert report.same, report.text()
        assert (report.notes, report.decisions, report.not_compared) == ([], len(ticks(second)), 0)
        assert ticks(second)[-1] == stage.count - 1


def _wait(held: threading.Event, work: Any) -> None:
    held.wait(30)
    work()


async def test_untrained_weights_that_normalise_by_what_they_saw_replay_where_telemetry_is_slower_than_ticks(
    tmp_path: Path,
) -> None:
    """The first tick of a recording brings every reading in use, also old ones: the statistics count them once."""
    async with stage_of(tmp_path, 7) as stage:
        stage.world.versions = []
        await stage.engine.switch(UNTRAINED)
        for begin in (3, 4, 5, 6):
            await stage.ticks(begin, begin=True)
            await stage.ticks(6)
            await stage.controller.end()
        for path in files(stage):
            report = await stage.world.replay(path)
            assert report.versions == [UNTRAINED]
            assert report.same, report.text()


def middle_of_a_chunk(path: Path) -> int:
    """Return a position in the middle chunk of decisions: other parts are read by no replay."""
    with path.open("rb") as file:
        chunks = make_reader(file).get_summary().chunk_indexes  # type: ignore[union-attr]
    chunk = chunks[len(chunks) // 2]
    return chunk.chunk_start_offset + chunk.chunk_length - chunk.compressed_size // 2


async def test_clocks_that_jump_and_a_swap_before_the_first_tick_change_nothing(tmp_path: Path) -> None:
    async with stage_of(tmp_path, 11) as stage:
        jump_s = [0.0]
        stage.control.wall = lambda: 1e9 + stage.clock.now() + jump_s[0]
        await stage.ticks(3)
        await stage.controller.begin()
        await stage.engine.switch(stage.world.versions[1])
        for jump_s[0] in (0.0, -3_600.0, 7_200.0):
            await stage.ticks(8)
        await stage.controller.end()
        (path,) = files(stage)
        report = await stage.world.replay(path)
        assert report.same, report.text()
        assert (report.decisions, report.notes) == (24, [])
        data = bytearray(path.read_bytes())
        damaged = path.with_name("damaged.mcap")
        data[middle_of_a_chunk(path)] ^= 1
        damaged.write_bytes(data)
        report = await stage.world.replay(damaged)
        assert report.same, report.text()
        assert report.decisions < 24
        assert "later decisions cannot be read" in report.notes[-1] or "no decision can be read" in report.notes[-1]
