"""Learn from one-step feedback: a linear posterior for each choice, with upper confidence and known probabilities.

The model is that of disjoint LinUCB (Li et al. 2010): for each choice, a ridge regression of the reward on features f of the
context. A = ridge I + sum f f', b = sum r f; the mean is f' A^-1 b, the deviation sqrt(f' A^-1 f).

LinUCB selects the highest mean + width * deviation. Here a softmax of that number makes every probability positive and exactly
known, so that it can be logged for off-policy evaluation. The features are the context, a constant, and random Fourier features
of the context (Rahimi and Recht 2007), which can fit curved reward functions without retraining. Every transition is used once,
exactly. Width and temperature are in units of the range of rewards so far; the range includes 0.

Shapes: B batch, C context, F features, n choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learners.model.features import concat as join
from learners.model.linear_posterior import SETTLE, LinearPosterior
from learners.rl.adam import Group
from learners.rl.head_algorithm import Contexts, add_prefix, strip_prefix
from learners.rl.transition_batch import Batch


class Bandit:
    """Train the posterior head: exactly, from every transition once, not from sampled batches.

    The posterior is valid only if the features do not change. So the encoder is not trained, and the running normalisation is
    fixed after the first `SETTLE` transitions. Until then the normalisation changes whenever their number is a power of two,
    and the posterior is computed again from all of them.
    """

    def __init__(self, head: LinearPosterior, names: tuple[str, ...]) -> None:
        self.head, self.names = head, names
        self._early: list[Batch] = []
        self._numbers: list[int] = []
        """Rows of the store that `_early` came from; -1 for rows without a number."""
        self._settled = False

    def observe(self, policy: Any, batch: Batch, numbers: Sequence[int] = ()) -> None:
        """Take in B outcomes; `numbers` are their rows in the store, if `correct` may follow."""
        for row in range(len(batch)):
            if self._settled:
                self._take(policy, batch[row:])
                return
            self._early.append(batch[row : row + 1])
            self._numbers.append(numbers[row] if row < len(numbers) else -1)
            count = len(self._early)
            if count & (count - 1):
                self._take(policy, self._early[-1])
                continue
            policy.observe(join([early.features for early in self._early[count // 2 :]]))
            self.head.reset()
            for early in self._early:
                self._take(policy, early)
            if count >= SETTLE:
                self._settled, self._early, self._numbers = True, [], []

    def correct(self, policy: Any, batch: Batch, number: int, change: float) -> None:
        """Add a reward that arrived after its transition was taken in.

        Args:
            policy: it encodes the features.
            batch: the transition, with the reward of now.
            number: its row in the store.
            change: how much the reward has grown.
        """
        for index, early in enumerate(self._early):
            if self._numbers[index] == number:
                self._early[index] = replace(early, rewards=early.rewards + change)
        index_Ba, weights_Ba = self._actions(batch)
        self.head.correct(policy.encode(batch.features), index_Ba, batch.rewards, weights_Ba, change)

    @torch.no_grad()
    def _take(self, policy: Any, batch: Batch) -> None:
        index_Ba, weights_Ba = self._actions(batch)
        self.head.take(policy.encode(batch.features), index_Ba, batch.rewards, weights_Ba)

    def _actions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the index and the weight of each actuator, B,a; the weight is 0 where it was not moved."""
        index_Ba = torch.stack([batch.actions[name] for name in self.names], dim=-1)
        acted = [batch.acted.get(name, torch.ones_like(batch.rewards)).float() for name in self.names]
        weights_B = torch.ones_like(batch.rewards) if batch.weights is None else batch.weights
        return index_Ba, weights_B.unsqueeze(-1) * torch.stack(acted, dim=-1)

    def loss(self, contexts: Contexts, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return no loss, and how far the prediction for what was done is off."""
        errors = []
        for name, (mean_Bn, _) in zip(self.names, self.head(contexts.now.detach()), strict=True):
            predicted_B = mean_Bn.gather(-1, batch.actions[name].unsqueeze(-1)).squeeze(-1)
            errors.append((predicted_B - batch.rewards).square().mean())
        return contexts.now.new_zeros(()), {"bandit_error": torch.stack(errors).mean()}

    def groups(self) -> list[Group]:
        """Return nothing: the posterior is computed, not descended."""
        return []

    def improve(self, contexts: Contexts, batch: Batch, updates: int) -> dict[str, Tensor]:
        """Return how sure the posterior has become."""
        del batch, updates
        stds = [std_Bn.mean() for _, std_Bn in self.head(contexts.now.detach())]
        return {"bandit_std": torch.stack(stds).mean()}

    def fade(self, batch: Batch, decisions: float, new: float) -> None:
        """Do nothing: the posterior's own doubt says how much to explore."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the first transitions, while they are still needed; the head holds the rest."""
        state = {"settled": torch.tensor(self._settled), "numbers": torch.tensor(self._numbers, dtype=torch.int64)}
        for index, early in enumerate(self._early):
            state |= add_prefix(f"early{index}", early.tensors())
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        self._settled = bool(state["settled"])
        count = len({name.split(".")[0] for name in state if name.startswith("early")})
        self._early = [Batch.of(strip_prefix(f"early{index}", state)) for index in range(count)]
        self._numbers = state["numbers"].tolist() if "numbers" in state else [-1] * count
