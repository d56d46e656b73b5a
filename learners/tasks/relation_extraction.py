"""Classify the relation between two marked spans, as in SemEval-2010 Task 8: `Kind(e1,e2)`, `Kind(e2,e1)` or `Other`.

The text marks the spans with `<e1>..</e1>` and `<e2>..</e2>`. They are enclosed in `$` and `#` (Wu and He 2019), tokens of every
vocabulary. The class is read at the two opening marks and at the first token of the sentence (Soares et al. 2019: entity starts).
The head is a token classification head with three blocks of outputs, and their logits are added. This equals one linear layer on
the three concatenated vectors, and works with any AutoModelForTokenClassification.

Shapes: B batch, T tokens, L labels, P places (3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from learners.data_error import DataError
from learners.tasks.base import Batch, Example, Feature, Prediction, Recipe
from learners.tasks.text_base import TextTask, cross_entropy, inputs

PLACES = ("first", "e1", "e2")
MARKS = {"e1": "$", "e2": "#"}
_TAG = re.compile(r"</?e[12]>")


class Relate(TextTask):
    """`text` with marked spans -> `label`."""

    kind = "relation-extraction"
    selection = "macro_f1"
    auto: ClassVar[Any] = AutoModelForTokenClassification
    recipe = Recipe(
        epochs=8,
        batch=16,
        rates={"frozen": 5e-3, "top": 5e-4, "lora": 1e-3, "full": 1e-4},
        layer_decay=0.95,
        options={"max_length": 192, "label_smoothing": 0.05},
    )

    @classmethod
    def labels_of(cls, examples: Sequence[Example]) -> tuple[str, ...]:
        """Return every relation in use, sorted; the two directions are separate labels."""
        return tuple(sorted({str(example["label"]) for example in examples}))

    def outputs_named(self) -> tuple[str, ...]:
        """Return one output name for each place and label."""
        return tuple(f"{place}:{label}" for place in PLACES for label in self.labels)

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return one feature, with the positions of the three places."""
        del rng
        text, starts = self._around(*mark(str(example.get("text", ""))))
        encoded = self.processor(text, truncation=True, max_length=self.options.max_length)
        # a model without a first token for the whole text reads it at its end
        whole = 0 if self.processor.cls_token_id is not None else len(encoded["input_ids"]) - 1
        places = [whole, *(encoded.char_to_token(start) for start in starts)]
        if None in places:
            raise DataError(f"the marked spans are more than {self.options.max_length} pieces apart: {text}")
        feature: Feature = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        feature["places"] = places
        if "label" in example:
            if example["label"] not in self.labels:
                raise DataError(f"relation {example['label']!r} is not among {list(self.labels)}")
            feature["labels"] = self.labels.index(example["label"])
        return [feature]

    def _around(self, text: str, starts: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        """Return a text as it is, or, if it is longer than the model, the part of it that has both marks in its middle.

        Marks that no part of this length has both of are each in the middle of half of it.
        """
        offsets = self.processor(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        room = self.options.max_length - self.processor.num_special_tokens_to_add()
        if len(offsets) <= room:
            return text, starts
        low, high = (next(i for i, (_, end) in enumerate(offsets) if end > start) for start in sorted(starts))
        first = max(0, min(len(offsets) - room, (low + high + 1 - room) // 2))
        if low < first or high >= first + room:
            return _two_parts(text, starts, [_part(offsets, at, room // 2 - 1) for at in (low, high)])
        begin, end = offsets[first][0], offsets[first + room - 1][1]
        return text[begin:end], (starts[0] - begin, starts[1] - begin)

    def unread(self, example: Example) -> float:
        """Return the share of a text outside the part around its marks."""
        return self.share_above(self.pieces(mark(str(example["text"]))[0]), self.options.max_length)

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return a padded batch with places [B, P]."""
        return super().collate(features) | {"places": torch.tensor([feature["places"] for feature in features])}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits [B, L]: the sum over places of each place's block."""
        places_BP = batch["places"]
        given = {name: tensor for name, tensor in inputs(batch).items() if name != "places"}
        out_BTX = model(**given).logits
        blocks_BTPL = out_BTX.unflatten(-1, (len(PLACES), len(self.labels)))
        rows_B = torch.arange(len(places_BP), device=places_BP.device)
        return torch.stack([blocks_BTPL[rows_B, places_BP[:, p], p] for p in range(len(PLACES))]).sum(0)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy over relations."""
        return cross_entropy(self.logits(model, batch), batch["labels"], self.options.label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the probability of each relation."""
        return list(self.logits(model, batch).float().softmax(-1).cpu().numpy())

    def prediction(self, example: Example, features: Sequence[Feature], outputs: Sequence[Any]) -> Prediction:
        """Return the most probable relation."""
        del example, features
        scores_L = outputs[0]
        best = int(scores_L.argmax())
        chances = {label: float(score) for label, score in zip(self.labels, scores_L, strict=True)}
        return Prediction(self.labels[best], float(scores_L[best]), chances)

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Accuracy, and the official macro F1 of SemEval-2010 Task 8."""
        wanted = [str(example["label"]) for example in examples]
        found = [str(prediction.value) for prediction in predictions]
        right = sum(w == f for w, f in zip(wanted, found, strict=True))
        return {"accuracy": right / max(len(wanted), 1), "macro_f1": official_f1(wanted, found)}


def _part(offsets: Sequence[tuple[int, int]], middle: int, count: int) -> tuple[int, int]:
    """Return the first character, and the one after the last, of `count` pieces around a piece."""
    first = max(0, min(len(offsets) - count, middle - count // 2))
    return offsets[first][0], offsets[first + max(count, 1) - 1][1]


def _two_parts(
    text: str, starts: tuple[int, int], parts: Sequence[tuple[int, int]]
) -> tuple[str, tuple[int, int]]:  # fmt: skip
    """Return two parts of a text, one behind the other, and where the marks are in them."""
    (begin, end), (later, last) = parts
    moved = [start - begin if start < end else end - begin + 1 + start - later for start in starts]
    return f"{text[begin:end]} {text[later:last]}", (moved[0], moved[1])


def official_f1(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Mean F1 over the relations without `Other`; a right relation in the wrong direction is wrong.

    As semeval2010_task8_scorer-v1.2 counts "(9+1)-way with directionality": true positives need the direction too; the
    counts of wanted and found are those of the relation in either direction. With hits of both directions added up, F1 of
    a relation is 2 hits / (wanted + found).
    """
    kinds = sorted({_relation(label) for label in wanted} - {"Other"})
    if not kinds:
        return 0.0
    scores = []
    for kind in kinds:
        hits = sum(w == f and _relation(w) == kind for w, f in zip(wanted, found, strict=True))
        total = sum(_relation(w) == kind for w in wanted) + sum(_relation(f) == kind for f in found)
        scores.append(2 * hits / total)
    return float(np.mean(scores))


def _relation(label: str) -> str:
    return label.partition("(")[0]


def mark(text: str) -> tuple[str, tuple[int, int]]:
    """Return the text with spans between `$` and `#`, and the positions of the two opening marks.

    Raises:
        DataError: not exactly one of each tag, or an end before its beginning.
    """
    tags = _TAG.findall(text)
    if any([tag for tag in tags if name in tag] != [f"<{name}>", f"</{name}>"] for name in MARKS):
        raise DataError(f"exactly one <e1>..</e1> and one <e2>..</e2> are needed: {text!r}")
    out, starts, at = [], {}, 0
    for tag in _TAG.finditer(text):
        out.append(text[at : tag.start()])
        name = tag.group().strip("</>")
        if not tag.group().startswith("</"):
            starts[name] = sum(map(len, out)) + 1
        out.append(f" {MARKS[name]} ")
        at = tag.end()
    return "".join(out) + text[at:], (starts["e1"], starts["e2"])
