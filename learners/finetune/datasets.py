"""Examples from files: CoNLL columns, CSV and TSV, JSON lines, class-named folders, CLINC150's JSON, SemEval-2010's text.

A `#name` after the file picks one split of a JSON file that holds several (`data_full.json#train`). Fields are those of
the tasks (`text`, `label`; `tokens`, `tags`; `question`, `context`, `answers`; `source`, `target`; `messages`; `picture`;
`sound`). A column `file`, `picture` or `sound` is a path beside the table. Knows no model; reads what the user names.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from learners.tasks.audio import SUFFIXES as SOUNDS
from learners.tasks.base import DataError
from learners.tasks.images import SUFFIXES as PICTURES

Examples = list[dict[str, Any]]
FOLDED = {"intent": "label", "class": "label", "category": "label", "sentence": "text", "utterance": "text"}
FOLDED |= {"document": "source", "summary": "target", "article": "source", "ner_tags": "tags", "words": "tokens"}
"""Other usual names of fields."""
_SEMEVAL = re.compile(r'^\d+\t"(.*)"\s*$')


def read(path: Path | str) -> Examples:
    """All examples of a file or folder.

    Raises:
        DataError: it is not there, empty, or of a kind that is not read; `str` says where.
    """
    name, _, split = str(path).partition("#")
    source = Path(name)
    if source.is_dir():
        examples = folder(source)
    elif source.is_file():
        reader = READERS.get(source.suffix.lower())
        if reader is None:
            raise DataError(
                f"{source}: {source.suffix or 'no suffix'} is not read; use {', '.join(sorted(READERS))} or a folder"
            )
        examples = split_of(source, split) if source.suffix.lower() == ".json" else reader(source)
    else:
        raise DataError(f"{source}: no such file or folder")
    if not examples:
        raise DataError(f"{path}: no examples in it")
    return examples


def columns(path: Path) -> Examples:
    """CoNLL columns: the word first, its tag last, a line of nothing between sentences."""
    examples: Examples = []
    tokens: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        if not line.strip():
            if tokens:
                examples.append({"tokens": tokens, "tags": tags})
            tokens, tags = [], []
        elif not line.startswith("-DOCSTART-"):
            parts = line.split("\t") if "\t" in line else line.split()
            if len(parts) < 2:
                raise DataError(f"{path}:{number}: a word and its tag are wanted, got {line!r}")
            tokens.append(parts[0])
            tags.append(parts[-1].strip())
    return examples


def text(path: Path) -> Examples:
    """`.txt`: SemEval-2010 Task 8 where its first line looks so, CoNLL columns otherwise."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or not _SEMEVAL.match(lines[0]):
        return columns(path)
    examples = []
    for i, line in enumerate(lines[:-1]):
        if match := _SEMEVAL.match(line):
            examples.append({"text": match[1], "label": lines[i + 1].strip()})
    return examples


def table(path: Path) -> Examples:
    """CSV or TSV with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        if rows.fieldnames is None or len(rows.fieldnames) < 2:
            raise DataError(f"{path}:1: a header with at least two columns is wanted, got {rows.fieldnames}")
        return [_named(row, path, number) for number, row in enumerate(rows, 2)]


def lines(path: Path) -> Examples:
    """JSON lines."""
    return [_named(row, path, number) for number, row in _json_lines(path)]


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None


def split_of(path: Path, split: str) -> Examples:
    """A JSON list of objects or [text, label] pairs, or one `#split` of an object of such lists."""
    try:
        body = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if isinstance(body, dict):
        if split not in body:
            raise DataError(f"{path}: name one of its splits: {', '.join(f'{path.name}#{key}' for key in body)}")
        body = body[split]
    if not isinstance(body, list):
        raise DataError(f"{path}#{split}: a list of examples is wanted")
    pairs = ({"text": row[0], "label": row[1]} if isinstance(row, list) and len(row) == 2 else row for row in body)
    return [_named(row, path, number) for number, row in enumerate(pairs, 1)]


def whole(path: Path) -> Examples:
    """A JSON file without splits."""
    return split_of(path, "")


def folder(path: Path) -> Examples:
    """Pictures or sounds in folders named after their class."""
    examples: Examples = []
    for child in sorted(path.iterdir()):
        if child.is_dir():
            for file in sorted(child.rglob("*")):
                if kind := _kind(file):
                    examples.append({kind: str(file), "label": child.name})
    if len({"picture" in example for example in examples}) > 1:
        raise DataError(f"{path}: pictures and sounds together; give a folder for each")
    return examples


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return "picture" if suffix in PICTURES else "sound" if suffix in SOUNDS else None


def _named(row: Any, path: Path, number: int) -> dict[str, Any]:
    """A row with the tasks' names, and paths made whole."""
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: an object is wanted, got {type(row).__name__}")
    example = {
        FOLDED.get(str(key).lower(), str(key)): value
        for key, value in row.items()
        if key is not None and value is not None
    }
    if "file" in example and (kind := _kind(Path(str(example["file"])))):
        example[kind] = example.pop("file")
    for kind in ("picture", "sound"):
        if kind in example:
            example[kind] = str(path.parent / str(example[kind]))
    if "answer" in example and "answers" not in example:
        answer = {"text": example.pop("answer")}
        example["answers"] = [answer | ({"start": int(example.pop("start"))} if "start" in example else {})]
    return example


READERS: dict[str, Callable[[Path], Examples]] = {
    ".conll": columns, ".iob": columns, ".iob2": columns, ".bio": columns, ".txt": text, ".csv": table, ".tsv": table,
    ".jsonl": lines, ".ndjson": lines, ".json": whole,
}  # fmt: skip
