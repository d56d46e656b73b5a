"""Ask any causal language model by the next token: the letter of a goal, or Yes or No. What prompts have in common is read once.

A prompt begins with the goals, then comes the state, then the question. So a second question about a state reads only itself, and a new
state leaves the goals as they were read before. The scores are those of the whole prompt, because only keys and values are stored.

Shapes: N tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.decision import label_token_ids

from learners.goal_models.answers import CHOICE


class CachedPrompts:
    """Questions to one model.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; a chat template is used where there is one.
        goals: the description of each goal, at most 26.
    """

    def __init__(self, model: Any, tokenizer: Any, goals: Mapping[str, str]) -> None:
        self._model, self._tokenizer, self._goals = model, tokenizer, dict(goals)
        self._letters = list(ascii_uppercase[: len(goals)])
        listed = (
            f"{letter}. {goal}: {text}" for letter, (goal, text) in zip(self._letters, goals.items(), strict=True)
        )
        self._head = "Goals:\n" + "\n".join(listed)
        self._read_N = torch.zeros(0, dtype=torch.long)
        """The tokens that `_cache` has."""
        self._cache = self._fresh()

    def _fresh(self) -> DynamicCache | None:
        """Return an empty cache; None for a model with a state that cannot be cut, or with layers that forget."""
        cache = DynamicCache(config=self._model.config)
        forgets = any(getattr(cache, "is_sliding", ()))
        return None if forgets or getattr(self._model, "_is_stateful", False) else cache

    def choice(self, state: str) -> dict[str, float]:
        """Return the probability of each goal."""
        last = f"{CHOICE} Answer with the letter of the goal ({self._letters[0]} to {self._letters[-1]}) only."
        found = self._probabilities(state, last, self._letters)
        return dict(zip(self._goals, found, strict=True))

    def yes(self, state: str, question: str) -> float:
        """Return the probability that the answer is yes."""
        return self._probabilities(state, f"{question}\nAnswer Yes or No only.", ("Yes", "No"))[0]

    @torch.inference_mode()
    def _probabilities(self, state: str, last: str, labels: Sequence[str]) -> list[float]:
        """Return the probability of each label as the next token, normalised over the labels.

        Raises:
            ValueError: a label is no single token of this model.
        """
        labels_L = label_token_ids(self._tokenizer, tuple(labels))
        logits_V = self._next(self._tokens(f"{self._head}\n\n{state}\n\n{last}"))
        return [float(p) for p in torch.softmax(logits_V[labels_L].float(), -1)]

    def _tokens(self, text: str) -> Tensor:
        """Return the prompt [N]; no text can write a control token."""
        if self._tokenizer.chat_template is None:
            given = self._tokenizer(f"{text}\nAnswer:", split_special_tokens=True, return_tensors="pt")
        else:
            given = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt", sanitize_control_tokens=True, enable_thinking=False,
            )  # fmt: skip
        tokens_N: Tensor = given["input_ids"][0]
        return tokens_N

    def _next(self, prompt_N: Tensor) -> Tensor:
        """Return the logits of the token after a prompt."""
        if self._cache is None:
            return self._model(prompt_N[None], use_cache=False, logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]
        shorter = min(len(prompt_N) - 1, len(self._read_N))  # the last token is read in any case
        differs = (prompt_N[:shorter] != self._read_N[:shorter]).nonzero()
        common = shorter if len(differs) == 0 else int(differs[0])
        cache, self._cache = self._cache, self._fresh()  # after an error the next prompt is read from its begin
        read_N, self._read_N = self._read_N, self._read_N[:0]
        cache.crop(common - len(read_N))
        logits = self._model(prompt_N[None, common:], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        self._cache, self._read_N = cache, prompt_N
        return logits[0, -1]  # type: ignore[no-any-return]
