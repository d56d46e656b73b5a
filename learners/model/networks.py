"""Small networks of the reinforcement-learning heads: trunks with LayerNorm, batch renormalisation or unit spheres.

Sources:

- LayerNorm critics as in RLPD (Ball et al. 2023).
- Batch renormalisation (Ioffe 2017) on the input and after every activation, as in CrossQ (Bhatt et al. 2024).
- Hyperspherical normalisation as in SimBaV2 (Lee et al. 2025).
- Batch normalisation before every activation and weights on the unit sphere, as in XQC (Palenicek et al. 2025).

Knows neither actions nor losses.

Shapes: B batch, I in, H hidden, O out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["none", "layer", "batch", "sphere", "unit"]
LEAST_NORM = 1e-8
"""Weights of a smaller norm are divided by this."""


class BatchRenorm(nn.Module):
    """Batch renormalisation of B,H (Ioffe 2017): batch statistics pulled towards the running ones.

    During the first `warmup` training passes it is plain batch normalisation, while the running statistics are still
    young. In `eval()` the running statistics are used, so that acting on one observation is well defined.
    """

    mean: Tensor
    var: Tensor
    passes: Tensor

    def __init__(self, width: int, *, momentum: float = 0.01, warmup: int = 100_000, eps: float = 1e-3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.momentum, self.warmup, self.eps = momentum, warmup, eps
        self._count = 0

    def forward(self, x_BH: Tensor) -> Tensor:
        """Normalise; in training also move the running statistics."""
        if not self.training or len(x_BH) < 2:
            return F.batch_norm(x_BH, self.mean, self.var, self.weight, self.bias, training=False, eps=self.eps)
        with torch.no_grad():
            self.passes += 1
        if self.passes.item() <= self.warmup:
            return F.batch_norm(
                x_BH, self.mean, self.var, self.weight, self.bias, training=True, momentum=self.momentum, eps=self.eps
            )
        with torch.no_grad():
            mean = x_BH.mean(0)
            var = (x_BH.square().mean(0) - mean.square()).clamp_min(0)
            deviation = (self.var + self.eps).sqrt()
            r = ((var + self.eps).sqrt() / deviation).clamp(1 / 3, 3)
            d = ((mean - self.mean) / deviation).clamp(-5, 5)
            self.mean.lerp_(mean, self.momentum)
            self.var.lerp_(var, self.momentum)
        # r and d are constants to the gradient, so they fold into the affine part.
        weight, bias = self.weight * r, self.bias + self.weight * d
        return F.batch_norm(x_BH, None, None, weight, bias, training=True, eps=self.eps)


class SphereLinear(nn.Module):
    """A linear map without bias, with columns on the unit sphere and a learned scale (SimBaV2, section 4)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(width_out, width_in), dim=1))
        self.scale = nn.Parameter(torch.full((width_out,), (2 / width_in) ** 0.5 * width_in**0.5))

    def forward(self, x_BI: Tensor) -> Tensor:
        """Project and scale."""
        return F.linear(x_BI, self.weight) * self.scale

    @torch.no_grad()
    def project(self) -> None:
        """Put the weights back on the sphere; called after every optimiser step."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


class SphereBlock(nn.Module):
    """An inverted-bottleneck block of SimBaV2: LERP between the input and a normalised two-layer map of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = SphereLinear(width, 2 * width), SphereLinear(2 * width, width)
        self.alpha = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x_BH: Tensor) -> Tensor:
        """Return the next unit vector."""
        y_BH = F.normalize(self.down(F.relu(self.up(x_BH))), dim=-1)
        return F.normalize(x_BH + self.alpha * (y_BH - x_BH), dim=-1)


class SphereTrunk(nn.Module):
    """SimBaV2's encoder: shift by a constant coordinate, normalise, embed, blocks."""

    def __init__(self, width_in: int, width: int, blocks: int = 1, shift: float = 3.0) -> None:
        super().__init__()
        self.shift = shift
        self.embed = SphereLinear(width_in + 1, width)
        self.blocks = nn.Sequential(*(SphereBlock(width) for _ in range(blocks)))

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map B,I to unit vectors B,H times sqrt(H), the scale that the other trunks give."""
        constant_B1 = x_BI.new_full((*x_BI.shape[:-1], 1), self.shift)
        x_BH = F.normalize(self.embed(F.normalize(torch.cat((x_BI, constant_B1), dim=-1), dim=-1)), dim=-1)
        out_BH: Tensor = self.blocks(x_BH)
        scale: float = out_BH.shape[-1] ** 0.5
        return out_BH * scale


class UnitLinear(nn.Module):
    """A linear map with rows on the unit sphere (XQC, section 4); `Projection` restores them after each optimiser step."""

    bias: nn.Parameter | None

    def __init__(self, width_in: int, width_out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(width_out, width_in), dim=1))
        self.bias = nn.Parameter(torch.zeros(width_out)) if bias else None

    def forward(self, x_BI: Tensor) -> Tensor:
        """Map B,I to B,O."""
        return F.linear(x_BI, self.weight, self.bias)


class UnitBatchNorm(nn.Module):
    """Batch normalisation of B,H; gain and shift together have the norm sqrt(H) (FlashSAC, Kim et al. 2026).

    In `eval()` it uses running statistics, so that one observation has a defined output.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int, *, momentum: float = 0.01, eps: float = 1e-3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.momentum, self.eps = momentum, eps

    def forward(self, x_BH: Tensor) -> Tensor:
        """Normalise; in training also move the running statistics."""
        training = self.training and len(x_BH) > 1
        return F.batch_norm(
            x_BH, self.mean, self.var, self.weight, self.bias, training=training, momentum=self.momentum, eps=self.eps
        )


