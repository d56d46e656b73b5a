"""Sound: windows, resampling, PCM payloads, files in real time, and the ring that PortAudio's callback writes."""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sensing import Running, outcome

from fakes import Contention
from sensors.base import PayloadRefused, Sensor, SensorLost, TopicSensor
from sensors.codecs.file_kinds import file_kind
from sensors.codecs.resampling import RATE_HZ, SoundWindow, pcm
from sensors.codecs.sounds import decode_sound
from sensors.config import MicrophoneSettings
from sensors.drivers import portaudio
from sensors.drivers.portaudio import PlayJob, RecordJob, SampleRing
from sensors.drivers.watchdog import Limits
from sensors.readings import Sound
from sensors.streams.microphone import MicrophoneSensor, TopicMicrophone, job_of

VOICE = Path("/usr/share/sounds/alsa/Front_Center.wav")


def settings(source: int | str, **more: object) -> MicrophoneSettings:
    return MicrophoneSettings.model_validate({"kind": "microphone", "source": source, **more})


def tone(hz: float, rate_hz: int, seconds: float) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def pitch(samples: NDArray[np.float32], rate_hz: int = RATE_HZ) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate_hz / len(samples))


def as_pcm(samples: NDArray[np.float32]) -> bytes:
    return (samples * 32_767).astype("<i2").tobytes()


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_level_through_streaming_resampling(rate_hz: int) -> None:
    window = SoundWindow(1.0, 0.1)
    hops = sum(window.add(block, rate_hz) and len(window.take()) for block in np.array_split(tone(440, rate_hz, 2), 97))
    samples = window.take()
    assert samples.dtype == np.float32
    assert samples.shape == (RATE_HZ,)
    assert pitch(samples) == pytest.approx(440, abs=1)
    assert samples.std() == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    clicks = np.abs(np.diff(samples[400:-400], n=2)).max()
    assert clicks < 1.2 * 0.5 * (2 * np.pi * 440 / RATE_HZ) ** 2, "blocks must join without clicks"
    assert hops == pytest.approx(RATE_HZ * 19, rel=0.1)


def test_a_window_begins_with_silence_and_forgets_when_cleared() -> None:
    window = SoundWindow(0.01, 0.005)
    assert not window.add(np.ones(10, np.float32), RATE_HZ)
    assert window.take().tolist() == [0.0] * 150 + [1.0] * 10
    assert window.add(np.ones(500, np.float32), RATE_HZ)
    assert window.take().min() == 1.0
    window.clear()
    assert window.take().max() == 0.0


@given(st.lists(st.integers(1, 700), min_size=1, max_size=30), st.sampled_from([0.005, 0.02, 0.1]))
def test_a_window_holds_the_last_samples_however_they_come(sizes: list[int], hop_s: float) -> None:
    window = SoundWindow(0.05, hop_s)
    samples = np.arange(1, sum(sizes) + 1, dtype=np.float32)
    at, hops = 0, 0
    for size in sizes:
        if window.add(samples[at : at + size], RATE_HZ):
            window.take()
            hops += 1
        at += size
    expected = np.concatenate([np.zeros(800, np.float32), samples])[-800:]
    assert window.take().tolist() == expected.tolist()
    assert hops <= sum(sizes) / (hop_s * RATE_HZ)


def test_topic_sound_comes_as_windows_every_hop() -> None:
    microphone = TopicMicrophone("room", "house/pcm", settings("topic", window_s=0.5, hop_s=0.1))
    assert isinstance(microphone, TopicSensor)
    assert microphone.topic == "house/pcm"
    sound = tone(1_000, RATE_HZ, 1.0)
    readings = [
        microphone.decode(as_pcm(block), 10.0 + number * 0.05) for number, block in enumerate(np.array_split(sound, 20))
    ]
    windows = [reading for reading in readings if reading is not None]
    assert len(windows) == 10
    assert [window.seq for window in windows] == list(range(1, 11))
    assert windows[-1].stamp_s == pytest.approx(10.95)
    assert windows[-1].rate_hz == RATE_HZ
    assert pitch(windows[-1].samples) == pytest.approx(1_000, abs=2)


def test_a_pause_between_payloads_becomes_silence() -> None:
    microphone = TopicMicrophone("room", None, settings("topic", window_s=1.0, hop_s=0.1))
    word = as_pcm(tone(500, RATE_HZ, 0.2))
    microphone.decode(word, 5.0)
    reading = microphone.decode(word, 7.6)
    assert reading is not None
    level = np.abs(reading.samples).reshape(10, -1).max(axis=1) > 0.1
    assert level.tolist() == [False] * 8 + [True, True]


