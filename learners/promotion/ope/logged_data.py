"""Read logged decisions as arrays, for the evaluation of a candidate and the live policy.

A decision has an observation, a reward, and a mark that states whether the next row is its successor. For each actuator it has the
executed action, its probability, and whether the acting policy drew it. Observations are read in chunks, because histories of
tokens are large.

A decision is *own* to an actuator when the policy proposed it and the gate executed it unchanged. An action that the gate changed or
refused, or that a person set, has no probability of the policy: it never enters an importance weight. `altered` is the share of
proposals that the gate changed. Where it is large, the map from proposals to actions is unknown, and so are all probabilities. A continuous action
without noise has no density either (it is logged as exactly 1) and is not own.

Shapes: N decisions in the order of time, A components of one continuous actuator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actuators.actions import Choice, Continuous
from learners.experience.transition import Transition
from learners.model.features import Features
from learners.model.heads import Heads
from learners.model.policy import Policy
from learners.model.spec import PolicySpec
from learners.rl.replay_buffer import MAX_GAP, ReplayBuffer

CHUNK = 64
"""Decisions at a time: between two chunks others get their turn."""

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


class ActingPolicy(Protocol):
    """The interface of a policy: contexts of observations, and heads."""

    heads: Heads

    def encode(self, features: Features) -> Tensor:
        """Return contexts B,C of features [B, H]."""


@dataclass(slots=True)
class Logged:
    """N decisions of one policy spec.

    Args:
        spec: of the policies to be judged; what was seen must fit it.
        transitions: oldest first.
        versions: the present version of each stream's encoder; tokens of others count as missing.
    """

    spec: PolicySpec
    transitions: Sequence[Transition]
    reward_N: Array
    done_N: Flags
    linked_N: Flags
    """The next row is the tick that followed in the session: histories go on from one to the other."""
    follows_N: Flags
    """The next row is this one's successor."""
    acted_N: Flags
    """Something was done."""
    own: dict[str, Flags]
    probability: dict[str, Array]
    """As logged; 1 where not own."""
    altered: float
    """Largest share, over the actuators, of the policy's proposals that the gate changed."""
    _replay: ReplayBuffer
    _shown: tuple[ActingPolicy, Logged] | None

    def __init__(
        self, spec: PolicySpec, transitions: Sequence[Transition], versions: dict[str, str] | None = None
    ) -> None:
        self.spec, self.transitions = spec, transitions
        self._shown = None
        count = len(transitions)
        single = replace(spec, history=1)  # histories are put together here, so that nothing is held or encoded twice
        self._replay = ReplayBuffer(single, max_bytes=1 << 62, max_rows=max(80, round(1.3 * count) + 2))
        for transition in transitions:
            self._replay.append(transition)
            self._replay.versions.update(transition.encoder_versions)
        self._replay.versions.update(versions or {})
        self.reward_N = np.array([t.reward for t in transitions], np.float64)
        self.done_N = np.array([t.done for t in transitions], bool)
        self.linked_N = _linked(transitions)
        self.follows_N = self.linked_N & ~np.array([t.done or t.truncated for t in transitions], bool)
        self.acted_N = np.array([not t.at_rest for t in transitions], bool)
        self.own, self.probability, self.altered = {}, {}, 0.0
        for actuator in self.actuators:
            own_N = np.array([_is_own(t, actuator) for t in transitions], bool)
            logged = [t.probabilities.get(actuator.name, 1.0) for t in transitions]
            self.own[actuator.name] = own_N
            self.probability[actuator.name] = np.where(own_N, np.array(logged, np.float64), 1.0)
            proposed = [t for t in transitions if t.is_proposal(actuator.name)]
            changed = sum(not _is_unchanged(t, actuator.name) for t in proposed)
            self.altered = max(self.altered, changed / max(len(proposed), 1))

    def __len__(self) -> int:
        """N."""
        return len(self.transitions)

    @property
    def actuators(self) -> tuple[Choice | Continuous, ...]:
        """Those that a policy learns."""
        return (*self.spec.actions.choices, *self.spec.actions.continuous)

    @property
    def any_own(self) -> Flags:
        """N decisions: whether at least one action was the policy's own."""
        own_N: Flags = np.any([np.zeros(len(self), bool), *self.own.values()], axis=0)
        return own_N

    def chunks(self, size: int = CHUNK) -> Iterator[slice]:
        """Return all rows in order, a few at a time."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def actions(self, rows: slice) -> Mapping[str, Tensor]:
        """Return the executed actions: index B of a choice, motion B,A."""
        return self._replay.batch(np.arange(rows.start, rows.stop), steps=1).actions

    def masks(self, rows: slice) -> Mapping[str, Tensor]:
        """Return the choices B,n that the gate would have let pass, by choice actuator; absent where these were all."""
        return self._replay.batch(np.arange(rows.start, rows.stop), steps=1).allowed

    def history(self, rows: slice) -> NDArray[np.int64]:
        """Return row numbers B,H of the history at each row, oldest first; a session's first row fills the places before it."""
        at_BH = np.repeat(np.arange(rows.start, rows.stop)[:, None], self.spec.history, axis=1)
        for h in range(self.spec.history - 2, -1, -1):
            later_B = at_BH[:, h + 1]
            at_BH[:, h] = np.where((later_B > 0) & self.linked_N[later_B - 1], later_B - 1, later_B)
        return at_BH

    def seen(self, at: NDArray[np.int64]) -> Features:
        """Return features of given rows, with the leading dimensions of `at`."""
        single = self._replay.batch(at.reshape(-1), steps=1).features[:, 0]
        return single.map(lambda x: x.reshape(*at.shape, *x.shape[1:]))

    def show_to(self, policy: ActingPolicy, other: Logged) -> None:
        """Let one policy see the same decisions with the tokens of other encoder versions."""
        self._shown = (policy, other)

    def of(self, policy: ActingPolicy) -> Logged:
        """Return the decisions as a policy sees them."""
        return self._shown[1] if self._shown is not None and policy is self._shown[0] else self

    def contexts(self, policy: ActingPolicy, rows: slice) -> Tensor:
        """Return contexts B,C of a policy. If possible, each row is fused once and not once for every history with it."""
        if (own := self.of(policy)) is not self:
            return own.contexts(policy, rows)
        at_BH = self.history(rows)
        if not isinstance(policy, Policy):
            return policy.encode(self.seen(at_BH))
        first = int(at_BH.min(initial=rows.start))
        states_RD = policy.fuse(self.seen(np.arange(first, rows.stop)))
        return policy.context(states_RD[torch.from_numpy(at_BH - first)])


