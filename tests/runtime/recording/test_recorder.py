"""A recording gives back every reading bit for bit, opens with the mcap package, and survives being cut off."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from PIL import Image

from fakes import Contention, wait_for
from runtime.recording.codec import ReadingCodec, new_samples
from runtime.recording.reader import Recording, RecordingError
from runtime.recording.recorder import Note, Recorder, TickRecord
from sensors.codecs.readings import encode_reading
from sensors.drivers import opencv
from sensors.readings import Frame, Reading, Sound, Telemetry, Text
from sensors.streams.camera import TopicCamera


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
        wait_for(lambda tick=tick: recorder.written > tick - 16, "room in the queue")  # type: ignore[misc]
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


def test_overlapping_sound_is_stored_once(tmp_path: Path) -> None:
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
    whole, written = path.read_bytes(), [tick[1]["tick"] for tick in Recording(path).ticks()]
    path.write_bytes(whole[: len(whole) // 2])
    read = [tick[1]["tick"] for tick in Recording(path).ticks()]
    assert 0 < len(read) < len(written)
    assert read == written[: len(read)]


def test_the_size_is_bounded_and_what_comes_later_refused(tmp_path: Path) -> None:
    recorder = _recorder(tmp_path / "r.mcap", max_bytes=10)
    recorder.start({})
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


CHILD = """
import json, os, resource, signal, sys, threading
from pathlib import Path
import numpy as np
from runtime.recording.recorder import Recorder, TickRecord
from sensors.readings import Telemetry

what, path, events = sys.argv[1], Path(sys.argv[2]), []
full = threading.Event()

def emit(kind, data):
    events.append((kind, data))
    full.set()

recorder = Recorder(path, {"session": "s"}, 10**9, emit)
if what == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
recorder.start({"state": bytes(1_000)})
accepted = 0
for tick in range(int(sys.argv[3])):
    values = np.random.default_rng(tick).random(40).astype(np.float32)
    reading = Telemetry("joints", tick / 20, tick, tuple(map(str, range(40))), values)
    accepted += recorder.put(TickRecord(tick * 10**7, (reading,), {"id": f"s-{tick}", "tick": tick}))
    while recorder._queue.qsize() > 100 and not recorder.ended:
        pass
if what == "kill":
    while recorder.written < accepted:
        threading.Event().wait(0.01)
    print(json.dumps({"accepted": accepted}), flush=True)
    signal.pause()
