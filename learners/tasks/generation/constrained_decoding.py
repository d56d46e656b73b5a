"""Make generated tokens follow a grammar, and bring a text that reaches its length limit to a permitted end.

llguidance computes which tokens may follow. A text that is still open at its limit is shortened to its last permitted end, or a
bounded search looks for a short way to one. Where it finds none, the text is refused: that no text exists is not shown by that. Used by the tasks that generate text; knows no model.

Shapes: V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from learners.tasks.generation.sample_texts import sample_texts
from learners.tasks.generation.vocabulary import open_tokenizer

MOST_STEPS = 10_000
"""Tokens that one search for an end tries."""
BEAM = 16
"""Paths that it keeps at each length."""
FEW = 64
"""Permitted tokens that a search tries one by one; of more it tries those of one ASCII character."""
ALIKE = 4
"""Paths through the same places that it keeps: equal masks do not show that the same texts may follow."""
MOST_SAMPLES = 32
"""Texts that it tries at once as the next tokens."""


class UnfollowedOutput(ValueError):  # noqa: N818 - reads as what happened
    """A text is not what `output` or `banned` permits, or no permitted end of it was found; it must not leave."""


class TextGrammar:
    """A grammar with a tokenizer.

    Args:
        grammar: in llguidance's form.
        tokenizer: a fast tokenizer of transformers.
        rows: number of the model's outputs for a token.
        ends: the tokens that end a text.
        most: tokens of one text; the shortest permitted text must fit.

    Raises:
        ValueError: llguidance cannot read the tokenizer or follow the grammar with it, or no text of `most` tokens is permitted.
    """

    def __init__(self, grammar: str, tokenizer: Any, rows: int, ends: Sequence[int], most: int) -> None:
        self._tokens, self._grammar = open_tokenizer(tokenizer, rows, list(ends)), grammar
        self._start = LLMatcher(self._tokens, grammar, log_level=0)
        self.rows, self.ends, self.most = rows, frozenset(ends), most
        permits_any = not self._start.is_error() and bool(self.permitted(self._start).any())
        if reason := self._start.get_error():
            raise ValueError(f"output: llguidance cannot follow it: {reason.splitlines()[0]}")
        self._plain, self._single = self._one_byte(tokenizer)
        self._shortest, exhausted = self._search([], most)
        if self._shortest is None and (exhausted or not permits_any):
            raise ValueError(
                f"output: no text of at most {most} tokens is permitted for this model; raise max_new_tokens, or let the output permit "
                "a shorter text"
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
        """Return tokens with their last part replaced, so that the text ends as permitted within `most` tokens.

        Raises:
            UnfollowedOutput: no permitted end was found.
        """
        for count in (2**power for power in range(len(tokens).bit_length())):
            stem = list(tokens[: max(0, len(tokens) - count)])
            if (rest := self.completion(stem, self.most - len(stem))) is not None:
                return stem + rest
        if self._shortest is None:
            raise UnfollowedOutput(
                f"the text was open at its limit of {self.most} tokens, and no end that the output permits was found; raise "
                "max_new_tokens, or let the output permit a shorter text"
            )
        return self._shortest

    def completion(self, tokens: Sequence[int], most: int) -> list[int] | None:
        """Search a short list of tokens that ends a text as permitted; None if none of at most `most` tokens is found."""
        return self._search(tokens, most)[0]

    def _search(self, tokens: Sequence[int], most: int) -> tuple[list[int] | None, bool]:
        """Return what `completion` does, and whether the search tried everything."""
        start = self._start.deep_copy()
        if not start.consume_tokens(list(tokens)):
            return None, True
        if start.is_accepting():
            return [], False
        search = _Search(self, most)
        return search.run(start), search.exhausted

    def written(self, tokens: Sequence[int]) -> bytes:
        """Return what tokens write."""
        return bytes(self._tokens.decode_bytes(list(tokens)))

    @cached_property
    def samples(self) -> list[list[int]]:
        """The tokens of texts that the grammar's expressions suggest, and of their ends, the whole texts first."""
        texts = sample_texts(self._grammar)[:MOST_SAMPLES]
        ends = (text[at:] for text in texts for at in range(1, len(text)))
        tried = itertools.islice(dict.fromkeys((*texts, *ends)), MOST_SAMPLES)
        return [list(self._tokens.tokenize_str(text)) for text in tried]

    def candidates(self, matcher: LLMatcher) -> tuple[list[int], bool]:
        """Return the tokens that a search tries, and whether these are all that may follow."""
        allowed = self.permitted(matcher)
        found = np.flatnonzero(allowed)
        complete = len(found) <= FEW
        if not complete:
            plain, single = np.flatnonzero(allowed & self._plain), np.flatnonzero(allowed & self._single)
            found = plain if len(plain) else single if len(single) else found[:FEW]
        return [int(token) for token in found if int(token) not in self.ends], complete


