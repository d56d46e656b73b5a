"""Open sound files as they are in the world: a WAV may claim no samples, as a killed recorder leaves it."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from typing import IO

import soundfile

_HEAD = 1 << 16
_OGG_PAGE = 65_307
"""The largest page (RFC 3533)."""
_LAST_PAGE = 0x04
_XING_WITHIN = 200
"""Bytes of the first frame within which the header of an MP3 begins."""


def open_sound(data: bytes) -> soundfile.SoundFile:
    """Open a sound file in memory; a WAV that claims no samples is read until its end.

    Raises:
        soundfile.SoundFileError: libsndfile cannot read it.
    """
    return soundfile.SoundFile(_Bytes(_with_length(data)))


def sound_error(error: soundfile.SoundFileError) -> str:
    """Return the library's reason alone: its own text has the address of an object in memory."""
    reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return " ".join(reason.split())


def is_cut(file: IO[bytes]) -> bool:
    """Return whether the end of a WAV, AIFF, Ogg or MP3 file is missing, by what its container claims; False where it claims nothing.

    A claim of 0 or of the largest number is none: a killed recorder or a pipe leaves it. FLAC is not asked: its decoder fails.

    Args:
        file: opened for reading, at any place.

    Raises:
        OSError: it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_HEAD)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return _wave_end(head) > size
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _claimed(struct.unpack_from(">I", head, 4)[0], 8) > size
    if head[:4] == b"OggS":
        file.seek(max(0, size - _OGG_PAGE))
        return _page_is_missing(file.read())
    tagged = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        tagged = 10 + sum(byte << 7 * (3 - place) for place, byte in enumerate(head[6:10]))
        file.seek(tagged)
        head = file.read(_HEAD)
    return head[:1] == b"\xff" and tagged + _mp3_bytes(head) > size


def _page_is_missing(tail: bytes) -> bool:
    """Return whether the last page of an Ogg file is cut, or is not the last one of its stream (RFC 3533)."""
    at = tail.rfind(b"OggS")
    lengths = tail[at + 27 : at + 27 + tail[at + 26]] if at >= 0 and at + 27 <= len(tail) else b""
    is_whole = bool(lengths) and at + 27 + len(lengths) + sum(lengths) <= len(tail)
    return at >= 0 and not (is_whole and tail[at + 5] & _LAST_PAGE)


def _claimed(length: int, before: int) -> int:
    """Return where content of a claimed length ends; 0 where the claim is none."""
    return before + length if 0 < length < 0x7FFFFFFF else 0


def _wave_end(head: bytes) -> int:
    """Return where the samples of a WAV end by its header; 0 where it does not say it."""
    long = 0
    for at, kind, length in _chunks(head):
        if kind == b"ds64" and at + 24 <= len(head):
            long = struct.unpack_from("<Q", head, at + 16)[0]
        if kind == b"data":
            return at + 8 + long if long else _claimed(length, at + 8)
    return 0


def _mp3_bytes(head: bytes) -> int:
    """Return the bytes that the Xing header of an MP3 claims; 0 without one."""
    at = next((at for name in (b"Xing", b"Info") if (at := head.find(name, 0, _XING_WITHIN)) >= 0), -1)
    if at < 0 or at + 16 > len(head):
        return 0
    flags = struct.unpack_from(">I", head, at + 4)[0]
    has_frames, has_bytes = flags & 1, flags & 2
    return int(struct.unpack_from(">I", head, at + 8 + 4 * has_frames)[0]) if has_bytes else 0


class _Bytes(io.BytesIO):
    """Bytes for libsndfile, which asks for places before the begin when a header lies; Python would print a traceback."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move there, at the least to the begin."""
        start = (0, self.tell(), self.getbuffer().nbytes)[whence]
        return super().seek(max(0, start + offset))


def _with_length(data: bytes) -> bytes:
    """Correct the length of a WAV that claims no bytes, as a killed writer or a pipe leaves it, to "until the end"."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data
    chunks = list(_chunks(data))
    at, length = next(((at, length) for at, kind, length in chunks if kind == b"data"), (0, 1))
    last, _, last_length = chunks[-1] if chunks else (0, b"", 0)
    if length or last + 8 + last_length == len(data):  # it says a length, or the file ends where its chunks end
        return data
    return data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :]


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield offset, kind and length of each chunk of a WAV, as far as they follow each other."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield at, kind, length
        at += 8 + length + length % 2
