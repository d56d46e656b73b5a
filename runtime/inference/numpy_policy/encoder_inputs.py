"""Convert readings to the input arrays of encoders' graphs, in numpy: pictures, sound, mel spectra and ids of texts.

It computes what `learners.model.encoders.preprocess` computes with torch. Ids are equal, and spectra are within the rounding of a
Fourier transform. Pictures are within one level of 255, because Pillow rounds the weights of its filter to other digits. `tests/runtime/inference/numpy_policy/test_inputs_without_torch.py` compares both. Imports no torch.

Shapes: B batch, Y and X of a picture, N samples, M mel bands, K frequencies, F frames of 10 ms, L ids of a text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Floats = NDArray[np.float32]
RATE_HZ = 16_000
N_FFT, HOP = 400, 160
"""Whisper's spectrum: windows of 25 ms every 10 ms."""
LENGTHS = (16, 32, 64, 128, 256, 512)
"""Texts are padded to one of these, as in `preprocess`."""


def resize(images: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize pictures Y,X,3 of any sizes to B,3,Y,X of `size`, antialiased, without cropping."""
    high, wide = size
    out_BCYX = np.empty((len(images), 3, high, wide), np.uint8)
    for image, out_CYX in zip(images, out_BCYX, strict=True):
        x_YX3 = image
        if image.shape[:2] != size:
            x_YX3 = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
        out_CYX[...] = x_YX3.transpose(2, 0, 1)
    return out_BCYX


def window(sounds: Sequence[Floats], samples: int) -> Floats:
    """Stack the last `samples` of each sound, B,N; silence precedes a shorter one."""
    out_BN = np.zeros((len(sounds), samples), np.float32)
    for row_N, sound in zip(out_BN, sounds, strict=True):
        tail = sound[-samples:]
        row_N[samples - len(tail) :] = tail
    return out_BN


def normalised(sound_BN: Floats) -> Floats:
    """Scale each row to zero mean and unit variance, as in the training of wav2vec2."""
    centred_BN = sound_BN - sound_BN.mean(-1, keepdims=True)
    out_BN: Floats = centred_BN / np.sqrt(sound_BN.var(-1, keepdims=True) + np.float32(1e-7))
    return out_BN


@lru_cache(maxsize=8)
def mel_filters(bands: int) -> NDArray[np.float64]:
    """Return Slaney's triangular filters [K, M] from 0 to 8 kHz, of equal energy, as Whisper has them."""

    def hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel >= 15.0, 1000.0 * np.exp(math.log(6.4) / 27.0 * (mel - 15.0)), 200.0 * mel / 3.0)

    highest = 15.0 + math.log(RATE_HZ / 2 / 1000.0) * 27.0 / math.log(6.4)
    edges = hertz(np.linspace(0.0, highest, bands + 2))
    slopes_KM = edges[None, :] - np.linspace(0, RATE_HZ // 2, 1 + N_FFT // 2)[:, None]
    widths = np.diff(edges)
    filters_KM = np.maximum(0.0, np.minimum(-slopes_KM[:, :-2] / widths[:-1], slopes_KM[:, 2:] / widths[1:]))
    found: NDArray[np.float64] = filters_KM * (2.0 / (edges[2:] - edges[:-2]))
    return found


def log_mel(sound_BN: Floats, filters_KM: NDArray[Any]) -> Floats:
    """Return Whisper's log-mel spectrum B,M,F of samples B,N with F = N / 160; the loudest part of a row sets its floor."""
    padded_BN = np.pad(sound_BN, ((0, 0), (N_FFT // 2, N_FFT // 2)), mode="reflect")
    frames_BFN = np.lib.stride_tricks.sliding_window_view(padded_BN, N_FFT, axis=-1)[:, ::HOP][:, :-1]
    spectrum_BFK = np.fft.rfft(frames_BFN * _hann(N_FFT), axis=-1)
    power_BFK = np.square(spectrum_BFK.real) + np.square(spectrum_BFK.imag)
    log_BFM = np.log10(np.maximum(power_BFK @ filters_KM.astype(np.float32), np.float32(1e-10)))
    log_BFM = np.maximum(log_BFM, log_BFM.max((1, 2), keepdims=True) - np.float32(8.0))
    return np.ascontiguousarray(((log_BFM + np.float32(4.0)) / np.float32(4.0)).transpose(0, 2, 1))


def _hann(length: int) -> Floats:
    """Return a periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def modulation_spectrum(energies_BML: Floats, tokens: int, frequencies: int) -> Floats:
    """Return the tokens B,T,W of `learners.model.encoders.modulation_spectrum` for log-mel energies."""
    level_BM1 = energies_BML.mean(-1, keepdims=True)
    spectrum_BMF = np.abs(np.fft.rfft((energies_BML - level_BM1) * _hann(energies_BML.shape[-1]), axis=-1))
    out_BMF = np.concatenate((level_BM1, np.log1p(spectrum_BMF[..., 1:frequencies])), axis=-1)
    return out_BMF.reshape(len(out_BMF), tokens, -1).astype(np.float32)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], limit: int, pad: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids and attention mask, B,L each, padded to one of `LENGTHS`; the tokenizer itself cuts at `limit`."""
    encoded = [one.ids for one in tokenizer.encode_batch(list(texts))]
    longest = max(map(len, encoded))
    length = next((size for size in LENGTHS if size >= longest), min(longest, limit))
    ids_BL = np.full((len(texts), length), pad, np.int64)
    mask_BL = np.zeros_like(ids_BL)
    for row, ids in enumerate(encoded):
        ids_BL[row, : len(ids)] = ids
        mask_BL[row, : len(ids)] = 1
    return ids_BL, mask_BL
