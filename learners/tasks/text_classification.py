"""Classification of texts: sentiment, topic, intent; one label or several (`classifier.py`).

Shapes: B batch, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from learners.data_error import DataError
from learners.task_kinds import TaskKind
from learners.tasks.augmentation.texts import Synonyms, without_tokens
from learners.tasks.base import Example, Feature, Options, Recipe
from learners.tasks.classifier import Classifier
from learners.tasks.text_base import MOST_WINDOWS, TextTask


class ClassifyText(TextTask, Classifier):
    """`text` (and `text_pair`) -> `label`."""

    kind: ClassVar[TaskKind] = "text-classification"
    auto: ClassVar[Any] = AutoModelForSequenceClassification
    pools = True
    recipe = Recipe(
        epochs=10,
        batch=32,
        rates={"frozen": 5e-3, "top": 5e-4, "lora": 5e-4, "full": 2e-4},
        head_rates={"lora": 10.0},
        options={"max_length": 128, "label_smoothing": 0.1},
    )

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        super().__init__(source, options, labels)
        if self.model.config.pad_token_id is None:  # decoders classify by the last token before the padding
            self.model.config.pad_token_id = self.processor.pad_token_id

    def load_processor(self, source: Path | str) -> Any:
        """Load the tokenizer; one without a token for padding gets its end of a text for it.

        Raises:
            ValueError: it has neither.
        """
        tokenizer = super().load_processor(source)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise ValueError(f"{source}: its tokenizer has no token for padding, for the end or for unknown words")
        return tokenizer

    def targets(self, rows: Sequence[Any]) -> Tensor:
        """Classes [B], or 0/1 rows [B, L]."""
        return Classifier.targets(self, rows)

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return one feature for each window of the text; a prediction is the mean of all windows. `rng` changes the tokens."""
        texts = [str(example[name]) for name in ("text", "text_pair") if example.get(name) is not None]
        if not texts:
            raise DataError(f"an example without `text`: {dict(example)}")
        features = self.text_windows(texts[0]) if len(texts) == 1 else [self.text_feature(*texts)]
        if rng is not None and self.varying:
            features = [self._changed(feature, rng) for feature in features]
        target = {"labels": self.target(example)} if "label" in example else {}
        return [feature | target for feature in features]

    @property
    def varying(self) -> bool:
        """Whether tokens are left out or replaced, others in each epoch."""
        return bool({"token_dropout", "synonyms"} & set(self.augmentations))

    @cached_property
    def _synonyms(self) -> Synonyms:
        return Synonyms(self.source, self.processor, self.model.get_input_embeddings().weight)

    def _changed(self, feature: Feature, rng: np.random.Generator) -> Feature:
        if "synonyms" in self.augmentations:
            feature = self._synonyms.replaced(feature, rng)
        if "token_dropout" in self.augmentations:
            feature = without_tokens(feature, frozenset(self.processor.all_special_ids), rng)
        return feature

    def unread(self, example: Example) -> float:
        """Return the share of a pair above `max_length`, or of a text behind its last window."""
        texts = [str(example[name]) for name in ("text", "text_pair") if example.get(name) is not None]
        length, count = self.options.max_length, self.pieces(*texts)
        step = max(1, length - min(length // 4, max(0, length - 8)) - self.processor.num_special_tokens_to_add())
        return self.share_above(count, length if len(texts) > 1 else length + (MOST_WINDOWS - 1) * step)
