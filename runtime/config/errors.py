"""Says what is wrong with a settings file in words: file, line, path, and what would be right.

Knows the model (to suggest a key that exists) and pydantic's error kinds; reads no file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from runtime.config.schema import Config

Steps = tuple[str | int, ...]
"""A path into the file: keys and list positions."""

_LEADING_PATH = re.compile(r"^([a-z_]+(?:\.[A-Za-z0-9_-]+)+): ")
_REMEDIES = {
    "string_type": "put it in quotes: YAML reads unquoted true and false as truth values, and digits as numbers",
    "path_type": "write a path; a ~ alone is nothing in YAML, ~/folder is in the home directory",
    "string_pattern_mismatch": "use only the characters the pattern allows",
    "union_tag_invalid": "write one of the expected kinds",
    "union_tag_not_found": "add `kind:`",
    "model_type": "write `key: value` lines below it",
    "model_attributes_type": "write `key: value` lines below it",
    "dict_type": "write `key: value` lines below it",
    "tuple_type": "write a list: [a, b]",
    "literal_error": "write one of these words",
    "finite_number": "write a plain number",
    "float_parsing": "write a plain number",
    "int_parsing": "write a whole number",
    "bool_parsing": "write true or false",
    "value_error": "correct it as the message says",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, what, and what would be right."""

    file: Path
    line: int
    path: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """`file:line: path: message; remedy`, one line."""
        where = f"{self.file}:{self.line}: " + (f"{self.path}: " if self.path else "")
        return where + self.message + (f"; {self.remedy}" if self.remedy else "")


def explain(path: Path, lines: dict[Steps, int], detail: ErrorDetails) -> Problem:
    """A pydantic error with the line it is about and what would be right."""
    message = detail["msg"].removeprefix("Value error, ")
    named = _LEADING_PATH.match(message)
    loc: Steps = tuple(named.group(1).split(".")) if named else tuple(detail["loc"])
    if named:
        message = message.removeprefix(named.group(1) + ": ")
    where = _without_tags(lines, loc)
    line = next((lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines), 1)
    return Problem(path, line, dotted(where), message, _remedy(detail, where))


def _without_tags(lines: dict[Steps, int], loc: Steps) -> Steps:
    """The path as written in the file: pydantic adds the kind of a union, and `[key]`, as steps of their own."""
    where: Steps = ()
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (*where, part) in lines or (last and part != "[key]"):
            where = (*where, part)
    return where


def _remedy(detail: ErrorDetails, where: Steps) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = sorted(_known_keys(detail["loc"]))
        close = difflib.get_close_matches(str(where[-1]), known, n=1)
        return f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"
    if kind == "missing":
        return f"add `{where[-1]}:`"
    return _REMEDIES.get(kind, "`reflexd check --schema` shows what is allowed")


def _known_keys(loc: tuple[int | str, ...]) -> set[str]:
    """The settings that exist beside the one at `loc`."""
    model: Any = Config
    for part in loc[:-1]:
        model = _step(model, part)
    return set(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else set()


def _step(model: Any, part: int | str) -> Any:
    if isinstance(model, type) and issubclass(model, BaseModel):
        entry = model.model_fields.get(str(part))
        return entry.annotation if entry else None
    models = [m for m in _models(model) if _tag(m) == part]
    return models[0] if models else _first_model(model)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _first_model(annotation: Any) -> Any:
    found = list(_models(annotation))
    return found[0] if len(found) == 1 else annotation


def _tag(model: type[BaseModel]) -> str | None:
    entry = model.model_fields.get("kind")
    return get_args(entry.annotation)[0] if entry is not None and get_args(entry.annotation) else None


def dotted(where: Steps) -> str:
    """Steps as people write them: `streams.front.source`."""
    return ".".join(str(part) for part in where)
