"""The utterance encoder hears which word, not when, how loud or how fast; the newest one counts; silence is nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.config.policy import EncoderSettings
from learners.model.encoders import utterance_bounds
from learners.model.encoders.modulation_spectrum import RATE_HZ
from learners.model.encoders.pretrained import load
from learners.model.encoders.utterance_encoder import NAME, UtteranceEncoder
from sensors.readings import Sound, Text

WORDS = Path("actuators/sim/spoken_words")
ENCODER = UtteranceEncoder(7, 2.0)


def recordings() -> list[tuple[str, np.ndarray]]:
    return [
        (path.name.partition(".")[0], soundfile.read(path, dtype="float32")[0]) for path in sorted(WORDS.glob("*.wav"))
    ]


def room(*reported: tuple[np.ndarray, float], seed: int = 0) -> Sound:
    """Two seconds of faint noise in which each recording begins at its time."""
    received = np.random.default_rng(seed).normal(0, 0.001, 2 * RATE_HZ)
    for samples, start_s in reported:
        start = round(start_s * RATE_HZ)
        part = samples[: len(received) - start]
        received[start : start + len(part)] += part
    return Sound("room", 0.0, 0, received.astype(np.float32))


def tokens(sound: Sound) -> torch.Tensor:
    return ENCODER.encode(ENCODER.prepare([sound]))[0]


def test_words_of_one_voice_are_distinguished_in_another_place_and_loudness() -> None:
    rng = np.random.default_rng(0)
    known = [(word, tokens(room((samples, 0.3))).flatten()) for word, samples in recordings()]
    right = 0
    for number, (word, samples) in enumerate(recordings()):
        again = tokens(room((samples * rng.uniform(0.4, 1.0), rng.uniform(0.1, 0.8)), seed=number + 1)).flatten()
        nearest = min(known, key=lambda each: float((each[1] - again).norm()))
        right += nearest[0] == word
    assert right >= 0.95 * len(known)


def test_words_are_distinguished_across_voices() -> None:
    """Leave one recording out: the nearest other one is mostly the same word."""
    known = [(word, tokens(room((samples, 0.3))).flatten()) for word, samples in recordings()]
    right = 0
    for number, (word, received) in enumerate(known):
        others = known[:number] + known[number + 1 :]
        right += min(others, key=lambda each: float((each[1] - received).norm()))[0] == word
    assert right >= 0.8 * len(known)


def test_the_newest_whole_word_counts_and_one_that_is_being_spoken_waits() -> None:
    words = dict(recordings())
    cat, coffee = words["cat"], words["coffee"]
    alone = tokens(room((coffee, 0.9)))
    both = tokens(room((cat, 0.2), (coffee, 0.9), seed=3))
    assert float((alone - both).abs().mean()) < 0.1
    waiting = tokens(room((cat, 0.6), (coffee, 1.8), seed=4))
    assert float((waiting - tokens(room((cat, 0.6)))).abs().mean()) < 0.1


def test_silence_and_a_click_are_nothing() -> None:
    click = np.zeros(RATE_HZ // 100, np.float32)
    click[::2] = 0.5
    assert not tokens(room()).any()
    assert not tokens(room((click, 1.0))).any()


def test_the_length_of_an_utterance_is_given_in_seconds() -> None:
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ // 2) / RATE_HZ)).astype(np.float32)
    assert tokens(room((tone, 0.5)))[0, -2] == pytest.approx(0.5, abs=0.03)


def test_closures_within_a_word_do_not_end_it() -> None:
    level = np.full(200, -60.0)
    level[50:70] = level[80:100] = -20.0
    assert utterance_bounds.utterances(level) == [(50, 100)]
    level[85:100] = -60.0  # what is left behind the closure belongs to it, too
    assert utterance_bounds.utterances(level) == [(50, 85)]
    assert utterance_bounds.newest([(50, 85), (150, 195)], 200) == (50, 85)
    assert utterance_bounds.newest([(0, 30), (190, 200)], 200) == (0, 30)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40_000), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_any_sound_gives_finite_tokens(count: int, loudness: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, loudness, count).clip(-1, 1).astype(np.float32)
    out = tokens(Sound("room", 0.0, 0, noise))
    assert out.shape == (7, ENCODER.width)
    assert torch.isfinite(out).all()


def test_the_settings_name_it_and_what_does_not_fit_is_refused() -> None:
    encoder = load(EncoderSettings(model=NAME), 4, torch.device("cpu"), window_s=2.0)
    assert encoder.encode(encoder.examples()[0]).shape == (1, 4, encoder.width)
    assert encoder.version != ENCODER.version
    with pytest.raises(TypeError, match="sound"):
        ENCODER.prepare([Text("orders", 0.0, 0, "left")])
    with pytest.raises(ValueError, match="no weights"):
        ENCODER.load_state({})
