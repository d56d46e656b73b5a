"""Make generated tokens follow a grammar, and bring a text that reaches its length limit to a permitted end.

llguidance computes which tokens may follow. A text that is still open at its limit is shortened to its last permitted end, or a
bounded search finds the shortest way to one. Used by the tasks that generate text; knows no model.

Shapes: V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from learners.tasks.generation.vocabulary import open_tokenizer

MOST_STEPS = 10_000
"""Tokens that one search for an end tries."""
BEAM = 16
"""Paths that it keeps at each length."""
FEW = 64
"""Permitted tokens that a search tries one by one; of more it tries those of one ASCII character."""


class TextGrammar:
    """A grammar with a tokenizer.

    Args:
        grammar: in llguidance's form.
        tokenizer: a fast tokenizer of transformers.
        rows: number of the model's outputs for a token.
        ends: the tokens that end a text.
        most: tokens of one text; the shortest permitted text must fit.

    Raises:
        ValueError: llguidance cannot read the tokenizer or follow the grammar with it, or no permitted text of `most` tokens was found.
    """

    def __init__(self, grammar: str, tokenizer: Any, rows: int, ends: Sequence[int], most: int) -> None:
        self._tokens = open_tokenizer(tokenizer, rows, list(ends))
        self._start = LLMatcher(self._tokens, grammar, log_level=0)
        if self._start.is_error():
            raise ValueError(f"output: llguidance cannot follow it: {self._start.get_error().splitlines()[0]}")
        self.rows, self.ends, self.most = rows, frozenset(ends), most
        self._plain, self._single = self._one_byte(tokenizer)
        shortest = self.completion([], most)
        if shortest is None:
            raise ValueError(
                f"output: no permitted text of at most {most} tokens was found for this model; raise max_new_tokens, or let the "
                "output permit a shorter text"
            )

    def _one_byte(self, tokenizer: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which tokens are one ASCII character [V], and which are one byte [V]."""
        plain, single = np.zeros(self.rows, dtype=bool), np.zeros(self.rows, dtype=bool)
        special = set(tokenizer.all_special_ids)
        for token in range(min(self.rows, len(tokenizer))):
            written = b"" if token in special else self._tokens.decode_bytes([token])
            single[token] = len(written) == 1
            plain[token] = single[token] and written.isascii()
        return plain, single

    def text(self) -> ConstrainedText:
        """Begin a text."""
        return ConstrainedText(self, self._start.deep_copy())

    def permitted(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """Return which tokens may follow [V]."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little").astype(bool)[: self.rows]

    def closed(self, tokens: Sequence[int]) -> list[int]:
        """Return tokens with their last part replaced, so that the text ends as permitted within `most` tokens."""
        back = itertools.chain((2**power for power in range(len(tokens).bit_length())), (len(tokens),))
        for count in back:
            stem = list(tokens[: max(0, len(tokens) - count)])
            if (rest := self.completion(stem, self.most - len(stem))) is not None:
                return stem + rest
        raise AssertionError("the shortest text was found when the grammar was opened")

    def completion(self, tokens: Sequence[int], most: int) -> list[int] | None:
        """Search a short list of tokens that ends a text as permitted; None if none of at most `most` tokens is found.

        A beam search by length. A place is described by the tokens that may follow it, so of all followers with equal descriptions
        one is tried. Paths of one length through the same places count as one. The beam keeps the paths through the most places:
        a path that repeats a place makes no progress.
        """
        start = self._start.deep_copy()
        if not start.consume_tokens(list(tokens)):
            return None
        if start.is_accepting():
            return []
        place = bytes(start.compute_bitmask())
        beam = [_Path(start, [], place, frozenset([place]))]
        telling: dict[bytes, list[int]] = {}
        steps = 0
        for _ in range(most):
            found: dict[tuple[bytes, frozenset[bytes]], _Path] = {}
            for path in beam:
                distinct: dict[bytes, int] = {}
                for token in telling.get(path.place) or self._candidates(path.matcher):
                    steps += 1
                    after = path.matcher.deep_copy()
                    if not after.consume_token(token):
                        continue
                    if after.is_accepting():
                        return [*path.tokens, token]
                    place = bytes(after.compute_bitmask())
                    distinct.setdefault(place, token)
                    longer = _Path(after, [*path.tokens, token], place, path.places | {place})
                    found.setdefault((place, longer.places), longer)
                telling.setdefault(path.place, list(distinct.values()))
            beam = sorted(found.values(), key=lambda path: -len(path.places))[:BEAM]
            if not beam or steps > MOST_STEPS:
                return None
        return None

    def _candidates(self, matcher: LLMatcher) -> Iterator[int]:
        """Yield the tokens that a search tries."""
        allowed = self.permitted(matcher)
        found = np.flatnonzero(allowed)
        if len(found) > FEW:
            plain, single = np.flatnonzero(allowed & self._plain), np.flatnonzero(allowed & self._single)
            found = plain if len(plain) else single if len(single) else found[:FEW]
        yield from (int(token) for token in found if int(token) not in self.ends)


@dataclass(frozen=True, slots=True)
class _Path:
    """A way from a text towards an end."""

    matcher: LLMatcher
    tokens: list[int]
    place: bytes
    """The mask of the tokens that may follow."""
    places: frozenset[bytes]
    """Those it came through."""


class ConstrainedText:
    """One text that follows a grammar, token by token."""

    def __init__(self, grammar: TextGrammar, matcher: LLMatcher) -> None:
        self._grammar, self._matcher = grammar, matcher
        self.tokens: list[int] = []
        self.permitted_end: int | None = 0 if matcher.is_accepting() else None
        """Number of tokens at which the text could end last; None if it could not yet."""

    @property
    def finished(self) -> bool:
        """Whether no token may follow."""
        return self._matcher.is_stopped()

    def permitted(self) -> NDArray[np.bool_]:
        """Return which tokens may follow [V], with the ones that end the text."""
        return self._grammar.permitted(self._matcher)

    def add(self, token: int) -> None:
        """Add a permitted token.

        Raises:
            ValueError: it is not permitted, or llguidance reached one of its limits.
        """
        if not self._matcher.consume_token(token):
            reason = (self._matcher.get_error() or "it is not permitted").splitlines()[0]
            raise ValueError(f"output: token {token} cannot follow: {reason}")
        self.tokens.append(token)
        if self._matcher.is_accepting():
            self.permitted_end = len(self.tokens)

    def result(self) -> list[int]:
        """Return the tokens of the text, which ends as permitted also if the model did not bring it to an end."""
        if self.permitted_end is not None:
            return self.tokens[: self.permitted_end]
        return self._grammar.closed(self.tokens)
