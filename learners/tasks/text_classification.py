"""Classification of texts: sentiment, topic, intent; one label or several.

Single labels: softmax and cross-entropy. Several: one sigmoid a label and binary cross-entropy, cut at `threshold`.
`Classifier` is what pictures and sounds share with it.

Shapes: B batch, L labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from learners.task_kinds import TaskKind
from learners.tasks.augmentation.mixing import can_mix, draw, mixed
from learners.tasks.augmentation.texts import Synonyms, without_tokens
from learners.tasks.base import Batch, DataError, Example, Feature, Options, Prediction, Recipe, Task
from learners.tasks.layers.heads import log_frequencies
from learners.tasks.text_base import MOST_WINDOWS, TextTask, cross_entropy, inputs, macro_f1

ONE, MANY = "single_label_classification", "multi_label_classification"
"""What a model's configuration calls its labels."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Those that are tried for several labels."""


class Classifier(Task):
    """Loss, metrics and predictions of classes, whatever is classified."""

    selection = "accuracy"

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        super().__init__(source, options, labels)
        if options.multi_label:
            self.selection = "f1"
        if "mixup" in self.augmentations and not can_mix(self.model):
            raise ValueError(f"mixup: texts of {self.model.config.model_type} cannot be mixed; leave mixup out")
        self.model.config.problem_type = MANY if options.multi_label else ONE  # pipelines of transformers read it

    def tie_break(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> float:
        """Return the mean log-likelihood of all labels, for several labels: F1 says nothing before the first hit."""
        if not self.options.multi_label:
            return 0.0
        logs = [
            math.log(max(chance if label in given else 1 - chance, 1e-12))
            for given, one in zip(map(labels, examples), predictions, strict=True)
            for label, chance in one.probabilities.items()
        ]
        return float(np.mean(logs)) if logs else 0.0

    def tuned(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Select the threshold with the highest F1, the nearest to 0.5 among equals; return the predictions cut there."""
        if not (self.options.multi_label and self.options.tune_threshold and predictions):
            return list(predictions)
        cuts = {
            at: [self._cut(one, at) for one in predictions] for at in sorted(THRESHOLDS, key=lambda at: abs(at - 0.5))
        }
        scores = {at: self._several(examples, some)["f1"] for at, some in cuts.items()}
        best = max(scores, key=lambda at: scores[at])
        self.options = replace(self.options, threshold=best)
        return cuts[best]

    def _cut(self, one: Prediction, threshold: float) -> Prediction:
        return replace(one, value=tuple(label for label, chance in one.probabilities.items() if chance >= threshold))

    @classmethod
    def labels_of(cls, examples: Sequence[Example]) -> tuple[str, ...]:
        """Return every label in use, sorted."""
        return tuple(sorted({label for example in examples for label in labels(example)}))

    def prior(self, examples: Sequence[Example]) -> Tensor:
        """Return the log frequency of every label; for several labels, the logit of its smoothed share of the examples."""
        counts = Counter(label for example in examples for label in labels(example))
        seen = [counts[label] for label in self.labels]
        if not self.options.multi_label:
            return log_frequencies(seen)
        return torch.tensor([(n + 1) / (len(examples) + 2) for n in seen]).logit()

    def target(self, example: Example) -> Any:
        """Return a class number, or a row of 0 and 1 for several labels.

        Raises:
            DataError: a label the head does not have, or several for one.
        """
        given = labels(example)
        if unknown := set(given) - set(self.labels):
            raise DataError(f"label {sorted(unknown)} is not among {len(self.labels)} known: {list(self.labels)[:20]}")
        if self.options.multi_label:
            return [float(label in given) for label in self.labels]
        if len(given) != 1:
            raise DataError(f"{len(given)} labels {given} for one example; set multi_label to allow several")
        return self.labels.index(given[0])

    def targets(self, rows: Sequence[Any]) -> Tensor:
        """Classes [B], or 0/1 rows [B, L]."""
        return torch.tensor(rows)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the criterion of a batch; with `mixup`, of examples that are mixed in pairs, while the model trains."""
        given, targets = inputs(batch), batch["labels"]
        if not (model.training and "mixup" in self.augmentations and len(targets) > 1):
            return self.criterion(model(**given).logits, targets)
        share, other_B = draw(len(targets))
        logits_BL = model(**mixed(model, given, share, other_B)).logits
        return share * self.criterion(logits_BL, targets) + (1 - share) * self.criterion(logits_BL, targets[other_B])

    def criterion(self, logits_BL: Tensor, targets_B: Tensor) -> Tensor:
        """Return the cross-entropy, or, for several labels with targets of 0 and 1 in [B, L], the binary cross-entropy."""
        if self.options.multi_label:
            return F.binary_cross_entropy_with_logits(logits_BL.float(), targets_B)
        return cross_entropy(logits_BL, targets_B, self.options.label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the probability of each label."""
        logits_BL = model(**inputs(batch)).logits.float()
        scores_BL = logits_BL.sigmoid() if self.options.multi_label else logits_BL.softmax(-1)
        return list(scores_BL.cpu().numpy())

    def prediction(self, example: Example, features: Sequence[Feature], outputs: Sequence[Any]) -> Prediction:
        """Return the most probable label, or all above the threshold."""
        del example, features
        scores_L = np.mean(outputs, axis=0)
        chances = {label: float(score) for label, score in zip(self.labels, scores_L, strict=True)}
        if self.options.multi_label:
            value = tuple(label for label, chance in chances.items() if chance >= self.options.threshold)
            sure = min(max(chance, 1 - chance) for chance in chances.values())
            return Prediction(value, sure, chances)
        best = int(scores_L.argmax())
        return Prediction(self.labels[best], float(scores_L[best]), chances)

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Accuracy (for several labels: of the whole set) and macro F1."""
        if self.options.multi_label:
            return self._several(examples, predictions)
        wanted = [labels(example)[0] for example in examples]
        found = [prediction.value for prediction in predictions]
        right = sum(w == f for w, f in zip(wanted, found, strict=True))
        return {"accuracy": right / max(len(wanted), 1), "macro_f1": macro_f1(wanted, found)}

    def _several(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        pairs = [(set(labels(e)), set(p.value)) for e, p in zip(examples, predictions, strict=True)]
        hits = sum(len(wanted & found) for wanted, found in pairs)
        total = sum(len(wanted) + len(found) for wanted, found in pairs)
        return {
            "accuracy": sum(wanted == found for wanted, found in pairs) / max(len(pairs), 1),
            "f1": 2 * hits / total if total else 0.0,
        }


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


def labels(example: Example) -> tuple[str, ...]:
    """Return the labels of an example, one or several; a text with `|` between them is not split here."""
    given = example["label"]
    return (given,) if isinstance(given, str) else tuple(given)
