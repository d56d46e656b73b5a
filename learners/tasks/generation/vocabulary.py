"""Open a tokenizer of transformers for llguidance: the bytes that each token writes.

llguidance reads tokenizers that write bytes (GPT-2, Llama and their kin). T5, mBART and others mark spaces in whole characters
(SentencePiece Unigram, Kudo 2018): for those the bytes of each token are given here.
"""

from __future__ import annotations

from typing import Any

import orjson
from llguidance import LLTokenizer, TokenizerWrapper
from llguidance.hf import from_tokenizer


class MarkedSpaces:
    """What llguidance needs of a tokenizer that marks spaces in its tokens by one character.

    Args:
        tokenizer: a fast one.
        mark: the character in place of a space.
        rows: number of tokens of the model.
        end: the token that ends a text.
    """

    def __init__(self, tokenizer: Any, mark: str, rows: int, end: int) -> None:
        self._pieces, self._mark = tokenizer.backend_tokenizer.model, mark
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos_token_id
        special = set(tokenizer.all_special_ids)
        unused = range(len(tokenizer), rows)
        self.special_token_ids = sorted({*special, *unused})
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.tokens = [
            f"<{token}>".encode() if token in special else str(name).replace(mark, " ").encode()
            for token, name in enumerate(names)
        ]
        self.tokens += [f"<{token}>".encode() for token in unused]

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text; unlike at the beginning of an input, no space is put in front."""
        if not isinstance(text, str):
            raise TypeError("expected a text")
        return [piece.id for piece in self._pieces.tokenize(text.replace(" ", self._mark))]


def open_tokenizer(tokenizer: Any, rows: int, ends: list[int]) -> LLTokenizer:
    """Return a tokenizer for llguidance.

    Args:
        tokenizer: a fast one of transformers.
        rows: number of the model's outputs for a token.
        ends: the tokens that end a text.

    Raises:
        ValueError: it is of another kind, and the bytes of its tokens are unclear.
    """
    rows = max(rows, len(tokenizer))
    decoder = orjson.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    if decoder.get("type") == "Metaspace":
        marked = MarkedSpaces(tokenizer, decoder.get("replacement", "\u2581"), rows, ends[0])
        return LLTokenizer(TokenizerWrapper(marked), n_vocab=rows, eos_token=ends)
    try:
        return from_tokenizer(tokenizer, n_vocab=rows, eos_token=ends)
    except ValueError as error:
        raise ValueError(
            f"output: llguidance cannot read this model's tokenizer ({error}); use a model with a tokenizer that writes pieces of words"
        ) from None
