"""Extractive question answering: the span of a context that answers a question (SQuAD 1.1's task and metrics).

Long contexts are read in overlapping windows; the best-scoring span of all windows is the answer. That there is none is an answer where
examples without one trained.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from learners.data_error import DataError
from learners.tasks.base import Batch, Example, Feature, Prediction, Recipe
from learners.tasks.text_base import TextTask, cross_entropy, inputs

STRIDE = 64
"""Pieces that neighbouring windows share, at least, where windows are long."""
MORE = 2
"""Pieces that an answer may have more in its context than alone."""
_NEVER = -1e9


class Answer(TextTask):
    """`question`, `context` -> `answers` (each `text`, `start`)."""

    kind = "question-answering"
    selection = "f1"
    auto: ClassVar[Any] = AutoModelForQuestionAnswering
    recipe = Recipe(
        epochs=3,
        batch=16,
        rates={"frozen": 5e-3, "top": 5e-4, "lora": 1e-3, "full": 1e-4},
        options={"max_length": 384},
    )

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return one feature for each window; the target of a window without the answer is its first token."""
        del rng
        encoded = self.processor(
            self._question(str(example["question"])), str(example["context"]), truncation="only_second",
            max_length=self.options.max_length, stride=self._overlap,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        return [self._window(encoded, i, example) for i in range(len(encoded["input_ids"]))]

    @property
    def _overlap(self) -> int:
        """The pieces that neighbouring windows share: an answer of that many is whole in one of them."""
        length = self.options.max_length
        return max(min(STRIDE, length // 4), min(self.options.longest_answer, length // 3))

    @property
    def _longest_question(self) -> int:
        special = int(self.processor.num_special_tokens_to_add(pair=True))
        return max(1, self.options.max_length // 2 - special)

    def _question(self, question: str) -> str:
        """Return at most half a window of a question, so that each window has room for the context."""
        offsets = self.processor(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        most = self._longest_question
        return question if len(offsets) <= most else question[: offsets[most - 1][1]]

    def unread(self, example: Example) -> float:
        """Return 1 where no window holds the whole answer, which then never trains; else the share of the question that is cut."""
        if example.get("answers") and all(feature["labels"] == [0, 0] for feature in self.features(example)):
            return 1.0
        question = self.processor(str(example["question"]), add_special_tokens=False)["input_ids"]
        return self.share_above(len(question), self._longest_question)

    @classmethod
    def fitting_answer(cls, source: Path | str, examples: Sequence[Example]) -> int:
        """Return the pieces of the longest answer in its context."""
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        texts = [str(answer["text"]) for example in examples for answer in example["answers"][:1]]
        counts = (len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts)
        return max(counts, default=0) + MORE

    def _window(self, encoded: Any, i: int, example: Example) -> Feature:
        feature: Feature = {name: encoded[name][i] for name in ("input_ids", "token_type_ids") if name in encoded}
        feature["offsets"] = [
            offset if part == 1 else None
            for offset, part in zip(encoded["offset_mapping"][i], encoded.sequence_ids(i), strict=True)
        ]
        if "answers" in example:
            feature["labels"] = _target(feature["offsets"], example) if example["answers"] else [0, 0]
        return feature

    def targets(self, labels: Sequence[Any]) -> Tensor:
        """First and last piece [B, 2]."""
        return torch.tensor(labels)

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return a padded batch with a mask of the pieces that an answer may have, [B, T]."""
        batch = super().collate(features)
        allowed_BT = torch.zeros_like(batch["input_ids"])
        for i, feature in enumerate(features):
            allowed_BT[i, : len(feature["offsets"])] = torch.tensor(
                [offset is not None for offset in feature["offsets"]]
            )
        return batch | {"allowed": allowed_BT}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of first and last piece."""
        out = model(**_inputs(batch))
        first_B, last_B = batch["labels"].unbind(-1)
        smoothing = self.options.label_smoothing
        start = cross_entropy(_masked(out.start_logits, batch), first_B, smoothing)
        return (start + cross_entropy(_masked(out.end_logits, batch), last_B, smoothing)) / 2

    def outputs(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Log probability, first and last piece of the best span of each window, and the log probability of no answer."""
        out = model(**_inputs(batch))
        barred_BT = (batch["allowed"] == 0) * _NEVER
        start_BT, end_BT = (_masked(x, batch).log_softmax(-1) for x in (out.start_logits, out.end_logits))
        none_B = start_BT[:, 0] + end_BT[:, 0]
        start_BT, end_BT = start_BT + barred_BT, end_BT + barred_BT
        pairs_BTT = start_BT[:, :, None] + end_BT[:, None, :]
        width = pairs_BTT.shape[-1]
        band_TT = torch.ones(width, width, device=pairs_BTT.device).triu().tril(self.options.longest_answer - 1) == 0
        best_B, at_B = pairs_BTT.masked_fill(band_TT, 2 * _NEVER).flatten(1).max(-1)
        return [
            (float(b), int(a) // width, int(a) % width, float(n)) for b, a, n in zip(best_B, at_B, none_B, strict=True)
        ]

    def prediction(self, example: Example, features: Sequence[Feature], outputs: Sequence[Any]) -> Prediction:
        """Return the best span of all windows; no text if no answer is more probable in each, and examples had none."""
        score, window, first, last = max((out[0], i, *out[1:3]) for i, out in enumerate(outputs))
        none = min(out[3] for out in outputs)
        if self.options.unanswerable and none > score:
            return Prediction("", float(np.exp(none)))
        offsets = features[window]["offsets"]
        if offsets[first] is None or offsets[last] is None:  # a window without any piece of the context
            return Prediction("", 0.0)
        start, end = offsets[first][0], offsets[last][1]
        return Prediction(
            str(example["context"])[start:end], float(np.exp(score)), details={"start": int(start), "end": int(end)}
        )

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Exact match and F1 over words, the best of all given answers."""
        scores = [
            max((exact_match(a["text"], p.value), word_f1(a["text"], p.value)) for a in e["answers"] or [{"text": ""}])
            for e, p in zip(examples, predictions, strict=True)
        ]
        means = np.mean(scores, axis=0) if scores else (0.0, 0.0)
        return {"exact_match": float(means[0]), "f1": float(means[1])}


def _inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in inputs(batch).items() if name != "allowed"}


def _masked(logits_BT: Tensor, batch: Batch) -> Tensor:
    """Return logits in float32; padding has no probability, however long a batch is."""
    return logits_BT.float().masked_fill(batch["attention_mask"] == 0, _NEVER)


def _target(offsets: Sequence[tuple[int, int] | None], example: Example) -> list[int]:
    """First and last piece of the first answer; 0, 0 where the window does not hold it whole."""
    answer = example["answers"][0]
    text, context = str(answer["text"]), str(example["context"])
    start = int(answer.get("start", context.find(text)))
    if not text or context[start : start + len(text)] != text:
        raise DataError(f"answer {text!r} is not at {start} of its context")
    inside = [
        at for at, offset in enumerate(offsets)
        if offset is not None and offset[0] < start + len(text) and offset[1] > start
    ]  # fmt: skip
    if not inside:
        return [0, 0]
    first, last = offsets[inside[0]], offsets[inside[-1]]
    whole = first is not None and last is not None and first[0] <= start and last[1] >= start + len(text)
    return [inside[0], inside[-1]] if whole else [0, 0]


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and extra spaces, as SQuAD's scorer does."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(wanted: str, found: str) -> float:
    """Return 1 if both normalise to the same text."""
    return float(normalise(wanted) == normalise(found))


def word_f1(wanted: str, found: str) -> float:
    """F1 over the words of both."""
    a, b = normalise(wanted).split(), normalise(found).split()
    common = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b)
    return 2 * common / (len(a) + len(b))
