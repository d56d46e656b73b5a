"""Decode untrusted JPEG and PNG bytes after a check of their header.

A 691-byte JPEG can claim 5 GB of pixels, and OpenCV would allocate them. Strict on purpose: markers must follow each
other as ITU-T T.81 annex B says, a PNG begins with a whole IHDR (W3C PNG, 11.2.2). Does not judge the picture's content.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sensors.base import PayloadRefused
from sensors.codecs import images_pillow
from sensors.codecs.file_kinds import file_kind
from sensors.codecs.jpeg_scans import ScanCoverage
from sensors.drivers import opencv

MAX_SCANS = 64
"""A progressive JPEG with thousands of scans costs minutes to decode."""
_PNG = b"\x89PNG\r\n\x1a\n"
_ESSENTIAL = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset(range(0xD0, 0xD8)) | {0x01}
_SCAN, _END = 0xDA, 0xD9
_AFTER_SCAN = re.compile(rb"\xff(?=[^\x00\xff\xd0-\xd7])", re.DOTALL)
"""The marker that ends coded data, in which 0xFF is always stuffed and restarts are the only other markers."""
_GREY = 128
_CODED = bytes(1 + 37 * n % 253 for n in range(64))
_MORE_DATA = _CODED + b"".join(bytes((0xFF, 0xD0 + n)) + _CODED for n in range(8))
"""Coded data, and more of it after each restart marker; what it decodes to does not matter."""
_NOT_BEFORE_FRAME = frozenset({0x00, 0xD8, 0xD9, 0xDA})


@dataclass(frozen=True, slots=True)
class Header:
    """What the bytes claim to be."""

    kind: Literal["jpeg", "png"]
    width: int
    height: int


def read_header(payload: bytes) -> Header:
    """Read the kind and the size that a picture claims, from its first bytes only.

    Raises:
        PayloadRefused: `not_an_image`, `bad_header` or `truncated`.
    """
    if payload.startswith(b"\xff\xd8\xff"):
        header = Header("jpeg", *_jpeg_size(payload))
    elif payload.startswith(_PNG):
        header = Header("png", *_png_size(payload))
    else:
        kind = file_kind(payload)
        seen = "" if kind is None else f", but {kind}"
        raise PayloadRefused("not_an_image", f"neither JPEG nor PNG{seen}; send the bytes of a JPEG or PNG file")
    if not header.width or not header.height:
        raise PayloadRefused("bad_header", f"a {header.kind} of {header.width} x {header.height} pixels")
    return header


def decode_file(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a picture file to RGB uint8 (height, width, 3); JPEG and PNG as `decode_image` does, whatever their suffix.

    Raises:
        PayloadRefused: as `decode_image`, or `empty`.
        SensorLost: OpenCV cannot be loaded.
    """
    if not data:
        raise PayloadRefused("empty", "the picture file is empty")
    if data.startswith((b"\xff\xd8\xff", _PNG)):
        return decode_image(data, max_pixels)
    return images_pillow.decode(data, max_pixels)


