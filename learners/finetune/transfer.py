"""Start a fine-tune from the encoder of another task, and measure what that gains over the pretrained model.

The gain is measured, not estimated: the same labels train the pretrained model once more, with the same settings and seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from learners.finetune.forgetting import backbone, transplant
from learners.model.encoders.bundled_weights import resolve
from learners.model.encoders.file_digests import hash_of
from learners.tasks.base import Task, saved
from learners.tasks.task_classes import open_task

LEAST_SHARE = 0.5
"""Of the tensors of an encoder that another task's encoder must have in equal sizes: a longer table of positions is no other model."""
WEIGHTS = ("*.safetensors", "*.bin", "config.json")
"""Files by which two folders of one architecture differ."""


def start_from(folder: Path, task: Task) -> float:
    """Copy the encoder of another task's folder into a task that has not trained yet; return the share of tensors that were copied.

    Raises:
        ValueError: the folder was not made by `reflexd finetune`, or has another architecture.
    """
    kind = saved(folder).get("kind")
    if kind is None:
        raise ValueError(f"{folder}: not a folder that `reflexd finetune` wrote; name one, or give it as --model")
    other = open_task(str(kind), folder)
    mine, other_type = task.model.config.model_type, other.model.config.model_type
    copied = transplant(other.model, task.model) if mine == other_type else 0
    if not copied:
        raise ValueError(f"{folder}: {other_type} shares no weights with {mine}; start from a task on the same model")
    if (share := copied / len(backbone(task.model))) < LEAST_SHARE:
        raise ValueError(
            f"{folder}: only {share:.0%} of its tensors fit the model; start from a task on the same model"
        )
    return share


def digest_of(folder: Path) -> str:
    """Return a digest of the weights of a folder and their configuration, so that a run is only resumed from the same start."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        digest.update(f"{path.name} {hash_of(path)}\n".encode())
    return digest.hexdigest()


def weights_of(model: str) -> str:
    """Return a digest of the weights of a model: of a folder, or of the cached revision of an id.

    Raises:
        BundledError: as `resolve`.
        OSError: the model is neither a folder nor in the cache.
    """
    found = resolve(model)
    if not isinstance(found, Path):
        config = cached_file(found, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
        if config is None:
            raise FileNotFoundError(f"{model}: neither a folder nor in the cache of transformers")
        found = Path(config).parent
    files = sorted(path for pattern in WEIGHTS for path in found.glob(pattern))
    return _digest(found, tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _digest(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Return the digest of a folder with files of these names, sizes and times: hashed once until one changes."""
    del files
    return digest_of(folder)


def gains(
    start: Path,
    share: float,
    metric: str,
    found: Mapping[str, Mapping[str, float]],
    plain: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return what the report says of the start.

    Args:
        start: the folder.
        share: of the encoder's tensors that came from it.
        metric: the selection metric.
        found: metrics by split, started from the folder.
        plain: metrics by split, started from the pretrained model.
    """
    rows = {
        split: {
            "from": values[metric],
            "pretrained": plain[split][metric],
            "gain": values[metric] - plain[split][metric],
        }
        for split, values in found.items()
        if metric in values and metric in plain.get(split, {})
    }
    return {"from": str(start), "copied_share": share, "metric": metric, **rows}
