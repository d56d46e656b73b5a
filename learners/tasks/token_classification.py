"""Token tags, for instance named entities (BIO): every word gets the tag of its first word piece.

Decoding is Viterbi over the word's log probabilities with the one hard rule of BIO: I-x follows B-x or I-x only. Metrics
are seqeval's (Ramshaw and Marcus 1995 chunks, as CoNLL 2003 counts them). A lower-casing BERT gets each word's
capitalisation back through its token types (four kinds instead of two; new ones start as copies of the first).

Shapes: B batch, T tokens, W words, L tags.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from learners.data_error import DataError
from learners.tasks.base import IGNORED, Batch, Example, Feature, Options, Prediction, Recipe
from learners.tasks.layers.heads import log_frequencies
from learners.tasks.text_base import TextTask, cross_entropy, inputs

CASES = 4
"""Token types: lower or none, Capitalised, ALL CAPITALS, miXed."""
TYPES = "token_type_embeddings"


class Tag(TextTask):
    """`tokens` -> `tags`."""

    kind = "token-classification"
    selection = "entity_f1"
    auto: ClassVar[Any] = AutoModelForTokenClassification
    recipe = Recipe(
        epochs=8,
        batch=16,
        rates={"frozen": 5e-3, "top": 5e-4, "lora": 1e-3, "full": 1e-4},
        layer_decay=0.9,
        head_rates={"lora": 10.0},
        options={"max_length": 192},
    )

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        self.cased = False
        super().__init__(source, options, labels)
        self.extra_trainable = (TYPES,) if self.cased else ()

    def load_model(self, source: Path | str) -> Any:
        """Load the model; its token types carry the case if the tokenizer ignores it."""
        model = super().load_model(source)
        self.cased = self.options.case and lower_cases(self.processor) and add_cases(model)
        return model

    @classmethod
    def labels_of(cls, examples: Sequence[Example]) -> tuple[str, ...]:
        """Return `O`, then `B-x` and `I-x` of every entity type in use."""
        types = sorted({tag[2:] for example in examples for tag in example["tags"] if tag != "O"})
        return ("O", *(f"{side}-{kind}" for kind in types for side in "BI"))

    def prior(self, examples: Sequence[Example]) -> Tensor:
        """Return the log frequency of every tag, with one more count for each."""
        counts = Counter(tag for example in examples for tag in example["tags"])
        return log_frequencies([counts[tag] for tag in self.labels])

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return overlapping windows of at most `max_length` pieces; each word belongs to the window that shows most around it."""
        del rng
        words = words_of(example)
        tags = [self._number(tag) for tag in example["tags"]] if "tags" in example else None
        if tags is not None and len(tags) != len(words):
            raise DataError(f"{len(words)} tokens but {len(tags)} tags: {words}")
        return [self._window(words, start, stop, own, tags) for start, stop, own in self._spans(words)]

    def _spans(self, words: Sequence[str]) -> list[tuple[int, int, range]]:
        """Return the windows of a text: first word, word after the last one, and the words that the window predicts."""
        room = max(1, self.options.max_length - self.processor.num_special_tokens_to_add())
        pieces = [0] * len(words)
        for number in self.processor(list(words), is_split_into_words=True, add_special_tokens=False).word_ids():
            pieces[number] += 1
        spans: list[tuple[int, int]] = []
        start = 0
        while not spans or spans[-1][1] < len(words):
            stop = start
            size = 0
            while stop < len(words) and (stop == start or size + pieces[stop] <= room):
                size, stop = size + pieces[stop], stop + 1
            spans.append((start, stop))
            start, size = stop, 0
            while start - 1 > spans[-1][0] and size + pieces[start - 1] <= room // 2:
                start, size = start - 1, size + pieces[start - 1]
        edges = [0, *((after[0] + before[1]) // 2 for before, after in itertools.pairwise(spans)), len(words)]
        return [(*span, range(edges[i], edges[i + 1])) for i, span in enumerate(spans)]

    def _window(
        self, words: Sequence[str], start: int, stop: int, own: range, tags: Sequence[int] | None
    ) -> Feature:  # fmt: skip
        encoded = self.processor(
            list(words[start:stop]), is_split_into_words=True, truncation=True, max_length=self.options.max_length
        )
        ids: list[int | None] = encoded.word_ids()
        first = [at for at, i in enumerate(ids) if i is not None and start + i in own and (at == 0 or ids[at - 1] != i)]
        feature: Feature = {
            "input_ids": encoded["input_ids"],
            "first": first,
            "words": [start + (ids[at] or 0) for at in first],
        }
        if self.cased:
            feature["token_type_ids"] = [0 if i is None else case_of(words[start + i]) for i in ids]
        elif "token_type_ids" in encoded:
            feature["token_type_ids"] = encoded["token_type_ids"]
        if tags is not None:
            targets = [IGNORED] * len(ids)
            for at, word in zip(first, feature["words"], strict=True):
                targets[at] = tags[word]
            feature["labels"] = targets
        return feature

    def _number(self, tag: str) -> int:
        if tag not in self.labels:
            raise DataError(f"tag {tag!r} is not among {list(self.labels)}")
        return self.labels.index(tag)

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return a padded batch with the length of each feature and the start of its words."""
        batch = super().collate(features)
        longest = max(1, *(len(feature["first"]) for feature in features))
        first = torch.full((len(features), longest), -1)
        for i, feature in enumerate(features):
            first[i, : len(feature["first"])] = torch.as_tensor(feature["first"], dtype=torch.long)
        return batch | {"first": first}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy over first word pieces."""
        logits_BTL = model(**_inputs(batch)).logits
        return cross_entropy(logits_BTL.flatten(0, 1), batch["labels"].flatten(), self.options.label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Log probabilities [W, L] of each feature's words."""
        logs_BTL = model(**_inputs(batch)).logits.float().log_softmax(-1).cpu().numpy()
        firsts = batch["first"].cpu().numpy()
        return [logs[first[first >= 0]] for logs, first in zip(logs_BTL, firsts, strict=True)]

    def no_choice(self, examples: Sequence[Example]) -> str:
        """Return that no example has an entity, so that F1 is 0 for every epoch."""
        has_entity = any(tag != "O" for example in examples for tag in example["tags"])
        return "" if has_entity else "no example has an entity"

    def prediction(self, example: Example, features: Sequence[Feature], outputs: Sequence[Any]) -> Prediction:
        """Return the tags of all words; words without a piece are `O`."""
        words = words_of(example)
        logs_WL = np.full((len(words), len(self.labels)), -1e4, np.float32)
        logs_WL[:, self.labels.index("O")] = 0.0
        for feature, logs in zip(features, outputs, strict=True):
            logs_WL[feature["words"]] = logs
        path = viterbi(logs_WL, self._allowed())
        tags = [self.labels[i] for i in path]
        spans = [
            {"type": kind, "start": start, "end": end + 1, "text": " ".join(words[start : end + 1])}
            for kind, start, end in get_entities(tags)
        ]
        sure = float(np.exp(logs_WL[np.arange(len(path)), path].min())) if len(path) else None
        return Prediction(tags, sure, details={"spans": spans})

    def _allowed(self) -> NDArray[np.bool_]:
        """Return [L, L]: whether a tag may follow another."""
        return np.array([
            [not after.startswith("I-") or before in (after, "B-" + after[2:]) for after in self.labels]
            for before in self.labels
        ])  # fmt: skip

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Entity precision, recall and F1 (micro), and accuracy of tags."""
        wanted = [list(example["tags"]) for example in examples]
        found = [list(prediction.value) for prediction in predictions]
        pairs = [(w, f) for row in zip(wanted, found, strict=True) for w, f in zip(*row, strict=True)]
        scores = {"entity_precision": precision_score, "entity_recall": recall_score, "entity_f1": f1_score}
        return {name: float(score(wanted, found, zero_division=0)) for name, score in scores.items()} | {
            "accuracy": sum(w == f for w, f in pairs) / max(len(pairs), 1)
        }


def words_of(example: Example) -> list[str]:
    """Return the words of `tokens`, or of `text` split at white space."""
    if "tokens" in example:
        return [str(word) for word in example["tokens"]]
    if "text" in example:
        return str(example["text"]).split()
    raise DataError(f"an example without `tokens` or `text`: {dict(example)}")


def _inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in inputs(batch).items() if name != "first"}


def case_of(word: str) -> int:
    """Return the case: 0 lower or without letters, 1 Capitalised, 2 ALL CAPITALS (two letters or more), 3 miXed."""
    letters = [c for c in word if c.isalpha()]
    capitals = [c.isupper() for c in letters]
    if not any(capitals):
        return 0
    if len(letters) > 1 and all(capitals):
        return 2
    return 1 if capitals[0] and not any(capitals[1:]) else 3


def lower_cases(tokenizer: Any) -> bool:
    """Return whether the tokenizer ignores case."""
    return bool(tokenizer.tokenize("Reflex") == tokenizer.tokenize("reflex"))


@torch.no_grad()
def add_cases(model: Any) -> bool:
    """Widen the model's token types to `CASES`; False where it has none."""
    if not getattr(model.config, "type_vocab_size", 0):
        return False
    for module in model.modules():
        old = getattr(module, TYPES, None)
        if isinstance(old, nn.Embedding) and old.num_embeddings < CASES:
            new = nn.Embedding(CASES, old.embedding_dim)
            new.weight.copy_(old.weight[:1].expand(CASES, -1))
            setattr(module, TYPES, new)
            model.config.type_vocab_size = CASES
    return int(model.config.type_vocab_size) == CASES


def viterbi(logs_WL: NDArray[np.float32], allowed_LL: NDArray[np.bool_]) -> list[int]:
    """Return the most probable sequence of allowed steps; `I-x` cannot begin, as after a row that allows no I."""
    if not len(logs_WL):
        return []
    barred_LL = np.where(allowed_LL, 0.0, -np.inf)
    # what may follow nothing is what may follow every tag: B-x and O
    score_L = logs_WL[0] + np.where(allowed_LL.all(0), 0.0, -np.inf)
    back: list[NDArray[np.int64]] = []
    for row_L in logs_WL[1:]:
        through_LL = score_L[:, None] + barred_LL
        back.append(through_LL.argmax(0))
        score_L = through_LL.max(0) + row_L
    path = [int(score_L.argmax())]
    for step in reversed(back):
        path.append(int(step[path[-1]]))
    return path[::-1]
