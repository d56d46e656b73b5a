"""The kind of a file is named by its first bytes; samples of any level are no file."""

from __future__ import annotations

import numpy as np
import pytest

from sensors.codecs.file_kinds import file_kind

MP3 = b"\xff\xfb\x90\x64" + bytes(413)
"""One frame of 128 kbit/s at 44.1 kHz."""
ADTS = b"\xff\xf1\x50\x80\x0c\x9f\xfc" + bytes(93)
"""One frame of 100 bytes."""


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (2 * MP3, "MP3"),
        (MP3 + bytes(4), None),
        (2 * ADTS, "AAC"),
        (ADTS + bytes(4), None),
        (b"ID3\x03" + MP3, "MP3"),
        (b"RIFF\x24\0\0\0AVI LIST", "AVI"),
        (b"\0\0\0\x1cftypisom", "MP4 or M4A"),
        (b"not found: " + bytes(range(33, 120)), "text"),
        (b"short text", None),
        (b"", None),
    ],
)
def test_files_are_named(payload: bytes, kind: str | None) -> None:
    assert file_kind(payload) == kind


@pytest.mark.parametrize("level", [-1.0, -0.3, 0.0, 0.25, 0.3, 0.5, 0.9])
def test_samples_are_no_file(level: float) -> None:
    noise = np.random.default_rng(0).normal(level, 0.01, 16_000)
    for samples in (np.full(16_000, level), np.clip(noise, -1, 1)):
        assert file_kind((samples * 32_767).astype("<i2").tobytes()) is None
