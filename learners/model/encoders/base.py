"""Define the interface of an encoder, which turns the readings of one kind of stream into tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from learners.model.spec import Modality
from sensors.readings import Reading

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = tuple["Tensor", ...]
Run = Callable[..., "Tensor"]


class Encoder(Protocol):
    """An encoder; an entry point of `reflexd.encoders` returns one.

    The entry point is called with its `EncoderSettings`, `policy.tokens` and the torch device. `module` is the torch module
    behind `run`, which a faster backend may replace. An encoder that cannot be converted sets it to None.
    """

    modality: Modality
    version: str
    tokens: int
    width: int
    module: nn.Module | None
    run: Run

    def prepare(self, readings: Sequence[Reading]) -> Inputs:
        """Make the tensors for `run` from readings of this modality."""

    def encode(self, inputs: Inputs) -> Tensor:
        """Return tokens B,T,W float32."""

    def examples(self) -> list[Inputs]:
        """Return inputs of every frequent shape, for conversion and calibration."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load fine-tuned weights, which changes `version`."""
