"""Sound files are decoded by what they hold: a header that claims more costs nothing and is refused by its cause."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from sensors.base import PayloadRefused
from sensors.codecs.resampling import pcm
from sensors.codecs.sounds import decode_sound, encode_sound
from sensors.drivers.mono_mix import ChannelMixer
from sensors.drivers.sound_files import is_cut

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


def test_numbers_of_sixteen_bits_stored_as_decimals_are_refused() -> None:
    loud = wav(3 * tone(), subtype="FLOAT")
    assert decode_sound(loud)[0].max() == pytest.approx(1.5, abs=0.01)
    assert cause(wav(32_767 * tone(), subtype="FLOAT")) == "too_loud"


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


@pytest.mark.parametrize("other", [0.8001, 0.79, 0.72, 0.65])
def test_channels_that_cancel_give_the_loudest_one(other: float) -> None:
    """Two microphones are never equally loud: the rest of a cancelled sound is up to 20 dB below it."""
    samples, _ = decode_sound(wav(np.stack([0.8 * tone(), -other * tone()], axis=1)))
    np.testing.assert_allclose(np.abs(samples), np.abs(max(other, 0.8) * tone()), atol=1 / 16_384)


def test_channels_that_do_not_cancel_are_averaged() -> None:
    silent = np.zeros_like(tone())
    samples, _ = decode_sound(wav(np.stack([0.8 * tone(), silent], axis=1)))
    np.testing.assert_allclose(samples, 0.4 * tone(), atol=1 / 16_384)


def test_a_refusal_names_no_object_in_memory() -> None:
    """The text would be another one at every refusal."""
    for data in (b"", b"RIFF", wav(tone())[:40], wav(tone()).replace(b"fmt ", b"fmt!", 1)):
        with pytest.raises(PayloadRefused) as refusal:
            decode_sound(data)
        assert "object at" not in str(refusal.value)
        assert str(refusal.value).startswith("libsndfile cannot decode it: ")


@pytest.mark.parametrize(
    ("kind", "subtype", "rate_hz", "name"),
    [
        ("MP3", "MPEG_LAYER_III", 44_100, "MP3"),
        ("MP3", "MPEG_LAYER_III", 16_000, "MP3"),
        ("MP3", "MPEG_LAYER_III", 8_000, "MP3"),
        ("W64", "PCM_16", 16_000, "W64"),
        ("RF64", "PCM_16", 16_000, "WAV"),
        ("AIFF", "PCM_16", 16_000, "AIFF"),
        ("CAF", "PCM_16", 16_000, "CAF"),
        ("OGG", "OPUS", 48_000, "Ogg"),
    ],
)
def test_a_file_on_the_topic_of_samples_is_named(kind: str, subtype: str, rate_hz: int, name: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(), rate_hz, format=kind, subtype=subtype)
    with pytest.raises(PayloadRefused, match=f"a file of the kind {name};") as refusal:
        pcm(buffer.getvalue(), 16_000)
    assert refusal.value.cause == "container"


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


def test_a_sample_that_is_no_number_does_not_spoil_the_channels_after_it() -> None:
    mixer, sound_N = ChannelMixer(2), np.sin(np.arange(160, dtype=np.float32))
    swapped_NC = np.stack([sound_N, -sound_N], 1)
    broken_NC = swapped_NC.copy()
    broken_NC[3] = np.nan
    mixer.mix(broken_NC)
    assert mixer.is_cancelled
    np.testing.assert_array_equal(mixer.mix(swapped_NC), sound_N)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("AIFF", "PCM_16"),
        ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
    ],
)  # fmt: skip
def test_a_sound_without_its_end_is_known_by_its_container(form: str, subtype: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.tile(tone(), 4), 48_000, format=form, subtype=subtype)
    data = buffer.getvalue()
    assert not is_cut(io.BytesIO(data))
    assert not is_cut(io.BytesIO(data + bytes(3)))
    assert [is_cut(io.BytesIO(data[: int(len(data) * share)])) for share in (0.99, 0.9, 0.5, 0.2)] == [True] * 4
    for length in range(0, min(len(data), 300), 7):
        is_cut(io.BytesIO(data[:length]))  # never an error


@pytest.mark.parametrize("claimed", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_length_that_a_killed_recorder_left_is_no_cut(claimed: int) -> None:
    data = bytearray(wav(tone()))
    data[40:44] = struct.pack("<I", claimed)
    assert not is_cut(io.BytesIO(data))