@given(st.binary(max_size=2_000), st.sampled_from([8_000, 16_000, 44_100]))
def test_any_bytes_are_sound_or_refused(payload: bytes, rate_hz: int) -> None:
    samples, cause = outcome(lambda: pcm(payload, rate_hz))
    container = file_kind(payload) is not None
    assert cause == (
        "container" if container else "empty" if not payload else "odd_length" if len(payload) % 2 else None
    )
    if samples is not None:
        assert samples.min() >= -1.0
        assert samples.max() < 1.0
        assert (samples * 32_768).astype("<i2").tobytes() == payload


def test_a_payload_longer_than_the_window_is_counted() -> None:
    settings = MicrophoneSettings(kind="microphone", source="topic", window_s=1.0, hop_s=0.1)
    microphone = TopicMicrophone("room", "in/room", settings)
    for seconds in (0.5, 1.0, 1.5):
        microphone.decode(bytes(2 * round(seconds * 16_000)), 10.0 + seconds)
    assert microphone.drops == {"beyond_window": 1}


def test_refused_sound_is_counted() -> None:
    microphone = TopicMicrophone("room", None, settings("topic"))
    for payload, cause in ((b"", "empty"), (b"abc", "odd_length"), (bytes(2_000_000), "too_large")):
        with pytest.raises(PayloadRefused) as refusal:
            microphone.decode(payload, 1.0)
        assert refusal.value.cause == cause
    assert microphone.drops == {"empty": 1, "odd_length": 1, "too_large": 1}


@pytest.mark.parametrize(
    ("source", "job"),
    [
        ("default", RecordJob(None, RATE_HZ)),
        (3, RecordJob(3, RATE_HZ)),
        ("3", RecordJob(3, RATE_HZ)),
        ("USB Audio", RecordJob("USB Audio", RATE_HZ)),
        ("/a/voice", PlayJob("/a/voice", loop=False)),
        ("voice.wav", PlayJob("voice.wav", loop=False)),
        ("file:voice", PlayJob("voice", loop=False)),
    ],
)
def test_sources_are_distinguished(source: int | str, job: RecordJob | PlayJob) -> None:
    assert job_of(settings(source)) == job


async def test_a_file_is_heard_in_real_time_and_loops(tmp_path: Path, running: Running) -> None:
    path = tmp_path / "tone.wav"
    stereo = np.stack([tone(600, 44_100, 0.4)] * 2, axis=1)
    soundfile.write(path, stereo, 44_100)
    sensor = MicrophoneSensor("room", settings(str(path), window_s=0.3, hop_s=0.1, loop=True))
    assert isinstance(sensor, Sensor)
    contention = Contention()
    async with running(sensor) as witness:
        await witness.until(lambda: len(witness.readings) >= 8)
        assert witness.lost == []
    sounds = [reading for reading in witness.readings if isinstance(reading, Sound)]
    assert np.diff([sound.stamp_s for sound in sounds]).mean() == pytest.approx(0.1, abs=0.02 + contention.s / 7)
    assert pitch(sounds[2].samples) == pytest.approx(600, abs=5)
    assert sensor.counts == {"connections": 1}


@pytest.mark.skipif(not VOICE.exists(), reason="apt-get install alsa-utils")
async def test_a_voice_ends_when_it_is_not_looped(running: Running) -> None:
    async with running(MicrophoneSensor("room", settings(str(VOICE), window_s=1.0, hop_s=0.1))) as witness:
        await witness.until(lambda: bool(witness.lost))
        assert "has ended" in witness.lost[0][1]
    duration_s = soundfile.info(str(VOICE)).duration
    assert len(witness.readings) == pytest.approx(10 * duration_s, abs=2)
    assert max(float(np.abs(reading.samples).max()) for reading in witness.readings if isinstance(reading, Sound)) > 0.1


async def test_a_missing_sound_file_is_reported(running: Running) -> None:
    async with running(MicrophoneSensor("room", settings("/nowhere.wav"))) as witness:
        await witness.until(lambda: bool(witness.lost))
        assert "no such file" in witness.lost[0][1]


