"""A recording gives back every reading bit for bit, opens with the mcap package, and survives being cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import make_reader

from runtime.recording.codec import ReadingCodec, new_samples
from runtime.recording.reader import Recording, RecordingError
from runtime.recording.recorder import Note, Recorder, TickRecord
from sensors.readings import Frame, Reading, Sound, Telemetry, Text


def _readings(tick: int) -> tuple[Reading, ...]:
    rng = np.random.default_rng(tick)
    tone = np.sin(np.arange(tick * 160, tick * 160 + 3_200) / 7).astype(np.float32)
    return (
        Frame("front", tick * 0.1, tick, rng.integers(0, 255, (8, 9, 3), np.uint8)),
        Sound("room", tick * 0.1, tick, tone),
        Text("orders", tick * 0.1, tick, "to the läft"),
        Telemetry("joints", tick * 0.1, tick, ("q1", "q2"), rng.normal(size=2).astype(np.float32)),
    )


def _recorder(path: Path, **changes: Any) -> Recorder:
    settings: dict[str, Any] = {"metadata": {"session": "s"}, "max_bytes": 1 << 30} | changes
    return Recorder(path=path, **settings)


def _record(path: Path, ticks: int) -> Recorder:
    recorder = _recorder(path)
    recorder.start({"state": b"\x01\x02"})
    for tick in range(ticks):
        decision = {"id": f"s-{tick}", "tick": tick, "actions": {"head": {"value": "left", "probability": 0.25}}}
        assert recorder.put(TickRecord(tick * 10**8, _readings(tick), decision))
    recorder.put(Note(ticks * 10**8, "reward", {"value": 1.0}))
    recorder.close()
    return recorder


def _same(a: Reading, b: Reading) -> bool:
    arrays = ("image", "samples", "values")
    return type(a) is type(b) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) if name in arrays else getattr(a, name) == getattr(b, name)
        for name in type(a).__slots__
        if name != "encoded"
    )


def test_every_reading_comes_back_bit_for_bit(tmp_path: Path) -> None:
    recorder = _record(tmp_path / "r.mcap", 20)
    recording = Recording(tmp_path / "r.mcap")
    ticks = list(recording.ticks())
    assert recorder.dropped == 0
    assert len(ticks) == 20
    for tick, (fresh, decision) in enumerate(ticks):
        assert decision["id"] == f"s-{tick}"
        assert all(_same(a, b) for a, b in zip(fresh, _readings(tick), strict=True))
    assert recording.metadata()["session"] == "s"
    assert recording.attachments() == {"state": b"\x01\x02"}


def test_overlapping_sound_is_kept_once(tmp_path: Path) -> None:
    codec = ReadingCodec()
    first, second = (codec.encode(_readings(tick)[1]) for tick in (0, 1))
    assert len(second["data"]) * 15 < len(first["data"])


def test_the_mcap_package_reads_it_with_schemas(tmp_path: Path) -> None:
    _record(tmp_path / "r.mcap", 3)
    with (tmp_path / "r.mcap").open("rb") as file:
        seen = {(channel.topic, schema.name) for schema, channel, _ in make_reader(file).iter_messages() if schema}
    assert ("/in/front", "foxglove.CompressedImage") in seen
    assert ("/in/room", "foxglove.RawAudio") in seen
    assert ("/reward", "reflexd.Message") in seen


def test_a_recording_cut_off_by_a_crash_is_read_to_its_last_whole_chunk(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    _record(path, 400)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10])
    ticks = list(Recording(path).ticks())
    assert 0 < len(ticks) < 400
    assert ticks[-1][1]["tick"] == len(ticks) - 1


def test_the_size_is_bounded_and_what_comes_later_refused(tmp_path: Path) -> None:
    recorder = _recorder(tmp_path / "r.mcap", max_bytes=10)
    recorder.start()
    for tick in range(100):
        recorder.put(TickRecord(tick, _readings(tick), {"id": str(tick)}))
    recorder.close()
    assert "limit" in recorder.ended
    assert recorder.written + recorder.dropped == 100
    assert len(list(Recording(tmp_path / "r.mcap").ticks())) == recorder.written


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mcap").write_bytes(b"not a recording at all, whatever its name says")
    with pytest.raises(RecordingError):
        Recording(tmp_path / "x.mcap").metadata()


@given(st.integers(0, 400), st.integers(32, 200), st.integers(0, 3))
def test_new_samples_are_exactly_what_is_needed_to_rebuild(shift: int, size: int, levels: int) -> None:
    stream = np.random.default_rng(shift).integers(0, levels + 1, size + shift).astype(np.float32)
    before, now = stream[:size], stream[shift : shift + size]
    new = new_samples(before, now)
    assert np.array_equal(np.concatenate((before, now[len(now) - new :]))[-size:], now)
