"""Tensors to bytes and back: safetensors only, finite numbers only. Nothing here can run code from a file."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from learners.checkpoints.safetensors_numpy import Shapes, WeightsRefused, check_shapes, shapes_of, unreadable

__all__ = ["Shapes", "WeightsRefused", "check_shapes", "shapes_of"]
Tensors = Mapping[str, Tensor]
DTYPES = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint64, torch.int32, torch.uint32,
    torch.int16, torch.uint16, torch.int8, torch.uint8, torch.bool,
})  # fmt: skip
"""Those of `safetensors_numpy.TYPES`."""


def pack(tensors: Tensors) -> bytes:
    """Return tensors as one safetensors file.

    Raises:
        WeightsRefused: a number is not finite.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    check_finite(plain)
    return safetensors.torch.save(plain)


def unpack(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Raises:
        WeightsRefused: a pickle, not safetensors, an unknown number type, or a number that is not finite.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise unreadable(data, error) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise WeightsRefused("not_safetensors", f"{name}: numbers of the type {tensor.dtype}, which no policy has")
    check_finite(tensors)
    return tensors


def check_finite(tensors: Tensors) -> None:
    """Check that every floating number is finite.

    Raises:
        WeightsRefused: with the tensor's name and how many are not.
    """
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise WeightsRefused("not_finite", f"{name}: {bad} of {tensor.numel()} numbers are not finite")
