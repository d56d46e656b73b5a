"""Answer goal questions with a model on this machine: a sentence encoder, or a causal language model.

Neither can answer outside the list: the encoder compares the newest order with each description, and the language model scores the
listed options in one forward pass (`transformers.pipeline("decision")`).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModel, AutoTokenizer, pipeline
from transformers.decision.modeling_utils import DecisionMixin

from learners.goal_models.answers import (
    BackendFailed,
    GoalQuestion,
    YesNoQuestion,
    checked,
    probability,
    questions,
    still_right,
    yes_no,
)
from learners.goal_models.cached_prompts import CachedPrompts
from learners.goal_models.config import DecisionBackend, EmbeddingBackend
from learners.goal_models.remembered_orders import MOST, RememberedOrders, described, remember
from learners.model.encoders.bundled_weights import resolve
from learners.model.encoders.file_digests import hash_of

SHARPNESS = 12.0
"""Of the softmax over cosine similarities, which lie close together."""
MOST_TOKENS = 500
"""Of a state in words."""
TOGETHER = 16
"""Remembered orders that are read together; those of like length, because a long one pads all others."""


class LocalModel(Protocol):
    """A model on this machine that answers goal questions."""

    name: str
    """The model with a hash of its files."""

    def probabilities(self, question: GoalQuestion) -> tuple[dict[str, float], float | None]:
        """Return the probability of each goal, and that the present one is still right if the model was asked that.

        Raises:
            BackendFailed: the model's output is unusable.
        """

    def yes(self, question: YesNoQuestion) -> float:
        """Return the probability that the answer is yes.

        Raises:
            BackendFailed: the model cannot judge this, or its output is unusable.
        """


def open_model(backend: EmbeddingBackend | DecisionBackend, goals: Mapping[str, str]) -> LocalModel:
    """Load a model; takes seconds.

    Raises:
        BundledError, OSError, ValueError: it cannot be loaded.
    """
    source = resolve(backend.model)
    kind = SentenceSimilarity if isinstance(backend, EmbeddingBackend) else DecisionModel
    return kind(source, f"{backend.model}@{fingerprint(source)}", goals)


def fingerprint(source: Path | str) -> str:
    """Return 12 hex digits of the hash of a folder's weights and settings; `hub` for a model that is no folder."""
    folder = Path(source)
    if not folder.is_dir():
        return "hub"
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in {".safetensors", ".json"}:
            digest.update(f"{path.name} {hash_of(path)}\n".encode())
    return digest.hexdigest()[:12]


