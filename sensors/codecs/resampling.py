"""Raw samples of any rate to windows at 16 kHz, the rate of all sound that the policy and the tasks read.

A stream is resampled without clicks between blocks, with about 10 ms of delay. Microphones and the tasks on sound files use this. The
only importer of soxr; knows no device and no topic.
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from sensors.base import PayloadRefused
from sensors.codecs.file_kinds import file_kind

RATE_HZ = 16_000
"""Samples a second of every window."""
LOUDEST = 32.0
"""Times full scale, 30 dB above it: decimal samples of a mix that was not limited may be above 1, but not as far."""
MAX_PCM_S = 30.0
"""Longest payload of samples."""


class SoundWindow:
    """Keep the last `window_s` of a stream of samples of any rate, resampled to 16 kHz."""

    def __init__(self, window_s: float, hop_s: float) -> None:
        self._samples = np.zeros(max(1, round(window_s * RATE_HZ)), np.float32)
        self._hop = max(1, round(hop_s * RATE_HZ))
        self._since = 0
        self._pending = 0
        self.new = 0
        """Samples at the end of the window last taken that the one before it did not hold."""
        self._rate_hz = 0
        self._resample: soxr.ResampleStream | None = None

    def clear(self) -> None:
        """Fill the window with silence, because the source was interrupted."""
        self._samples[:] = 0.0
        self._since = self._pending = 0
        self._rate_hz = 0
        self._resample = None

    def add(self, samples: NDArray[np.float32], rate_hz: int) -> bool:
        """Append samples; return whether a hop or more has passed since `take`."""
        if rate_hz != self._rate_hz:
            self._rate_hz = rate_hz
            self._resample = None
            if rate_hz != RATE_HZ:
                self._resample = soxr.ResampleStream(rate_hz, RATE_HZ, 1, dtype="float32", quality="HQ")
        if self._resample is not None:
            samples = self._resample.resample_chunk(samples)
        self._append(samples)
        return self._since >= self._hop

    def silence(self, seconds: float, before_s: float = 0.0) -> None:
        """Insert `seconds` of silence, at most a window, before the last `before_s`."""
        size = len(self._samples)
        place = size - min(size, round(before_s * RATE_HZ))
        zeros = np.zeros(min(size, round(seconds * RATE_HZ)), np.float32)
        self._samples = np.concatenate((self._samples[:place], zeros, self._samples[place:]))[-size:]
        self._since += len(zeros)
        self._pending += len(zeros)

    @property
    def exceeded(self) -> bool:
        """Whether more samples came since `take` than the window holds, so that its first ones are lost."""
        return self._pending > len(self._samples)

    def take(self) -> NDArray[np.float32]:
        """Return a copy of the window, oldest sample first."""
        self._since %= self._hop
        self.new, self._pending = min(self._pending, len(self._samples)), 0
        return self._samples.copy()

    def _append(self, samples: NDArray[np.float32]) -> None:
        size = len(self._samples)
        self._since += len(samples)
        self._pending += len(samples)
        samples = samples[-size:]
        keep = size - len(samples)
        if len(samples):
            self._samples[:keep] = self._samples[size - keep :]
            self._samples[keep:] = samples


def resampled(samples_N: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Resample a whole sound of N samples to 16 kHz."""
    if rate_hz == RATE_HZ:
        return samples_N
    return np.asarray(soxr.resample(samples_N, rate_hz, RATE_HZ), np.float32)


def check_scale(samples: NDArray[np.float32]) -> None:
    """Refuse numbers that are no samples of sound: those of 16 bits, say, that were stored as decimal numbers.

    Raises:
        PayloadRefused: `too_loud`.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > LOUDEST:
        raise PayloadRefused(
            "too_loud",
            f"a sample is {peak:.6g}, and full scale is 1: divide the samples by the largest number of their format",
        )


def pcm(payload: bytes, rate_hz: int) -> NDArray[np.float32]:
    """Decode 16-bit little-endian PCM to float32 in [-1, 1).

    Raises:
        PayloadRefused: `empty`, `container`, `odd_length` or `too_large`.
    """
    if kind := file_kind(payload):
        raise PayloadRefused(
            "container",
            f"the payload is {kind if kind == 'text' else f'a file of the kind {kind}'}; send its samples alone, 16-bit little-endian mono at "
            f"{rate_hz} Hz",
        )
    if not payload:
        raise PayloadRefused("empty", "the payload is empty")
    if len(payload) % 2:
        raise PayloadRefused("odd_length", f"{len(payload)} bytes are not a whole number of 16-bit samples")
    if len(payload) > 2 * rate_hz * MAX_PCM_S:
        raise PayloadRefused(
            "too_large", f"{len(payload)} bytes; at most {MAX_PCM_S:.0f} s at {rate_hz} Hz are allowed"
        )
    return np.frombuffer(payload, "<i2").astype(np.float32) / np.float32(32_768.0)
