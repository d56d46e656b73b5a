"""Read which versions the live experiment needs and which passed, from the records in the state folder. Writes nothing.

Every record is untrusted: what is malformed names no version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from learners.checkpoints.manifest import VERSION

CHALLENGER = "CHALLENGER"
"""Which candidate passed the filters and waits for its experiment."""
EXPERIMENTS_FILE = "experiments.json"
"""In the state folder; `runtime/deploy/experiments/controller.py` writes it."""
PROBATION_FILE = "probation.json"
"""In the state folder of programs before 0.2.0: it named the version that was on probation, and the one before."""


def versions_of_experiments(state_dir: Path) -> frozenset[str]:
    """Return the versions that the live experiment may need: live, anchor or the best so far, the one before, and challengers.

    Raises:
        OSError: a file exists and cannot be read.
    """
    named: list[Any] = [_content(state_dir / "checkpoints" / CHALLENGER).get("version")]
    body = _content(state_dir / EXPERIMENTS_FILE)
    trust, phase = _mapping(body.get("trust")), _mapping(body.get("phase"))
    plan = _mapping(_mapping(phase.get("test")).get("plan"))
    named += [body.get("live"), body.get("waiting"), trust.get("anchor"), trust.get("previous")]
    named += [plan.get(arm) for arm in ("champion", "challenger", "anchor")]
    if trust.get("anchor") is None:  # the best version so far may act again
        named += [_mapping(body.get("proof")).get(name) for name in ("best", "leader", "rival")]
    old = _content(state_dir / PROBATION_FILE)
    trial = _mapping(old.get("trial"))
    named += [old.get("good"), trial.get("version"), trial.get("before")]
    return frozenset(name for name in named if isinstance(name, str))


def notes_of_experiments(state_dir: Path) -> Mapping[str, str]:
    """Return by version the sentence on why it is live or not, as the agent wrote it; empty without a record.

    Raises:
        OSError: the file exists and cannot be read.
    """
    notes = _mapping(_mapping(_content(state_dir / EXPERIMENTS_FILE).get("trust")).get("notes"))
    return {name: text for name, text in notes.items() if isinstance(text, str)}


def versions_that_passed(state_dir: Path) -> tuple[str, ...]:
    """Return the versions that acted by the record of the experiments, the anchor at the end; empty without a record.

    `probation.json` of an earlier program counts where there is no record: the versions that passed, the last good one at the end.
    """
    try:
        body = _content(state_dir / EXPERIMENTS_FILE)
        old = _content(state_dir / PROBATION_FILE)
    except OSError:
        return ()
    if not body:
        return _passed_probation(old)
    trust = _mapping(body.get("trust"))
    names = (body.get("live"), trust.get("previous"), trust.get("anchor"))
    return tuple(name for name in names if isinstance(name, str) and VERSION.match(name))


def _passed_probation(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the versions of `probation.json` that passed, the last good one at the end; none if any name is malformed."""
    confirmed, good = record.get("confirmed", []), record.get("good")
    names = [*confirmed, good] if isinstance(confirmed, list) else [None]
    if not all(isinstance(name, str) and VERSION.match(name) for name in names):
        return ()
    return (*(name for name in confirmed if name != good and _number(name) <= _number(str(good))), str(good))


def _number(version: str) -> int:
    return int(version.partition("-")[0])


def _content(path: Path) -> Mapping[str, Any]:
    """Return a JSON object from a file; nothing where there is none."""
    try:
        return _mapping(orjson.loads(path.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
