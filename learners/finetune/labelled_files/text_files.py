"""Examples with the place they were read from, and text files as strings whatever program wrote them.

`csv_files`, `conll` and `datasets` build on this. Knows no file format.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learners.data_error import DataError

MAX_BYTES = 4 * 2**30
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte order marks and the encodings they name; the mark of UTF-32 begins with that of UTF-16, so it is first."""
_LINE_END = re.compile(r"\r\n|\n|\r")


class LocatedExample(dict[str, Any]):
    """One example and the place it was read from.

    Args:
        fields: the example.
        file: the file, or file and split.
        line: the line in it; 0 where the file has no lines.
        lines: the line of each word, for files with one word a line.

    `header` is the line of the names of the fields, for tables.
    """

    __slots__ = ("file", "header", "line", "lines")

    def __init__(self, fields: Mapping[str, Any], file: Path | str, line: int = 0, lines: Sequence[int] = ()) -> None:
        super().__init__(fields)
        self.file, self.line, self.lines = str(file), line, tuple(lines)
        self.header = 0

    @property
    def where(self) -> str:
        """The place as `file:line`."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def where_word(self, number: int) -> str:
        """Return the index of a word."""
        return f"{self.file}:{self.lines[number]}" if number < len(self.lines) else self.where


class Examples(list[dict[str, Any]]):
    """The examples of a file or folder; `notes` says what the reader changed or left out, one line each."""

    def __init__(self, rows: Iterable[dict[str, Any]] = (), notes: Iterable[str] = ()) -> None:
        super().__init__(rows)
        self.notes = list(notes)


def located(example: Mapping[str, Any], error: DataError) -> DataError:
    """Return the error with the position of the example in front, if it has one."""
    where = getattr(example, "where", "")
    return DataError(f"{where}: {error}") if where and not str(error).startswith(where) else error


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        DataError: it cannot be read or is larger than `MAX_BYTES`.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise DataError(f"{path}: {size} bytes; at most {MAX_BYTES} are read, split the file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; name a readable file") from None


def read_text(path: Path) -> str:
    """Decode a file: UTF-8, or UTF-8, UTF-16 and UTF-32 with a byte order mark. No other encoding is guessed.

    Raises:
        DataError: with the line that is no text in this encoding.
    """
    data = read_bytes(path)
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise DataError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not {encoding.removesuffix('-sig').upper()}; save the file "
            "as UTF-8, for instance with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None
    if (at := text.find("\0")) >= 0:
        line = text[:at].count("\n") + 1
        raise DataError(f"{path}:{line}: a zero byte; save the file as UTF-8 text")
    return text


def lines_of(text: str) -> list[str]:
    """Split a text where files end their lines (LF, CRLF, CR), and nowhere else: Unicode has more line ends than files."""
    lines = _LINE_END.split(text)
    return lines[:-1] if lines and not lines[-1] else lines
