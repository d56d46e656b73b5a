"""Classification of pictures with any AutoModelForImageClassification: camera frames and picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoModelForImageClassification

from learners.tasks.base import Batch, DataError, EncodedMedia, Example, Feature, Recipe
from learners.tasks.classify_text import Classifier
from learners.tasks.images import PictureProcessor, read_picture


class ClassifyPictures(Classifier):
    """`picture` (a path or uint8 RGB array) -> `label`."""

    kind = "image-classification"
    auto: ClassVar[Any] = AutoModelForImageClassification
    recipe = Recipe(
        epochs=15,
        patience=8,  # few images: validation may not improve for some epochs
        batch=16,
        rates={"frozen": 3e-3, "top": 5e-4, "lora": 1e-3, "full": 2e-4},
        layer_decay=0.9,
        options={"label_smoothing": 0.05},
    )

    def load_processor(self, source: Path | str) -> PictureProcessor:
        """Size and normalisation."""
        return PictureProcessor.from_pretrained(source)

    @property
    def varying(self) -> bool:
        """Pictures are changed a little in every epoch."""
        return self.options.augment

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return one feature."""
        picture = example.get("picture")
        if isinstance(picture, EncodedMedia):
            picture = picture.decode()["picture"]
        if picture is None:
            raise DataError(f"an example without `picture`: {dict(example)}")
        image = read_picture(Path(picture)) if isinstance(picture, str | Path) else picture
        rng = rng if self.options.augment else None
        feature: Feature = {"pixel_values": self.processor(image, rng, flip=self.options.flip)}
        return [feature | {"labels": self.target(example)} if "label" in example else feature]

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return pixels [B, 3, Y, X] and targets."""
        batch = {"pixel_values": torch.stack([feature["pixel_values"] for feature in features])}
        if "labels" in features[0]:
            batch["labels"] = self.targets([feature["labels"] for feature in features])
        return batch
