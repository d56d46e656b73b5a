"""Bayesian linear regression on features: the posterior that a bandit head samples from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from learners.model.exploration import masked

SETTLE = 256
"""Transitions after which the normalisation of a bandit's features no longer changes; a power of two."""

CLIP = 2.0
"""Normalised numbers beyond this say no more: a rarely used number would otherwise outweigh all others."""


class LinearPosterior(nn.Module):
    """The posterior over the reward of every choice of every actuator.

    Args:
        context: C.
        sizes: number of choices of each actuator.
        fourier: number of random Fourier features.
        ridge: prior precision.
        width: how far above the mean a choice is judged, in its deviations.
        temperature: of the softmax.
    """

    covariance: Tensor
    moment: Tensor
    frequency: Tensor
    phase: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        context: int,
        sizes: tuple[int, ...],
        *,
        fourier: int = 256,
        ridge: float = 0.1,
        width: float = 0.15,
        temperature: float = 0.02,
    ) -> None:
        super().__init__()
        self.sizes, self.ridge, self.width, self.temperature = sizes, ridge, width, temperature
        count = 1 + context + fourier
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("lowest", torch.zeros(()))
        self.register_buffer("highest", torch.zeros(()))
        self.register_buffer("frequency", torch.randn(context, fourier, generator=generator))
        self.register_buffer("phase", 2 * math.pi * torch.rand(fourier, generator=generator))
        self.register_buffer("covariance", torch.eye(count, dtype=torch.float64).repeat(sum(sizes), 1, 1) / ridge)
        self.register_buffer("moment", torch.zeros(sum(sizes), count, dtype=torch.float64))

    def features(self, context_BC: Tensor) -> Tensor:
        """Return B,F in float64; each part has a length of about 1."""
        x_BC = context_BC.clamp(-CLIP, CLIP) * context_BC.shape[-1] ** -0.5
        wave_BF = torch.cos(x_BC @ self.frequency + self.phase) * (2 / len(self.phase)) ** 0.5
        return torch.cat((torch.ones_like(x_BC[:, :1]), x_BC, wave_BF), dim=-1).double()

    def forward(self, context_BC: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return mean and standard deviation, B,n each, for every actuator."""
        f_BF = self.features(context_BC)
        projected_nBF = f_BF @ self.covariance
        mean_Bn = torch.einsum("nbf,nf->bn", projected_nBF, self.moment)
        std_Bn = torch.einsum("nbf,bf->bn", projected_nBF, f_BF).clamp_min(0).sqrt()
        pairs = zip(
            torch.split(mean_Bn.float(), list(self.sizes), -1),
            torch.split(std_Bn.float(), list(self.sizes), -1),
            strict=True,
        )
        return list(pairs)

    def probabilities(self, mean_Bn: Tensor, std_Bn: Tensor, mask_Bn: Tensor | None = None) -> Tensor:
        """Return the probability B,n of each choice: softmax of the upper confidence bounds over what is allowed."""
        span = float(self.highest - self.lowest) or 1.0
        bound_Bn = masked(mean_Bn / span + self.width * std_Bn, mask_Bn)
        return torch.softmax(bound_Bn / self.temperature, dim=-1)

    def reset(self) -> None:
        """Return to the prior."""
        self.covariance.copy_(torch.eye(self.covariance.shape[-1], dtype=torch.float64) / self.ridge)
        self.moment.zero_()

    @torch.no_grad()
    def take(self, context_BC: Tensor, index_Ba: Tensor, reward_B: Tensor, weight_Ba: Tensor) -> None:
        """Take in B outcomes by rank-one updates (Sherman and Morrison 1950).

        `index_Ba` has a column for each actuator; a weight of 0 leaves the outcome out.
        """
        self._widen(reward_B, weight_Ba)
        for f_F, rows, r, weights in zip(
            self.features(context_BC), self._rows(index_Ba), reward_B.tolist(), weight_Ba.tolist(), strict=True
        ):
            for row, weight in zip(rows, weights, strict=True):
                if weight > 0:
                    projected_F = self.covariance[row] @ f_F
                    gain = weight / (1 + weight * projected_F.dot(f_F))
                    self.covariance[row].addr_(projected_F, projected_F, alpha=-float(gain))
                    self.moment[row].add_(f_F, alpha=weight * r)

    @torch.no_grad()
    def correct(self, context_BC: Tensor, index_Ba: Tensor, reward_B: Tensor, weight_Ba: Tensor, change: float) -> None:
        """Add `change` to the rewards of B outcomes that were taken in before; `reward_B` is what they are now."""
        self._widen(reward_B, weight_Ba)
        for f_F, rows, weights in zip(self.features(context_BC), self._rows(index_Ba), weight_Ba.tolist(), strict=True):
            for row, weight in zip(rows, weights, strict=True):
                if weight > 0:
                    self.moment[row].add_(f_F, alpha=weight * change)

    def _widen(self, reward_B: Tensor, weight_Ba: Tensor) -> None:
        """Widen the range of rewards."""
        used_B = (weight_Ba > 0).any(-1)
        if bool(used_B.any()):
            self.lowest.copy_(torch.minimum(self.lowest, reward_B[used_B].min()))
            self.highest.copy_(torch.maximum(self.highest, reward_B[used_B].max()))

    def _rows(self, index_Ba: Tensor) -> list[list[int]]:
        """Return the row of the posterior of each actuator's choice."""
        offset_a = torch.tensor((0, *self.sizes[:-1])).cumsum(0).to(index_Ba.device)
        rows: list[list[int]] = (index_Ba + offset_a).tolist()
        return rows
