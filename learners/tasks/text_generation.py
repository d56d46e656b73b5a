"""Chat with a causal model: its own chat template, the history of turns, and an answer that comes piece by piece.

Training counts the assistant's tokens only: each assistant turn is what the template adds after the turns before it.
Generation uses a key-value cache, and takes the most probable token unless its control says otherwise. It is a generator, so its
reader can stop it between two tokens.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from learners.tasks.base import IGNORED, SPARE, Batch, DataError, Example, Feature, Options, Prediction, Recipe
from learners.tasks.generation.control import GenerationControl
from learners.tasks.text_base import TextTask, end_tokens, inputs

Turn = Mapping[str, str]
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token or '') + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For models that bring no template. The space before an answer is part of its first token; the end of a turn is learned."""


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
        """Return one feature; if it is too long, its beginning is cut."""
        del rng
        turns = self.turns(example)
        text = self.text(turns, generation_prompt=False)
        encoded = self.processor(text, add_special_tokens=False, return_offsets_mapping=True)
        whole = list(encoded["input_ids"])
        targets = [IGNORED] * len(whole)
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                start, stop = (
                    len(self.text(turns[:i], generation_prompt=True)),
                    len(self.text(turns[: i + 1], generation_prompt=False)),
                )
                for at, (begin, end) in enumerate(encoded["offset_mapping"]):
                    if start < end <= stop and begin < end:
                        targets[at] = whole[at]
        cut = slice(-self.options.max_length, None)
        return [{"input_ids": whole[cut], "labels": targets[cut], "turns": turns}]

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
        loss, count = outputs[0]
        return Prediction({"loss": loss, "tokens": count}, math.exp(-loss / count) if count else None)

    def metrics(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Perplexity of the assistant's tokens, and the negative mean loss that chooses the epoch."""
        del examples
        total = sum(prediction.value["loss"] for prediction in predictions)
        count = max(sum(prediction.value["tokens"] for prediction in predictions), 1)
        return {"perplexity": math.exp(min(total / count, 700.0)), "negative_loss": -total / count}

    @torch.inference_mode()
    def _step(self, ids_BT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Return the logits [V] of the next token, and the cache with `ids_BT`."""
        out = self.model(input_ids=ids_BT, past_key_values=cache, use_cache=True)
        return out.logits[0, -1], out.past_key_values

    def stream(self, turns: Sequence[Turn]) -> Iterator[str]:
        """Answer the turns: yield pieces of text as they are generated, at most `max_new_tokens` tokens.

        The oldest turns are dropped until the rest, with the system prompt, fits `max_length`. With an `output` the answer is one
        piece, which follows it.

        Raises:
            UnfollowedOutput: as `GeneratedText.text`.
            DataError: as `turns`.
        """
        prompt = self._prompt(self.turns({"messages": turns}))
        text, cache = self.control.begin(prompt), None
        ids_BT = torch.tensor([prompt], device=self.device)
        for _ in range(self.options.max_new_tokens):
            logits_V, cache = self._step(ids_BT, cache)
            token = int(text.scores(logits_V).argmax())
            if token in self.control.ends:
                break
            text.add(token)
            yield from text.pieces()
            if text.finished:
                break
            ids_BT = torch.tensor([[token]], device=self.device)
        yield from text.rest()

    def _prompt(self, turns: list[Turn]) -> list[int]:
        keep = 1 if turns[0]["role"] == "system" else 0
        most = self.options.max_length
        if self.positions is not None:  # the answer needs positions too
            most = max(1, min(most, self.positions - self.options.max_new_tokens))
        while len(ids := self.ids(turns, generation_prompt=True)) > most and len(turns) > keep + 1:
            del turns[keep]
        return ids[-most:]
