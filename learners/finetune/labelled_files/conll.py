"""CoNLL columns, one word a line, and the schemes in which their tags are written, read as IOB2.

Schemes:

- IOB1 and IOB2 (Ramshaw and Marcus 1995; Sang and Veenstra 1999).
- BIOES, BILOU and BMEWO (Ratinov and Roth 2009).
- IO, with or without prefix.

One rule reads all but the last: a chunk begins at B, S, U or W, after O, after another type, and after E, L, S, U or W.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from learners.class_names import class_name
from learners.data_error import DataError
from learners.finetune.labelled_files.text_files import Examples, LocatedExample, lines_of, read_text

TAG = re.compile(r"([BIEMLSUW])[-_](.+)", re.IGNORECASE)
_SUFFIXED = re.compile(r"(.+)[-_]([BIEMLSUW])")
_BEGINS, _ENDS = frozenset("BSUW"), frozenset("ELSUW")
Line = tuple[int, list[str]]


def columns(path: Path) -> Examples:
    """Read CoNLL columns: the word first (or after its number), its tag last, blank lines between sentences.

    Raises:
        DataError: with the line that has other columns than the rest, or a tag of no scheme.
    """
    lines = lines_of(read_text(path))
    width, tags = _shape(lines)
    if width < 2 and any(line.strip() for line in lines):
        number, line = next((n, line) for n, line in enumerate(lines, 1) if line.strip())
        raise DataError(f"{path}:{number}: a word and its tag are wanted, got {line!r}; write `word tag`")
    sentences: list[list[Line]] = [[]]
    for number, line in enumerate(lines, 1):
        cells = _cells(line)
        if not line.strip() or line.startswith("-DOCSTART-"):
            sentences.append([])
        elif _comment(line, cells, width, tags):
            continue
        elif len(cells) != width:
            raise DataError(
                f"{path}:{number}: {len(cells)} columns where the other lines have {width}; write them as the others: {line!r}"
            )
        elif not cells[0] or not cells[-1]:
            raise DataError(f"{path}:{number}: the word or its tag is empty; write both: {line!r}")
        else:
            sentences[-1].append((number, cells))
    sentences = [sentence for sentence in sentences if sentence]
    if width > 2 and all(map(_is_conllu, sentences)):  # the words of a range and empty nodes come once more, one by one
        sentences = [[line for line in sentence if line[1][0].isdecimal()] for sentence in sentences]
    word = int(width > 2 and all(_numbered(sentence) for sentence in sentences))
    rows = [
        LocatedExample(
            {"tokens": [cells[word] for _, cells in sentence], "tags": [cells[-1] for _, cells in sentence]},
            path, sentence[0][0], [number for number, _ in sentence],
        )
        for sentence in sentences
    ]  # fmt: skip
    return Examples(rows)


def _cells(line: str) -> list[str]:
    """Split a line into columns, by tabs or by spaces; Unicode white space belongs to words."""
    cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
    return [cell.strip(" ") for cell in cells]


def _shape(lines: Iterable[str]) -> tuple[int, frozenset[str]]:
    """Return the usual number of columns, and the tags of lines that are certainly no comments."""
    found = [_cells(line) for line in lines if line.strip() and not line.startswith(("#", "-DOCSTART-"))]
    widths = Counter(map(len, found))
    width = widths.most_common(1)[0][0] if widths else 0
    return width, frozenset(cells[-1] for cells in found if len(cells) == width)


def _comment(line: str, cells: list[str], width: int, tags: frozenset[str]) -> bool:
    """Return whether a line that begins with `#` is a comment, and not the word `#` or `#tag` with its tag."""
    tagged = cells[-1] in tags or cells[-1] == "O" or TAG.fullmatch(cells[-1]) is not None
    return line.startswith("#") and not (len(cells) == width and tagged)


def _numbered(sentence: list[Line]) -> bool:
    return [cells[0] for _, cells in sentence] == [str(number) for number in range(1, len(sentence) + 1)]


_UNNUMBERED = re.compile(r"\d+[-.]\d+")


def _is_conllu(sentence: list[Line]) -> bool:
    """Return whether the first column is that of CoNLL-U: numbers from 1, among them ranges (`1-2`) and empty nodes (`8.1`)."""
    words = [line for line in sentence if not _UNNUMBERED.fullmatch(line[1][0])]
    return bool(words) and _numbered(words)


def to_iob2(examples: Examples) -> None:
    """Rewrite the tags of all examples as IOB2, in place; a note says which scheme they had.

    Raises:
        DataError: with the line of a tag that does not fit the others.
    """
    rows = [row for row in examples if isinstance(row, LocatedExample) and _words(row.get("tags"))]
    for row in rows:
        row["tags"] = list(map(class_name, row["tags"]))
    found = {tag for row in rows for tag in row["tags"]} - {"O"}
    if not found:
        return
    plain = {tag for tag in found if not TAG.fullmatch(tag)}
    if empty := {tag for tag in plain if tag.endswith("-")}:
        where, tag = _first(rows, empty)
        raise DataError(f"{where}: the tag {tag!r} names no type; write O, B-type or I-type")
    if plain and (plain != found or all(map(_SUFFIXED.fullmatch, found))):
        where, tag = _first(rows, plain)
        raise DataError(f"{where}: the tag {tag!r} has no prefix B- or I-; write O, B-type or I-type")
    if plain and not any("O" in row["tags"] for row in rows):
        where, tag = _first(rows, plain)
        raise DataError(f"{where}: the tag {tag!r}, and no word in the file has the tag O; write O, B-type or I-type")
    changed = 0
    for row in rows:
        tags = _as_io(row["tags"]) if plain else as_iob2(row["tags"])
        changed += tags != list(row["tags"])
        row["tags"] = tags
    if changed:
        examples.notes.append(
            f"tags read as {_scheme(found, plain=bool(plain))}, rewritten as IOB2 in {changed} sentences"
        )


def _words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _first(rows: Iterable[LocatedExample], wanted: set[str]) -> tuple[str, str]:
    return next((row.where_word(at), tag) for row in rows for at, tag in enumerate(row["tags"]) if tag in wanted)


def _scheme(found: set[str], *, plain: bool) -> str:
    prefixes = {tag[0].upper() for tag in found}
    if plain:
        return "IO without prefix"
    if prefixes <= {"B", "I"}:
        return "IOB1"
    return "BILOU" if prefixes & {"L", "U"} else "BMEWO" if prefixes & {"M", "W"} else "BIOES"


def as_iob2(tags: Iterable[str]) -> list[str]:
    """Convert tags with prefixes to IOB2."""
    result, before, ended = [], "", True
    for tag in tags:
        match = TAG.fullmatch(tag)
        if match is None:
            result.append("O")
            before, ended = "", True
            continue
        prefix, kind = match[1].upper(), match[2]
        begins = prefix in _BEGINS or ended or kind != before
        result.append(f"{'B' if begins else 'I'}-{kind}")
        before, ended = kind, prefix in _ENDS
    return result


def _as_io(tags: Iterable[str]) -> list[str]:
    """Convert types without prefix to IOB2: neighbours of one type are one chunk."""
    return as_iob2(tag if tag == "O" else f"I-{tag}" for tag in tags)
