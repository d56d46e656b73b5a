"""Leave out examples that a task cannot read, so that one of them does not end the training of all others.

Labels and stored readings come from outside. A kind of stream may have changed, a picture may be cut, a sound may be shorter than the
first filter of its model. Files that a person gives are refused instead, with file and line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from learners.tasks.base import Example, Task, to_device, without_target
from learners.tasks.classifier import Classifier

One = TypeVar("One", bound=Example)


class ReadableExamples:
    """Tells examples that a task can read from others; each is tried once.

    Args:
        task: makes features; a classification of pictures or sounds runs its model too, which may refuse a size.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.count = 0
        """Examples that were left out."""
        self.first = ""
        """Why the first of them was."""
        self._runs = isinstance(task, Classifier) and task.declaration().modality != "text"
        self._found: dict[int, tuple[Example, bool]] = {}

    def __call__(self, examples: Sequence[One]) -> list[One]:
        """Return the examples that can be read, in their order."""
        for example in examples:
            if id(example) not in self._found:
                self._found[id(example)] = example, self._can_read(example)
        return [example for example in examples if self._found[id(example)][1]]

    def _can_read(self, example: Example) -> bool:
        try:
            self._read(example)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders, processors and models raise anything for what is unfit
            self.count += 1
            self.first = self.first or f"{type(error).__name__}: {str(error).strip()[:200]}"
            return False
        return True

    @torch.inference_mode()
    def _read(self, example: Example) -> None:
        features = self.task.features(without_target(example))
        if self._runs:
            # its first window alone: a batch of all windows of a long sound takes too much memory
            found = self.task.outputs(self.task.model, to_device(self.task.collate(features[:1]), self.task.device))
            if not np.isfinite(found[0]).all():
                raise FloatingPointError("the model computes values that are no numbers")

    @property
    def figures(self) -> dict[str, float | str]:
        """Return the number of examples that were left out and the first reason; empty where there is none."""
        return {"unreadable": float(self.count), "unreadable_reason": self.first} if self.count else {}
