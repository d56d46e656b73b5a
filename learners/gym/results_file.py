"""Write `results.json` of a training before it starts, and after it failed, so that no failed seed is absent from a comparison.

`reflexd train` writes the final results itself (`learners.gym.train`). `learners.gym.comparison` reads all of them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from learners.files import write_atomically
from learners.gym.lock_step import TrainSettings

NAME = "results.json"
NOT_ENDED = "not ended"
"""Value of `stopped` from before the start of a training until its end."""


def settings_values(settings: TrainSettings, environments: int = 1) -> dict[str, Any]:
    """Return the settings as `results.json` contains them, with the number of environments where there are several."""
    several = {"environments": environments} if environments > 1 else {}
    return asdict(settings) | {"hidden": list(settings.hidden)} | several


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Write `results.json` below `out`; replace an earlier one.

    Raises:
        OSError: the file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / NAME, orjson.dumps(results, option=orjson.OPT_INDENT_2))


def write_not_ended(
    out: Path,
    environment: str,
    steps: int,
    seed: int,
    settings: TrainSettings,
    algorithm: str | None = None,
    *,
    environments: int = 1,
) -> None:
    """Write the results of a training that has not ended; they replace those of an earlier training in the same folder.

    Args:
        out: folder of the training; made if it is missing.
        environment: a gymnasium id.
        steps: of the environment.
        seed: of the training.
        settings: of the training.
        algorithm: by name, where `settings.algorithm` leaves it open.
        environments: stepped at once.

    Raises:
        OSError: the file cannot be written.
    """
    results = {
        "environment": environment,
        "algorithm": algorithm or settings.algorithm,
        "steps": steps,
        "seed": seed,
        "evaluations": [],
        "final": None,
        "stopped": NOT_ENDED,
        "settings": settings_values(settings, environments),
    }
    write_results(out, results)


def write_failed(out: Path, reason: str) -> None:
    """Replace the reason `NOT_ENDED` by another one; results with a reason of their own do not change.

    Raises:
        OSError: the file cannot be read or written.
    """
    results = orjson.loads((out / NAME).read_bytes())
    if results["stopped"] == NOT_ENDED:
        write_results(out, results | {"stopped": reason})