def trunk(width_in: int, hidden: Sequence[int], norm: Norm = "layer") -> nn.Module:
    """Build the hidden layers: B,I -> B,hidden[-1]."""
    if norm == "sphere":
        return SphereTrunk(width_in, hidden[-1], blocks=max(1, len(hidden) - 1))
    if norm == "unit":
        sizes = zip((width_in, *hidden[:-1]), hidden, strict=True)
        units = [part for i, o in sizes for part in (UnitLinear(i, o), UnitBatchNorm(o), nn.ReLU())]
        return nn.Sequential(UnitBatchNorm(width_in), *units)
    layers: list[nn.Module] = [BatchRenorm(width_in)] if norm == "batch" else []
    for size_in, size_out in zip((width_in, *hidden[:-1]), hidden, strict=True):
        layers.append(nn.Linear(size_in, size_out))
        if norm == "layer":
            layers.append(nn.LayerNorm(size_out))
        layers.append(nn.ReLU())
        if norm == "batch":
            layers.append(BatchRenorm(size_out))
    return nn.Sequential(*layers)


class Projection:
    """Puts the constrained weights of a module back on their spheres, after each optimiser step.

    Rows of a linear map have norm 1. Gain and shift of a batch normalisation of width H together have the norm sqrt(H).

    The module keeps its tensors: they may be loaded into, not replaced.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = list(module.modules())
        norms = [part for part in layers if isinstance(part, UnitBatchNorm)]
        self._spheres = [part for part in layers if isinstance(part, SphereLinear)]
        self._rows: list[Tensor] = [part.weight for part in layers if isinstance(part, UnitLinear)]
        self._gains: list[Tensor] = [part.weight for part in norms]
        self._shifts: list[Tensor] = [part.bias for part in norms]
        self._widths = torch.tensor([len(gain) ** 0.5 for gain in self._gains])

    @torch.no_grad()
    def __call__(self) -> None:
        """Project; one call for all layers where there is one, because a layer alone costs less than the call."""
        for sphere in self._spheres:
            sphere.project()
        if self._rows:
            norms = [torch.linalg.vector_norm(weight, dim=1, keepdim=True) for weight in self._rows]
            torch._foreach_clamp_min_(norms, LEAST_NORM)
            torch._foreach_div_(self._rows, norms)
        if self._gains:
            lengths = torch.hypot(
                torch.stack(torch._foreach_norm(self._gains)), torch.stack(torch._foreach_norm(self._shifts))
            )
            factors = (self._widths.to(lengths.device) / lengths.clamp_(min=LEAST_NORM)).unbind()
            torch._foreach_mul_(self._gains, factors)
            torch._foreach_mul_(self._shifts, factors)


class Tracker:
    """Lets `target` follow the same-named weights of `source` (Polyak averaging); buffers are copied as they are.

    A buffer is a statistic or a count: half of a mean with all of its variance would be no statistic of anything.

    Both keep their tensors: they may be loaded into, not replaced.
    """

    def __init__(self, target: nn.Module, source: nn.Module) -> None:
        theirs, weights = source.state_dict(), {name for name, _ in target.named_parameters()}
        pairs = {name: (tensor, theirs[name]) for name, tensor in target.state_dict().items()}
        self._moving = [t for name, (t, _) in pairs.items() if name in weights]
        self._ahead = [s for name, (_, s) in pairs.items() if name in weights]
        self._copied = [pair for name, pair in pairs.items() if name not in weights]

    @torch.no_grad()
    def __call__(self, rate: float) -> None:
        """Move by `rate` of the way."""
        torch._foreach_lerp_(self._moving, self._ahead, rate)
        self.copy_buffers()

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Copy the buffers of the source."""
        for target, source in self._copied:
            target.copy_(source)
