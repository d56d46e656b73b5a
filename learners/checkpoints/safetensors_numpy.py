"""Read safetensors as numpy arrays, with every check, and without torch. `safetensors_torch.py` does the same for torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors import SafetensorError

Shapes = Mapping[str, tuple[int, ...]]

PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""Openings of pickles of protocol 2 to 5 and of torch's zipped ones."""

TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "U64": np.uint64,
    "I32": np.int32, "U32": np.uint32, "I16": np.int16, "U16": np.uint16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class WeightsRefused(ValueError):  # noqa: N818 - reads as what happened
    """Tensors that may not be used; `reason` is `pickle`, `not_safetensors`, `not_finite` or `wrong_shapes`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Shaped(Protocol):
    """An array or a tensor."""

    @property
    def shape(self) -> Any:
        """Its lengths."""


def unreadable(data: bytes, error: Exception) -> WeightsRefused:
    """Return why bytes are no safetensors file."""
    # Only now: a header of 896 bytes makes a good safetensors file begin like a pickle too.
    if data.startswith(PICKLE):
        return WeightsRefused("pickle", "the file is a pickle, which may run code; only safetensors is read")
    return WeightsRefused("not_safetensors", f"not a whole safetensors file: {error}")


def unpack_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of a safetensors file; bfloat16, which numpy lacks, as its bits in uint16.

    Raises:
        WeightsRefused: a pickle, not safetensors, an unknown number type, or a number that is not finite.
    """
    try:
        found = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        _check_kinds(found)
        arrays = {
            name: np.frombuffer(one["data"], TYPES[one["dtype"]]).reshape(one["shape"]) for name, one in found.items()
        }
    except WeightsRefused:
        raise
    except (SafetensorError, ValueError, KeyError) as error:
        raise unreadable(data, error) from None
    for name, array in arrays.items():
        bad = int(np.count_nonzero(~_finite(array, found[name]["dtype"])))
        if bad:
            raise WeightsRefused("not_finite", f"{name}: {bad} of {array.size} numbers are not finite")
    return {name: _float32(array) if found[name]["dtype"] == "BF16" else array for name, array in arrays.items()}


def _check_kinds(found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, one in found.items():
        if one["dtype"] not in TYPES:
            detail = f"{name}: numbers of the type {one['dtype']}, which no policy has"
            raise WeightsRefused("not_safetensors", detail)


def _float32(bfloat16: NDArray[Any]) -> NDArray[Any]:
    """Return numbers from their upper halves."""
    return (bfloat16.astype(np.uint32) << 16).view(np.float32)


def _finite(array: NDArray[Any], kind: str) -> NDArray[np.bool_]:
    if kind == "BF16":
        exponents: NDArray[np.bool_] = (array & 0x7F80) != 0x7F80
        return exponents
    return np.isfinite(array) if array.dtype.kind == "f" else np.ones(array.shape, bool)


def check_shapes(tensors: Mapping[str, Shaped], expected: Shapes) -> None:
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


def shapes_of(tensors: Mapping[str, Shaped]) -> dict[str, tuple[int, ...]]:
    """Return the shapes for `check_shapes`."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
