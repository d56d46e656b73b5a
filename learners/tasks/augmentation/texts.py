"""Change the tokens of a text: leave some out, and replace some by words that fit in their place.

Words that fit are the model's own masked predictions (Kobayashi 2018). A model without a head for masked predictions backs off to the
nearest words in its table of embeddings.

Shapes: T tokens, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForMaskedLM

from learners.tasks.layers.heads import quiet

Feature = dict[str, Any]
"""One input of a model, with `input_ids`."""
DROPPED, REPLACED = 0.1, 0.15
"""Share of the tokens that are left out, and of the words that are replaced."""
CANDIDATES = 8
"""Words among which a replacement is drawn."""
SHARPNESS = 20.0
"""Factor of the cosine of two embeddings before the softmax."""
MAX_SCORES = 8_000_000
"""Scores, of each word in each place of each masked text, that one batch holds: 32 MB, and as much again beside it."""


def without_tokens(feature: Feature, special: frozenset[int], rng: np.random.Generator) -> Feature:
    """Return a feature of which each token is left out with the probability `DROPPED`; special ones and at least one other remain."""
    ids = feature["input_ids"]
    stays = [token in special or bool(keep) for token, keep in zip(ids, rng.random(len(ids)) >= DROPPED, strict=True)]
    if not any(keep and token not in special for token, keep in zip(ids, stays, strict=True)):
        return feature
    names = [name for name in ("input_ids", "token_type_ids") if name in feature]
    return feature | {name: [one for one, keep in zip(feature[name], stays, strict=True) if keep] for name in names}


def masked_model(source: Path | str) -> Any:
    """Return the model with its head for masked predictions; None if the architecture or the weights have none."""
    with quiet():
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        mapping: Any = MODEL_FOR_MASKED_LM_MAPPING
        if type(config) not in mapping:
            return None
        model, loaded = AutoModelForMaskedLM.from_pretrained(
            source, output_loading_info=True, dtype=torch.float32, trust_remote_code=False
        )
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return None if set(loaded["missing_keys"]) - tied else model.eval()


class Synonyms:
    """Draws words that fit in the place of others.

    Args:
        source: folder or id of the model.
        tokenizer: its tokenizer.
        table_VX: the model's embeddings.
    """

    def __init__(self, source: Path | str, tokenizer: Any, table_VX: Tensor) -> None:
        self.tokenizer = tokenizer
        self.model = masked_model(source) if tokenizer.mask_token_id is not None else None
        names = tokenizer.convert_ids_to_tokens(list(range(len(table_VX))))
        pieces = [str(name) for name in names]
        self._marks_starts = any(piece.startswith(("Ġ", "▁")) for piece in pieces)
        self._words_V = np.array([self._is_word(piece) for piece in pieces])
        self._fold = [piece.lstrip("Ġ▁").casefold() for piece in pieces]
        self._table_VX = F.normalize(table_VX.detach().float().cpu(), dim=1)
        self._found: dict[tuple[int, ...], list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = {}
        self._near: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}

    def replaced(self, feature: Feature, rng: np.random.Generator) -> Feature:
        """Return a feature of which each whole word of one token is replaced with the probability `REPLACED`."""
        ids = list(feature["input_ids"])
        chosen = [at for at in np.flatnonzero(rng.random(len(ids)) < REPLACED).tolist() if self._whole(ids, at)]
        if not chosen:
            return feature
        found = self._masked(ids) if self.model is not None else None
        for at in chosen:
            words_K, chances_K = self._neighbours(feature["input_ids"][at]) if found is None else found[at]
            if len(words_K):
                ids[at] = int(rng.choice(words_K, p=chances_K))
        return feature | {"input_ids": ids}

    def _is_word(self, piece: str) -> bool:
        """Return whether a piece is a whole word at its start: with the mark of a start, where the tokenizer has one."""
        if self._marks_starts:
            return piece[:1] in ("Ġ", "▁") and piece[1:].isalpha()
        return piece.isalpha()

    def _whole(self, ids: Sequence[int], at: int) -> bool:
        """Return whether a token is a whole word: one that starts a word and is followed by the start of another or no word."""
        if not self._words_V[ids[at]]:
            return False
        if at + 1 == len(ids):
            return True
        after = self._fold[ids[at + 1]]
        return not after.startswith("##") and (
            not self._marks_starts or bool(self._words_V[ids[at + 1]]) or not after.isalpha()
        )

    def _neighbours(self, token: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the nearest words in the table of embeddings, and how probable each is."""
        if token not in self._near:
            near_V = self._table_VX @ self._table_VX[token]
            self._near[token] = self._candidates(near_V * SHARPNESS, token)
        return self._near[token]

    @torch.inference_mode()
    def _masked(self, ids: Sequence[int]) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Return what the model predicts in the place of each token, masked alone; computed once for each text."""
        key = tuple(ids)
        if key not in self._found:
            assert self.model is not None
            rows_TT = torch.tensor(ids).repeat(len(ids), 1)
            rows_TT.fill_diagonal_(self.tokenizer.mask_token_id)
            found = []
            chunk = max(1, MAX_SCORES // (len(ids) * len(self._words_V)))
            for at in range(0, len(ids), chunk):
                logits_CTV = self.model(input_ids=rows_TT[at : at + chunk]).logits
                found += [
                    self._candidates(logits_TV[at + row].float(), ids[at + row])
                    for row, logits_TV in enumerate(logits_CTV)
                ]
                del logits_CTV  # before those of the next ones are made
            self._found[key] = found
        return self._found[key]

    def _candidates(self, scores_V: Tensor, token: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the best words that are not the token in another case, with softmax probabilities."""
        best = torch.topk(scores_V, min(len(scores_V), 4 * CANDIDATES))
        fitting = [
            (word, score)
            for word, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            if word < len(self._words_V) and self._words_V[word] and self._fold[word] != self._fold[token]
        ][:CANDIDATES]
        if not fitting:
            return np.zeros(0, np.int64), np.zeros(0)
        scores_K = np.array([score for _, score in fitting])
        chances_K = np.exp(scores_K - scores_K.max())
        return np.array([word for word, _ in fitting]), chances_K / chances_K.sum()
