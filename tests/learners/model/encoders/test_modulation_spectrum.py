"""The modulation spectrum hears which word, not when it began; it refuses what is no sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from learners.config.policy import EncoderSettings
from learners.model.encoders.modulation_spectrum import NAME, RATE_HZ, ModulationEncoder
from learners.model.encoders.pretrained import load
from sensors.readings import Sound, Text

WORDS = Path("actuators/sim/spoken_words")


def _window(samples: np.ndarray, offset: int) -> Sound:
    """A 2 s window in which the word is repeated every second, begun `offset` samples ago."""
    second = np.zeros(RATE_HZ, np.float32)
    second[: min(RATE_HZ, len(samples))] = samples[:RATE_HZ]
    noise = np.random.default_rng(offset).normal(0, 0.002, 2 * RATE_HZ)
    return Sound("room", 0.0, 0, (np.roll(np.tile(second, 2), offset) + noise).astype(np.float32))


def _words() -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(WORDS.glob("*.wav")):
        samples, rate = soundfile.read(path, dtype="float32")
        found[path.stem] = soxr.resample(samples, rate, RATE_HZ)
    return found


def test_a_word_has_nearly_the_same_tokens_at_every_position() -> None:
    encoder = ModulationEncoder(4, 2.0)
    words = list(_words().values())[:8]
    assert len(words) == 8
    rng = np.random.default_rng(0)

    def tokens(word: np.ndarray) -> torch.Tensor:
        return encoder.encode(encoder.prepare([_window(word, int(rng.integers(RATE_HZ)))])).flatten()

    prototypes = torch.stack([torch.stack([tokens(word) for _ in range(4)]).mean(0) for word in words])
    trials = [(label, tokens(word)) for label, word in enumerate(words) for _ in range(6)]
    right = sum(int((prototypes - received).norm(dim=1).argmin()) == label for label, received in trials)
    assert right / len(trials) >= 0.9


def test_the_settings_name_it_and_its_version_covers_its_shape() -> None:
    encoder = load(EncoderSettings(model=NAME), 4, torch.device("cpu"), window_s=2.0)
    assert encoder.encode(encoder.examples()[0]).shape == (1, encoder.tokens, encoder.width)
    assert encoder.version != ModulationEncoder(8, 2.0).version


def test_bands_are_added_until_they_divide_among_the_tokens() -> None:
    encoder = ModulationEncoder(7, 2.0)
    assert encoder.encode(encoder.examples()[0]).shape == (1, 7, encoder.width)
    assert encoder.width == 6 * 24


def test_a_short_sound_is_padded_in_front() -> None:
    encoder = ModulationEncoder(4, 1.0)
    out = encoder.encode(encoder.prepare([Sound("room", 0.0, 0, np.ones(800, np.float32))]))
    assert torch.isfinite(out).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="sound"):
        ModulationEncoder(4, 2.0).prepare([Text("orders", 0.0, 0, "left")])
    with pytest.raises(ValueError, match="no weights"):
        ModulationEncoder(4, 2.0).load_state({})