def decode_image(payload: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an untrusted JPEG or PNG to RGB uint8 (height, width, 3): orientation applied, transparent parts white.

    Raises:
        PayloadRefused: as `read_header`, `too_many_pixels`, `too_many_scans`, or `undecodable`.
        SensorLost: OpenCV cannot be loaded.
    """
    header = read_header(payload)
    if header.width * header.height > max_pixels:
        raise PayloadRefused(
            "too_many_pixels", f"it claims {header.width} x {header.height} pixels; max_pixels allows {max_pixels}"
        )
    if header.kind == "png":
        payload = _essential(payload)
        if _transparent(payload):
            return images_pillow.decode(payload, max_pixels, ("PNG",))
        scans = ScanCoverage()
    else:
        payload, scans = _first_jpeg(payload)
    image = opencv.decode(payload)
    # a cut in the last scan of several leaves no grey
    if header.kind == "jpeg" and (scans.is_progressive or _has_grey_corner(image)) and not _is_whole(payload):
        raise PayloadRefused("truncated", "the coded data of the JPEG ends before its last rows, which would be grey")
    if sorted(image.shape[:2]) != sorted((header.height, header.width)):
        raise PayloadRefused("bad_header", f"it claims {header.width} x {header.height} but decodes to {image.shape}")
    return image


def _first_jpeg(payload: bytes) -> tuple[bytes, ScanCoverage]:
    """Return the picture of a JPEG without what phones append to it: a film, a second picture, data of a depth camera.

    Raises:
        PayloadRefused: `truncated`, which would decode to grey or blurred, or `too_many_scans`.
    """
    at, scans, coverage = 2, 0, ScanCoverage()
    while True:
        marker, at = _marker(payload, at)
        if marker == _END:
            if not coverage.is_complete:
                raise PayloadRefused(
                    "truncated", f"the JPEG ends after {scans} scans; others that belong to it are missing"
                )
            return payload[:at], coverage
        if marker in _ALONE:
            continue
        if at + 2 > len(payload):
            raise PayloadRefused("truncated", "the JPEG has no end marker")
        begin, at = at + 2, at + max(2, int.from_bytes(payload[at : at + 2], "big"))
        if marker in _START_OF_FRAME:
            coverage.add_frame(marker, payload[begin:at])
        if marker != _SCAN:
            continue
        scans += 1
        if scans > MAX_SCANS:
            raise PayloadRefused("too_many_scans", f"more than {MAX_SCANS} scans, which is the most that are decoded")
        coverage.add_scan(payload[begin:at])
        after = _AFTER_SCAN.search(payload, at)
        if after is None:
            raise PayloadRefused("truncated", "the JPEG has no end marker")
        at = after.start()


def _has_grey_corner(image: NDArray[np.uint8]) -> bool:
    """Return whether a corner has the grey with which libjpeg fills what is missing; an orientation may have moved the last one."""
    return any(bool((image[row, column] == _GREY).all()) for row in (0, -1) for column in (0, -1))


def _is_whole(jpeg: bytes) -> bool:
    """Return whether a JPEG has all its coded data: more of it before the end marker then changes no pixel.

    A picture that was cut, and got an end marker afterwards, takes what is added for its missing rows.
    """
    return images_pillow.equal_jpegs(jpeg, jpeg[:-2] + _MORE_DATA + jpeg[-2:])


def _transparent(png: bytes) -> bool:
    """Return whether the image has an alpha channel (colour types 4 and 6) or transparent colours (tRNS)."""
    data_at = png.find(b"IDAT")
    return png[25] in (4, 6) or b"tRNS" in png[33 : data_at if data_at > 0 else None]


def _essential(payload: bytes) -> bytes:
    """Return the PNG with only the chunks its picture needs, each complete and with a true checksum.

    OpenCV 5.0 took 16 s for 100 bytes with a wrong chunk length; other chunks may decompress to a multiple of their size.
    """
    chunks, at = [_PNG], len(_PNG)
    while at + 12 <= len(payload):
        length, kind = struct.unpack_from(">I4s", payload, at)
        end = at + 12 + length
        if end > len(payload):
            break
        (checksum,) = struct.unpack_from(">I", payload, end - 4)
        if checksum != zlib.crc32(payload[at + 4 : end - 4]):
            raise PayloadRefused("undecodable", f"the PNG's chunk {kind!r} fails its checksum")
        if kind in _ESSENTIAL:
            chunks.append(payload[at:end])
        if kind == b"IEND":
            return b"".join(chunks)
        at = end
    raise PayloadRefused("truncated", "the PNG is truncated")


def _jpeg_size(payload: bytes) -> tuple[int, int]:
    at = 2
    while True:
        marker, at = _marker(payload, at)
        if marker in _NOT_BEFORE_FRAME:
            raise PayloadRefused("bad_header", f"JPEG marker {marker:#04x} before the frame header")
        if marker in _ALONE:
            continue
        if at + 2 > len(payload):
            raise PayloadRefused("truncated", "a JPEG cut inside its header")
        (length,) = struct.unpack_from(">H", payload, at)
        if length < 2:
            raise PayloadRefused("bad_header", f"a JPEG segment of length {length}")
        if marker in _START_OF_FRAME:
            if length < 8 or at + 7 > len(payload):
                raise PayloadRefused("truncated", "a JPEG cut inside its frame header")
            height, width = struct.unpack_from(">HH", payload, at + 3)
            return width, height
        at += length


def _marker(payload: bytes, at: int) -> tuple[int, int]:
    """Return the marker at `at` and the start of its segment; any number of 0xFF may pad it."""
    start = at
    while at < len(payload) and payload[at] == 0xFF:
        at += 1
    if at >= len(payload):
        raise PayloadRefused("truncated", "a JPEG cut before its frame header")
    if at == start:
        raise PayloadRefused("bad_header", f"byte {payload[at]:#04x} where a JPEG marker belongs")
    return payload[at], at + 1


def _png_size(payload: bytes) -> tuple[int, int]:
    if len(payload) < 33:
        raise PayloadRefused("truncated", "a PNG cut inside its header")
    length, kind = struct.unpack_from(">I4s", payload, 8)
    if length != 13 or kind != b"IHDR":
        raise PayloadRefused("bad_header", "a PNG that does not begin with IHDR")
    (checksum,) = struct.unpack_from(">I", payload, 29)
    if checksum != zlib.crc32(payload[12:29]):
        raise PayloadRefused("bad_header", "the PNG's IHDR fails its checksum")
    width, height = struct.unpack_from(">II", payload, 16)
    return width, height
