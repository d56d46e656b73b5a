"""Turn settings of the daemon into those of lock-step training (`reflexd train --set learner.batch=128`).

The values are validated as in a settings file. A setting that lock-step training does not use is refused, with the names of those that
it uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from learners.config.learner import LearnerSettings
from learners.config.policy import PolicySettings
from learners.gym.lock_step import TrainSettings

FIELDS: dict[str, tuple[str, ...]] = {
    "learner.batch": ("batch", "choice_batch"),
    "learner.demonstration_fraction": ("demonstrations",),
    "learner.n_step": ("steps", "choice_steps"),
    "learner.replay_gb": ("memory_bytes",),
    "learner.threads": ("threads",),
    "learner.updates_per_step": ("updates_per_step",),
    "learner.warmup": ("warmup", "choice_warmup"),
    "policy.algorithm": ("algorithm",),
    "policy.gamma": ("gamma",),
    "policy.hidden": ("hidden",),
    "policy.width": ("width",),
}
"""The settings that lock-step training uses, and its own names."""


def with_values(settings: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of a training with some values of the daemon's settings.

    Args:
        settings: of the training.
        values: by dotted name, such as `learner.batch`.

    Raises:
        ValueError: lock-step training does not use a setting, or a value is missing or invalid.
    """
    for name, value in values.items():
        if name not in FIELDS:
            raise ValueError(f"--set {name}: lock-step training does not use it; it uses {', '.join(FIELDS)}")
        if value is None:
            raise ValueError(f"--set {name}: null is not a value; leave the setting out to use its default")
        part, field = name.split(".")
        model = LearnerSettings if part == "learner" else PolicySettings
        try:
            checked = getattr(model.model_validate({field: value}), field)
        except ValidationError as error:
            raise ValueError(f"--set {name}={value}: {error.errors()[0]['msg']}") from None
        if name == "learner.replay_gb":
            checked = int(checked * 1e9)
        if name == "learner.updates_per_step":
            if checked != int(checked):
                raise ValueError(f"--set {name}={value}: lock-step training needs a whole number of updates")
            checked = int(checked)
        settings = replace(settings, **dict.fromkeys(FIELDS[name], checked))
    return settings
