"""Speech becomes text: utterances are cut where a voice is, words are transcribed, and what a model invents is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fakes import eventually
from learners.model.encoders.bundled_packages import BundledError
from learners.model.encoders.silero_vad import FRAME, RATE_HZ
from learners.speech import runner as speech_runner
from learners.speech import transcription
from learners.speech.runner import SpeechRunner
from learners.speech.transcription import Transcriber
from learners.speech.transcripts import SpeechCallbacks, TranscribedUtterance, count_new_samples
from learners.speech.utterance_cutting import SpokenUtterance, UtteranceCutter, VoiceActivity
from learners.tasks.inputs.sounds import read_sound
from sensors.config import TextSettings
from sensors.readings import Sound

SOUNDS = Path("/usr/share/sounds/alsa")
needs_sounds = pytest.mark.skipif(not SOUNDS.is_dir(), reason="apt-get install alsa-utils")
Samples = NDArray[np.float32]


def loud(samples: Samples) -> list[float]:
    """A detector that takes loud frames for speech."""
    return [float(np.abs(frame).max() > 0.5) for frame in samples.reshape(-1, FRAME)]


def tone(seconds: float, level: float) -> Samples:
    return np.full(round(seconds * RATE_HZ), level, np.float32)


def cut(cutter: UtteranceCutter, sound: Samples, start_s: float = 0.0, hop: int = 1_600) -> list[tuple[float, float]]:
    """Feed the sound in pieces; return the stamps of the utterances."""
    found = []
    for at in range(0, len(sound), hop):
        piece = sound[at : at + hop]
        found += cutter.add(piece, start_s + (at + len(piece)) / RATE_HZ)
    return [(one.start_s, one.end_s) for one in found]


def test_an_utterance_has_a_little_sound_around_it_and_true_stamps() -> None:
    sound = np.concatenate((tone(1, 0), tone(1, 1), tone(0.3, 0), tone(0.5, 1), tone(2, 0)))
    ((start_s, end_s),) = cut(UtteranceCutter(loud, 10), sound, start_s=100.0)
    assert start_s == pytest.approx(100.744, abs=0.05)
    assert end_s == pytest.approx(103.056, abs=0.05), "a pause of 0.3 s does not end it"


def test_long_speech_is_cut_a_click_is_none_and_a_gap_ends_an_utterance() -> None:
    long = UtteranceCutter(loud, 2.0)
    spans = cut(long, np.concatenate((tone(5, 1), tone(1, 0))))
    assert [round(end - start) for start, end in spans] == [2, 2, 1]
    click = UtteranceCutter(loud, 10)
    assert cut(click, np.concatenate((tone(0.1, 1), tone(2, 0)))) == []
    assert click.counts == {"too_short": 1}
    broken = UtteranceCutter(loud, 10)
    cut(broken, tone(1, 1))
    assert len(broken.add(tone(0.1, 0), 9.0)) == 1
    assert broken.counts == {"interrupted": 1}
    assert broken.flush() == []


def bundled_voice() -> VoiceActivity:
    try:
        return VoiceActivity()
    except BundledError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    try:
        return Transcriber("bundled:whisper-tiny.en")
    except BundledError as error:
        pytest.skip(str(error))


@needs_sounds
def test_a_voice_is_detected_in_pieces_as_in_the_whole() -> None:
    sound = read_sound(SOUNDS / "Front_Center.wav")
    sound = sound[: len(sound) // FRAME * FRAME]
    whole, pieces = bundled_voice()(sound), bundled_voice()
    found = [one for at in range(0, len(sound), 3 * FRAME) for one in pieces(sound[at : at + 3 * FRAME])]
    assert np.allclose(found, whole, atol=1e-5)
    assert max(whole) > 0.9
    quiet = bundled_voice()(np.zeros(FRAME * 30, np.float32))
    assert max(quiet) < 0.3


@needs_sounds
def test_words_are_transcribed_and_inventions_refused(transcriber: Transcriber) -> None:
    spoken = transcriber.transcribe(read_sound(SOUNDS / "Front_Center.wav"))
    assert spoken.text == "Front, center."
    assert [one["word"] for one in spoken.words] == ["Front,", "center."]
    assert 0.4 < spoken.confidence <= 1.0
    assert spoken.refused is None
    noise = transcriber.transcribe(read_sound(SOUNDS / "Noise.wav"))
    assert (noise.text, noise.words) == ("", ())
    assert noise.refused in ("no_speech", "improbable", "no_words")


@pytest.mark.parametrize(
    ("text", "confidence", "no_speech", "refused"),
    [
        ("go left", 0.9, 0.1, None),
        ("go left", 0.9, 0.7, "no_speech"),
        ("go left", 0.3, 0.1, "improbable"),
        ("you and you and " * 20, 0.9, 0.1, "repeats"),
        (" [Music] ♪ (wind) ...", 0.9, 0.1, "no_words"),
    ],
)
def test_each_guard(
    transcriber: Transcriber, text: str, confidence: float, no_speech: float, refused: str | None
) -> None:
    assert transcriber._refusal(text, confidence, no_speech) == refused


@needs_sounds
async def test_a_microphone_stream_becomes_a_text_stream(transcriber: Transcriber) -> None:
    del transcriber  # skips where the model is not installed
    received: list[TranscribedUtterance] = []
    failed: list[tuple[str, str]] = []
    settings = TextSettings(kind="text", source="speech:room")
    callbacks = SpeechCallbacks(received.append, lambda *_: None, lambda *one: failed.append(one))
    runner = SpeechRunner({"orders": settings}, callbacks)
    assert runner.sources == ("room",)
    working = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    sound = np.concatenate((np.zeros(RATE_HZ, np.float32), read_sound(SOUNDS / "Front_Left.wav")))
    window = np.zeros(2 * RATE_HZ, np.float32)
    for number, at in enumerate(range(0, len(sound), 1_600)):
        piece = sound[at : at + 1_600]
        window = np.concatenate((window, piece))[-2 * RATE_HZ :]
        runner.take(Sound("room", 50.0 + (at + len(piece)) / RATE_HZ, number, window, RATE_HZ, new=len(piece)))
    await eventually(lambda: bool(received or failed), timeout_s=120)
    working.cancel()
    assert not failed
    one = received[0]
    assert (one.stream, one.source, one.transcript.text) == ("orders", "room", "Front, left.")
    assert 50.5 < one.start_s < one.end_s < 50.1 + len(sound) / RATE_HZ


def runner_of(*sources: str, clock: Callable[[], float] = time.monotonic) -> SpeechRunner:
    """A runner that no one listens to."""
    streams = {f"of-{source}": TextSettings(kind="text", source=f"speech:{source}") for source in sources}
    return SpeechRunner(streams, SpeechCallbacks(lambda _: None, lambda *_: None, lambda *_: None), clock=clock)


async def test_a_cancelled_runner_does_not_wait_for_an_utterance(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end, transcribed = threading.Event(), threading.Event(), list[str]()

    def transcribe(_self: Any, _loop: Any, stream: str, _utterance: Any) -> None:
        transcribed.append(stream)
        begun.set()
        may_end.wait(60)

    monkeypatch.setattr(SpeechRunner, "_open", lambda *_: None)
    monkeypatch.setattr(SpeechRunner, "_transcribe", transcribe)
    two = [SpokenUtterance(tone(1, 0), 0.0, 1.0)] * 2
    monkeypatch.setattr(SpeechRunner, "_cut", lambda *_, **__: two)
    runner = runner_of("room")
    working = asyncio.create_task(runner.run())
    runner._wake.set()
    await eventually(begun.is_set, "the first utterance")
    working.cancel()
    try:
        await asyncio.wait([working])
        assert not may_end.is_set(), "the loop did not wait"
    finally:
        may_end.set()
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("speech")]
    for thread in workers:
        thread.join(60)
    assert transcribed == ["of-room"], "the second utterance is not begun"


async def test_sound_that_waits_holds_its_new_samples_alone_and_has_16_khz() -> None:
    runner = runner_of("room")
    runner._loop = asyncio.get_running_loop()
    (source,) = runner._sources.values()
    window = np.sin(np.arange(2 * 48_000) * 2 * np.pi * 440 / 48_000).astype(np.float32)
    for number in range(10):
        runner.take(Sound("room", 50.0 + number / 10, number, window, 48_000, new=4_800))
    assert source.waiting[0][0].base is None, "no view of the window"
    pieces = [source.next() for _ in range(10)]
    assert pieces[-1][1] == 50.9
    sound = np.concatenate([samples for samples, *_ in pieces])
    assert len(sound) == pytest.approx(RATE_HZ, rel=0.05)
    assert np.argmax(np.abs(np.fft.rfft(sound[-8_000:]))) * 2 == pytest.approx(440, abs=4)


async def test_an_utterance_ends_where_its_microphone_is_lost_and_another_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, ends = [100.0], list[bool]()
    runner, loop = runner_of("room", "hall", clock=lambda: now[-1]), asyncio.get_running_loop()
    monkeypatch.setattr(SpeechRunner, "_cut", lambda _self, _source, *, ended: ends.append(ended) or [])
    for source in runner._sources.values():
        source.arrived_s = 100.0
    runner._work(loop)
    now.append(101.0)
    _, hall = runner._sources.values()
    hall.arrived_s = 101.0
    runner._work(loop)
    assert ends == [False, False, True, False]


def test_a_model_that_could_not_be_opened_is_tried_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    runner = runner_of("room", clock=lambda: now[-1])
    settings = TextSettings(kind="text", source="speech:room", model=str(tmp_path))
    with pytest.raises(Exception, match="config"):
        runner._model("of-room", settings)
    now.append(100.0 + speech_runner.RETRY_S - 1)
    assert runner._model("of-room", settings) is None
    now.append(100.0 + speech_runner.RETRY_S)
    opened: Any = object()
    monkeypatch.setattr(speech_runner, "Transcriber", lambda *_, **__: opened)
    assert runner._model("of-room", settings) is opened


def heard(
    monkeypatch: pytest.MonkeyPatch, streams: dict[str, TextSettings], pieces: list[tuple[float, Samples]], **more: Any
) -> dict[str, list[float]]:
    """Return how long the utterances of each stream are, of pieces that come at these seconds; the worker looks twice a second."""
    now, found = [0.0], {name: list[float]() for name in streams}
    monkeypatch.setattr(speech_runner, "VoiceActivity", lambda: loud)
    runner = SpeechRunner(
        streams, SpeechCallbacks(lambda _: None, lambda *_: None, lambda *_: None), clock=lambda: now[0]
    )
    loop: Any = asyncio.new_event_loop()
    runner._loop = loop
    monkeypatch.setattr(
        runner, "_transcribe", lambda _, name, one: found[name].append(round(one.end_s - one.start_s, 1))
    )
    for number, (at_s, samples) in enumerate(pieces):
        while now[0] + 0.5 < at_s:
            now[0] += 0.5
            runner._work(loop)
        now[0] = at_s
        runner.take(Sound("room", at_s, number, samples, RATE_HZ, new=len(samples), **more))
        runner._work(loop)
    now[0] += 10
    runner._work(loop)
    loop.close()
    return found


def one_stream(**settings: Any) -> TextSettings:
    return TextSettings(kind="text", source="speech:room", **settings)


@pytest.mark.parametrize("piece_s", [0.1, 1.0, 1.3, 2.0, 5.0])
def test_pieces_of_any_length_divide_no_utterance(monkeypatch: pytest.MonkeyPatch, piece_s: float) -> None:
    sound = np.concatenate((tone(1, 0), tone(6, 1), tone(3, 0)))
    size = round(piece_s * RATE_HZ)
    pieces = [(min(at + size, len(sound)) / RATE_HZ, sound[at : at + size]) for at in range(0, len(sound), size)]
    found = heard(monkeypatch, {"orders": one_stream()}, pieces)
    assert found["orders"] == [pytest.approx(6.5, abs=0.15)]


def test_a_network_that_stalls_divides_no_utterance_and_a_device_that_loses_samples_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = [min(1.0, number / 10) if number < 10 else max(1.7, number / 10) for number in range(30)]
    pieces = [(at_s, tone(0.1, 1)) for at_s in times]
    assert heard(monkeypatch, {"orders": one_stream()}, pieces)["orders"] == [pytest.approx(3.0, abs=0.1)]
    lost = [(at_s, tone(0.1, 1)) for at_s in np.arange(40) / 10 if not 1.0 < at_s < 1.7]
    assert len(heard(monkeypatch, {"orders": one_stream()}, lost, stamp_source="device")["orders"]) == 2


def test_each_stream_of_a_microphone_cuts_long_speech_at_its_own_length(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {"short": one_stream(max_utterance_s=2), "long": one_stream(max_utterance_s=20)}
    pieces = [(at / 10, tone(0.1, 1)) for at in range(60)]
    found = heard(monkeypatch, streams, pieces)
    assert [round(length) for length in found["short"]] == [2, 2, 2]
    assert [round(length) for length in found["long"]] == [6]


def test_names_of_sounds_are_no_words() -> None:
    given = [
        {"word": word, "confidence": 0.5}
        for word in ("[Music", "playing]", "go", "(wind)", "left", "♪", "la", "♪", "*sigh*", "now")
    ]
    assert [one["word"] for one in transcription._spoken_words(given)] == ["go", "left", "now"]
    assert transcription._spoken_words([{"word": "go(wind)", "confidence": 0.5}]) == (
        {"word": "go", "confidence": 0.5},
    )


async def test_models_open_before_the_first_utterance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, failed = list[str](), list[tuple[str, str]]()

    def open_model(model: str, **_: Any) -> object:
        if model == "damaged":
            raise OSError("no such model")
        opened.append(model)
        return object()

    monkeypatch.setattr(speech_runner, "Transcriber", open_model)
    monkeypatch.setattr(speech_runner, "VoiceActivity", lambda: loud)
    streams = {
        name: TextSettings(kind="text", source="speech:room", model=name) for name in ("orders", "damaged", "names")
    }
    callbacks = SpeechCallbacks(lambda _: None, lambda *_: None, lambda *one: failed.append(one))
    runner = SpeechRunner(streams, callbacks)
    working = asyncio.create_task(runner.run())
    await eventually(lambda: opened == ["orders", "names"] and bool(failed), "the models")
    assert failed == [("damaged", "no such model")]
    assert runner.failures == {"damaged": "no such model"}
    assert runner.counts["failed"] == 1
    assert all(source.cutter is not None for source in runner._sources.values())
    await eventually(lambda: runner.busy_s() == 0.0, "a worker that waits for sound")
    working.cancel()
    await asyncio.wait([working])


@pytest.mark.parametrize(
    ("new", "last_s", "expected"),
    [(30, None, 30), (900, 0.0, 100), (None, None, 100), (None, 9.99, 80), (None, 99.0, 0)],
)
def test_new_samples_of_a_window(new: int | None, last_s: float | None, expected: int) -> None:
    window = Sound("room", 10.0, 1, np.zeros(100, np.float32), 8_000, new=new)
    assert count_new_samples(window, last_s) == expected


async def test_a_model_that_cannot_be_opened_is_reported_once(tmp_path: Path) -> None:
    failed: list[tuple[str, str]] = []
    settings = TextSettings(kind="text", source="speech:room", model=str(tmp_path))
    runner = SpeechRunner(
        {"orders": settings},
        SpeechCallbacks(lambda _: None, lambda *_: None, lambda *one: failed.append(one)),
    )
    loop = asyncio.get_running_loop()
    for _ in range(2):
        runner._transcribe(loop, "orders", SpokenUtterance(tone(1, 0), 0.0, 1.0))
    await asyncio.sleep(0)
    assert [stream for stream, _ in failed] == ["orders"]
    assert runner.counts["no_model"] == 1
