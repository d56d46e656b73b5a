"""Fuse the tokens of all streams into one state, with a few learned latents that attend to them.

Latents attend to themselves and to every token: a bottleneck between modalities as in MBT (Nagrani et al. 2021), with the
input attention of Perceiver IO (Jaegle et al. 2022). The first layer can read an order, the next can search for its object.
Each token encodes its stream, its position in it, and its age. Missing tokens are set to zero and masked in the attention, so
that their content cannot reach the state, not even as NaN.

`policy.fusion: low-rank-bilinear` fuses streams that refer to places in an image differently, see `low_rank_bilinear.py`.

Shapes: B batch, S streams, T tokens of a stream, W their width, D width of the policy, L latents, K all tokens, H heads, E = D / H.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learners.model.low_rank_bilinear import LowRankBilinear
from learners.model.normalizer import Normaliser
from learners.model.spec import PolicySpec, StreamSpec

MAX_AGE_S = 3_600.0


def masked(x_BTW: Tensor, present_B: Tensor) -> Tensor:
    """Return zeros for tokens that are not present, whatever their content."""
    # a scalar: with a tensor of zeros of this shape it takes seven times as long
    return torch.where(present_B[:, None, None], x_BTW, 0.0)


class FeatureDropout(nn.Module):
    """Leaves features out for a whole batch in training, the same ones in every row: one small mask instead of a large one.

    Pretrained tokens are wide and redundant, and experience is correlated: without it a few of their features are learned
    by heart.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_BTW: Tensor) -> Tensor:
        """Zero some of W, scale the others up."""
        if not self.training or not self.probability:
            return x_BTW
        keep_W = torch.rand(x_BTW.shape[-1], device=x_BTW.device) >= self.probability
        return x_BTW * (keep_W / (1 - self.probability))


class Adapter(nn.Module):
    """One stream's tokens B,T,W -> B,T,D: normalise, project, say which stream, which place and how old."""

    def __init__(self, stream: StreamSpec, width: int, dropout: float) -> None:
        super().__init__()
        self.normalise = Normaliser(stream.width, telemetry=stream.modality == "telemetry")
        # an encoder's tokens may be of any scale before statistics are gathered; telemetry must keep its own
        encoded = stream.modality != "telemetry"
        self.level = nn.Sequential(nn.LayerNorm(stream.width), FeatureDropout(dropout)) if encoded else nn.Identity()
        self.project = nn.Linear(stream.width, width)
        self.place = nn.Parameter(torch.randn(stream.tokens, width) * 0.02)
        self.age = nn.Linear(2, width)

    def forward(self, x_BTW: Tensor, present_B: Tensor, age_B: Tensor) -> Tensor:
        """Adapted tokens; rows that are not present hold nothing of their content."""
        x_BTW = masked(x_BTW, present_B)
        age_B = torch.where(present_B, age_B, torch.zeros_like(age_B)).clamp(0.0, MAX_AGE_S)
        age_B2 = torch.stack((age_B.log1p(), torch.exp(-age_B)), dim=-1)
        x_BTD: Tensor = self.project(self.level(self.normalise(x_BTW)))
        extra_BTD: Tensor = self.place + self.age(age_B2).unsqueeze(1)
        return x_BTD + extra_BTD


class Bottleneck(nn.Module):
    """One layer: latents attend to latents and tokens, then think; both residual, normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_latents, self.norm_tokens, self.norm_think = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.query, self.key_value, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.think = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, z_BLD: Tensor, x_BKD: Tensor, visible_BK: Tensor) -> Tensor:
        """Return the next latents."""
        own_BLD = self.norm_latents(z_BLD)
        seen_BJD = torch.cat((own_BLD, self.norm_tokens(x_BKD)), dim=1)
        always_BL = visible_BK.new_ones(visible_BK.shape[0], z_BLD.shape[1])
        mask_B11J = torch.cat((always_BL, visible_BK), dim=1)[:, None, None]
        q_BHLE, k_BHJE, v_BHJE = (
            self._split(x) for x in (self.query(own_BLD), *self.key_value(seen_BJD).chunk(2, dim=-1))
        )
        mixed_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHJE, v_BHJE, attn_mask=mask_B11J)
        z_BLD = z_BLD + self.out(mixed_BHLE.transpose(1, 2).flatten(2))
        thought_BLD: Tensor = self.think(self.norm_think(z_BLD))
        return z_BLD + thought_BLD

    def _split(self, x_BJD: Tensor) -> Tensor:
        batch, count, width = x_BJD.shape
        return x_BJD.reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)


class Attention(nn.Module):
    """The bottleneck: adapted tokens of all streams -> B,D; with nothing present it is the latents' own."""

    places: Tensor
    """The stream of each token, K."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        places = [s for s, stream in enumerate(spec.streams) for _ in range(stream.tokens)]
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)
        self.latents = nn.Parameter(torch.randn(spec.latents, spec.width) * 0.02)
        self.layers = nn.ModuleList(Bottleneck(spec.width, spec.heads) for _ in range(spec.layers))
        self.out = nn.Sequential(
            nn.LayerNorm(spec.latents * spec.width),
            nn.Linear(spec.latents * spec.width, spec.width),
            nn.LayerNorm(spec.width),
        )

    def forward(self, adapted: Sequence[Tensor], present_BS: Tensor) -> Tensor:
        """The state."""
        x_BKD = torch.cat(list(adapted), dim=1)
        visible_BK = present_BS.index_select(1, self.places)
        z_BLD = self.latents.expand(x_BKD.shape[0], -1, -1)
        for layer in self.layers:
            z_BLD = layer(z_BLD, x_BKD, visible_BK)
        state_BD: Tensor = self.out(z_BLD.flatten(1))
        return state_BD


class Fusion(nn.Module):
    """Tokens of every stream, in the order of the spec, -> state B,D."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(Adapter(stream, spec.width, spec.feature_dropout) for stream in spec.streams)
        self.streams = nn.Parameter(torch.randn(len(spec.streams), spec.width) * 0.02)
        self.how: nn.Module = LowRankBilinear(spec) if spec.fusion == "low-rank-bilinear" else Attention(spec)

    def adapt(self, tokens: Sequence[Tensor], present_BS: Tensor, ages_BS: Tensor) -> list[Tensor]:
        """Return each stream's tokens B,T,D, independent of every other stream."""
        return [
            adapter(x_BTW, present_BS[:, s], ages_BS[:, s]) + self.streams[s]
            for s, (adapter, x_BTW) in enumerate(zip(self.adapters, tokens, strict=True))
        ]

    def forward(self, tokens: Sequence[Tensor], present_BS: Tensor, ages_BS: Tensor) -> Tensor:
        """The state; what is not present has no part in it."""
        state_BD: Tensor = self.how(self.adapt(tokens, present_BS, ages_BS), present_BS)
        return state_BD
