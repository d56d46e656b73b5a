"""Locate in an image what sound or text refers to, by a low-rank bilinear product of their tokens.

A product relates the object of an order to its place in the image; attention and sums over tokens need far more examples for
that. Every place of the image has a key, and the sound and text streams have a query. Groups of their element-wise product are
summed, which makes one map over the places for each group. This is a low-rank bilinear form (Kim et al. 2017, "Hadamard Product
for Low-rank Bilinear Pooling"). The maps are normalised over the places, as in attention, and each place remains a separate
output. All places share the same weights, so training at one place applies to all.

Reads adapted tokens; knows nothing of encoders.

Shapes: B batch, T places (tokens) of a picture, D width of the policy, G groups, E = D / G.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners.model.spec import PolicySpec

GROUPS = 8


class LowRankBilinear(nn.Module):
    """Adapted tokens of every stream -> one vector B,D.

    Args:
        spec: of the policy, which has made sure that there is something to match.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.seen, self.instructing = spec.pairs
        width = spec.width
        self.groups = GROUPS if width % GROUPS == 0 else 1
        self.normalise = nn.LayerNorm(width)
        self.key = nn.Linear(width, width)
        self.query = nn.ModuleList(nn.Linear(width * spec.streams[i].tokens, width) for i in self.instructing)
        places = sum(spec.streams[i].tokens for i in self.seen)
        self.out = nn.Sequential(nn.Linear(places * self.groups, width), nn.LayerNorm(width))

    def forward(self, adapted: Sequence[Tensor], present_BS: Tensor) -> Tensor:
        """What was found where; missing streams contribute no query and no map."""
        query_BD = self._ask(adapted, present_BS)
        maps = [self._look(adapted[i], query_BD) * present_BS[:, i : i + 1] for i in self.seen]
        out_BD: Tensor = self.out(torch.cat(maps, dim=1))
        return out_BD

    def _ask(self, adapted: Sequence[Tensor], present_BS: Tensor) -> Tensor:
        """Return the sum of the queries of all present streams, B,D."""
        queries = [
            query(F.layer_norm(adapted[i], adapted[i].shape[-1:]).flatten(1)) * present_BS[:, i : i + 1]
            for query, i in zip(self.query, self.instructing, strict=True)
        ]
        return torch.stack(queries).sum(0)

    def _look(self, x_BTD: Tensor, query_BD: Tensor) -> Tensor:
        """Return one image's maps B,(T G)."""
        product_BTGE = (self.key(self.normalise(x_BTD)) * query_BD.unsqueeze(1)).unflatten(-1, (self.groups, -1))
        match_BTG = product_BTGE.sum(-1) / product_BTGE.shape[-1] ** 0.5
        return torch.softmax(match_BTG, dim=1).flatten(1)
