"""Classification of pictures with any AutoModelForImageClassification: camera frames and picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoModelForImageClassification

from learners.data_error import DataError
from learners.tasks.base import Batch, EncodedMedia, Example, Feature, Recipe
from learners.tasks.classifier import Classifier
from learners.tasks.inputs.pictures import PictureProcessor, read_picture, tiles_of


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
        """Load the model's own image processor."""
        return PictureProcessor.from_pretrained(source)

    @property
    def varying(self) -> bool:
        """Pictures are changed a little in every epoch, or show another tile."""
        changes = set(self.augmentations) - {"mixup"}
        return bool(changes) or self.options.flip or self.options.tiles > 1

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return the picture and its tiles, all of them for prediction, a random one in each epoch of training."""
        picture = example.get("picture")
        if isinstance(picture, EncodedMedia):
            picture = picture.decode()["picture"]
        if picture is None:
            raise DataError(f"an example without `picture`: {dict(example)}")
        image = read_picture(Path(picture)) if isinstance(picture, str | Path) else picture
        parts = tiles_of(image, self.options.tiles)
        if rng is not None and len(parts) > 1:
            parts = [parts[int(rng.integers(len(parts)))]]
        names = self.augmentations
        rng = rng if set(names) - {"mixup"} or self.options.flip else None
        target = {"labels": self.target(example)} if "label" in example else {}
        return [{"pixel_values": self.processor(part, rng, names, flip=self.options.flip)} | target for part in parts]

    def length(self, feature: Feature) -> int:
        """Return the number of pixels: a processor that does not resize returns pictures of several sizes."""
        high, wide = feature["pixel_values"].shape[-2:]
        return int(high) << 20 | int(wide)

    @property
    def pads_change_outputs(self) -> bool:
        """Pictures are never padded; only those of one size share a batch."""
        return True

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return pixels [B, 3, Y, X] and targets.

        Raises:
            DataError: the pictures have several sizes, because the model's processor does not resize them.
        """
        if len(sizes := {tuple(feature["pixel_values"].shape[-2:]) for feature in features}) > 1:
            raise DataError(f"the model's processor leaves pictures in the sizes {sorted(sizes)}; give all one size")
        batch = {"pixel_values": torch.stack([feature["pixel_values"] for feature in features])}
        if "labels" in features[0]:
            batch["labels"] = self.targets([feature["labels"] for feature in features])
        return batch
