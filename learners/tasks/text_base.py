"""Define what the tasks on text share: the tokenizer, padded batches, classification metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from learners.tasks.base import IGNORED, Batch, Feature, Options, Task, pad

MOST_WINDOWS = 64
"""Windows of one text."""
PROBE = "a b a b a"
"""A text that shows whether padding changes what a model computes."""
SAME = 1e-4
"""Of the largest output, by which rounding may change one."""


class TextTask(Task):
    """A task with token ids as features.

    `options.max_length` never exceeds the positions of the model: `notes` says where it was lowered.
    """

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        super().__init__(source, options, labels)
        self.positions = positions(self.model)
        if self.positions is not None and self.options.max_length > self.positions:
            self.notes.append(
                f"max_length {self.options.max_length} is above the {self.positions} positions of the model, which are used"
            )
            self.options = replace(self.options, max_length=self.positions)

    @cached_property
    def pads_change_outputs(self) -> bool:
        """Whether padding changes what the model computes although it is masked; measured, because no configuration says so.

        FNet mixes all places, Funnel pools them, XLNet classifies by the last one.
        """
        if self.declaration().written:
            return False  # the library masks what it generates from
        texts = (PROBE,) if len(self.declaration().inputs) == 1 else (PROBE, PROBE)
        ids_BT = self.processor(*texts, return_tensors="pt")["input_ids"].to(self.device)
        modes = [(module, module.training) for module in self.model.modules()]  # frozen parts rest while others train
        self.model.eval()
        try:
            alone = self._padded(ids_BT, 0)
            gaps = [float((self._padded(ids_BT, count) - alone).abs().max()) for count in (1, 3)]
        finally:
            for module, training in modes:
                module.training = training
        return not max(gaps) < SAME * (1.0 + float(alone.abs().max()))

    @torch.inference_mode()
    def _padded(self, ids_BT: Tensor, count: int) -> Tensor:
        """Return the outputs for a text with `count` places of padding, without those of the padding."""
        given = {
            "input_ids": F.pad(ids_BT, (0, count), value=self.processor.pad_token_id or 0),
            "attention_mask": F.pad(torch.ones_like(ids_BT), (0, count)),
        }
        out: Tensor = self.model(**given)[0]
        each_token = out.dim() == 3 or not self.labels
        return out[:, : ids_BT.shape[1]] if each_token else out

    def load_processor(self, source: Path | str) -> Any:
        """Load the tokenizer; it must be a fast one, which reports the positions of its pieces."""
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if not tokenizer.is_fast:
            raise ValueError(f"{source}: its tokenizer has no fast form; save one with tokenizers first")
        return tokenizer

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return ids, mask and, if present, token types and targets."""
        ids = [feature["input_ids"] for feature in features]
        batch = {
            "input_ids": pad(ids, self.processor.pad_token_id or 0),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
        }
        if "token_type_ids" in features[0]:
            batch["token_type_ids"] = pad([feature["token_type_ids"] for feature in features], 0)
        if "labels" in features[0]:
            batch["labels"] = self.targets([feature["labels"] for feature in features])
        return batch

    def targets(self, labels: Sequence[Any]) -> Tensor:
        """Return the targets of a batch: one class for each example or for each token."""
        if isinstance(labels[0], int):
            return torch.tensor(labels)
        return pad(labels, IGNORED)

    def text_windows(self, text: str) -> list[Feature]:
        """Return ids and token types of a text: overlapping windows where it is longer than `max_length`, at most `MOST_WINDOWS`."""
        length = self.options.max_length
        encoded = self.processor(
            text,
            truncation=True,
            max_length=length,
            stride=min(length // 4, max(0, length - 8)),
            return_overflowing_tokens=True,
        )
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        return [
            {name: encoded[name][at] for name in names} for at in range(min(MOST_WINDOWS, len(encoded["input_ids"])))
        ]

    def pieces(self, *texts: str) -> int:
        """Return the number of pieces of one text or a pair, with the special ones."""
        return len(self.processor(*texts, verbose=False)["input_ids"])

    def share_above(self, count: int, most: int) -> float:
        """Return the share of `count` pieces that is above `most`."""
        return max(0, count - most) / max(count, 1)

    def text_feature(self, *texts: str) -> Feature:
        """Return ids and token types of one text or a pair, cut to `max_length`."""
        encoded = self.processor(*texts, truncation=True, max_length=self.options.max_length)
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a generated text."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    given = ends if isinstance(ends, list) else [ends]
    return {int(end) for end in [*given, tokenizer.eos_token_id] if end is not None}


def positions(model: Any) -> int | None:
    """Return the number of tokens that a model can place; None for one without such a limit."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is None or most <= 0:
        return None
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.num_embeddings - table.padding_idx - 1  # RoBERTa and its kin count from behind the padding
    return int(most)


def inputs(batch: Batch) -> Batch:
    """Return the batch without targets."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def cross_entropy(logits_NL: Tensor, labels_N: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy over targets that are not ignored, in float32; 0 where all are, as for words without a piece."""
    if bool((labels_N == IGNORED).all()):
        return logits_NL.float().sum() * 0.0
    return F.cross_entropy(logits_NL.float(), labels_N, ignore_index=IGNORED, label_smoothing=smoothing)


def macro_f1(wanted: Sequence[Any], found: Sequence[Any]) -> float:
    """Unweighted mean F1 over the labels that are wanted or found somewhere."""
    scores = [f1(wanted, found, label) for label in sorted({*wanted, *found}, key=str)]
    return float(np.mean(scores)) if scores else 0.0


def f1(wanted: Sequence[Any], found: Sequence[Any], label: Any) -> float:
    """F1 of one label; 0 where it is never right."""
    hits = sum(w == f == label for w, f in zip(wanted, found, strict=True))
    total = sum(w == label for w in wanted) + sum(f == label for f in found)
    return 2 * hits / total if total else 0.0
