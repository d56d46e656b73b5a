"""Build the part of a pretrained model that the policy uses, with its scaling before and its pooling after, as one graph.

A tower maps prepared tensors to float32 tokens B,T,W, so that any backend can run it as one graph. Vision tokens are cells
of a grid (columns first), hearing tokens are the whole window and its segments, language is one sentence embedding. Models
differ in where their vision or hearing part is; only this module knows.

Shapes: B batch, C channels, Y and X of a map or picture, P patches, M mel bands, F frames, L ids, T tokens, W width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UnknownArchitecture(ValueError):  # noqa: N818 - reads as what happened
    """The model has no known part for the modality; `str` names the model."""


def grid(tokens: int, high: int, wide: int) -> tuple[int, int]:
    """Return rows and columns of `tokens` cells over a map: as many columns as possible, because cameras turn sideways.

    4 tokens over 7 x 7 are 1 x 4, 14 are 2 x 7, 49 are 7 x 7.

    Raises:
        ValueError: no such grid fits the map.
    """
    for rows in range(1, high + 1):
        if tokens % rows == 0 and tokens // rows <= wide:
            return rows, tokens // rows
    raise ValueError(
        f"policy.tokens: {tokens} cells do not fit a map of {high} x {wide}; choose a number that divides so"
    )


def pool_weights(size: int, cells: int) -> Tensor:
    """Build the averaging matrix size,cells; the cells share the range evenly, edges in proportion.

    Plain adaptive pooling lets neighbouring cells overlap when the division is not whole; these do not.
    """
    edges = torch.linspace(0, size, cells + 1)
    low, high = edges[:-1], edges[1:]
    place = torch.arange(size).unsqueeze(1)
    share = (torch.minimum(high, place + 1.0) - torch.maximum(low, place.float())).clamp(min=0)
    return share / share.sum(0, keepdim=True)


class VisionTower(nn.Module):
    """uint8 pictures B,3,Y,X -> tokens B,T,W; a grid of means of the last map, row by row."""

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, model: Any, tokens: int, size: tuple[int, int], mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model, self.size = getattr(model, "vision_model", model), size
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1) * 255, persistent=False)
        with torch.no_grad():
            _, self.width, high, wide = self._map(torch.zeros(1, 3, *size)).shape
        rows, columns = grid(tokens, high, wide)
        self.register_buffer("rows", pool_weights(high, rows), persistent=False)
        self.register_buffer("columns", pool_weights(wide, columns), persistent=False)

    def _map(self, x_BCYX: Tensor) -> Tensor:
        """Compute features B,C,Y,X of a scaled picture."""
        out: Tensor = self.model(pixel_values=x_BCYX).last_hidden_state
        if out.dim() == 4:
            return out
        patch = self.model.config.patch_size
        step = (patch, patch) if isinstance(patch, int) else tuple(patch)
        high, wide = self.size[0] // step[0], self.size[1] // step[1]
        x_BPC = out[:, out.shape[1] - high * wide :]  # class and register tokens come first
        # .shape and not len(): tracing keeps the batch free only so
        return x_BPC.transpose(1, 2).reshape(x_BPC.shape[0], x_BPC.shape[2], high, wide)

    def forward(self, image_BCYX: Tensor) -> Tensor:
        """Scale, run the model, pool."""
        x_BCYX = (image_BCYX.to(self.mean.dtype) - self.mean) / self.std
        x_BCYX = self._map(x_BCYX)
        pooled_BCyx = self.rows.T.to(x_BCYX.dtype) @ (x_BCYX @ self.columns.to(x_BCYX.dtype))
        return pooled_BCyx.flatten(2).transpose(1, 2).float()


class AudioTower(nn.Module):
    """Sound features -> tokens B,T,W: the mean of the window, then, from the second token on, means of equal segments.

    A word may stand anywhere in the window: the first token finds it wherever it is, the others tell when it was.
    """

    segments: Tensor

    def __init__(self, model: Any, tokens: int, example: Tensor) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            _, frames, self.width = model(example).last_hidden_state.shape
        whole = torch.full((frames, 1), 1 / frames)
        parts = [whole] if tokens == 1 else [whole, pool_weights(frames, tokens - 1)]
        self.register_buffer("segments", torch.cat(parts, dim=1), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """Run the model and pool; `sound` is B,M,F or B,N, as the model takes it."""
        x_BFW = self.model(sound).last_hidden_state
        pooled_BTW: Tensor = self.segments.T.to(x_BFW.dtype) @ x_BFW
        return pooled_BTW.float()


class LanguageTower(nn.Module):
    """Ids and mask B,L -> the sentence embedding B,1,W: masked mean, unit length (Reimers and Gurevych 2019)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = getattr(model, "text_model", model)
        self.width = int(self.model.config.hidden_size)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Run the model and pool."""
        x_BLW = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        weight_BL1 = mask_BL.unsqueeze(-1).to(x_BLW.dtype)
        mean_BW = (x_BLW * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)
        return F.normalize(mean_BW.float(), dim=-1).unsqueeze(1)


def whisper_encoder(model: Any, frames: int) -> Any:
    """Cut Whisper's encoder to windows of `frames` mel frames; it uses the first positions of its table.

    It was trained on 30 s and knows the length of a window only from its positions.
    """
    encoder = model.encoder
    positions = encoder.embed_positions.weight[: frames // 2].detach().clone()
    encoder.embed_positions = nn.Embedding(len(positions), positions.shape[1], _weight=positions)
    encoder.config.max_source_positions = encoder.max_source_positions = len(positions)
    return encoder