class Sink:
    """Takes what a driver hears; stops it after `enough` blocks."""

    def __init__(self, enough: int = 5) -> None:
        self.stop = threading.Event()
        self.blocks: list[tuple[float, int, NDArray[np.float32]]] = []
        self.drops: list[str] = []
        self._enough = enough

    def sound(self, stamp_s: float, rate_hz: int, samples: NDArray[np.float32]) -> None:
        self.blocks.append((stamp_s, rate_hz, samples))
        if len(self.blocks) >= self._enough:
            self.stop.set()

    def drop(self, cause: str) -> None:
        self.drops.append(cause)


def test_play_says_what_it_cannot_read(tmp_path: Path) -> None:
    sink = Sink()
    with pytest.raises(SensorLost, match="no such file"):
        portaudio.play(PlayJob(str(tmp_path / "none.wav"), loop=False), sink, sink.stop)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(SensorLost, match="cannot be read as sound"):
        portaudio.play(PlayJob(str(tmp_path / "text.wav"), loop=False), sink, sink.stop)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8_000)
    portaudio.play(PlayJob(str(tmp_path / "empty.wav"), loop=True), sink, sink.stop)
    assert sink.blocks == []


def test_a_file_plays_as_training_reads_it(tmp_path: Path) -> None:
    """Channels that cancel each other, and a header that claims no samples."""
    loud = tone(600, 16_000, 0.1)
    soundfile.write(tmp_path / "swapped.wav", np.stack([loud, -0.9 * loud], axis=1), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", loud, 16_000, subtype="PCM_16")
    cut = (tmp_path / "mono.wav").read_bytes()
    at = cut.index(b"data") + 4
    (tmp_path / "cut.wav").write_bytes(cut[:at] + bytes(4) + cut[at + 4 :])
    for name in ("swapped.wav", "cut.wav"):
        sink = Sink(3)
        portaudio.play(PlayJob(str(tmp_path / name), loop=False), sink, sink.stop)
        played = np.concatenate([block for _, _, block in sink.blocks])
        np.testing.assert_allclose(played, loud[: len(played)], atol=1e-4)
        trained, _ = decode_sound((tmp_path / name).read_bytes())
        np.testing.assert_allclose(played, trained[: len(played)])


def test_play_loops_in_order(tmp_path: Path) -> None:
    ramp = np.linspace(0, 0.9, 400, dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, 8_000, subtype="FLOAT")
    sink = Sink(6)
    portaudio.play(PlayJob(str(tmp_path / "ramp.wav"), loop=True), sink, sink.stop)
    received = np.concatenate([block for _, _, block in sink.blocks])
    assert np.allclose(received, np.tile(ramp, 3)[: len(received)])


@given(st.lists(st.integers(0, 25), max_size=20), st.data())
def test_a_ring_gives_everything_in_order_or_counts_what_it_lost(sizes: list[int], data: st.DataObject) -> None:
    ring = SampleRing(16, 10)
    sent, taken = 0, 0
    for size in sizes:
        ring.write(np.arange(sent, sent + size, dtype=np.float32), 0.0)
        sent += min(size, 16) if size > 16 else size
        if size > 16:  # one write larger than the ring keeps its end
            ring, sent, taken = SampleRing(16, 10), 0, 0
            continue
        if data.draw(st.booleans()):
            got = ring.take()
            assert got.tolist() == list(range(sent - len(got), sent))
            taken += len(got)
            assert taken + ring.lost == sent


def test_a_write_larger_than_the_ring_keeps_its_end() -> None:
    ring = SampleRing(4, 10)
    ring.write(np.arange(10, dtype=np.float32), 5.0)
    assert ring.take().tolist() == [6.0, 7.0, 8.0, 9.0]
    assert ring.captured_s == 5.0


def test_a_ring_knows_when_the_last_sample_that_was_taken_was_captured() -> None:
    ring = SampleRing(100, 10)
    ring.write(np.zeros(20, np.float32), 7.0)
    assert (len(ring.take()), ring.captured_s) == (20, 7.0)
    ring.write(np.zeros(5, np.float32), 7.5)
    assert ring.captured_s == 7.0, "what was written since is not taken yet"
    assert (len(ring.take()), ring.captured_s) == (5, 7.5)


class PortAudio:
    """The part of sounddevice that `record` uses, with a device that misbehaves on request."""

    class PortAudioError(Exception):
        """As sounddevice's."""

    def __init__(
        self, *, own_rate: int | None = None, stops: bool = False, opens: bool = True, age_s: float = 0.0
    ) -> None:
        self.own_rate, self.stops, self.opens, self.age_s = own_rate, stops, opens, age_s
        self.called: list[tuple[float, float]] = []
        """Monotonic seconds before and after each call of the callback."""

    def check_input_settings(self, *, device: object, channels: int, samplerate: int) -> None:
        if self.own_rate not in {None, samplerate}:
            raise self.PortAudioError("rate")

    def query_devices(self, device: object = None, kind: str | None = None) -> dict[str, float]:
        return {"default_samplerate": float(self.own_rate or 0)}

    def InputStream(self, *, samplerate: int, callback: object, **_: object) -> Stream:  # noqa: N802 - its name
        if not self.opens:
            raise self.PortAudioError("Device unavailable")
        return Stream(self, callback, samplerate)


class Stream:
    """Calls back from a thread of its own, three blocks, one of them after an overflow."""

    def __init__(self, device: PortAudio, callback: object, rate_hz: int) -> None:
        self.active = True
        self._thread = threading.Thread(target=self._run, args=(device, callback, rate_hz))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self, device: PortAudio, callback: object, rate_hz: int) -> None:
        assert callable(callback)
        pause, block = threading.Event(), rate_hz // 50
        for number in range(3):
            times = SimpleNamespace(currentTime=900.0, inputBufferAdcTime=900.0 - device.age_s - block / rate_hz)
            before_s = time.monotonic()
            callback(np.full((block, 1), number, np.float32), block, times, number == 1)
            device.called.append((before_s, time.monotonic()))
            pause.wait(0.03)
        self.active = not device.stops