@dataclass(frozen=True, slots=True)
class _Path:
    """A way from a text towards an end."""

    matcher: LLMatcher
    tokens: list[int]
    place: bytes
    """The mask of the tokens that may follow."""
    places: frozenset[bytes]
    """Those it came through."""
    changes: int = 0
    """Steps that led to another place than the one before."""
    text: bytes = b""

    @classmethod
    def at(cls, matcher: LLMatcher) -> _Path:
        """Return the empty way from a text."""
        place = bytes(matcher.compute_bitmask())
        return cls(matcher, [], place, frozenset([place]))

    def longer(self, after: LLMatcher, tokens: Sequence[int], text: bytes) -> _Path:
        """Return the way with further tokens, which write `text` and after which `after` is reached."""
        place = bytes(after.compute_bitmask())
        changes = self.changes + (place != self.place)
        return _Path(after, [*self.tokens, *tokens], place, self.places | {place}, changes, self.text + text)

    def rank(self) -> tuple[int, int]:
        """Return a key that is smaller for a way that made more progress."""
        return -len(self.places), -self.changes


class _Search:
    """A beam search by length for an end of at most `most` tokens.

    A place is described by the tokens that may follow it, so of all followers with equal descriptions a few are tried, and a few
    paths through the same places. The beam keeps the paths through the most places, and of those the ones that changed place most
    often: a path that repeats a place makes little progress.
    """

    def __init__(self, grammar: TextGrammar, most: int) -> None:
        self._grammar, self._most, self._steps = grammar, most, 0
        self.exhausted = True
        """Whether it tried everything."""
        self._telling: dict[bytes, list[int]] = {}
        """The tokens that are tried at a place: a few for each place that they lead to."""
        self._reached = {b"": 0}
        """The tokens of each text that was reached."""

    def run(self, start: LLMatcher) -> list[int] | None:
        """Return the tokens of an end; None if none is found."""
        beam = [_Path.at(start)]
        while beam:
            found: dict[tuple[bytes, frozenset[bytes]], list[_Path]] = {}
            for path in beam:
                if (end := self._extend(path, found)) is not None:
                    return end
            ranked = [sorted(alike, key=_Path.rank) for alike in found.values()]
            paths = sorted((path for alike in ranked for path in alike[:ALIKE]), key=_Path.rank)
            beam = paths[:BEAM]
            if self._steps > MOST_STEPS or len(beam) < sum(map(len, ranked)):
                self.exhausted = False
            if self._steps > MOST_STEPS:
                return None
        return None

    def _extend(self, path: _Path, found: dict[tuple[bytes, frozenset[bytes]], list[_Path]]) -> list[int] | None:
        """Add the longer paths to `found`; return the tokens of an end if one of them is an end."""
        singles, distinct, cut = self._singles(path), dict[bytes, list[int]](), False
        for parts in (*self._grammar.samples, *([token] for token in singles)):
            self._steps += 1
            if len(path.tokens) + len(parts) > self._most:
                cut |= len(parts) == 1  # the token may lead on from the same place on a shorter path
                continue
            after = path.matcher.deep_copy()
            if not after.consume_tokens(parts):
                continue
            if after.is_accepting():
                return [*path.tokens, *parts]
            longer = path.longer(after, parts, self._grammar.written(parts))
            if len(parts) == 1:
                distinct.setdefault(longer.place, []).append(parts[0])
            if self._reached.get(longer.text, self._most + 1) <= len(longer.tokens):
                continue  # the same text by other tokens
            self._reached[longer.text] = len(longer.tokens)
            found.setdefault((longer.place, longer.places), []).append(longer)
        if path.place not in self._telling and not cut:
            self.exhausted &= all(len(some) <= ALIKE for some in distinct.values())
            self._telling[path.place] = [token for some in distinct.values() for token in some[:ALIKE]]
        return None

    def _singles(self, path: _Path) -> list[int]:
        """Return the tokens that are tried after a path."""
        if (known := self._telling.get(path.place)) is not None:
            return known
        tokens, complete = self._grammar.candidates(path.matcher)
        self.exhausted &= complete
        return tokens


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

    def add_forced(self, most: int) -> list[int]:
        """Add the tokens that must follow, at most `most`, and return them: no model is needed to choose them."""
        forced = [] if self.finished or most < 1 else list(self._matcher.compute_ff_tokens())[:most]
        for at, token in enumerate(forced):
            if token in self._grammar.ends:
                return forced[:at]
            self.add(token)
        return forced

    def result(self) -> list[int]:
        """Return the tokens of the text, which ends as permitted also if the model did not bring it to an end.

        Raises:
            UnfollowedOutput: as `TextGrammar.closed`.
        """
        if self.permitted_end is not None:
            return self.tokens[: self.permitted_end]
        return self._grammar.closed(self.tokens)
