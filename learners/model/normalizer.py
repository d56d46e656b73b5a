"""Normalise the tokens of each stream with running statistics, which are saved with the policy.

Telemetry has arbitrary units, and encoder tokens share a large common part without information. Both are scaled to mean 0 and
deviation 1, with statistics from experience (Welford 1962, merged by Chan et al. 1983). Without data, nothing is changed. After
`limit` rows, each new row has the weight 1 / `limit`. The statistics then follow a changed world slowly, and the trained weights
stay valid.

Shapes: N rows, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLIP = 10.0


class Normaliser(nn.Module):
    """Mean and variance of each of W numbers, over the last dimension of anything."""

    count: Tensor
    mean: Tensor
    scatter: Tensor
    eps: Tensor

    def __init__(self, width: int, *, limit: int = 100_000, eps: float = 1e-6) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scatter", torch.zeros(width))  # sum of squared distances from the mean
        self.register_buffer("eps", torch.tensor(eps), persistent=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all rows."""
        for statistic in (self.count, self.mean, self.scatter):
            statistic.zero_()

    @torch.no_grad()
    def observe(self, x_NW: Tensor) -> None:
        """Merge rows into the statistics; earlier rows lose weight so that all together count as `limit` at most."""
        rows = len(x_NW)
        if rows == 0:
            return
        var_W, mean_W = torch.var_mean(x_NW, dim=0, correction=0)
        before = float(self.count)
        remaining = min(before, max(0.0, float(self.limit - rows)))
        if remaining < before:
            self.scatter *= remaining / before
            before = remaining
        total = before + rows
        shift_W = mean_W - self.mean
        self.scatter += var_W * rows + shift_W.square() * (before * rows / total)
        self.mean += shift_W * (rows / total)
        self.count.fill_(total)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and clip to ±10; a number that never varied comes out as 0 at its mean."""
        seen = self.count > 0
        var_W = torch.where(seen, self.scatter / self.count.clamp(min=1).to(x.dtype), torch.ones_like(self.scatter))
        normal = (x - self.mean) / (var_W + self.eps).sqrt()
        return torch.where(seen, normal.clamp(-CLIP, CLIP), x)
