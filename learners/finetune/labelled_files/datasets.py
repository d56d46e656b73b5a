"""Read examples from files: CoNLL columns, CSV and TSV, JSON lines, class-named folders, CLINC150's JSON, SemEval-2010's text.

A `#name` after the file picks one split of a JSON file that holds several (`data_full.json#train`). Fields are those of
the tasks (`text`, `label`; `tokens`, `tags`; `question`, `context`, `answers`; `source`, `target`; `messages`; `picture`;
`sound`). A column `file`, `picture` or `sound` is a path relative to the table. A file is read as it was meant or refused with the line,
the reason and the remedy. Knows no model; reads what the user names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learners.finetune.labelled_files import conll, csv_files, example_fields
from learners.finetune.labelled_files.text_files import MAX_BYTES, Examples, LocatedExample, lines_of, read_text
from learners.tasks.base import DataError, Task
from sensors.base import PayloadRefused
from sensors.codecs.json_payload import parse_json

_SEMEVAL = re.compile(r'^\d+\t"(.*)"\s*$')
SKIPPED_FOLDERS = frozenset({"__MACOSX"})
SKIPPED_FILES = frozenset({"thumbs.db", "desktop.ini"})


def read(path: Path | str, task: type[Task] | None = None) -> Examples:
    """Read all examples of a file or folder; with a task, check that each has what the task needs.

    Raises:
        DataError: it is not there, empty, of a kind that is not read, or holds something that is no example; `str` says where.
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
        raise DataError(f"{source}: no such file or folder; name one that is there")
    if not examples:
        raise DataError(
            f"{path}: no examples in it{''.join(f'; {note}' for note in examples.notes)}; name a file with at least one"
        )
    if task is not None:
        example_fields.check(examples, task)
    conll.to_iob2(examples)
    examples.notes += _alike(examples)
    return examples


def _alike(examples: Examples) -> list[str]:
    """Return a note for labels that differ only in case: each is a class of its own, which is seldom meant."""
    labels = {row["label"] for row in examples if isinstance(row.get("label"), str)}
    spellings: dict[str, list[str]] = {}
    for label in sorted(labels):
        spellings.setdefault(label.casefold(), []).append(label)
    return [f"the labels {', '.join(found)} differ only in case" for found in spellings.values() if len(found) > 1]


def text(path: Path) -> Examples:
    """Read a `.txt` file: SemEval-2010 Task 8 if its first line looks like it, else CoNLL columns."""
    lines = lines_of(read_text(path))
    if not lines or not _SEMEVAL.match(lines[0]):
        return conll.columns(path)
    examples = Examples()
    for number, line in enumerate(lines, 1):
        if match := _SEMEVAL.match(line):
            label = lines[number].strip() if number < len(lines) else ""
            if not label or _SEMEVAL.match(label):
                raise DataError(f"{path}:{number}: no relation in the line after it; write one, as `Other`")
            examples.append(LocatedExample({"text": match[1], "label": label}, path, number))
    return examples


def lines(path: Path) -> Examples:
    """JSON lines; the objects may have their fields under different names."""
    found = Examples()
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if line.strip():
            found.append(example_fields.to_row(_json(line, f"{path}:{number}"), path, number))
    return found


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text.encode(), MAX_BYTES)
    except PayloadRefused as reason:
        raise DataError(f"{where}: {reason}; correct it here") from None
    except UnicodeEncodeError:
        raise DataError(f"{where}: not JSON: half of a surrogate pair; write the whole character") from None


def split_of(path: Path, split: str) -> Examples:
    """Read a JSON list of objects or [text, label] pairs, or one `#split` of an object of such lists."""
    text = read_text(path)
    try:
        body = _json(text, str(path))
    except DataError as reason:
        if len(rows := [line for line in lines_of(text) if line.strip()]) > 1 and rows[0].lstrip().startswith("{"):
            raise DataError(f"{reason}, or if it holds one object a line, name it {path.stem}.jsonl") from None
        raise
    if isinstance(body, dict):
        if split not in body:
            raise DataError(f"{path}: name one of its splits: {', '.join(f'{path.name}#{key}' for key in body)}")
        body = body[split]
    name = f"{path}#{split}" if split else str(path)
    if not isinstance(body, list):
        raise DataError(f"{path}#{split}: expected a list of examples")
    pairs = ({"text": row[0], "label": row[1]} if isinstance(row, list) and len(row) == 2 else row for row in body)
    return Examples(
        example_fields.to_row(row, path, number, place=f"{name}: example {number}")
        for number, row in enumerate(pairs, 1)
    )


def whole(path: Path) -> Examples:
    """Read a JSON file without splits."""
    return split_of(path, "")


def folder(path: Path) -> Examples:
    """Read images or sounds in folders named after their class; a note counts other files."""
    examples, left = Examples(), Counter[str]()
    for child in sorted(path.iterdir()):
        if _hidden(child):
            left["hidden"] += 1
        elif not child.is_dir():
            left["outside the class folders"] += 1
        elif found := _class_folder(child, left):
            examples += found
        else:
            examples.notes.append(f"no picture and no sound in {child}: the class {child.name} is left out")
    if len({"picture" in example for example in examples}) > 1:
        raise DataError(f"{path}: pictures and sounds together; give a folder for each")
    if left:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
        examples.notes.append(f"{path}: {sum(left.values())} files left out: {counts}")
    return examples


def _class_folder(folder: Path, left: Counter[str]) -> list[LocatedExample]:
    """Read the images or sounds of one class; other files are counted in `left`."""
    rows: list[LocatedExample] = []
    for file in sorted(folder.rglob("*")):
        if file.is_dir():
            continue
        if any(_hidden(part) for part in (file, *file.relative_to(folder).parents)):
            left["hidden"] += 1
        elif kind := example_fields.media_kind(file):
            rows.append(LocatedExample({kind: str(file), "label": folder.name}, file))
        else:
            left[file.suffix.lower() or "no suffix"] += 1
    return rows


def _hidden(path: Path) -> bool:
    """Return whether a program created the file: `.ipynb_checkpoints`, `.DS_Store`, `._a.png`, `Thumbs.db`."""
    return (
        (path.name.startswith(".") and path.name != ".")
        or path.name in SKIPPED_FOLDERS
        or path.name.lower() in SKIPPED_FILES
    )


READERS: dict[str, Callable[[Path], Examples]] = {
    ".conll": conll.columns, ".iob": conll.columns, ".iob2": conll.columns, ".bio": conll.columns, ".txt": text,
    ".csv": csv_files.table, ".tsv": csv_files.table, ".jsonl": lines, ".ndjson": lines, ".json": whole,
}  # fmt: skip
