"""CSV and TSV files with a header, as spreadsheets and programs write them.

The delimiter is the one that finds known fields in the header. A row of another width is refused: an unquoted comma
would otherwise move the columns. Quotes of a tab-separated file are part of the text where they do not enclose cells.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Literal

from learners.data_error import DataError
from learners.finetune.labelled_files.example_fields import FIELDS, field_of, fields_of, to_row
from learners.finetune.labelled_files.text_files import Examples, lines_of, read_text

DELIMITERS = (",", ";", "\t", "|")
MAX_FIELD = 16 * 2**20
"""Characters of one cell."""
csv.field_size_limit(MAX_FIELD)
_SEPARATOR = re.compile(r"sep=(.)")
"""What Excel writes in front of the header."""
Rows = list[tuple[int, list[str]]]


def table(path: Path) -> Examples:
    """Read a CSV or TSV file with a header.

    Raises:
        DataError: with the line: no usable header, a row of another width, an open quote, a cell that is too long.
    """
    text = read_text(path)
    lines = lines_of(text)
    begin = next((number for number, line in enumerate(lines) if line.strip()), 0)
    declared = _SEPARATOR.fullmatch(lines[begin].strip()) if lines else None
    begin += declared is not None
    header = lines[begin] if begin < len(lines) else ""
    delimiter = declared[1] if declared else _delimiter(header, "\t" if path.suffix.lower() == ".tsv" else ",")
    cells = _rows(path, text.replace(declared[0], "", 1) if declared else text, delimiter)
    if not cells:
        return Examples()
    (number, names), *body = cells
    if sum(bool(name.strip()) for name in names) < 2:
        fetch = "; fetch the file itself: `git lfs pull`" if names[0].startswith("version https://git-lfs") else ""
        remedy = fetch or "; write one as `text,label`, and check that the file is a table"
        raise DataError(f"{path}:{number}: a header with at least two columns is wanted, got {names}{remedy}")
    _check_quotes(path, body, delimiter)
    named = _named_columns(path, number, names, body)
    fields_of([names[at] for at in named], f"{path}:{number}")
    body = [(line, row) for line, row in body if any(cell.strip() for cell in row)]
    _check_headers(path, names, body)
    rows = [to_row({names[at]: row[at] for at in named}, path, line) for line, row in body]
    for row in rows:
        row.header = number
    return Examples(rows)


def _delimiter(header: str, usual: str) -> str:
    """Return the delimiter with the most known fields in the header, then the most columns, then the usual one."""

    def worth(delimiter: str) -> tuple[int, int, bool]:
        try:
            names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            names = []
        known = sum(field_of(name) in FIELDS for name in names)
        return known, len(names), delimiter == usual

    return max(DELIMITERS, key=worth)


def _rows(path: Path, text: str, delimiter: str) -> Rows:
    """Return all rows, each with its first line number, without blank ones."""
    if delimiter != "\t":
        return _checked(path, _parse(path, text, delimiter, csv.QUOTE_MINIMAL), delimiter)
    plain = _parse(path, text, delimiter, csv.QUOTE_NONE)
    whole = len({len(row) for _, row in plain}) <= 1
    try:
        quoted = _parse(path, text, delimiter, csv.QUOTE_MINIMAL)
    except DataError:
        if whole:
            return plain
        raise
    return plain if whole and len(quoted) != len(plain) else _checked(path, quoted, delimiter)


def _parse(path: Path, text: str, delimiter: str, quoting: Literal[0, 3]) -> Rows:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True, quoting=quoting
    )
    found: Rows = []
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return found
        except csv.Error as error:
            raise DataError(f"{path}:{line}: {_reason(str(error))}") from None
        if row:
            found.append((line, row))


def _reason(error: str) -> str:
    if "field limit" in error:
        return f"a cell is longer than {MAX_FIELD} characters; close its quote or shorten it"
    return f'a double quote is not closed or is inside a quoted cell ({error}); close it, or write it twice: ""'


def _checked(path: Path, rows: Rows, delimiter: str) -> Rows:
    """Check that all rows are as wide as the first one, and return them."""
    width = len(rows[0][1]) if rows else 0
    for line, row in rows:
        if len(row) != width and any(cell.strip() for cell in row):
            shown = "a tab" if delimiter == "\t" else f"`{delimiter}`"
            remedy = (
                f"put a text that contains {shown} between double quotes"
                if len(row) > width
                else "add the missing columns"
            )
            raise DataError(f"{path}:{line}: {len(row)} columns where the header has {width}; {remedy}")
    return rows


def _check_quotes(path: Path, rows: Rows, delimiter: str) -> None:
    """Refuse a quoted cell that swallowed rows: its inner lines end as rows of this file end."""
    ends = {row[-1].strip() for _, row in rows if row and row[-1].strip()}
    for line, row in rows:
        for cell in row:
            for inner, part in enumerate(lines_of(cell)[:-1]):
                if delimiter in part and part.rpartition(delimiter)[2].strip() in ends:
                    raise DataError(
                        f"{path}:{line + inner}: this line ends as a row does, within the double quotes opened in line {line}; "
                        'close them, or write a quote of the text twice: ""'
                    )


_RULE = re.compile(r":?-+:?")


def _check_headers(path: Path, names: list[str], rows: Rows) -> None:
    """Refuse the header of a second file in the middle, and the line under the header of a table in Markdown."""
    for line, row in rows:
        if [field_of(cell) for cell in row] == [field_of(name) for name in names]:
            raise DataError(f"{path}:{line}: the header again, as where two files were joined; delete this line")
        if all(_RULE.fullmatch(cell.strip()) for cell in row if cell.strip()):
            raise DataError(f"{path}:{line}: a line of dashes, as in Markdown; save the table as CSV")


def _named_columns(path: Path, number: int, names: list[str], rows: Rows) -> list[int]:
    """Return the numbers of the columns with a name; an unnamed first column is an index."""
    for at, name in enumerate(names):
        if at and not name.strip() and any(at < len(row) and row[at].strip() for _, row in rows):
            line = next(line for line, row in rows if at < len(row) and row[at].strip())
            raise DataError(
                f"{path}:{number}: column {at + 1} has no name but line {line} has something in it; name it or delete it"
            )
    return [at for at, name in enumerate(names) if name.strip()]
