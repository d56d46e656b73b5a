"""Convert readings to the input tensors of encoders: resized images, padded sound, mel spectra, and ids of texts.

A CPU resizes uint8 images with antialias (0.4 ms against 1.8 ms in float). A GPU resizes in half precision after a pinned
upload. Scaling to mean and deviation is part of the encoder's graph. Nothing here is trained.

Shapes: B batch, Y and X of a picture, N samples, M mel bands, F frames of 10 ms, L ids of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

RATE_HZ = 16_000
N_FFT, HOP = 400, 160
"""Whisper's spectrum: windows of 25 ms every 10 ms."""
LENGTHS = (16, 32, 64, 128, 256, 512)
"""Texts are padded to one of these, so that few shapes ever reach the backend."""


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a tensor on the device; to a GPU through pinned memory, without waiting for the copy."""
    # torch refuses to alias read-only memory in silence, so such an array is copied
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def resize(images: Sequence[NDArray[np.uint8]], size: tuple[int, int], device: torch.device) -> Tensor:
    """Resize pictures Y,X,3 of any sizes to uint8 B,3,Y,X of `size`, antialiased, without cropping.

    The aspect ratio changes, because the edges of a wide frame must stay visible to the policy.
    """
    out: list[Tensor] = []
    for image in images:
        x_YX3 = upload(np.ascontiguousarray(image), device)
        x_BCYX = x_YX3.permute(2, 0, 1).unsqueeze(0)  # channels-last in memory, as the kernels like it
        if x_BCYX.shape[-2:] != size:
            x_BCYX = _interpolate(x_BCYX, size)
        out.append(x_BCYX)
    return torch.cat(out)


def _interpolate(x_BCYX: Tensor, size: tuple[int, int]) -> Tensor:
    if x_BCYX.device.type == "cpu":
        return F.interpolate(x_BCYX, size, mode="bilinear", antialias=True)
    scaled_BCYX = F.interpolate(x_BCYX.half(), size, mode="bilinear", antialias=True)
    return scaled_BCYX.round().clamp(0, 255).to(torch.uint8)


def window(sounds: Sequence[NDArray[np.float32]], samples: int) -> NDArray[np.float32]:
    """Stack the last `samples` of each sound, B,N; silence precedes a shorter one."""
    out_BN = np.zeros((len(sounds), samples), np.float32)
    for row_N, sound in zip(out_BN, sounds, strict=True):
        tail = sound[-samples:]
        row_N[samples - len(tail) :] = tail
    return out_BN


def normalised(sound_BN: Tensor) -> Tensor:
    """Scale each row to zero mean and unit variance, as in the training of wav2vec2."""
    var_B1, mean_B1 = torch.var_mean(sound_BN, dim=-1, correction=0, keepdim=True)
    return (sound_BN - mean_B1) / (var_B1 + 1e-7).sqrt()


@dataclass(frozen=True, slots=True)
class Mel:
    """Whisper's log-mel spectrum (Radford et al. 2022): `filters` is 201,M from the feature extractor."""

    filters: Tensor
    hann: Tensor

    @classmethod
    def build(cls, filters: NDArray[np.floating[Any]], device: torch.device) -> Mel:
        """Build from the feature extractor's mel filters, 201,M."""
        return cls(
            torch.as_tensor(filters, dtype=torch.float32, device=device), torch.hann_window(N_FFT, device=device)
        )

    def __call__(self, sound_BN: Tensor) -> Tensor:
        """B,N samples -> B,M,F with F = N / 160; the loudest part of each row sets its floor."""
        spectrum_BKF = torch.stft(sound_BN, N_FFT, HOP, window=self.hann, return_complex=True)[..., :-1]
        power_BKF = torch.view_as_real(spectrum_BKF).square().sum(-1)
        log_BMF = (self.filters.T @ power_BKF).clamp(min=1e-10).log10()
        log_BMF = torch.maximum(log_BMF, log_BMF.amax((1, 2), keepdim=True) - 8.0)
        return (log_BMF + 4.0) / 4.0


def tokenize(tokenizer: Any, texts: Sequence[str], limit: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokenize to ids and attention mask, B,L int64 each, cut at `limit` and padded to one of LENGTHS."""
    encoded = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    longest = max(map(len, encoded))
    length = next((size for size in LENGTHS if size >= longest), longest)
    ids_BL = np.full((len(texts), length), tokenizer.pad_token_id or 0, np.int64)
    mask_BL = np.zeros_like(ids_BL)
    for row, ids in enumerate(encoded):
        ids_BL[row, : len(ids)] = ids
        mask_BL[row, : len(ids)] = 1
    return upload(ids_BL, device), upload(mask_BL, device)
