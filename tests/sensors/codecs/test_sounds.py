"""Sound files are decoded by what they hold: a header that claims more costs nothing and is refused by its cause."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from sensors.base import PayloadRefused
from sensors.codecs.sounds import decode_sound, encode_sound

RATE_HZ = 16_000


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype=subtype)
    return buffer.getvalue()


def tone(seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def cause(data: bytes, **limits: float) -> str:
    with pytest.raises(PayloadRefused) as refused:
        decode_sound(data, **limits)
    return refused.value.cause


def test_flac_gives_back_the_samples() -> None:
    samples, rate_hz = decode_sound(encode_sound(tone(), RATE_HZ))
    assert rate_hz == RATE_HZ
    np.testing.assert_allclose(samples, tone(), atol=1 / 32_768)


def test_channels_are_averaged() -> None:
    samples, _ = decode_sound(wav(np.stack([tone(), 0 * tone()], axis=1)))
    np.testing.assert_allclose(samples, tone() / 2, atol=1 / 32_768)


@pytest.mark.parametrize("claimed", [0, 0xFFFFFFFF])
def test_wav_of_a_recorder_that_was_cut_off_keeps_its_samples(claimed: int) -> None:
    data = bytearray(wav(tone()))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", claimed)
    samples, _ = decode_sound(bytes(data))
    assert len(samples) == len(tone())


def test_wav_with_chunks_that_end_with_the_file_is_empty_when_it_says_so() -> None:
    data = wav(np.empty(0, np.float32))
    assert cause(data) == "empty"
    assert cause(data + b"LIST\x04\x00\x00\x00INFO") == "empty"


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_width_of_sample_gives_the_same_sound(subtype: str) -> None:
    samples, _ = decode_sound(wav(tone(), subtype=subtype))
    np.testing.assert_allclose(samples, tone(), atol=0.02)


def test_channels_that_cancel_give_the_loudest_one() -> None:
    samples, _ = decode_sound(wav(np.stack([0.8 * tone(), -0.8001 * tone()], axis=1)))
    np.testing.assert_allclose(np.abs(samples), np.abs(0.8001 * tone()), atol=1 / 16_384)


def test_flac_that_claims_hours_costs_only_what_it_holds() -> None:
    data = bytearray(encode_sound(tone(), RATE_HZ))
    field = int.from_bytes(data[18:26], "big")  # STREAMINFO: rate 20 bits, channels 3, depth 5, samples 36
    data[18:26] = ((field >> 36 << 36) | (1 << 35)).to_bytes(8, "big")
    assert cause(bytes(data)) == "undecodable"


def test_too_long_sound_is_refused_before_it_is_held() -> None:
    assert cause(wav(tone(2.0)), max_s=1.0) == "too_long"


def test_samples_that_are_not_finite_are_refused() -> None:
    samples = tone()
    samples[100:110] = np.nan
    assert cause(wav(samples, subtype="FLOAT")) == "not_finite"


def test_header_with_an_impossible_rate_is_refused() -> None:
    assert cause(wav(tone(), rate_hz=2_000_000)) == "bad_header"


@pytest.mark.parametrize("data", [b"", b"RIFF", b"not a sound at all", wav(tone())[:30]])
def test_what_is_no_sound_is_refused(data: bytes) -> None:
    assert cause(data) in {"undecodable", "empty"}
