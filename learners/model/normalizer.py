"""Normalise the tokens of each stream with running statistics, which are saved with the policy.

Telemetry has arbitrary units, and encoder tokens share a large common part without information. Both are scaled to mean 0 and
deviation 1, with statistics from experience (Welford 1962, merged by Chan et al. 1983). Without data, nothing is scaled. After
`limit` rows, each new row has the weight 1 / `limit`. The statistics then follow a changed world slowly, and the trained weights
stay valid. A number far outside of all that was seen is limited (`FARTHEST`), so that one faulty reading does not hide a signal.

Shapes: N rows, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLIP = 10.0
EPS = 1e-6
"""Added to the variance of an encoder's tokens: smaller spreads are rounding of float16."""
TELEMETRY_EPS, TELEMETRY_RESOLUTION = 1e-24, 2.0**-18
"""Of telemetry, which has any unit: added to the variance, and the share of the mean below which a spread is rounding of float32."""
LARGEST = 1e16
"""Larger numbers count as this: the sum of the squares of 100,000 of them would be infinite, and hide the signal for ever."""
UNSEEN = 1e6
"""Limit of a number before any was observed, as of a stream that was not there in training: squares and products of it stay finite."""
FARTHEST, FARTHEST_AFTER = 30.0, 16
"""Deviations beyond which a number counts as this far, and the rows after which the deviation is known. After n rows it is at least the root of
n. So one number doubles the variance at most, and a machine that moves after a long rest is followed within 100 rows."""
FAULTY_SHARE, FEW_ROWS = 0.05, 20
"""Of the rows of a batch: where more are so far away, the signal changed, and they count as they are. Of fewer rows none can tell. In the
first batch, this share of its rows has no part in the deviation by which they are judged."""


class Normaliser(nn.Module):
    """Mean and variance of each of W numbers, over the last dimension of anything."""

    count: Tensor
    mean: Tensor
    scatter: Tensor
    eps: Tensor
    resolution: Tensor

    def __init__(self, width: int, *, limit: int = 100_000, telemetry: bool = False) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scatter", torch.zeros(width))  # sum of squared distances from the mean
        eps, resolution = (TELEMETRY_EPS, TELEMETRY_RESOLUTION) if telemetry else (EPS, 0.0)
        self.register_buffer("eps", torch.tensor(eps), persistent=False)
        self.register_buffer("resolution", torch.tensor(resolution), persistent=False)

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
        before = float(self.count)
        x_NW = x_NW.clamp(-LARGEST, LARGEST)
        if before >= FARTHEST_AFTER:
            reach_W = max(FARTHEST, before**0.5) * self._deviation(self.scatter / before)
            if rows >= FEW_ROWS:
                far_W = ((x_NW - self.mean).abs() > reach_W).float().mean(0)
                reach_W = torch.where(far_W <= FAULTY_SHARE, reach_W, torch.inf)
            x_NW = torch.minimum(torch.maximum(x_NW, self.mean - reach_W), self.mean + reach_W)
        elif rows >= FEW_ROWS:
            x_NW = self._without_faults(x_NW)
        var_W, mean_W = torch.var_mean(x_NW, dim=0, correction=0)
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
        """Normalise and clip to ±10; a number that never varied comes out as 0 at its mean. Before any rows, limit to ±1e6."""
        seen = self.count > 0
        var_W = torch.where(seen, self.scatter / self.count.clamp(min=1).to(x.dtype), torch.ones_like(self.scatter))
        normal = (x - self.mean) / self._deviation(var_W)
        return torch.where(seen, normal.clamp(-CLIP, CLIP), x.clamp(-UNSEEN, UNSEEN))

    def _without_faults(self, x_NW: Tensor) -> Tensor:
        """Limit numbers of the first rows that are far from the others, which alone say what the deviation is."""
        middle_W = x_NW.median(0).values
        squares_NW = (x_NW - middle_W).square().sort(0).values
        var_W = squares_NW[: len(x_NW) - int(FAULTY_SHARE * len(x_NW))].mean(0)
        reach_W = FARTHEST * (var_W + (self.eps + (self.resolution * middle_W).square())).sqrt()
        return torch.minimum(torch.maximum(x_NW, middle_W - reach_W), middle_W + reach_W)

    def _deviation(self, var_W: Tensor) -> Tensor:
        return (var_W + (self.eps + (self.resolution * self.mean).square())).sqrt()
