"""Turn the settings of a task into the options of its model. Training and serving use the same."""

from __future__ import annotations

from typing import Any

from learners.config.tasks import TaskSettings
from learners.output_grammar import GenerationSettings
from learners.tasks.base import Options

WRITING = {"stop": "stop", "banned": "banned", "temperature": "temperature", "seed": "sampling_seed"}
"""Setting of `tasks.X.generation` -> option of a task."""


def options_of(settings: TaskSettings) -> dict[str, Any]:
    """Return the options of a task from its settings.

    Labels are not smoothed: with the few examples a class that people give, it costs accuracy (docs/decisions/0025-head-first-labels.md).
    """
    options: dict[str, Any] = {"label_smoothing": 0.0}
    options |= {"multi_label": settings.multi_label} if settings.multi_label else {}  # else the folder says which it is
    given: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "system": settings.system,
        "language": settings.language,
    }
    if settings.output is not None:
        given["output"] = settings.output.model_dump(exclude_none=True)
    unchanged = GenerationSettings()
    for name, option in WRITING.items():
        if (value := getattr(settings.generation, name)) != getattr(unchanged, name):
            given[option] = value
    return Options.known(options | {name: value for name, value in given.items() if value is not None})
