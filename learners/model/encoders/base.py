"""The interface of an encoder: one stream kind to tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from learners.model.spec import Modality
from sensors.readings import Reading

Inputs = tuple[Tensor, ...]

Run = Callable[..., Tensor]


class Encoder(Protocol):
    """What the engine asks of an encoder; a plugin of `reflexd.encoders` gives one of these.

    A plugin is called with its `EncoderSettings`, `policy.tokens` and the torch device. `module` is the torch module that
    `run` starts as; a plugin that cannot be converted leaves it None and keeps its own `run`.
    """

    modality: Modality
    version: str
    tokens: int
    width: int
    module: nn.Module | None
    run: Run

    def prepare(self, readings: Sequence[Reading]) -> Inputs:
        """Tensors for `run`, from readings of this modality."""

    def encode(self, inputs: Inputs) -> Tensor:
        """Tokens B,T,W float32."""

    def examples(self) -> list[Inputs]:
        """Inputs of every shape that will occur often, to convert and to calibrate with."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take fine-tuned weights; the version follows."""
