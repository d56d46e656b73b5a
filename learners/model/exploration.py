"""Explore: draw noise and excursions with exactly known probabilities.

The policy's own noise is independent from tick to tick, as in SAC and CrossQ. If rewards contain only the cost of acting, such
noise finds nothing (a car stays in its valley). Excursions then move slowly over the whole range, as a sum of first-order
autoregressions (coloured noise, as in Eberhard et al. 2023). With informative rewards, excursions harm: a HalfCheetah that early
falls on its back learns to slide on it.

At each tick every noise is N(0, 1), so the density of one action is known. The density ignores the dependence between
successive draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

INDEPENDENT = (1.0,)
SLOW = (16.0, 64.0)
"""Time constants of excursions, in ticks: they are to get somewhere (a car out of its valley: 16 of 20 episodes, none with
independent noise)."""
UNEXPLAINED_SHARE = 0.01
"""Share of the rewards' variance that actions must leave unexplained for rewards to contain more than the cost of acting."""


def silent(rewards_B: Tensor, action_BA: Tensor) -> bool:
    """Return whether rewards contain only the cost of acting: least squares on actions and their squares explains them all."""
    # on the CPU: a GPU is no quicker with a few hundred numbers
    rewards_B, action_BA = rewards_B.cpu().double(), action_BA.cpu().double()
    centred_B1 = (rewards_B - rewards_B.mean()).unsqueeze(-1)
    total = float(centred_B1.square().sum())
    if total <= 1e-12 * len(rewards_B):
        return True
    inputs_BI = torch.cat((torch.ones_like(centred_B1), action_BA, action_BA.square()), dim=-1)
    if len(inputs_BI) <= 2 * inputs_BI.shape[-1]:
        return False
    weights_I1 = torch.linalg.lstsq(inputs_BI, centred_B1, driver="gelsd").solution
    left = float((centred_B1 - inputs_BI @ weights_I1).square().sum())
    return left < UNEXPLAINED_SHARE * total


class ColouredNoise:
    """Unit-variance noise, B rows of A numbers, correlated over successive calls; starts afresh when B changes."""

    def __init__(self, width: int, time_constants: tuple[float, ...]) -> None:
        self.width = width
        self._keep = torch.tensor([0.0 if t <= 1 else 1 - 1 / t for t in time_constants])
        self._state_BAK: Tensor | None = None

    def __call__(self, rows: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """Draw the next B,A."""
        fresh_BAK = torch.randn(rows, self.width, len(self._keep), generator=generator, device=generator.device)
        fresh_BAK = fresh_BAK.to(device)
        keep_K = self._keep.to(device)
        if self._state_BAK is None or self._state_BAK.shape != fresh_BAK.shape:
            self._state_BAK = fresh_BAK
        else:
            self._state_BAK = keep_K * self._state_BAK + (1 - keep_K**2).sqrt() * fresh_BAK
        noise_BA: Tensor = self._state_BAK.sum(-1) / len(keep_K) ** 0.5
        return noise_BA

    def restart(self) -> None:
        """Forget the past, as at the start of an episode."""
        self._state_BAK = None

    def state(self) -> Tensor | None:
        """Return what to keep for an exact resume."""
        return None if self._state_BAK is None else self._state_BAK.clone()

    def restore(self, state: Tensor | None) -> None:
        """Take up what `state` gave."""
        self._state_BAK = None if state is None else state.clone()


class Excursions:
    """Which rows act freely just now: stretches of `length` ticks on average, in a share `epsilon` of the time."""

    def __init__(self, length: float = 256.0) -> None:
        self.length = length
        self._free_B: Tensor | None = None

    def __call__(self, rows: int, epsilon: float, generator: torch.Generator) -> Tensor:
        """Return B bool, on the generator's device."""
        drawn_2B = torch.rand(2, rows, generator=generator, device=generator.device)
        fresh_B = drawn_2B[0] < epsilon
        if self._free_B is None or len(self._free_B) != rows:
            self._free_B = fresh_B
        else:
            self._free_B = torch.where(drawn_2B[1] < 1 / self.length, fresh_B, self._free_B)
        return self._free_B

    def state(self) -> Tensor | None:
        """Return what an exact resume needs."""
        return None if self._free_B is None else self._free_B.clone()

    def restore(self, state: Tensor | None) -> None:
        """Continue from what `state` returned."""
        self._free_B = None if state is None else state.clone()


def epsilon_greedy(scores_Bn: Tensor, epsilon: float, mask_Bn: Tensor | None) -> Tensor:
    """Return the probabilities B,n: the best allowed choice, with `epsilon` spread evenly over the allowed ones."""
    allowed_Bn = torch.ones_like(scores_Bn, dtype=torch.bool) if mask_Bn is None else mask_Bn
    best_B = masked(scores_Bn, mask_Bn).argmax(-1, keepdim=True)
    uniform_Bn = allowed_Bn / allowed_Bn.sum(-1, keepdim=True)
    return (epsilon * uniform_Bn).scatter_add(-1, best_B, uniform_Bn.new_full(best_B.shape, 1 - epsilon))


def masked(scores_Bn: Tensor, mask_Bn: Tensor | None) -> Tensor:
    """Put what is not allowed at minus infinity. A row that allows nothing raises ValueError."""
    if mask_Bn is None:
        return scores_Bn
    if not bool(mask_Bn.any(-1).all()):
        raise ValueError("an action mask forbids every choice of an actuator; allow at least one, e.g. its safe value")
    return scores_Bn.masked_fill(~mask_Bn, -torch.inf)


def draw(probabilities_Bn: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one index B from each row."""
    rows = probabilities_Bn.to(generator.device)
    return torch.multinomial(rows, 1, generator=generator).squeeze(-1).to(probabilities_Bn.device)
