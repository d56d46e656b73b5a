"""Read examples from files: CoNLL columns, CSV and TSV, JSON lines, class-named folders, CLINC150's JSON, SemEval-2010's text.

A `#name` after the file picks one split: of a JSON file that holds several (`data_full.json#train`), or the rows of a table that
say so in a column `split`. Fields are those of the tasks (`text`, `label`; `tokens`, `tags`; `question`, `context`, `answers`; `source`, `target`; `messages`; `picture`;
`sound`). A column `file`, `picture` or `sound` is a path relative to the table. A file is read as it was meant or refused with the line,
the reason and the remedy. Knows no model; reads what the user names.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learners import class_names
from learners.data_error import DataError
from learners.files import source_and_split
from learners.finetune.labelled_files import conll, csv_files, example_fields
from learners.finetune.labelled_files.text_files import MAX_BYTES, Examples, LocatedExample, lines_of, read_text
from learners.tasks.base import Task
from learners.tasks.inputs.sounds import is_cut
from sensors.base import PayloadRefused
from sensors.codecs.json_payload import parse_json

_SEMEVAL = re.compile(r'^\d+\t"(.*)"\s*$')
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})
"""Names that data sets give their parts, each with the folders of the classes in it."""
SKIPPED_FOLDERS = frozenset({"__MACOSX"})
SKIPPED_FILES = frozenset({"thumbs.db", "desktop.ini"})


def read(path: Path | str, task: type[Task] | None = None) -> Examples:
    """Read all examples of a file or folder; with a task, check that each has what the task needs.

    Raises:
        DataError: it is not there, empty, of a kind that is not read, or holds something that is no example; `str` says where.
    """
    source, split = source_and_split(path)
    if source.is_dir():
        examples = _of_split(folder(source), source, split)
    elif source.is_file():
        reader = READERS.get(source.suffix.lower())
        if reader is None:
            raise DataError(
                f"{source}: {source.suffix or 'no suffix'} is not read; use {', '.join(sorted(READERS))} or a folder"
            )
        is_json = source.suffix.lower() == ".json"
        examples = split_of(source, split) if is_json else _of_split(reader(source), source, split)
    else:
        raise DataError(f"{source}: no such file or folder; name one that is there")
    if not examples:
        raise DataError(
            f"{path}: no examples in it{''.join(f'; {note}' for note in examples.notes)}; name a file with at least one"
        )
    if task is not None:
        example_fields.check(examples, task)
    conll.to_iob2(examples)
    examples.notes += _alike(examples) + _cut_sounds(examples)
    return examples


def _of_split(examples: Examples, source: Path, split: str) -> Examples:
    """Return the examples of one split, by their field `split`; all of them, with a note if they have one, where no split is named.

    Raises:
        DataError: there is no such split.
    """
    there = sorted({str(row["split"]).strip() for row in examples if "split" in row})
    if not split:
        if len(there) > 1:
            examples.notes.append(f"all splits are read ({', '.join(there)}); {source.name}#{there[0]} is one of them")
        return examples
    if split not in there:
        found = f"its splits are {', '.join(there)}" if there else "it has no column `split`"
        raise DataError(f"{source}: no split `{split}`: {found}; correct or delete `#{split}`")
    rows = [row for row in examples if "split" in row and str(row["split"]).strip() == split]
    return Examples(rows, examples.notes)


def _alike(examples: Examples) -> list[str]:
    """Return notes for labels and tags of nearly one spelling: each is a class of its own, which is seldom meant."""
    labels = {one for row in examples for one in _labels(row)}
    tags = {tag for row in examples if isinstance(row, LocatedExample) for tag in _words(row.get("tags"))}
    return class_names.alike(labels) + class_names.alike({tag.partition("-")[2] for tag in tags if "-" in tag})


def _cut_sounds(examples: Examples) -> list[str]:
    """Return a note for sound files without an end, which are read as far as they go."""
    paths = dict.fromkeys(Path(str(row["sound"])) for row in examples if "sound" in row)
    cut = [path for path in paths if is_cut(path)]
    return [f"{len(cut)} of {len(paths)} sounds are cut: their end is missing, first {cut[0]}"] if cut else []


def _labels(row: dict[str, Any]) -> list[str]:
    given = row.get("label")
    return _words(given if isinstance(given, list | tuple) else [given])


def _words(values: Any) -> list[str]:
    """Return the words of a list; whether it is one, and of words only, is checked when the task is known."""
    return [one for one in values if isinstance(one, str)] if isinstance(values, list | tuple) else []


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
        name = f"{path}#{split}"
    else:
        name = str(path)
    if not isinstance(body, list):
        raise DataError(f"{name}: expected a list of examples, got {type(body).__name__}; write [{{...}}, {{...}}]")
    pairs = ({"text": row[0], "label": row[1]} if isinstance(row, list) and len(row) == 2 else row for row in body)
    examples = Examples(
        example_fields.to_row(row, path, number, place=f"{name}: example {number}")
        for number, row in enumerate(pairs, 1)
    )
    return examples if name != str(path) else _of_split(examples, path, split)


def whole(path: Path) -> Examples:
    """Read a JSON file without splits."""
    return split_of(path, "")


def folder(path: Path) -> Examples:
    """Read images or sounds in folders named after their class; a note counts other files."""
    examples, left, classes = Examples(), Counter[str](), list[Path]()
    for child in sorted(path.iterdir()):
        if _hidden(child):
            left["hidden"] += 1
        elif not child.is_dir():
            left["outside the class folders"] += 1
        elif found := _class_folder(child, left):
            examples += found
            classes.append(child)
        else:
            examples.notes.append(f"no picture and no sound in {child}: the class {child.name} is left out")
    if classes and all(child.name.lower() in SPLITS for child in classes):
        raise DataError(
            f"{path}: {', '.join(child.name for child in classes)} are the parts of a data set, not classes; name one: {classes[0]}"
        )
    if len({"picture" in example for example in examples}) > 1:
        raise DataError(f"{path}: pictures and sounds together; give a folder for each")
    if left:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
        examples.notes.append(f"{path}: {sum(left.values())} files left out: {counts}")
    return examples


def _class_folder(folder: Path, left: Counter[str]) -> list[LocatedExample]:
    """Read the images or sounds of one class; other files are counted in `left`."""
    rows: list[LocatedExample] = []
    label = _folder_label(folder)
    for file in sorted(folder.rglob("*")):
        if file.is_dir():
            continue
        if any(_hidden(part) for part in (file, *file.relative_to(folder).parents)):
            left["hidden"] += 1
        elif kind := example_fields.media_kind(file):
            rows.append(LocatedExample({kind: str(file), "label": label}, file))
        else:
            left[file.suffix.lower() or "no suffix"] += 1
    return rows


def _folder_label(folder: Path) -> str:
    """Return the class of a folder.

    Raises:
        DataError: its name is no text, as of an archive in another encoding.
    """
    label = class_names.class_name(folder.name)
    if not label or not _is_text(label):
        raise DataError(f"{folder.parent}: the folder {folder.name!r} is named by no text; rename it to its class")
    return label


def _is_text(name: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


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