class SentenceSimilarity:
    """Compares the newest order with each goal's description. Without an order there is nothing to judge.

    Args:
        source: of a sentence encoder with mean pooling.
        name: of the model.
        goals: the description of each.
    """

    def __init__(self, source: Path | str, name: str, goals: Mapping[str, str]) -> None:
        self.name, self._goals = name, dict(goals)
        self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        self._model = AutoModel.from_pretrained(source, trust_remote_code=False, use_safetensors=True).eval()
        self._meanings_GW = self._embed(list(self._goals.values()))
        self._labelled: dict[str, str] = {}
        """Goal by order, as people set it."""
        self._sentences: dict[str, torch.Tensor] = {}
        """Of these orders."""
        self._described_NW: torch.Tensor | None = None
        self._remembered: RememberedOrders | None = None
        """None while no order is remembered."""

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> torch.Tensor:
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        longest = getattr(self._model.config, "max_position_embeddings", MOST_TOKENS)
        inputs = {key: value[:, :longest] for key, value in inputs.items()}
        tokens_BTW = self._model(**inputs).last_hidden_state
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
        mean_BW = (tokens_BTW * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean_BW, dim=-1)

    def probabilities(self, question: GoalQuestion) -> tuple[dict[str, float], None]:
        """Return the softmax of the similarities, to remembered orders too; nothing where there is no order.

        Raises:
            BackendFailed: the encoder's output is not finite.
        """
        if not question.orders:
            return {}, None
        order_1W = self._embed([question.orders[0]])
        if self._remembered is not None:
            found = self._remembered.probabilities(order_1W)[0].tolist()
        else:
            found = torch.softmax(SHARPNESS * (order_1W @ self._meanings_GW.T)[0], -1).tolist()
        return checked(dict(zip(self._goals, found, strict=True)), self._goals), None

    def remember(self, labelled: Sequence[tuple[str, str]], limit_s: float = math.inf) -> bool:
        """Compare orders with these too, each with the goal that a person set; they replace the ones before.

        The newest `remembered_orders.MOST` count, and of two with the same text the newer one, whatever their case and spaces; a goal that
        is not listed is left out.

        Args:
            labelled: orders and goals, oldest first.
            limit_s: seconds after which no further order is read, except for the first ones. The newest are read first, and the next call reads on.

        Returns:
            Whether all have been read.
        """
        by_words = {
            " ".join(text.split()).casefold(): (text, goal) for text, goal in labelled[-MOST:] if goal in self._goals
        }
        newest = dict(by_words.values())
        known = {text: vector for text, vector in self._sentences.items() if text in newest}
        unread = [text for text in reversed(newest) if text not in known]
        if not unread and newest == self._labelled:
            return True
        began_s = time.monotonic()
        while unread:
            batch, unread = sorted(unread[: 4 * TOGETHER], key=len), unread[4 * TOGETHER :]
            for first in range(0, len(batch), TOGETHER):
                texts = batch[first : first + TOGETHER]
                known |= zip(texts, self._embed(texts), strict=True)
            if time.monotonic() - began_s >= limit_s:
                break
        self._sentences = known
        self._labelled = {text: goal for text, goal in newest.items() if text in known}
        if not self._labelled:
            self._remembered = None
            return not unread
        examples = described(self._goals)
        if self._described_NW is None:
            self._described_NW = torch.cat([self._embed([text]) for text, _ in examples])
        orders_MW = torch.stack([known[text] for text in self._labelled])
        self._remembered = remember(
            list(self._goals),
            [goal for _, goal in examples],
            self._described_NW,
            list(self._labelled.values()),
            orders_MW,
        )
        return not unread

    def yes(self, question: YesNoQuestion) -> float:
        """Refuse.

        Raises:
            BackendFailed: always; similarity of sentences answers no question.
        """
        raise BackendFailed(f"a sentence encoder answers no question ({question.question[:40]!r})")


class DecisionModel:
    """Scores the listed goals by a causal language model, and whether the present goal is still right.

    A model with a decision head or prompt of its own is asked through transformers' pipeline; any other one by `CachedPrompts`.

    Args:
        source: of the model.
        name: of the model.
        goals: the description of each.
    """

    def __init__(self, source: Path | str, name: str, goals: Mapping[str, str]) -> None:
        self.name, self._goals = name, dict(goals)
        self._pipeline: Any = pipeline(
            "decision", model=str(source), device="cpu", trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
        template = getattr(self._pipeline.decision_config, "chat_template", None)
        own = isinstance(self._pipeline.model, DecisionMixin) or template is not None
        self._prompts = None if own else CachedPrompts(self._pipeline.model, self._pipeline.tokenizer, goals)

    def probabilities(self, question: GoalQuestion) -> tuple[dict[str, float], float | None]:
        """Return the probability of each goal, and that the present one is still right.

        Raises:
            BackendFailed: the model's output is unusable.
        """
        state = self._cut(question.state)
        if self._prompts is not None:
            found, still = (
                self._prompts.choice(state),
                self._prompts.yes(state, still_right(question.goal, self._goals)),
            )
            return checked(found, self._goals), probability(still)
        answers = self._pipeline({"state": state, "questions": questions(question.goal, self._goals)})
        return checked(answers["goal"]["probabilities"], self._goals), float(answers["still"]["noul"])

    def yes(self, question: YesNoQuestion) -> float:
        """Return the probability that the answer is yes.

        Raises:
            BackendFailed: the model's output is unusable.
        """
        state = self._cut(question.state)
        if self._prompts is not None:
            return probability(self._prompts.yes(state, question.question))
        answers = self._pipeline({"state": state, "questions": yes_no(question.question)})
        return probability(answers["answer"]["noul"])

    def _cut(self, state: str) -> str:
        tokenizer = self._pipeline.tokenizer
        tokens = tokenizer(state, add_special_tokens=False)["input_ids"]
        return state if len(tokens) <= MOST_TOKENS else str(tokenizer.decode(tokens[:MOST_TOKENS]))
