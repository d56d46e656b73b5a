"""Inputs of encoders without torch: ids as transformers makes them, pictures and spectra within rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tinymodels
import torch
from transformers import AutoTokenizer, WhisperFeatureExtractor

from learners.model.encoders import preprocess
from learners.model.encoders.modulation_spectrum import ModulationEncoder
from learners.model.encoders.utterance_encoder import UtteranceEncoder
from runtime.inference.graph_store import built_in
from runtime.inference.numpy_policy import encoder_inputs as array_inputs
from sensors.readings import Sound

CPU = torch.device("cpu")


def sound(seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A second of silence with a burst of noise that rises and falls like a word."""
    chance, out = np.random.default_rng(seed), np.zeros(32_000, np.float32)
    out[9_000:17_000] = chance.standard_normal(8_000) * np.hanning(8_000) * 0.3
    return out + chance.standard_normal(32_000).astype(np.float32) * np.float32(1e-4)


@pytest.mark.parametrize("shape", [(180, 320), (240, 320), (480, 640), (100, 90), (224, 224), (224, 640), (37, 51)])
@pytest.mark.parametrize("size", [(224, 224), (30, 47)])
def test_pictures_are_resized_as_torch_does_it(shape: tuple[int, int], size: tuple[int, int]) -> None:
    images = [np.random.default_rng(n).integers(0, 256, (*shape, 3), dtype=np.uint8) for n in range(2)]
    for seen in (images, [image[:, ::-1] for image in images]):  # the second ones are not contiguous
        have, want = array_inputs.resize(seen, size), preprocess.resize(seen, size, CPU).numpy()
        apart = np.abs(have.astype(int) - want.astype(int))
        assert have.shape == want.shape
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.02


@pytest.mark.parametrize("bands", [40, 80])
def test_spectra_are_those_of_whisper(bands: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=bands)
    assert np.array_equal(array_inputs.mel_filters(bands), extractor.mel_filters)
    want = extractor([sound(1)], sampling_rate=16_000, padding=False, return_tensors="np").input_features
    have = array_inputs.log_mel(sound(1)[None], array_inputs.mel_filters(bands))
    np.testing.assert_allclose(have, want, atol=1e-4)
    torch_mel = preprocess.Mel.build(extractor.mel_filters, CPU)(torch.from_numpy(sound(1)[None])).numpy()
    np.testing.assert_allclose(have, torch_mel, atol=1e-4)
    wave = preprocess.normalised(torch.from_numpy(sound(1)[None])).numpy()
    np.testing.assert_allclose(array_inputs.normalised(sound(1)[None]), wave, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("kind", [UtteranceEncoder, ModulationEncoder])
def test_encoders_without_weights_give_the_tokens_of_torch(
    kind: type[UtteranceEncoder | ModulationEncoder], tokens: int
) -> None:
    encoder = kind(tokens, 2.0)
    name = "builtin:utterance" if kind is UtteranceEncoder else "builtin:modulation-spectrum"
    have = built_in(name, tokens, 2.0)
    assert have is not None
    assert (have.version, have.tokens, have.width) == (encoder.version, encoder.tokens, encoder.width)
    readings = [Sound("room", 0.0, n, sound(n), 16_000) for n in range(3)]
    readings.append(Sound("room", 0.0, 9, np.zeros(100, np.float32), 16_000))
    want = encoder.encode(encoder.prepare(readings)).numpy()
    np.testing.assert_allclose(have.encode(readings), want, rtol=1e-3, atol=1e-3)
    assert np.abs(want[:3]).max() > 0


def test_texts_have_the_ids_of_transformers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = AutoTokenizer.from_pretrained(tinymodels.bert(tmp_path))
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(24)
    for texts in (
        ["go left"],
        ["go left to the red house", "go"],
        ["go left " * 40],
        [""],
        ["\u00e4\ud7ff \U0001f600 go"],
    ):
        want = preprocess.tokenize(tokenizer, texts, 24, CPU)
        have = array_inputs.tokenize(own, texts, 24, int(tokenizer.pad_token_id or 0))
        assert [x.tolist() for x in have] == [x.tolist() for x in want]
