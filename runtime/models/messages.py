"""Define the messages between the agent and its processes for models and explanations: a JSON header and raw bytes, both of bounded length.

Each side treats what it receives as untrusted: lengths are bounded before anything is read, and a message that is not one of ours
ends the connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import orjson

from learners.task_serving.results import Offered
from sensors.readings import Frame, Reading, Sound, StampSource, Text

STAMP_SOURCES: tuple[StampSource, ...] = get_args(StampSource)
LENGTHS = struct.Struct(">II")
MOST_HEADER, MOST_BODY = 1 << 20, 1 << 28
"""Bytes of one message."""
MOST_PATH = 100
"""Bytes of a socket's path: the kernel takes 107."""
Header = dict[str, Any]


class BadMessage(ValueError):  # noqa: N818 - reads as what happened
    """Bytes that are not a message of ours; `str` says what is wrong."""


def socket_path(state_dir: Path) -> Path:
    """Return where the agent listens: in the state folder, or, if that name is too long, in the folder for temporary files."""
    path = state_dir.absolute() / "models.sock"
    if len(os.fsencode(path)) <= MOST_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"reflexd-models-{os.geteuid()}-{name}.sock"


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end of a socket."""
    pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, user


def packed(header: Header, body: bytes = b"") -> bytes:
    """Return a message as bytes.

    Raises:
        BadMessage: it is too long.
    """
    head = orjson.dumps(header)
    if len(head) > MOST_HEADER or len(body) > MOST_BODY:
        raise BadMessage(f"{len(head)} and {len(body)} bytes, at most {MOST_HEADER} and {MOST_BODY}")
    return LENGTHS.pack(len(head), len(body)) + head + body


async def receive(reader: asyncio.StreamReader) -> tuple[Header, bytes]:
    """Return the next message.

    Raises:
        BadMessage: the bytes are not a message.
        asyncio.IncompleteReadError: the other side is gone.
    """
    head, body = _lengths(await reader.readexactly(LENGTHS.size))
    header = _header(await reader.readexactly(head))
    return header, await reader.readexactly(body)


def receive_from(stream: BinaryIO) -> tuple[Header, bytes]:
    """Return the next message of a pipe; blocks until it is there.

    Raises:
        BadMessage: the bytes are not a message.
        EOFError: the other side is gone.
    """
    head, body = _lengths(_exactly(stream, LENGTHS.size))
    header = _header(_exactly(stream, head))
    return header, _exactly(stream, body)


def _lengths(data: bytes) -> tuple[int, int]:
    head, body = LENGTHS.unpack(data)
    if head > MOST_HEADER or body > MOST_BODY:
        raise BadMessage(f"a message of {head} and {body} bytes, at most {MOST_HEADER} and {MOST_BODY}")
    return head, body


def _header(data: bytes) -> Header:
    try:
        header = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadMessage(f"a header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise BadMessage("a header that is not a JSON object")
    return header


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def offered_message(task: str, offered: Offered) -> bytes:
    """Return the message that requests the result of a reading.

    Raises:
        BadMessage: it is too long.
        TypeError, ValueError, OverflowError: the reading has a field that JSON does not take.
    """
    reading, first = _outward(offered.reading)
    context, second = (None, b"") if offered.context is None else _outward(offered.context)
    header = {
        "do": "offer", "task": task, "decision": offered.decision, "number": offered.number,
        "reading": reading, "context": context,
    }  # fmt: skip
    return packed(header, first + second)


def sound_message(piece: Sound) -> bytes:
    """Return the message that brings new sound of a microphone; all samples of the piece are new.

    Raises:
        BadMessage: it is too long.
    """
    about, body = _outward(piece)
    return packed({"do": "hear", "reading": about, "stamp_source": piece.stamp_source}, body)


def sound_of(header: Header, body: bytes) -> Sound:
    """Return the new sound that `sound_message` described.

    Raises:
        BadMessage: a field is missing or wrong, or it is no sound.
    """
    try:
        reading, rest = _inward(header["reading"], body)
        stamp_source = STAMP_SOURCES[STAMP_SOURCES.index(header["stamp_source"])]
    except (LookupError, TypeError, ValueError) as error:
        raise BadMessage(f"damaged sound ({type(error).__name__}: {error})") from None
    if rest or not isinstance(reading, Sound):
        raise BadMessage(f"{len(rest)} bytes more than the sound has" if rest else "a reading that is not a sound")
    return replace(reading, new=len(reading.samples), stamp_source=stamp_source)


def offered_of(header: Header, body: bytes) -> Offered:
    """Return what `offered_message` described.

    Raises:
        BadMessage: a field is missing or wrong.
    """
    try:
        reading, rest = _inward(header["reading"], body)
        context = None
        if header["context"] is not None:
            context, rest = _inward(header["context"], rest)
        decision = None if header["decision"] is None else str(header["decision"])
        number = int(header["number"])
    except (LookupError, TypeError, ValueError) as error:
        raise BadMessage(f"a damaged reading ({type(error).__name__}: {error})") from None
    if rest:
        raise BadMessage(f"{len(rest)} bytes more than the reading has")
    return Offered(reading, context, decision, number)


def _outward(reading: Reading) -> tuple[Header, bytes]:
    about: Header = {"stream": reading.stream, "stamp_s": float(reading.stamp_s), "seq": int(reading.seq)}
    match reading:
        case Frame():
            return about | {"is": "frame", "shape": list(reading.image.shape)}, reading.image.tobytes()
        case Sound():
            samples = reading.samples.astype(np.float32, copy=False)
            return about | {"is": "sound", "rate_hz": int(reading.rate_hz), "count": len(samples)}, samples.tobytes()
        case Text():
            data = reading.text.encode()
            return about | {"is": "text", "bytes": len(data)}, data
    return about | {"is": "other"}, b""


def _inward(about: Header, body: bytes) -> tuple[Reading, bytes]:
    """Return the reading, and the bytes behind it."""
    stream, stamp_s, seq = str(about["stream"]), float(about["stamp_s"]), int(about["seq"])
    match about["is"]:
        case "frame":
            height, width, channels = (int(number) for number in about["shape"])
            data, rest = _split(body, height * width * channels)
            return Frame(stream, stamp_s, seq, np.frombuffer(data, np.uint8).reshape(height, width, channels)), rest
        case "sound":
            data, rest = _split(body, 4 * int(about["count"]))
            return Sound(stream, stamp_s, seq, np.frombuffer(data, np.float32), int(about["rate_hz"])), rest
        case "text":
            data, rest = _split(body, int(about["bytes"]))
            return Text(stream, stamp_s, seq, data.decode()), rest
    raise ValueError(f"a reading of the kind {about['is']!r}")


def _split(body: bytes, size: int) -> tuple[bytes, bytes]:
    if not 0 <= size <= len(body):
        raise ValueError(f"{size} bytes of {len(body)}")
    return body[:size], body[size:]
