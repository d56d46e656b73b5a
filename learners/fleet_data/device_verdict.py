"""Read what became of a policy of the fleet on this device, from the records of its own learner and experiments.

The learner imports a received version under a name of its own. `promotions.jsonl` has every verdict on it, and `experiments.json` the
pairs of a running experiment. The uplink publishes the result; nothing here decides. Every record is untrusted: what is malformed
says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from learners.checkpoints.manifest import MANIFEST, VERSION
from learners.experiment_statistics.experiment_test import ExperimentTest

VerdictState = Literal["examining", "rejected", "on_trial", "undecided", "live", "worse", "rolled_back", "withdrawn"]
TAIL_BYTES = 262_144
"""Of `promotions.jsonl`, what is read."""
MAX_EVIDENCE = 1e12
MAX_MANIFEST_BYTES = 1 << 20
MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class DeviceVerdict:
    """What a device knows of one version of the fleet."""

    version: str
    """As the fleet calls it."""
    state: VerdictState
    reason: str = ""
    worse: float = 1.0
    """Evidence of the experiment that the version earns less than the live one; 1 / alpha proves it."""
    pairs: int = 0
    """Pairs of blocks that the experiment has compared; after its end, all of them."""


def device_verdict(state_dir: Path, version: str) -> DeviceVerdict:
    """Return what became of a version of the fleet on a device.

    Args:
        state_dir: of the daemon.
        version: as the fleet calls it.

    Raises:
        OSError: a record exists and cannot be read.
    """
    local = _adopted(state_dir / "checkpoints", version)
    if local is None:
        return DeviceVerdict(version, "examining")
    state: VerdictState = "examining"
    reason, compared = "", 0
    for kind, fields in _verdicts(state_dir / "promotions.jsonl"):
        if fields.get("version") == local:
            state, reason = _after(kind, fields, state, reason)
            count = fields.get("pairs")
            compared = count if isinstance(count, int) and count >= 0 else compared
    worse, pairs = _experiment(state_dir / "experiments.json", local)
    if pairs is not None and state == "examining":
        state = "on_trial"
    return DeviceVerdict(version, state, reason[:MAX_REASON], worse, compared if pairs is None else pairs)


def _after(kind: str, fields: dict[str, Any], state: VerdictState, reason: str) -> tuple[VerdictState, str]:
    """Return state and reason after one more verdict."""
    why = str(fields.get("reason") or fields.get("why") or "")
    if kind == "policy_rejected":
        return "rejected", why
    if kind == "policy_promoted":
        return "live", why
    if kind == "policy_rolled_back":
        return ("withdrawn" if fields.get("by") == "fleet" else "rolled_back"), why
    if kind == "experiment_ended":
        ends: dict[str, VerdictState] = {"live": "live", "out": "worse", "cap": "undecided"}
        return ends.get(str(fields.get("outcome")), state), why
    return state, reason


def _adopted(folder: Path, version: str) -> str | None:
    """Return the newest local version that was imported from a version of the fleet; None if there is none."""
    names = (
        sorted((path for path in folder.iterdir() if VERSION.match(path.name)), reverse=True) if folder.is_dir() else []
    )
    for path in names:
        try:
            with (path / MANIFEST).open("rb") as file:
                body = orjson.loads(file.read(MAX_MANIFEST_BYTES))
            if body["metrics"].get("adopted_from") == version:
                return path.name
        except (FileNotFoundError, orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            continue
    return None


def _verdicts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            body = orjson.loads(line)
            kind, fields = str(body["type"]), body["data"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            continue  # the first line may be cut
        if isinstance(fields, dict):
            yield kind, fields


def _experiment(path: Path, local: str) -> tuple[float, int | None]:
    """Return the evidence that a version on trial is worse, and the number of pairs; None where it is not on trial."""
    try:
        body = orjson.loads(path.read_bytes())
        test = body["phase"]["test"]
        if test["plan"]["challenger"] != local:
            return 1.0, None
        found = ExperimentTest.of(test)
    except (FileNotFoundError, orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError):
        return 1.0, None
    return min(MAX_EVIDENCE, max(1.0, found.rewards["champion"].below[0.0].evidence)), found.pairs
