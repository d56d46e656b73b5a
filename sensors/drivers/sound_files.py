"""Open sound files as they are in the world: a WAV may claim no samples, as a killed recorder leaves it."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import soundfile


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
