"""Chat with a causal model: its own chat template, the history of turns, and an answer that comes piece by piece.

Training counts the assistant's tokens only: each assistant turn is what the template adds after the turns before it.
Generation uses a key-value cache, and takes the most probable token unless its control says otherwise. What every prompt begins with is
read once, and tokens that an output forces are not asked for. It is a generator, so its reader can stop it between two tokens.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from learners.data_error import DataError
from learners.tasks.base import IGNORED, SPARE, Batch, Example, Feature, Options, Prediction, Recipe
from learners.tasks.generation.control import GenerationControl
from learners.tasks.text_base import TextTask, end_tokens, inputs

Turn = Mapping[str, str]
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token or '') + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For models that bring no template. The space before an answer is part of its first token; the end of a turn is learned."""

HEADS = ("?", "a", "0")
"""Questions: their prompts have only the beginning in common."""
LEAST_HEAD = 4
"""Tokens of a beginning that is worth a cache."""


class Chat(TextTask):
    """`messages` (each `role`, `content`), the last one the assistant's where it is to be learned."""

    kind = "text-generation"
    selection = "negative_loss"
    auto: ClassVar[Any] = AutoModelForCausalLM
    recipe = Recipe(epochs=3, batch=4, rates={"top": 1e-4, "lora": 5e-4, "full": 2e-5}, options={"max_length": 1024})

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        super().__init__(source, options, labels)
        self.processor.chat_template = self.processor.chat_template or PLAIN
        ends = sorted(end_tokens(self.model, self.processor))
        self._head: tuple[Any, ...] | None = None
        """Weights, system prompt, tokens and cache of what every prompt begins with."""
        self.control = GenerationControl(self.options, self.processor, self.model, ends, self.options.max_new_tokens)

    @classmethod
    def fitting_new_tokens(cls, source: Path | str, examples: Sequence[Example]) -> int:
        """Return the tokens of the assistant's longest turn, and some more; at most half of what the model reads."""
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        answers = [t["content"] for e in examples for t in e.get("messages", ()) if t["role"] == "assistant"]
        longest = max((len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers), default=0)
        return min(longest + SPARE, int(cls.recipe.options["max_length"]) // 2)

    def turns(self, example: Example) -> list[Turn]:
        """Return the turns with the system prompt in front.

        Raises:
            DataError: no turns.
        """
        turns = list(example.get("messages", ()))
        if not turns:
            raise DataError(f"an example without `messages`: {dict(example)}")
        if self.options.system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.options.system})
        return turns

    def ids(self, turns: Sequence[Turn], *, generation_prompt: bool) -> list[int]:
        """Token ids of the turns; `generation_prompt` adds the beginning of an assistant turn."""
        return list(
            self.processor(self.text(turns, generation_prompt=generation_prompt), add_special_tokens=False)["input_ids"]
        )

    def text(self, turns: Sequence[Turn], *, generation_prompt: bool) -> str:
        """Return the turns as the model's template writes them.

        Raises:
            DataError: the template refuses them.
        """
        if not turns and not generation_prompt:
            return ""
        try:
            return str(
                self.processor.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=generation_prompt)
            )
        except TemplateError as error:  # for instance: roles must alternate
            raise DataError(f"the model's chat template refuses these turns: {error}; correct their roles") from None

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return one feature; if it is too long, its beginning is cut.

        A template may write an answer in another way once turns follow it, as those do that leave out what a model thought. Such an
        answer gets a feature of its own, in which it is the last turn, as when it was written.
        """
        del rng
        turns = self.turns(example)
        spans = {at: self._answer_span(turns, at) for at, turn in enumerate(turns) if turn["role"] == "assistant"}
        features, last = [], len(turns)
        while last:
            text = self.text(turns[:last], generation_prompt=False)
            own = [spans.pop(at) for at in [*spans] if text.startswith(spans[at][0])]
            if own or not spans:
                features.append(self._feature(text, [(start, len(before)) for before, start in own]))
            last = max(spans, default=-1) + 1
        return features[::-1]

    def _answer_span(self, turns: Sequence[Turn], at: int) -> tuple[str, int]:
        """Return the dialogue up to an answer, and where the answer begins in it."""
        text = self.text(turns[: at + 1], generation_prompt=False)
        if at and text.startswith(before := self.text(turns[:at], generation_prompt=True)):
            return text, len(before)
        content = turns[at]["content"]
        other: Turn = {**turns[at], "content": "!" if content.lstrip()[:1] == "~" else "~"}
        pairs = zip(self.text([*turns[:at], other], generation_prompt=False), text, strict=False)
        return text, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _feature(self, text: str, spans: Sequence[tuple[int, int]]) -> Feature:
        """Return the tokens of a dialogue; targets are those of the answers."""
        encoded = self.processor(text, add_special_tokens=False, return_offsets_mapping=True)
        whole = list(encoded["input_ids"])
        targets = [IGNORED] * len(whole)
        for at, (begin, end) in enumerate(encoded["offset_mapping"]):
            if begin < end and any(start < end <= stop for start, stop in spans):
                targets[at] = whole[at]
        cut = slice(-self.options.max_length, None)
        return {"input_ids": whole[cut], "labels": targets[cut]}

    def weight(self, batch: Batch) -> float:
        """Return the number of tokens that are predicted: nothing predicts the first one, which is a target where the beginning is cut."""
        return float((batch["labels"][:, 1:] != IGNORED).sum())

    def unread(self, example: Example) -> float:
        """Return the share of a dialogue that is cut at its beginning."""
        return self.share_above(len(self.ids(self.turns(example), generation_prompt=False)), self.options.max_length)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each assistant token given all before it."""
        sums_B, counts_B = self._losses(model, batch)
        return sums_B.sum() / counts_B.sum().clamp(min=1)

    def _losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits_BTV = model(**inputs(batch)).logits[:, :-1].float()
        labels_BT = batch["labels"][:, 1:]
        losses_BT = nn.functional.cross_entropy(
            logits_BTV.transpose(1, 2), labels_BT, ignore_index=IGNORED, reduction="none"
        )
        return losses_BT.sum(-1), (labels_BT != IGNORED).sum(-1)

    def outputs(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Loss and number of the assistant's tokens."""
        sums_B, counts_B = self._losses(model, batch)
        return list(zip(sums_B.tolist(), counts_B.tolist(), strict=True))

    def prediction(self, example: Example, features: Sequence[Feature], outputs: Sequence[Any]) -> Prediction:
        """Measure how well the given answers are predicted; `stream` generates answers."""
        del example, features
        loss, count = (sum(column) for column in zip(*outputs, strict=True))
        return Prediction({"loss": loss, "tokens": count}, math.exp(-loss / count) if count else None)

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Perplexity of the assistant's tokens, and the negative mean loss that chooses the epoch."""
        del examples
        total = sum(prediction.value["loss"] for prediction in predictions)
        count = max(sum(prediction.value["tokens"] for prediction in predictions), 1)
        return {"perplexity": math.exp(min(total / count, 700.0)), "negative_loss": -total / count}

    @torch.inference_mode()
    def _step(self, ids: Sequence[int], cache: Any) -> tuple[Tensor, Any]:
        """Return the logits [V] of the next token, and the cache with `ids`."""
        ids_BT = torch.tensor([list(ids)], device=self.device)
        last = {"logits_to_keep": 1} if self._keeps_last else {}
        out = self.model(input_ids=ids_BT, past_key_values=cache, use_cache=True, **last)
        return out.logits[0, -1], out.past_key_values

    @property
    def _keeps_last(self) -> bool:
        """Whether the model can leave out the outputs of all tokens but the last ones: they take a quarter of a small model's time."""
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def _read_head(self, prompt: Sequence[int]) -> tuple[int, Any]:
        """Return how many tokens of a prompt are read already, and a cache with them.

        Every prompt begins with the same tokens of the template and the system prompt. They are read apart from the rest, once for as
        long as the weights stay the same. So an answer does not depend on what was asked before.
        """
        weights = (id(self.model), sum(p._version for p in self.model.parameters() if not p.is_inference()))
        if self._head is None or self._head[:2] != (weights, self.options.system):
            self._head = (weights, self.options.system, *self._head_of_template())
        _, _, ids, cache = self._head
        if cache is None or tuple(prompt[: len(ids)]) != ids or len(prompt) <= len(ids):
            return 0, None
        return len(ids), copy.deepcopy(cache)

    def _head_of_template(self) -> tuple[tuple[int, ...], Any]:
        """Return the tokens with which every prompt begins, and a cache with them; None without any, or where it cannot be copied."""
        asked = (
            self.ids(self.turns({"messages": [{"role": "user", "content": word}]}), generation_prompt=True)
            for word in HEADS
        )
        ids = tuple(
            one for one, *others in itertools.takewhile(lambda some: len(set(some)) == 1, zip(*asked, strict=False))
        )
        cache = DynamicCache(config=self.model.config)
        if len(ids) < LEAST_HEAD or any(getattr(cache, "is_sliding", ())) or getattr(self.model, "_is_stateful", False):
            return (), None
        return ids, self._step(ids, cache)[1]

    def stream(self, turns: Sequence[Turn]) -> Iterator[str]:
        """Answer the turns: yield pieces of text as they are generated, at most `max_new_tokens` tokens.

        The oldest turns are dropped until the rest, with the system prompt, fits `max_length`. With an `output` the answer is one
        piece, which follows it.

        Raises:
            UnfollowedOutput: as `GeneratedText.text`.
            DataError: as `turns`.
        """
        prompt = self._prompt(self.turns({"messages": turns}))
        text, (read, cache) = self.control.begin(prompt), self._read_head(prompt)
        ids, left = prompt[read:], self.options.max_new_tokens
        while left > 0:
            logits_V, cache = self._step(ids, cache)
            token = int(text.scores(logits_V).argmax())
            if token in self.control.ends:
                break
            text.add(token)
            ids = [token, *text.add_forced(left - 1)]
            left -= len(ids)
            yield from text.pieces()
            if text.finished:
                break
        yield from text.rest()

    def _prompt(self, turns: list[Turn]) -> list[int]:
        keep = 1 if turns[0]["role"] == "system" else 0
        most = self.options.max_length
        if self.positions is not None:  # the answer needs positions too
            most = max(1, min(most, self.positions - self.options.max_new_tokens))
        while len(ids := self.ids(turns, generation_prompt=True)) > most and len(turns) > keep + 1:
            del turns[keep]
        return ids[-most:]
