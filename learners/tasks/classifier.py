"""Loss, metrics and predictions of classes, whatever is classified: texts, pictures and sounds share it.

Single labels: softmax and cross-entropy. Several: one sigmoid a label and binary cross-entropy, cut at `threshold` (`multi_label.py`).

Shapes: B batch, L labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners.data_error import DataError
from learners.tasks.augmentation.mixing import can_mix, draw, mixed
from learners.tasks.base import Batch, Example, Feature, Options, Prediction, Task
from learners.tasks.layers.heads import log_frequencies
from learners.tasks.multi_label import best_threshold, cut, log_likelihood, several_label_metrics
from learners.tasks.text_base import cross_entropy, inputs, macro_f1

ONE, MANY = "single_label_classification", "multi_label_classification"
"""What a model's configuration calls its labels."""


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
        return log_likelihood(map(labels, examples), predictions) if self.options.multi_label else 0.0

    def no_choice(self, examples: Sequence[Example]) -> str:
        """Return that no example has a label, or none a known one, so that F1 or accuracy is 0 for every epoch."""
        if self.options.multi_label and not any(map(labels, examples)):
            return "no example has a label"
        known = set(self.labels)
        return "" if any(known & set(labels(example)) for example in examples) else "no example has a trained class"

    def tuned(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Select the threshold for several labels; return the predictions cut there."""
        if not (self.options.multi_label and self.options.tune_threshold and predictions):
            return list(predictions)
        best = best_threshold([labels(example) for example in examples], predictions)
        self.options = replace(self.options, threshold=best)
        return [cut(one, best) for one in predictions]

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
            return several_label_metrics([labels(example) for example in examples], predictions)
        wanted = [labels(example)[0] for example in examples]
        found = [prediction.value for prediction in predictions]
        right = sum(w == f for w, f in zip(wanted, found, strict=True))
        return {"accuracy": right / max(len(wanted), 1), "macro_f1": macro_f1(wanted, found)}


def labels(example: Example) -> tuple[str, ...]:
    """Return the labels of an example, one or several; a text with `|` between them is not split here."""
    given = example["label"]
    return (given,) if isinstance(given, str) else tuple(given)
