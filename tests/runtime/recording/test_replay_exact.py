"""Recordings begun at random moments are replayed bit for bit; what is different is named; a cut one is replayed to its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from recording_world import World, record

from runtime.recording.export_mcap import TimeWindow, copy_recording
from runtime.recording.reader import Recording


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return asyncio.run(record(tmp_path_factory.mktemp("world"), seed=1, sessions=2, recordings=4))


async def test_recordings_begun_anywhere_in_a_tick_replay_bit_for_bit(world: World) -> None:
    for path in world.paths:
        report = await world.replay(path)
        assert report.decisions >= 8
        assert report.notes == []
        assert report.same, f"{path.name}: {report.text()}"


async def test_a_recording_that_a_crash_cut_off_is_replayed_to_its_last_chunk(world: World, tmp_path: Path) -> None:
    whole = world.paths[-1].read_bytes()
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole[: len(whole) * 3 // 4])
    count = len(list(Recording(cut).ticks()))
    report = await world.replay(cut)
    assert report.decisions == count
    assert report.same, report.text()
    assert not count or "cut off after" in report.notes[-1]


async def test_what_is_different_here_is_named_before_decisions_are_compared(world: World) -> None:
    renamed = world.config.model_copy(update={"agent": "other"})
    engine = world.config.engine.model_copy(update={"threads": 2})
    other = World.__new__(World)
    other.config = renamed.model_copy(update={"engine": engine})
    report = await other.replay(world.paths[0])
    assert report.same, "the seed of exploration is the recorded one"
    assert [note.split(" (")[0] for note in report.notes] == [
        "the agent was renamed",
        "the settings under actuators, encoders, engine, policy, streams differ",
        "another number of threads",
    ]
    assert report.text().startswith("  note: the agent was renamed (recorded a, here other)\n")


async def test_a_recording_that_a_crash_cut_off_is_sliced_to_its_last_chunk(world: World, tmp_path: Path) -> None:
    path = world.paths[0]
    cut, sliced = tmp_path / "cut.mcap", tmp_path / "slice.mcap"
    cut.write_bytes(path.read_bytes()[:-200])  # the end of the index: every chunk is whole
    ticks = [body for _, body in Recording(cut).ticks()]
    middle_s = (_stamp_s(ticks[3]) + _stamp_s(ticks[4])) / 2
    assert copy_recording(Recording(cut), sliced, TimeWindow(stop_s=middle_s), lambda *_: None) == 4
    report = await world.replay(sliced)
    assert report.decisions == 4
    assert report.same, report.text()
    assert report.notes == []
    assert (
        copy_recording(Recording(cut), tmp_path / "rest.mcap", TimeWindow(start_s=middle_s), lambda *_: None)
        == len(ticks) - 4
    )


def _stamp_s(body: dict[str, Any]) -> float:
    return float(body["timestamp"]["sec"]) + float(body["timestamp"]["nsec"]) / 1e9
