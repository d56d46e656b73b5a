"""The result of one inference, and how it is made of the heads' output.

Shapes: B batch, S streams, D state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from actuators.actions import Action
from learners.model.heads import HeadOutput, actuator_values
from learners.model.policy import Policy
from learners.model.spec import PolicySpec


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """One tick's answer."""

    policy: str
    actions: dict[str, Action]
    value: float
    tokens: dict[str, NDArray[Any]]
    """Of every present stream: float16 [T, W]; telemetry float32 [1, W], raw."""
    encoder_versions: dict[str, str]
    scores: dict[str, list[float]]
    """The critic's value of each choice."""
    latency_s: float
    encoded: tuple[str, ...] = ()
    """Streams that were encoded at this tick; the others came from the cache."""
    choices: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each choice actuator: with which probability every choice would have been taken; they sum to 1."""
    encode_s: dict[str, float] = field(default_factory=dict)
    """How long each encoder worked at this tick, where it did."""
    encoders: dict[str, str] = field(default_factory=dict)
    """The version of every encoder at this tick, by its name, whether its streams were there or not."""

    def actions_message(self) -> dict[str, dict[str, Any]]:
        """Return the actions as the `decision` message has them: value, probability, and the probabilities of all choices."""
        return {
            name: {"value": action.value, "probability": action.probability}
            | ({"probabilities": self.choices[name]} if name in self.choices else {})
            for name, action in self.actions.items()
        }


class FlatPolicyModule(nn.Module):
    """`Policy.estimate` with flat arguments, the form that backends convert and capture."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, present_BS: Tensor, ages_BS: Tensor, *tokens: Tensor) -> Tensor:
        """State B,D."""
        return self.policy.estimate(list(tokens), present_BS, ages_BS)


def actions_of(spec: PolicySpec, out: HeadOutput) -> tuple[dict[str, Action], dict[str, list[float]]]:
    """The heads' first row as actions, and the critic's value of each choice."""
    values = actuator_values(spec.actions, out)
    actions = {name: Action(value, float(out.probabilities[name][0])) for name, value in values.items()}
    return actions, {name: row[0].tolist() for name, row in out.scores.items()}


def choices_of(spec: PolicySpec, out: HeadOutput) -> dict[str, dict[str, float]]:
    """The first row's probability of every choice, by actuator and choice."""
    return {
        a.name: dict(zip(a.choices, out.choices[a.name][0].tolist(), strict=True))
        for a in spec.actions.choices
        if a.name in out.choices
    }