def _linked(transitions: Sequence[Transition]) -> Flags:
    linked_N = np.zeros(len(transitions), bool)
    for n, (one, after) in enumerate(itertools.pairwise(transitions)):
        linked_N[n] = one.session == after.session and 0 < after.tick - one.tick <= MAX_GAP
    return linked_N


def _is_own(transition: Transition, actuator: Choice | Continuous) -> bool:
    name = actuator.name
    probability = transition.probabilities.get(name, 0.0)
    value = transition.credited(name)
    is_policys = transition.is_proposal(name) or transition.by.get(name) == "policy"
    if value is None or not is_policys or probability <= 0 or not _is_unchanged(transition, name):
        return False
    if isinstance(actuator, Choice):
        return value in actuator.choices
    return not isinstance(value, str) and len(value) == len(actuator.low) and probability != 1.0


def _is_unchanged(transition: Transition, name: str) -> bool:
    """Return whether the gate executed what was proposed; True where nothing was proposed to a gate."""
    if name not in transition.proposed:
        return True
    proposed, executed = transition.proposed[name], transition.actions.get(name)
    if isinstance(proposed, str) or isinstance(executed, str) or executed is None:
        return proposed == executed
    return bool(np.allclose(proposed, executed, rtol=0.0, atol=1e-6))
