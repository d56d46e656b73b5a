"""Store the columns of the replay buffer: every part of a transition that training needs, one array each, by position.

Knows nothing of order: which position follows which, and which is overwritten next, is the replay's. Tokens made by another
version of an encoder than the present one count as missing until `retoken` brings those of the present version.

Shapes: N positions, T tokens of a stream, W their width, S streams, C choices, U actuators that can be learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actuators.actions import Choice, Continuous, Value
from learners.experience.transition import Transition
from learners.model.features import Features
from learners.model.spec import PolicySpec
from learners.rl.tokens.local import LocalTokens, TokenStorage, token_shapes

MAX_REWARD = 1e12
"""Larger magnitudes are clipped: float32 has neither them nor their squares."""
SLACK = 1e-6
"""Share of an actuator's range by which rounding may exceed its limits."""


def row_bytes(spec: PolicySpec) -> int:
    """Return the bytes of one position."""
    numbers = sum(s.tokens * s.width * (4 if s.modality == "telemetry" else 2) for s in spec.streams)
    actuators = len(spec.actions.choices) + len(spec.actions.continuous)
    choices = sum(len(choice.choices) for choice in spec.actions.choices)
    return int(numbers + 8 * len(spec.streams) + 64 + 16 * actuators + choices)


class AgentNumbers:
    """Numbers of the agents of a fleet, by session: a merged session is named `AGENT/SESSION`."""

    def __init__(self) -> None:
        self._by_session: list[int] = []
        self._by_name: dict[str, int] = {}

    def of(self, session_B: NDArray[np.int64], sessions: Mapping[str, int]) -> NDArray[np.int64]:
        """Return the number of the agent of each session; -1 where its name has no agent.

        Args:
            session_B: numbers of sessions.
            sessions: numbers of sessions by name, in their order; further ones since the last call are at the end.
        """
        for name in islice(sessions, len(self._by_session), None):
            agent, slash, _ = name.partition("/")
            self._by_session.append(self._by_name.setdefault(agent, len(self._by_name)) if slash else -1)
        found: NDArray[np.int64] = np.array(self._by_session or [-1], np.int64)[session_B]
        return found


