"""Mirror half of each batch, for a world that is symmetric between left and right.

In such a world every transition has a mirrored counterpart. The places of every image are reversed along its rows, the choices
of the named actuators are reversed, and the named continuous actuators and telemetry are negated. Only the operator knows
whether the world is symmetric; `learner.mirror_augmentation` declares it. It is an augmentation for reinforcement learning from
images, as in Laskin et al. 2020 ("RAD"), that also changes the action.

Shapes: B batch, T tokens of a stream, W their width, A components of one continuous actuator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from learners.model.features import Features
from learners.model.spec import PolicySpec
from learners.rl.transition_batch import Batch

Change = Callable[[Tensor, Tensor], Tensor]
"""Changes the rows B of a tensor that are to be mirrored."""


class MirrorAugmentation:
    """Mirror half of a batch.

    Args:
        spec: of the policy.
        names: actuators and telemetry streams that change sides.

    Raises:
        ValueError: a name is neither. Or a picture has one token: its actions would be mirrored and it would not. Or the limits of an
            actuator do not mirror each other: what is mirrored would lie beyond them.
    """

    def __init__(self, spec: PolicySpec, names: tuple[str, ...]) -> None:
        self._tokens: dict[str, Change] = {
            s.name: _reverse(s.columns) for s in spec.streams if s.modality == "image" and s.tokens > 1
        }
        self._tokens |= {s.name: _negate for s in spec.telemetry if s.name in names}
        self._actions: dict[str, Change] = {
            a.name: _swap(len(a.choices)) for a in spec.actions.choices if a.name in names
        }
        self._actions |= {a.name: _negate for a in spec.actions.continuous if a.name in names}
        unknown = sorted(set(names) - {*self._tokens, *self._actions})
        if unknown:
            raise ValueError(
                f"learner.mirror_augmentation: {unknown} is neither a choice or continuous actuator nor a telemetry stream"
            )
        whole = sorted(s.name for s in spec.streams if s.modality == "image" and s.tokens == 1)
        if whole and names:
            raise ValueError(
                f"learner.mirror_augmentation: {whole} has one token, which has no left and right; write policy.tokens: 4"
            )
        lopsided = sorted(a.name for a in spec.actions.continuous if a.name in names and not a.is_symmetric)
        if lopsided:
            raise ValueError(
                f"learner.mirror_augmentation: the limits of {lopsided} do not mirror each other; let high be -low"
            )
        self._choices = {a.name for a in spec.actions.choices}

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with half of its rows mirrored, drawn from `generator`."""
        flip_B = torch.rand(len(batch), generator=generator) < 0.5
        turned = dict.fromkeys(self._choices & self._actions.keys(), _turn)
        return replace(
            batch,
            features=self._features(batch.features, flip_B),
            next_features=self._features(batch.next_features, flip_B),
            actions=_changed(batch.actions, self._actions, flip_B),
            masks=_changed(batch.masks, turned, flip_B),
            allowed=_changed(batch.allowed, turned, flip_B),
        )

    def _features(self, features: Features, flip_B: Tensor) -> Features:
        return Features(_changed(features.tokens, self._tokens, flip_B), features.present, features.ages)


def _changed(tensors: Mapping[str, Tensor], changes: Mapping[str, Change], flip_B: Tensor) -> dict[str, Tensor]:
    return {name: changes[name](x, flip_B) if name in changes else x for name, x in tensors.items()}


def _where(flip_B: Tensor, changed: Tensor, unchanged: Tensor) -> Tensor:
    return torch.where(flip_B.view(-1, *[1] * (unchanged.dim() - 1)), changed, unchanged)


def _negate(x: Tensor, flip_B: Tensor) -> Tensor:
    return _where(flip_B, -x, x)


def _turn(x: Tensor, flip_B: Tensor) -> Tensor:
    """Reverse the last dimension."""
    return _where(flip_B, x.flip(-1), x)


def _swap(count: int) -> Change:
    """Return choices in reverse order."""
    return lambda index_B, flip_B: _where(flip_B, count - 1 - index_B, index_B)


def _reverse(columns: int) -> Change:
    """Reverse each row of the tokens B,...,T,W of a grid."""

    def reverse(x_BxTW: Tensor, flip_B: Tensor) -> Tensor:
        tokens, width = x_BxTW.shape[-2:]
        here_T = torch.arange(tokens)
        there_T = here_T.view(-1, columns).flip(-1).flatten()
        from_BT = torch.where(flip_B[:, None], there_T, here_T)
        grids_BG1 = torch.arange(x_BxTW.shape[:-2].numel()).view(len(flip_B), -1, 1) * tokens
        from_N = (grids_BG1 + from_BT[:, None]).flatten()
        # one copy of whole tokens: `torch.where` on them takes twenty times as long
        return x_BxTW.reshape(-1, width).index_select(0, from_N).view(x_BxTW.shape)

    return reverse
