"""Explain what is wrong with a settings file: file, line, path, reason and remedy.

Knows the model, to suggest a key that exists, and pydantic's error kinds. Reads no file.
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

from learners.task_kinds import FORMER_KINDS
from runtime.config.schema import Config

MOST_SHOWN = 1_000
"""Characters of the message, the path or the remedy of one problem."""
Steps = tuple[str | int, ...]
"""A path into the file: keys and list positions."""
Found = Iterator[tuple[Steps, str, str]]
"""What a check finds: the path into the settings, what is wrong, and the remedy."""

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
OLD_KEYS: dict[str, str] = {
    "encoders.*.train": "follow_task",
    "experience.raw_s": "raw_retention_s",
    "experience.reserve": "reserved_fraction",
    "finetune.forget_margin": "max_forgetting",
    "finetune.holdout": "validation_fraction",
    "finetune.margin": "max_metric_drop",
    "finetune.replay": "rehearsal_ratio",
    "learner.demonstrations": "demonstration_fraction",
    "learner.mirror": "mirror_augmentation",
    "learner.settle_s": "reward_delay_s",
    "plant.takeovers": "simulated_overrides",
    "policy.ask_below": "query_margin",
    "policy.fusion: bottleneck": "latent-attention",
    "policy.fusion: matching": "low-rank-bilinear",
    "promotion.decisions": "ope_decisions",
    "promotion.observations": "sanity_observations",
    "promotion.steps: fast": "latency",
    "promotion.steps: labels": "held_out",
    "promotion.steps: sane": "sanity",
    "promotion.steps: whole": "integrity",
    "tasks.*.ask_below": "query_confidence",
    "tasks.*.heldout": "eval_file",
    **{f"tasks.*.kind: {former}": " or ".join(kinds) for former, kinds in FORMER_KINDS.items()},
}
"""Settings renamed before the first release: path, or path and value -> new key or value; `*` is a name of the user."""
OLD_REMEDIES: dict[str, str] = {
    "encoders.*.train": "write `follow_task: true` instead of top, lora or full, and nothing instead of frozen",
    "tasks.*.kind: classify": "by the stream the task reads",
}
REMOVED_KEYS: dict[str, str] = {
    "encoders.*.lora_rank": "the rank is tasks.NAME.lora_rank",
    "learner.engine": "the learner always runs on this machine",
    "promotion.probation_s": "a live experiment decides, without a fixed time; `promotion.experiments: false` switches it off",
    "promotion.steps: probation": "a live experiment always follows the steps; `promotion.experiments: false` switches it off",
}
"""Settings that had no effect, and what to do instead."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning: where, what, and what would be right."""

    file: Path
    line: int
    path: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """Format as one line: `file:line: path: message; remedy`."""
        where = f"{_shown(str(self.file))}:{self.line}: " + (f"{_shown(self.path)}: " if self.path else "")
        return where + _shown(self.message) + (f"; {_shown(self.remedy)}" if self.remedy else "")


def _shown(text: str) -> str:
    """Return a text of the file as a part of one line: without control characters, and with the middle of a long one left out."""
    plain = "".join(character if ord(character) >= 0x20 and character != "\x7f" else "?" for character in text)
    return plain if len(plain) <= MOST_SHOWN else f"{plain[: MOST_SHOWN // 2]}...{plain[-MOST_SHOWN // 2 :]}"


def explain(path: Path, lines: dict[Steps, int], detail: ErrorDetails) -> Problem:
    """Explain a pydantic error with the line it concerns and its remedy."""
    named, message = split_path(detail["msg"].removeprefix("Value error, "))
    loc: Steps = named or tuple(detail["loc"])
    where = _without_tags(lines, loc)
    line = next((lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines), 1)
    old = _old(detail, where)
    return Problem(path, line, dotted(where), *(old or (message, _remedy(detail, where))))


def _old(detail: ErrorDetails, where: Steps) -> tuple[str, str] | None:
    """Return message and remedy for a former key or value, or None for any other problem."""
    if detail["type"] not in {"extra_forbidden", "literal_error"}:
        return None
    steps = [str(step) for step in where if not isinstance(step, int)]
    value = f": {detail['input']}" if detail["type"] == "literal_error" else ""
    for path in {".".join(steps), ".".join((steps[0], "*", *steps[2:]))}:
        if new := OLD_KEYS.get(path + value):
            return f"renamed to {new}", OLD_REMEDIES.get(path + value, "")
        if instead := REMOVED_KEYS.get(path + value):
            return "removed", instead
    return None


def split_path(message: str) -> tuple[Steps, str]:
    """Split a message that begins with the path it is about, as `streams.front.source: ...`."""
    named = _LEADING_PATH.match(message)
    return (tuple(named.group(1).split(".")), message[named.end() :]) if named else ((), message)


def _without_tags(lines: dict[Steps, int], loc: Steps) -> Steps:
    """Return the path as in the file; pydantic adds steps for the kind of a union and for `[key]`."""
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
    if kind == "value_error" and ";" in detail["msg"]:
        return ""  # our own messages say what would be right
    if kind == "missing":
        return f"add `{where[-1]}:`"
    return _REMEDIES.get(kind, "`reflexd check --schema` shows what is allowed")


def _known_keys(loc: tuple[int | str, ...]) -> set[str]:
    """Return the settings that exist next to the one at `loc`."""
    model: Any = Config
    for part in loc[:-1]:
        model = _step(model, part)
    model = _first_model(model)
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
    """Join steps as people write them: `streams.front.source`."""
    return ".".join(str(part) for part in where)
