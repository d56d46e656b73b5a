"""Define the policy: features -> fused state -> context of recent states -> heads.

The state is the fused vector with the raw, normalised telemetry beside it: control that needs exact numbers finds them
unharmed. Where a single telemetry stream is all there is, fusion is left out and the context is the normalised numbers
of `history` ticks, newest first, as published algorithms have it.

Encoders are no part of it: it works on tokens, live or remembered, so that learning, shadow runs and explanations need
none. An episode's first ticks repeat its oldest state in the place of those before it.

Shapes: B batch, H history (oldest first), S streams, T tokens, W their width, D state, C context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learners.model.features import Features
from learners.model.fusion import Adapter, Fusion, masked
from learners.model.heads import HeadOutput, Heads
from learners.model.normalizer import Normaliser
from learners.model.recorded_arrays import FeatureArrays
from learners.model.spec import PolicySpec


class Policy(nn.Module):
    """Everything trainable but the encoders, built from its spec."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.spec = spec
        self.fusion = None if spec.plain else Fusion(spec)
        self.telemetry = (
            nn.ModuleList(Normaliser(s.width, telemetry=True) for s in spec.telemetry)
            if spec.plain
            else nn.ModuleList()
        )
        self.state_width = spec.telemetry_width + (0 if spec.plain else spec.width)
        older = spec.history - 1
        self.recall = nn.Linear(older * self.state_width, spec.width) if older and not spec.plain else None
        self.context_width = (
            self.state_width * spec.history if spec.plain else self.state_width + (spec.width if older else 0)
        )
        self.heads = Heads(
            spec.actions,
            self.context_width,
            spec.algorithm,
            gamma=spec.gamma,
            hidden=spec.hidden,
            exploration=spec.exploration,
        )

    def normalisers(self) -> dict[str, Normaliser]:
        """Return the normaliser of each stream."""
        if self.fusion is None:
            return {s.name: cast("Normaliser", n) for s, n in zip(self.spec.streams, self.telemetry, strict=True)}
        adapters = zip(self.spec.streams, self.fusion.adapters, strict=True)
        return {s.name: cast("Adapter", adapter).normalise for s, adapter in adapters}

    @torch.no_grad()
    def observe(self, features: Features) -> None:
        """Merge new experience into the statistics of the inputs; the learner calls this once for every tick."""
        flat = features.flatten()
        for s, (name, normaliser) in enumerate(self.normalisers().items()):
            normaliser.observe(flat.tokens[name][flat.present[:, s]].flatten(0, 1))

    def fuse(self, features: Features) -> Tensor:
        """Fuse features [B] into the state B,D."""
        tokens = [features.tokens[name] for name in self.spec.names]
        state_BD: Tensor = self.estimate(tokens, features.present, features.ages)
        return state_BD

    def estimate(self, tokens: list[Tensor], present_BS: Tensor, ages_BS: Tensor) -> Tensor:
        """Run `fuse` on bare tensors, the form that backends convert."""
        raw_BF = self._numbers(tokens, present_BS)
        if self.fusion is None:
            assert raw_BF is not None
            return raw_BF
        fused_BD: Tensor = self.fusion(tokens, present_BS, ages_BS)
        return fused_BD if raw_BF is None else torch.cat((fused_BD, raw_BF), dim=-1)

    def _numbers(self, tokens: list[Tensor], present_BS: Tensor) -> Tensor | None:
        """Normalised telemetry of every stream B,F; zero where missing, None where there is none."""
        normalisers = self.normalisers()
        parts = [
            masked(normalisers[stream.name](masked(x_BTW, present_BS[:, s])), present_BS[:, s]).flatten(1)
            for s, (stream, x_BTW) in enumerate(zip(self.spec.streams, tokens, strict=True))
            if stream.modality == "telemetry"
        ]
        return torch.cat(parts, dim=-1) if parts else None

    def context(self, states_BHD: Tensor) -> Tensor:
        """Turn states of the last `history` ticks, oldest first, into a context B,C that starts with the newest state.

        Raises:
            ValueError: another number of states than `spec.history`.
        """
        if states_BHD.shape[1] != self.spec.history:
            raise ValueError(
                f"{states_BHD.shape[1]} states for a policy with history {self.spec.history}; repeat the oldest"
            )
        newest_BD = states_BHD[:, -1]
        if self.spec.plain:
            return states_BHD.flip(1).flatten(1)
        if self.recall is None:
            return newest_BD
        return torch.cat((newest_BD, self.recall(states_BHD[:, :-1].flatten(1))), dim=-1)

    def encode(self, features: Features, *, generator: torch.Generator | None = None) -> Tensor:
        """Encode features [B] or [B, H] into a context B,C, with gradients; in `train()`, mask whole streams at random.

        `[B]` means a history of equal states. `generator` selects the masked streams.
        """
        if self.training and self.spec.modality_dropout > 0 and len(self.spec.streams) > 1:
            features = drop_streams(features, self.spec.modality_dropout, generator)
        states = self.fuse(features.flatten())
        if len(features.lead) == 1:
            return self.context(states.unsqueeze(1).expand(-1, self.spec.history, -1))
        return self.context(states.reshape(*features.lead, -1))

    @torch.no_grad()
    def contexts(self, windows: FeatureArrays) -> NDArray[np.float32]:
        """Return the contexts R,C of windows [R, H], as `learners.model.shapley` needs them."""
        tokens = {name: torch.from_numpy(x) for name, x in windows.tokens.items()}
        context_RC = self.encode(Features(tokens, torch.from_numpy(windows.present), torch.from_numpy(windows.ages)))
        found: NDArray[np.float32] = context_RC.numpy()
        return found

    @torch.no_grad()
    def action_scores(self, context_RC: NDArray[np.float32], index: int) -> NDArray[Any]:
        """Return the critic's value R,n of each choice of the choice actuator with this number."""
        scores = self.heads.choice_scores(torch.from_numpy(context_RC))[index]
        return scores.numpy()

    @torch.no_grad()
    def action_log_density(
        self, context_RC: NDArray[np.float32], name: str, value: tuple[float, ...]
    ) -> NDArray[Any] | None:
        """Return the log density R of a continuous action before squashing; None without such an actuator."""
        head = self.heads.continuous
        if head is None:
            return None
        log_R = head.log_density_before_squashing(
            torch.from_numpy(context_RC), self.spec.actions.continuous, name, value
        )
        return None if log_R is None else log_R.numpy()

    def act(self, features: Features, *, generator: torch.Generator, explore: bool | float = False) -> HeadOutput:
        """Return actions for recorded features, [B] or [B, H], outside the control loop."""
        with torch.no_grad():
            return self.heads.act(self.encode(features), generator=generator, explore=explore)


def drop_streams(features: Features, probability: float, generator: torch.Generator | None) -> Features:
    """Leave whole streams out at random, the same along a history; what would lose all of its streams keeps all."""
    shape = (features.lead[0], features.present.shape[-1])
    device = features.present.device if generator is None else generator.device
    keep_BS = torch.rand(shape, generator=generator, device=device).to(features.present.device) >= probability
    if len(features.lead) > 1:
        keep_BS = keep_BS.unsqueeze(1)
    present = features.present & keep_BS
    present = torch.where(present.any(-1, keepdim=True), present, features.present)
    return Features(features.tokens, present, features.ages)


def build(spec: PolicySpec, tensors: Mapping[str, Tensor]) -> Policy:
    """Build a policy with these weights, in `eval()`.

    Raises:
        RuntimeError: a weight is missing, unknown or of another shape.
    """
    policy = Policy(spec)
    policy.load_state_dict(tensors)
    return policy.eval()