class ReplayColumns:
    """N positions, all empty.

    Args:
        spec: the policy's streams and actions.
        rows: N.
        tokens: makes the storage of the tokens.
    """

    def __init__(
        self, spec: PolicySpec, rows: int, tokens: Callable[[PolicySpec, int], TokenStorage] = LocalTokens
    ) -> None:
        self.spec = spec
        self.versions: dict[str, str] = {}
        """The present version of each stream's encoder; a stream that is not named takes any."""
        self.skipped: Counter[str] = Counter()
        """Tokens and actions left out, by cause: `shape`, `action`."""
        self.choices = list(spec.actions.choices)
        self.actuators: list[Choice | Continuous] = [*spec.actions.choices, *spec.actions.continuous]
        n, streams = rows, spec.streams
        self._shapes = {name: (t, w) for name, (t, w, _) in token_shapes(spec).items()}
        self.tokens = tokens(spec, n)
        self.version_NS = np.full((n, len(streams)), -1, np.int32)  # -1: the stream is missing
        self.ages_NS = np.full((n, len(streams)), np.inf, np.float32)
        self.index_NC = np.zeros((n, len(self.choices)), np.int64)
        self.value = {a.name: np.zeros((n, len(a.low)), np.float32) for a in spec.actions.continuous}
        self.allowed = {c.name: np.ones((n, len(c.choices)), bool) for c in self.choices}
        self.any_masked = False
        """Whether a choice of any position was not allowed."""
        self.acted_NU = np.zeros((n, len(self.actuators)), bool)
        self.is_expert_NU = np.zeros((n, len(self.actuators)), bool)
        self.executed_NU = np.zeros((n, len(self.actuators)), bool)  # what is learned is what was executed
        self.reward_N = np.zeros(n, np.float32)
        self.done_N, self.truncated_N = np.zeros(n, bool), np.zeros(n, bool)
        self.outcome_N = np.zeros(n, bool)  # the episode ended well or badly
        self.intervention_N = np.zeros(n, bool)  # an operator moved something, perhaps what is not learned
        self.session_N, self.tick_N = np.full(n, -1, np.int64), np.zeros(n, np.int64)
        self.number_N = np.full(n, -1, np.int64)  # the store's row number
        self._where: dict[int, int] = {}  # row number -> position
        self._version_ids: dict[str, int] = {}
        self._session_ids: dict[str, int] = {}
        self._agents = AgentNumbers()
        self._arrays: list[NDArray[Any]] = [
            *(*self.value.values(), *self.allowed.values()),
            *(self.version_NS, self.ages_NS, self.index_NC),
            *(
                self.acted_NU,
                self.is_expert_NU,
                self.executed_NU,
                self.reward_N,
                self.done_N,
                self.truncated_N,
                self.outcome_N,
                self.intervention_N,
            ),
            *(self.session_N, self.tick_N, self.number_N),
        ]

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All columns.

        Raises:
            TypeError: the tokens are not in this process.
        """
        return [*self.tokens.arrays, *self._arrays]

    def write(self, at: int, transition: Transition, number: int) -> bool:
        """Write a transition, row `number` of the store; return whether the old or the new one is terminal or an expert's."""
        self._name(at, number)
        self.session_N[at] = self._session_ids.setdefault(transition.session, len(self._session_ids))
        self.tick_N[at] = transition.tick
        special = self.special(at)
        self._write_tokens(at, transition)
        self._write_actions(at, transition)
        self._write_masks(at, transition)
        self.reward_N[at], self.done_N[at] = _bounded(transition.reward), transition.done
        self.truncated_N[at], self.outcome_N[at] = transition.truncated, transition.failure or transition.success
        self.intervention_N[at] = transition.intervention
        return special or self.special(at)

    def move(self, at: int, to: int) -> None:
        """Copy a position; its row is found at the new one from now on."""
        number = int(self.number_N[at])
        self._name(to, -1)
        self.tokens.move(at, to)
        for column in self._arrays:
            column[to] = column[at]
        if number >= 0:
            self._where[number] = to

    def special(self, at: int) -> bool:
        """Return whether a position ends an episode or an expert acted."""
        return bool(self.is_expert_NU[at].any() or self.ends(at))

    def ends(self, at: int | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether positions are terminal or have an outcome, good or bad: these anchor the values."""
        ends: NDArray[np.bool_] = self.done_N[at] | self.outcome_N[at]
        return ends

    def change(self, number: int, after: Mapping[str, float]) -> bool:
        """Apply a late reward or mark to a row of the store; False when it is not held (any more)."""
        at = self._where.get(number)
        if at is None:
            return False
        self.reward_N[at], self.done_N[at] = _bounded(after["reward"]), bool(after["done"])
        self.truncated_N[at] = bool(after.get("truncated", 0))
        self.outcome_N[at] = bool(after["failure"] or after.get("success", 0))
        if after["demonstration"] or (after["intervention"] and not self.intervention_N[at]):
            self.is_expert_NU[at] = self.acted_NU[at] & self.executed_NU[at]
        self.intervention_N[at] = bool(after["intervention"])
        return True

    def agents(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a number of the fleet's agent that each position came from; -1 for a device's own rows."""
        return self._agents.of(self.session_N[at], self._session_ids)

    def find(self, number: int) -> int | None:
        """Return the position of a row of the store; None if it is not held."""
        return self._where.get(number)

    def stale(self, at: NDArray[np.int64]) -> dict[str, list[int]]:
        """Return, by stream, the rows at given positions with tokens of an earlier encoder version; newest first.

        Telemetry with other fields is never among them: nothing can encode it again.
        """
        found: dict[str, list[int]] = {}
        for s, stream in enumerate(self.spec.streams):
            if stream.name not in self.versions or stream.modality == "telemetry":
                continue
            rows = self.number_N[at[self._is_other(at, s)]]
            found[stream.name] = np.sort(rows[rows >= 0])[::-1].tolist()
        return found

    def outdated(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether positions have tokens of an earlier encoder version, or numbers of other fields; they count as missing."""
        outdated = np.zeros(at.shape, bool)
        for s, stream in enumerate(self.spec.streams):
            if stream.name in self.versions:
                outdated |= self._is_other(at, s)
        return outdated

    def _is_other(self, at: NDArray[np.int64], s: int) -> NDArray[np.bool_]:
        """Return whether stream number `s` has a version other than the present one; telemetry without a version has none."""
        stream, version = self.spec.streams[s], self.version_NS[at, s]
        other: NDArray[np.bool_] = (version >= 0) & (version != self._version_ids.get(self.versions[stream.name], -2))
        if stream.modality == "telemetry":  # rows stored before its fields were named
            other &= version != self._version_ids.get("", -2)
        return other

    def retoken(self, number: int, stream: str, version: str, tokens_TW: NDArray[Any]) -> bool:
        """Give a row's stream the tokens of another version; False when the row is not held, or they do not fit."""
        at = self._where.get(number)
        s = self.spec.names.index(stream) if stream in self.spec.names else -1
        if at is None or s < 0 or self.version_NS[at, s] < 0 or tokens_TW.shape != self._shapes[stream]:
            return False
        self.tokens.write(at, stream, tokens_TW)
        self.version_NS[at, s] = self._version_ids.setdefault(version, len(self._version_ids))
        return True

    def rewrite_tokens(self, at: NDArray[np.int64], rows: Mapping[int, Transition]) -> None:
        """Write the tokens at positions again, from the rows of the store that the positions hold.

        Where a row is gone, all streams count as missing and no action was taken, so that the position is not drawn.
        """
        for position in at.tolist():
            transition = rows.get(int(self.number_N[position]))
            if transition is not None:
                self._write_tokens(position, transition)
                continue
            self.version_NS[position], self.ages_NS[position] = -1, np.inf
            self.acted_NU[position], self.is_expert_NU[position] = False, False

    def snapshot(self, at: NDArray[np.int64]) -> tuple[list[NDArray[Any]], dict[str, Any]]:
        """Return the bits of the columns at given positions, and all else as JSON; a missing stream has an infinite age."""
        names = {"versions": self.versions, "skipped": dict(self.skipped), "any_masked": self.any_masked}
        return [_bits(column[at]) for column in self.arrays], names | {
            "version_ids": self._version_ids,
            "session_ids": self._session_ids,
        }

    def restore(self, at: NDArray[np.int64], columns: Sequence[NDArray[Any]], rest: Mapping[str, Any]) -> None:
        """Take up what `snapshot` returned, in an empty storage.

        Raises:
            ValueError: the columns are those of another policy.
        """
        for mine, theirs in zip(self.arrays, columns, strict=True):
            if mine[at].shape != theirs.shape or mine.itemsize != theirs.itemsize:
                raise ValueError(f"a column of {mine[at].shape} {mine.dtype} is {theirs.shape} {theirs.dtype}")
            mine[at] = theirs.view(mine.dtype)
        self._where = {
            int(number): int(place) for number, place in zip(self.number_N[at], at, strict=True) if number >= 0
        }
        self.versions, self.any_masked = dict(rest["versions"]), rest["any_masked"]
        self.skipped = Counter(rest["skipped"])
        self._version_ids, self._session_ids = dict(rest["version_ids"]), dict(rest["session_ids"])
        self._agents = AgentNumbers()

    def detach(self) -> None:
        """Discard the row numbers, because the store was recreated and will use them again."""
        self.number_N[:] = -1
        self._where.clear()

    def features(self, at: NDArray[np.int64]) -> Features:
        """Return the features at given positions; a batch with the dimensions of `at`."""
        tokens = self.tokens.gather(at)  # first: rows that are lost for good count as missing then
        present = self._present(at)
        ages = np.where(present, self.ages_NS[at], np.inf).astype(np.float32)
        return Features(tokens, torch.from_numpy(present), torch.from_numpy(ages))

    def actions(self, at: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return what learning credits: index B of a choice, motion B,A."""
        actions = {a.name: torch.from_numpy(self.index_NC[at, c]) for c, a in enumerate(self.choices)}
        return actions | {name: torch.from_numpy(value_NA[at]) for name, value_NA in self.value.items()}

    def masks(self, at: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the choices B,n that the gate would have let pass, by choice actuator; empty while these were all at every position."""
        return {name: torch.from_numpy(mask_Nn[at]) for name, mask_Nn in self.allowed.items() if self.any_masked}

    def by_actuator(self, flags_NU: NDArray[np.bool_], at: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return flags B of every actuator at given positions."""
        return {a.name: torch.from_numpy(flags_NU[at, u]) for u, a in enumerate(self.actuators)}

    def _name(self, at: int, number: int) -> None:
        """Record that a position has another row now."""
        if self._where.get(int(self.number_N[at])) == at:
            del self._where[int(self.number_N[at])]
        self.number_N[at] = number
        if number >= 0:
            self._where[number] = at

    def _write_tokens(self, at: int, transition: Transition) -> None:
        for s, stream in enumerate(self.spec.streams):
            tokens = transition.tokens.get(stream.name)
            self.version_NS[at, s], self.ages_NS[at, s] = -1, np.inf
            if tokens is None or not transition.present.get(stream.name, False):
                continue
            if tokens.shape != self._shapes[stream.name]:
                self.skipped["shape"] += 1
                continue
            self.tokens.write(at, stream.name, tokens)
            self.ages_NS[at, s] = transition.ages_s.get(stream.name, 0.0)
            version = transition.encoder_versions.get(stream.name, "")
            self.version_NS[at, s] = self._version_ids.setdefault(version, len(self._version_ids))

    def _write_actions(self, at: int, transition: Transition) -> None:
        self.acted_NU[at], self.is_expert_NU[at], self.executed_NU[at] = False, False, False
        overridden = "override" in transition.by.values()
        every = transition.demonstration or (transition.intervention and not overridden)
        for u, actuator in enumerate(self.actuators):
            value = transition.credited(actuator.name)
            if value is None:
                self._write_rest(at, u, actuator, transition.actions.get(actuator.name))
                continue
            if not self._take_value(at, u, actuator, value):
                self.skipped["action"] += 1
                self._write_rest(at, u, actuator, None)
                continue
            self.acted_NU[at, u] = True
            self.executed_NU[at, u] = transition.actions.get(actuator.name) == value
            is_override = transition.by.get(actuator.name) == "override"
            self.is_expert_NU[at, u] = is_override or (every and self.executed_NU[at, u])

    def _write_masks(self, at: int, transition: Transition) -> None:
        for choice in self.choices:
            mask = choice.mask(transition.allowed.get(choice.name))
            self.allowed[choice.name][at] = True if mask is None else mask
            self.any_masked |= mask is not None

    def _write_rest(self, at: int, u: int, actuator: Choice | Continuous, value: Value | None) -> None:
        """Write what was in force of an actuator that neither policy nor person moved; without it, its lowest index or its centre.

        The critic of all continuous actuators sees it beside the actions of the others.
        """
        if value is not None and self._take_value(at, u, actuator, value):
            return
        if isinstance(actuator, Choice):
            self.index_NC[at, u] = 0
        else:
            self.value[actuator.name][at] = [
                (low + high) / 2 for low, high in zip(actuator.low, actuator.high, strict=True)
            ]

    def _take_value(self, at: int, u: int, actuator: Choice | Continuous, value: Value) -> bool:
        if isinstance(actuator, Choice):
            if value not in actuator.choices:
                return False
            self.index_NC[at, u] = actuator.choices.index(str(value))
            return True
        if isinstance(value, str) or not _within(value, actuator):
            return False
        self.value[actuator.name][at] = value
        return True

    def _present(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        version = self.version_NS[at]
        present: NDArray[np.bool_] = version >= 0
        for s, stream in enumerate(self.spec.streams):
            if stream.name in self.versions:
                present[..., s] &= ~self._is_other(at, s)
        return present


def _within(value: Sequence[float], actuator: Continuous) -> bool:
    """Return whether an action lies in the present limits; one of other limits would be read as another."""
    return len(value) == len(actuator.low) and all(
        low - SLACK * (high - low) <= part <= high + SLACK * (high - low)
        for part, low, high in zip(value, actuator.low, actuator.high, strict=True)
    )


def _bits(column: NDArray[Any]) -> NDArray[Any]:
    """Return floating numbers as integers of the same bits."""
    return column.view(f"i{column.itemsize}") if column.dtype.kind == "f" else column


def _bounded(reward: float) -> float:
    """Return a reward within +-`MAX_REWARD`; the experience store has no other than finite ones."""
    return max(-MAX_REWARD, min(MAX_REWARD, reward))