def test_record_delivers_counts_overflows_and_says_when_the_device_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", PortAudio(stops=True))  # type: ignore[arg-type]
    sink = Sink(99)
    with pytest.raises(SensorLost, match="stopped"):
        portaudio.record(RecordJob(None, RATE_HZ), sink, sink.stop)
    assert {rate for _, rate, _ in sink.blocks} == {RATE_HZ}
    received = np.concatenate([block for _, _, block in sink.blocks])
    assert received.tolist() == [0.0] * 320 + [1.0] * 320 + [2.0] * 320
    assert sink.drops == ["device_overflow"]


@pytest.mark.parametrize(
    ("age_s", "counts_s"),
    [(0.07, 0.07), (1.5, 1.5), (900.0, 0.0), (-3.0, 0.0)],
    ids=["buffered", "late", "no clock", "future"],
)
def test_samples_have_the_time_at_which_the_device_converted_them(
    monkeypatch: pytest.MonkeyPatch, age_s: float, counts_s: float
) -> None:
    device = PortAudio(stops=True, age_s=age_s)
    monkeypatch.setitem(sys.modules, "sounddevice", device)  # type: ignore[arg-type]
    sink = Sink(99)
    with pytest.raises(SensorLost, match="stopped"):
        portaudio.record(RecordJob(None, RATE_HZ), sink, sink.stop)
    before_s, after_s = device.called[-1]
    assert before_s - 1e-6 <= sink.blocks[-1][0] + counts_s <= after_s + 1e-6


def test_a_device_without_the_rate_is_opened_at_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", PortAudio(own_rate=48_000, stops=True))  # type: ignore[arg-type]
    sink = Sink(99)  # how many blocks the three become is up to the scheduler
    with pytest.raises(SensorLost, match="stopped"):
        portaudio.record(RecordJob(2, RATE_HZ), sink, sink.stop)
    assert {rate for _, rate, _ in sink.blocks} == {48_000}


def test_a_device_that_does_not_open_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", PortAudio(opens=False))  # type: ignore[arg-type]
    sink = Sink()
    with pytest.raises(SensorLost, match="Device unavailable"):
        portaudio.record(RecordJob("x", RATE_HZ), sink, sink.stop)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(SensorLost, match="apt-get install libportaudio2"):
        portaudio.load()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SensorLost, match="pip install"):
        portaudio.load()


async def test_a_file_of_other_numbers_than_samples_is_refused_by_name(tmp_path: Path, running: Running) -> None:
    soundfile.write(tmp_path / "loud.wav", 32_767 * tone(600, 16_000, 0.4), 16_000, subtype="FLOAT")
    sensor = MicrophoneSensor("room", settings(str(tmp_path / "loud.wav"), window_s=0.3, hop_s=0.1, loop=True))
    async with running(sensor) as witness:
        await witness.until(lambda: sensor.drops["too_loud"] >= 2)
        assert witness.readings == []


