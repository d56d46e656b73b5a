"""Name the kind of a file by its first bytes, so that a refusal can say what arrived instead of samples or a picture.

Samples begin like one of these files by chance once in 16 million payloads or more rarely. Knows no stream.
"""

from __future__ import annotations

_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (8, b"WAVE", "WAV"),
    (8, b"WEBP", "WebP"),
    (8, b"AVI ", "AVI"),
    (0, b"RIFF", "WAV"),
    (0, b"RF64", "WAV"),
    (0, b"riff\x2e\x91", "W64"),
    (0, b"DSD ", "DSD"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"FLV\x01", "FLV"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (0, b"FORM", "AIFF"),
    (0, b"\x1aE\xdf\xa3", "WebM or MKV"),
    (0, b".snd", "AU"),
    (0, b"caff", "CAF"),
    (0, b"#!AMR", "AMR"),
    (0, b"wvpk", "WavPack"),
    (0, b"0&\xb2u", "WMA"),
    (0, b"MThd", "MIDI"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftyp", "MP4 or M4A"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"(\xb5/\xfd", "Zstandard"),
    (0, b"SQLite format 3\0", "SQLite"),
    (0, b"\x7fELF", "ELF"),
)
"""Where the bytes are, the bytes, and the kind; the first row that fits counts."""
_KBIT_S = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
"""Bit rates of MPEG-1 Layer III, by the index in a frame's header (ISO/IEC 11172-3)."""
_KBIT_S_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
"""Those of MPEG-2 Layer III and of its extension 2.5, for speech (ISO/IEC 13818-3)."""
_RATES_HZ = (44_100, 48_000, 32_000, 0)
_TEXT_BYTES, _TEXT_KINDS = 64, 12
"""Printable characters, and distinct ones among them, from which a payload counts as text; a constant level has few."""


def file_kind(payload: bytes) -> str | None:
    """Return the kind of file that begins like this payload, or `text`; None if it begins like no known one."""
    for start, magic, kind in _STARTS:
        if payload.startswith(magic, start):
            return kind
    for kind, length in (("MP3", _mp3_frame(payload)), ("AAC", _adts_frame(payload))):
        if length and payload[length : length + 2] == payload[:2]:  # a second frame follows
            return kind
    head = payload[:4_096]
    is_printable = len(head) >= _TEXT_BYTES and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    return "text" if is_printable and len(set(head)) >= _TEXT_KINDS else None


def _mp3_frame(payload: bytes) -> int:
    """Return the length of the frame of MPEG Layer III at the start, 0 if there is none."""
    divisor = {0xFA: 1, 0xF2: 2, 0xE2: 4}.get(payload[1] & 0xFE) if len(payload) >= 4 and payload[0] == 0xFF else None
    if divisor is None:
        return 0
    rate_hz = _RATES_HZ[payload[2] >> 2 & 3] // divisor
    kbit_s = (_KBIT_S if divisor == 1 else _KBIT_S_2)[payload[2] >> 4]
    samples = 144_000 if divisor == 1 else 72_000
    return samples * kbit_s // rate_hz + (payload[2] >> 1 & 1) if rate_hz and kbit_s else 0


def _adts_frame(payload: bytes) -> int:
    """Return the length of the ADTS frame at the start, 0 if there is none."""
    if len(payload) < 7 or payload[0] != 0xFF or payload[1] & 0xF6 != 0xF0:
        return 0
    return (payload[3] & 3) << 11 | payload[4] << 3 | payload[5] >> 5