full.wait(20)
recorder.close(5)
print(json.dumps({"events": events, "ended": recorder.ended, "dropped": recorder.dropped, "written": recorder.written}))
"""


def _child(what: str, path: Path, count: int) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, what, str(path), str(count)], capture_output=True, text=True, check=False
    )
    assert ran.stdout, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_kill_9_costs_half_a_second_at_most_and_the_snapshot_is_readable(tmp_path: Path) -> None:
    """Half a second after the last record, everything is in the file, though no chunk was full."""
    path = tmp_path / "r.mcap"
    command = [sys.executable, "-c", CHILD, "kill", str(path), "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == {"accepted": 60}
        written_s, contention = time.monotonic(), Contention()
        wait_for(lambda: len(list(Recording(path).ticks())) == 60, "all records in the file")
        assert time.monotonic() - written_s <= 0.5 + 0.5 + contention.s  # and what it takes to read them
        child.kill()
    recording = Recording(path)
    assert [body["tick"] for _, body in recording.ticks()] == list(range(60))
    assert recording.attachments() == {"state": bytes(1_000)}
    assert recording.metadata()["session"] == "s"
    assert not recording.whole


def test_a_full_disk_ends_the_recording_with_an_event_and_counts_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    found = _child("full", path, 2_000)
    assert [kind for kind, _ in found["events"]] == ["recording_failed"]
    assert "cannot be written" in found["ended"]
    assert found["written"] + found["dropped"] == 2_000
    assert found["dropped"] > 0
    ticks = [body["tick"] for _, body in Recording(path).ticks()]
    assert ticks == list(range(len(ticks)))
    assert len(ticks) > 100


def test_the_size_limit_is_an_event_and_everything_after_it_is_counted(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    recorder = _recorder(tmp_path / "r.mcap", max_bytes=10, emit=lambda kind, data: events.append((kind, data)))
    recorder.start({})
    for tick in range(200):
        recorder.put(TickRecord(tick, _readings(tick), {"id": str(tick), "tick": tick}))
    recorder.close()
    assert [kind for kind, _ in events] == ["recording_full"]
    assert recorder.written + recorder.dropped == 200
    assert Recording(tmp_path / "r.mcap").whole


def test_ticks_in_the_snapshot_are_left_out_and_their_readings_go_with_the_first_one(tmp_path: Path) -> None:
    recorder = _recorder(tmp_path / "r.mcap")
    readings = _readings(0)
    for tick in range(3):
        body = {"id": str(tick), "tick": tick, "used": {"orders": 0, "joints": tick}}
        fresh = readings if tick == 0 else (_readings(tick)[3],)
        recorder.put(TickRecord(tick, fresh, body))
    recorder.start({}, after_tick=1)
    recorder.close()
    ((fresh, body),) = Recording(tmp_path / "r.mcap").ticks()
    assert body["tick"] == 2
    assert {reading.stream: reading.seq for reading in fresh} == {"orders": 0, "joints": 2}


@given(st.integers(0, 2_000))
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
def test_a_file_cut_at_any_byte_is_read_or_refused(tmp_path: Path, back: int) -> None:
    path, cut = tmp_path / "r.mcap", tmp_path / "cut.mcap"
    if not path.exists():
        _record(path, 5)
    data = path.read_bytes()
    cut.write_bytes(data[: len(data) * back // 2_000])
    try:
        Recording(cut).metadata()
        ticks = [body["tick"] for _, body in Recording(cut).ticks()]
        assert ticks == list(range(len(ticks)))
        assert set(Recording(cut).attachments()) <= {"state"}
    except RecordingError:
        assert back < 1_000


def _sizes(frames: list[Frame]) -> int:
    codec = ReadingCodec()
    return sum(len(codec.encode(frame)["data"]) for frame in frames)


def test_a_picture_is_recorded_as_it_came_and_read_back_to_the_same_pixels() -> None:
    rows = np.linspace(0, 255, 240, dtype=np.uint8)[:, None, None]
    smooth = np.random.default_rng(0).integers(0, 40, (240, 320, 3), np.uint8) // 8 * 8 + rows // 2
    camera = TopicCamera("front", None, 10**6)
    jpeg = opencv.encode(smooth.astype(np.uint8), ".jpg", 80)
    came = camera.decode(jpeg, 1.0)
    body = ReadingCodec().encode(came)
    assert (body["format"], base64.b64decode(body["data"])) == ("jpeg", jpeg)
    again = ReadingCodec().decode("front", "foxglove.CompressedImage", body)
    assert isinstance(again, Frame)
    assert np.array_equal(again.image, came.image)
    assert _sizes([came]) * 2 < _sizes([dataclasses.replace(came, encoded=None)])
    assert encode_reading(came) == ("jpeg", jpeg)


def test_a_transparent_png_is_read_back_as_the_camera_saw_it() -> None:
    image = Image.new("RGBA", (8, 6), (200, 10, 10, 60))
    data = io.BytesIO()
    image.save(data, "PNG")
    came = TopicCamera("front", None, 10**6).decode(data.getvalue(), 1.0)
    again = ReadingCodec().decode("front", "foxglove.CompressedImage", ReadingCodec().encode(came))
    assert isinstance(again, Frame)
    assert np.array_equal(again.image, came.image)


@given(st.booleans(), st.integers(0, 2**32 - 1))
def test_sound_is_16_bit_for_foxglove_and_comes_back_bit_for_bit(whole: bool, seed: int) -> None:
    chance = np.random.default_rng(seed)
    samples = chance.integers(-32_768, 32_767, 200).astype(np.float32) / 32_768
    samples = samples if whole else (chance.normal(size=200) * 0.7).astype(np.float32)
    body = ReadingCodec().encode(Sound("room", 1.0, 1, samples))
    assert body["format"] == "pcm-s16"
    assert len(base64.b64decode(body["data"])) == 2 * len(samples)
    assert ("float32" in body) is not whole
    again = ReadingCodec().decode("room", "foxglove.RawAudio", body)
    assert isinstance(again, Sound)
    assert np.array_equal(again.samples, samples)


def test_a_reading_bears_the_time_of_its_capture(tmp_path: Path) -> None:
    recorder = _recorder(tmp_path / "r.mcap")
    recorder.start({})
    reading = Telemetry("joints", 99.9, 1, ("q",), np.zeros(1, np.float32))
    recorder.put(TickRecord(10**18, (reading,), {"id": "0", "tick": 0, "stamp_s": 100.0}))
    recorder.close()
    with (tmp_path / "r.mcap").open("rb") as file:
        times = {channel.topic: (m.log_time, m.publish_time) for _, channel, m in make_reader(file).iter_messages()}
    assert times["/decision"] == (10**18, 10**18)
    assert times["/in/joints"][0] == 10**18
    assert times["/in/joints"][1] == pytest.approx(10**18 - 10**8, abs=1000)


def test_a_bit_that_flips_on_the_disk_is_noticed_and_never_replayed(tmp_path: Path) -> None:
    path, damaged = tmp_path / "r.mcap", tmp_path / "damaged.mcap"
    recorder = _recorder(path)
    snapshot = bytes(range(256)) * 8
    recorder.start({"state": snapshot})
    for tick in range(40):
        recorder.put(TickRecord(tick * 10**8, _readings(tick), {"id": f"s-{tick}", "tick": tick}))
    recorder.close()
    whole = path.read_bytes()
    in_snapshot = bytearray(whole)
    in_snapshot[whole.index(snapshot) + 900] ^= 4
    damaged.write_bytes(in_snapshot)
    with pytest.raises(RecordingError, match="its snapshot is damaged"):
        Recording(damaged).attachments()
    assert Recording(path).attachments() == {"state": snapshot}
    for share in (0.3, 0.5, 0.7):
        in_chunk = bytearray(whole)
        in_chunk[int(len(whole) * share)] ^= 16
        damaged.write_bytes(in_chunk)
        recording = Recording(damaged)
        ticks = [body["tick"] for _, body in recording.ticks()]
        assert ticks == list(range(len(ticks)))
        assert len(ticks) < 40
        assert (recording.whole, len(recording.damage)) == (True, 1)