async def test_samples_that_are_not_finite_are_counted_and_never_published(tmp_path: Path, running: Running) -> None:
    samples = tone(600, 16_000, 0.4)
    samples[800:810] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    sensor = MicrophoneSensor("room", settings(str(tmp_path / "nan.wav"), window_s=0.3, hop_s=0.1, loop=True))
    async with running(sensor) as witness:
        await witness.until(lambda: sensor.drops["not_finite"] >= 2 and len(witness.readings) >= 4)
    assert all(np.isfinite(sound.samples).all() for sound in witness.readings if isinstance(sound, Sound))


async def test_microphone_with_nothing_finite_is_lost_by_name_and_reason(tmp_path: Path, running: Running) -> None:
    soundfile.write(tmp_path / "inf.wav", np.full(16_000, np.inf, np.float32), 16_000, subtype="FLOAT")
    limits = Limits(
        period_s=0.1, start_s=8.0, open_s=20.0
    )  # the driver process has begun by then, also on a busy machine
    sensor = MicrophoneSensor("room", settings(str(tmp_path / "inf.wav"), loop=True), limits=limits)
    async with running(sensor) as witness:
        await witness.until(lambda: bool(witness.lost), within_s=20.0)
    assert witness.readings == []
    assert witness.lost[0][1].startswith("room (")
    assert "not finite" in witness.lost[0][1]


@pytest.mark.parametrize(("form", "kind"), [("WAV", "WAV"), ("FLAC", "FLAC"), ("OGG", "Ogg"), ("AIFF", "AIFF")])
def test_sound_file_on_the_pcm_topic_is_recognised(form: str, kind: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(600, 16_000, 0.1), 16_000, format=form)
    sensor = TopicMicrophone("room", None, settings("topic"))
    with pytest.raises(PayloadRefused, match=f"a file of the kind {kind}; send its samples alone"):
        sensor.decode(buffer.getvalue(), 1.0)
    assert sensor.drops == {"container": 1}


CHUNK = 1_600
ARRIVALS = tuple(100 + 0.1 * (k + 1) for k in range(60))


def received(arrivals: dict[int, float]) -> NDArray[np.float32]:
    """The last window of 2 s of a topic; chunk k holds the number k in each of its samples."""
    settings = MicrophoneSettings(kind="microphone", source="topic", window_s=2.0, hop_s=0.1)
    microphone, last = TopicMicrophone("room", None, settings), None
    for k, at_s in sorted(arrivals.items()):
        reading = microphone.decode(np.full(CHUNK, 100 * (k + 1), "<i2").tobytes(), at_s)
        last = reading or last
    assert last is not None
    return np.round(last.samples * 32_768 / 100) - 1


@pytest.mark.parametrize("stall_s", [0.2, 0.3, 0.5, 1.0])
def test_a_stalled_network_puts_no_silence_between_samples(stall_s: float) -> None:
    steady = dict(enumerate(ARRIVALS[:40]))
    stalled = {k: max(at_s, 103 + stall_s) if 103 < at_s < 103 + stall_s else at_s for k, at_s in steady.items()}
    assert np.array_equal(received(stalled), received(steady))


def test_lost_payloads_become_silence_and_do_not_stretch_the_window() -> None:
    """Every third payload is lost: the window of 2 s at 6 s begins at 4 s, but for the half second that a loss is in doubt."""
    window = received({k: at_s for k, at_s in enumerate(ARRIVALS) if k % 3 != 2})
    chunks = window[window >= 0]
    assert 60 - 1 - chunks.min() <= 25
    assert (window == -1).mean() > 0.1


def test_one_loss_is_silence_at_its_place() -> None:
    window = received({k: at_s for k, at_s in enumerate(ARRIVALS[:40]) if not 28 <= k < 32})
    silent = np.flatnonzero(window == -1)
    assert len(silent) == pytest.approx(4 * CHUNK, abs=CHUNK // 10)
    assert window[silent[0] - 1] == pytest.approx(27, abs=1)
    assert window[silent[-1] + 1] == pytest.approx(32, abs=1)


def test_clocks_that_differ_by_200_ppm_lose_nothing() -> None:
    microphone = TopicMicrophone("room", None, MicrophoneSettings(kind="microphone", source="topic", window_s=2.0))
    for share in (1 + 2e-4, 1 - 2e-4):
        for k in range(20_000):
            microphone.decode(bytes(2 * CHUNK), 100 + 0.1 * share * k)
    assert microphone.drops["lost"] <= 1, "the jump from one clock to the other"
