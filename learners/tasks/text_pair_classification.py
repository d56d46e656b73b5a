"""Classify two texts together: matching, paraphrase, inference.

The model reads both texts as one sequence, so that each word of one can attend to each word of the other (Devlin et al. 2019, section
4.1). Loss, metrics and predictions are those of a text classification.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from learners.data_error import DataError
from learners.tasks.base import Example, Feature, Recipe
from learners.tasks.text_classification import ClassifyText

INPUTS = ("text", "text_pair")


class ClassifyPairs(ClassifyText):
    """`text` and `text_pair` -> `label`."""

    kind = "text-pair-classification"
    recipe: ClassVar[Recipe] = Recipe(
        epochs=5,
        batch=32,
        rates={"frozen": 5e-3, "top": 5e-4, "lora": 5e-4, "full": 1e-4},
        head_rates={"lora": 10.0},
        options={"max_length": 128, "label_smoothing": 0.05},
    )

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return one feature of both texts; the longer one is cut where both exceed `max_length`.

        Raises:
            DataError: a text is missing.
        """
        for name in INPUTS:
            if example.get(name) is None:
                raise DataError(f"an example without `{name}`: {dict(example)}")
        return super().features(example, rng=rng)
