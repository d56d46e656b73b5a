"""Generate text under control: a grammar, stop and banned words, and random tokens from a seed.

`GenerationControl` belongs to a task, `GeneratedText` is one text, and `BatchControl` lets the `generate` of transformers write a
batch of them. Random tokens are drawn by the Gumbel-max trick (Maddison et al. 2014): the largest of logits and independent
Gumbel noise is a sample of the softmax. The noise comes from the seed and the input, so other texts of a batch do not change it.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from learners.output_grammar import accepts, grammar_of, repeated_key
from learners.tasks.generation.constrained_decoding import TextGrammar, UnfollowedOutput

HALF_CHARACTER = "\ufffd"


class GenerationOptions(Protocol):
    """The options of a task that concern generated text; their meaning is that of `Options`."""

    @property
    def output(self) -> Mapping[str, Any] | None:
        """The form of every text."""

    @property
    def stop(self) -> Sequence[str]:
        """What a text ends before."""

    @property
    def banned(self) -> Sequence[str]:
        """Words that no text contains."""

    @property
    def temperature(self) -> float:
        """0 for the most probable token."""

    @property
    def sampling_seed(self) -> int:
        """Of random tokens."""


class GenerationControl:
    """How a task generates text.

    Args:
        options: of the task.
        tokenizer: a fast one.
        model: the model that generates; its output layer tells the size of the vocabulary.
        ends: the tokens that end a text.
        most: tokens of one text.

    Raises:
        ValueError: no text that `output` permits fits `most` tokens, or llguidance cannot follow it.
    """

    def __init__(self, options: GenerationOptions, tokenizer: Any, model: Any, ends: Sequence[int], most: int) -> None:
        self.options, self.tokenizer, self.ends, self.most = options, tokenizer, frozenset(ends), most
        self.strict = grammar_of(options.output, tuple(options.banned), space=False)
        grammar = grammar_of(options.output, tuple(options.banned), space=True)
        rows = int(model.get_output_embeddings().weight.shape[0])
        self.grammar = None if grammar is None else TextGrammar(grammar, tokenizer, rows, ends, most)

    @property
    def active(self) -> bool:
        """Whether anything changes what the model would write."""
        return self.grammar is not None or bool(self.options.stop) or self.options.temperature > 0

    def begin(self, given: Sequence[int]) -> GeneratedText:
        """Begin the text for an input of these tokens."""
        return GeneratedText(self, given)


class GeneratedText:
    """One text, token by token.

    Args:
        control: of the task.
        given: the tokens of the input, which the noise depends on.
    """

    def __init__(self, control: GenerationControl, given: Sequence[int]) -> None:
        self._control, self._tokens = control, list[int]()
        self._constraint = control.grammar.text() if control.grammar is not None else None
        self._generator = np.random.default_rng([control.options.sampling_seed, *given])
        self._sent = 0

    @property
    def finished(self) -> bool:
        """Whether no token may follow: the grammar ends here, or a stop word was written."""
        closed = self._constraint is not None and self._constraint.finished
        return closed or (bool(self._control.options.stop) and self._stop_at(self._written()) is not None)

    def scores(self, logits_V: Tensor) -> Tensor:
        """Return the scores [V] of which the largest is the next token."""
        scores_V = logits_V.float()
        if self._constraint is not None:
            allowed_V = torch.from_numpy(self._constraint.permitted()).to(scores_V.device)
            scores_V = scores_V.masked_fill(~allowed_V, -torch.inf)
        if (temperature := self._control.options.temperature) > 0:
            noise_V = torch.from_numpy(self._generator.gumbel(size=len(scores_V)).astype(np.float32))
            scores_V = scores_V / temperature + noise_V.to(scores_V.device)
        return scores_V

    def add(self, token: int) -> None:
        """Add a token that is no end.

        Raises:
            ValueError: the grammar does not permit it.
        """
        self._tokens.append(token)
        if self._constraint is not None:
            self._constraint.add(token)

    def add_forced(self, most: int) -> list[int]:
        """Add the tokens that the grammar forces here, at most `most`, and return them; the model need not be asked for them."""
        if self._constraint is None:
            return []
        forced = self._constraint.add_forced(most)
        self._tokens += forced
        return forced

    def pieces(self) -> Iterator[str]:
        """Yield what was written since the last call and will not change; nothing before the end of a text with an `output`."""
        if self._control.options.output is not None:
            return
        text = self._written()
        stop = self._stop_at(text)
        ready = text[:stop] if stop is not None else text[: len(text) - self._held_back(text)]
        if not ready.endswith(HALF_CHARACTER) and len(ready) > self._sent:
            yield ready[self._sent :]
            self._sent = len(ready)

    def rest(self) -> Iterator[str]:
        """Yield what is left at the end of the text.

        Raises:
            UnfollowedOutput: the tokenizer wrote a text that `output` and `banned` do not permit, or no permitted end was found.
        """
        text = self.text()
        if len(text) > self._sent:
            yield text[self._sent :]

    def text(self) -> str:
        """Return the text, without a stop word and what follows it.

        Raises:
            UnfollowedOutput: as `rest`.
        """
        text = self._written(whole=True)
        text = text[: self._stop_at(text)]
        strict = self._control.strict
        if strict is not None and not accepts(strict, text):
            raise UnfollowedOutput(
                f"the model's tokenizer wrote {text[:200]!r}, which `output` or `banned` does not permit"
            )
        if (self._control.options.output or {}).get("json_schema") is not None and (
            key := repeated_key(text)
        ) is not None:
            raise UnfollowedOutput(f"the model wrote the key {key[:100]!r} twice in one object: {text[:200]!r}")
        return text

    def _written(self, *, whole: bool = False) -> str:
        """Return the text so far; of a grammar, up to its last permitted end, or completed if it is the `whole` text."""
        tokens = self._tokens
        if self._constraint is not None:
            tokens = self._constraint.result() if whole else tokens[: self._constraint.permitted_end or 0]
        tokenizer = self._control.tokenizer
        text = str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        strict = self._control.strict
        if self._control.options.output is not None and strict and text.startswith(" ") and not accepts(strict, text):
            return text[1:]  # the space with which the tokenizer begins an answer
        return text

    def _stop_at(self, text: str) -> int | None:
        """Return where the first stop word begins."""
        return min((at for word in self._control.options.stop if (at := text.find(word)) >= 0), default=None)

    def _held_back(self, text: str) -> int:
        """Return the number of last characters that may be the beginning of a stop word."""
        lengths = (
            length
            for word in self._control.options.stop
            for length in range(min(len(word) - 1, len(text)), 0, -1)
            if text.endswith(word[:length])
        )
        return max(lengths, default=0)


class BatchControl(LogitsProcessor):
    """Lets `generate` write a batch of texts under control, greedily over the scores.

    Args:
        control: of the task.
        inputs: the tokens of each input.
    """

    def __init__(self, control: GenerationControl, inputs: Sequence[Sequence[int]]) -> None:
        self._control = control
        self._texts = [control.begin(given) for given in inputs]
        self._read: int | None = None
        self._unread: set[int] = set()
        """Texts of which the next token is the model's own beginning, such as a language."""
        self._ended: set[int] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [B, V] of the next tokens after `input_ids` [B, T]."""
        self._take(input_ids)
        changed_BV = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        for row, text in enumerate(self._texts):
            if row in self._ended:
                changed_BV[row, min(self._control.ends)] = 0.0
                continue
            given_V = scores[row]
            changed_BV[row] = text.scores(given_V)
            if not bool(torch.isfinite(changed_BV[row]).any()):
                changed_BV[row] = given_V
                self._unread.add(row)
        return changed_BV

    def texts(self, ids_BT: Tensor) -> list[str]:
        """Return the texts that `generate` wrote.

        Raises:
            UnfollowedOutput: as `GeneratedText.text`.
        """
        self._take(ids_BT)
        return [text.text() for text in self._texts]

    def _take(self, ids_BT: Tensor) -> None:
        """Add the tokens that were generated since the last call."""
        start = ids_BT.shape[1] if self._read is None else self._read
        for column in range(start, ids_BT.shape[1]):
            for row, token in enumerate(ids_BT[:, column].tolist()):
                self._add(row, token)
        self._read = ids_BT.shape[1]

    def _add(self, row: int, token: int) -> None:
        if row in self._unread:
            self._unread.discard(row)
        elif row not in self._ended:
            if token in self._control.ends:
                self._ended.add(row)
                return
            self._texts[row].add(token)
            if self._texts[row].finished:
                self._ended.add(row)
