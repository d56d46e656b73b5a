"""Tensors to bytes and back: safetensors only, finite numbers only. Nothing here can run code from a file."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""Openings of pickles of protocol 2 to 5 and of torch's zipped ones."""


class WeightsRefused(ValueError):  # noqa: N818 - reads as what happened
    """Tensors that may not be used; `reason` is `pickle`, `not_safetensors`, `not_finite` or `wrong_shapes`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


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
        WeightsRefused: a pickle, not safetensors, or a number that is not finite.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        # Only now: a header of 896 bytes makes a good safetensors file begin like a pickle too.
        if data.startswith(_PICKLE):
            raise WeightsRefused(
                "pickle", "the file is a pickle, which may run code; only safetensors is read"
            ) from None
        raise WeightsRefused("not_safetensors", f"not a whole safetensors file: {error}") from None
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


def check_shapes(tensors: Tensors, expected: Shapes) -> None:
    """Check that the names and shapes are the required ones.

    Raises:
        WeightsRefused: naming the first difference.
    """
    if tensors.keys() != expected.keys():
        names = sorted(tensors.keys() ^ expected.keys())
        raise WeightsRefused("wrong_shapes", f"{len(names)} tensors are missing or unknown, first {names[0]!r}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(expected[name]):
            raise WeightsRefused(
                "wrong_shapes", f"{name}: {tuple(tensor.shape)} where {tuple(expected[name])} is needed"
            )


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Return the shapes for `check_shapes`."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
