"""Store the tokens of a replay buffer in shards, which may be processes of other machines.

Only the tokens are there, which are most of the bytes. What decides a draw (who acted, ends, rings, agents) stays in the process of the learner.
So the draws of a replay with shards are those of one without, number by number, with their strata and importance weights.

Each position has a row of a shard; `move` exchanges the rows of two positions instead of copying. Rows are dealt to the shards in turn, so
each batch takes about the same number from each, whichever agents they are of. `expect` requests rows without waiting for them, so that
the next batch arrives while the learner makes an update. What is written meanwhile is requested again.

A shard that is lost is started again, empty, and the positions it had are written again by `refill`.

Shapes: N positions, R rows of a request, T tokens of a stream, W their width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.model.spec import PolicySpec
from learners.rl.tokens.local import Shapes, token_shapes

UNSENT = 256
"""Rows that are written together."""
REQUESTS = 2
"""Requests that are remembered: the present batch, and the next one."""
LOSSES = 3
"""Times in a row that a shard may be lost while rows of it are wanted."""

Tokens = Mapping[str, NDArray[Any]]


class ShardLost(Exception):  # noqa: N818 - reads as what happened
    """The process of a shard ended, with all that it held."""


class TokenShard:
    """The rows of one shard, all 0 at first.

    Args:
        shapes: of the tokens of each stream.
        rows: how many.
    """

    def __init__(self, shapes: Shapes, rows: int) -> None:
        self._by_stream = {name: np.zeros((rows, t, w), kind) for name, (t, w, kind) in shapes.items()}

    def write(self, written: Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]]) -> None:
        """Write rows and their tokens [R, T, W], by stream."""
        for name, (rows, tokens_RTW) in written.items():
            self._by_stream[name][rows] = tokens_RTW

    def read(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the tokens [R, T, W] of rows, by stream."""
        return {name: array[rows] for name, array in self._by_stream.items()}


class Shards(Protocol):
    """Where the shards are. The calls of one shard take effect in their order."""

    count: int

    def start(self, shapes: Shapes, rows: int) -> None:
        """Start all shards with this number of rows each."""

    def restart(self, shard: int) -> None:
        """Start a shard that is lost again, empty."""

    def write(self, shard: int, written: Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]]) -> None:
        """Begin to write; a shard that is lost is noticed by `receive`."""

    def request(self, shard: int, rows: NDArray[np.int64]) -> Any:
        """Begin to read; return what `receive` takes."""

    def receive(self, requested: Any) -> Tokens:
        """Wait for the tokens of a request.

        Raises:
            ShardLost: the shard is gone.
        """


@dataclass(slots=True)
class _Request:
    """Rows that were requested.

    Args:
        rows_R: sorted.
        parts: shard, how often it was lost before, places in `rows_R`, and what the shard returned for them.
    """

    rows_R: NDArray[np.int64]
    parts: list[tuple[int, int, NDArray[np.int64], Any]]
    is_current_R: NDArray[np.bool_]
    tokens: dict[str, NDArray[Any]] = field(default_factory=dict)
    """By stream [R, T, W], once it was received."""

    def find(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the place of each row, and whether it is there as it is now."""
        if not len(self.rows_R):
            return np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
        places = np.searchsorted(self.rows_R, rows).clip(max=len(self.rows_R) - 1)
        return places, (self.rows_R[places] == rows) & self.is_current_R[places]


class ShardedTokens:
    """N positions in shards.

    Args:
        spec: the policy's streams.
        rows: N.
        shards: they are started here.
        refill: called with the positions that a lost shard had; writes them again.
    """

    def __init__(
        self, spec: PolicySpec, rows: int, shards: Shards, refill: Callable[[NDArray[np.int64]], None]
    ) -> None:
        self._shapes, self._shards, self._refill = token_shapes(spec), shards, refill
        self._row_N = np.arange(rows)
        """The row of each position; row r is number r // count of shard r % count."""
        self._unsent: dict[tuple[int, str], NDArray[Any]] = {}
        """Tokens by row and stream."""
        self._requests: list[_Request] = []
        self.losses = [0] * shards.count
        """Times that each shard was lost and filled again."""
        shards.start(self._shapes, -(-rows // shards.count))

    @property
    def arrays(self) -> Sequence[NDArray[Any]]:
        """There are none here.

        Raises:
            TypeError: always; such a replay is filled from the store again.
        """
        raise TypeError("the tokens are in shards; fill the replay from the store instead of a snapshot")

    def write(self, at: int, stream: str, tokens_TW: NDArray[Any]) -> None:
        """Write the tokens of a stream at a position."""
        row = int(self._row_N[at])
        for request in self._requests:
            places, is_there = request.find(np.array([row]))
            request.is_current_R[places[is_there]] = False
        self._unsent[row, stream] = np.array(tokens_TW, self._shapes[stream][2])
        if len(self._unsent) >= UNSENT * len(self._shapes):
            self._send()

    def move(self, at: int, to: int) -> None:
        """Exchange the rows of two positions; the first one is written next."""
        self._row_N[[at, to]] = self._row_N[[to, at]]

    def expect(self, at: NDArray[np.int64]) -> None:
        """Request what is not requested yet, without waiting."""
        rows = np.unique(self._row_N[at])
        if not len(_missing(rows, self._requests)):
            return
        remembered = self._requests[1 - REQUESTS :]
        self._requests = [*remembered, self._request(_missing(rows, remembered))]

    def gather(self, at: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the tokens at positions, by stream, float32 in the dimensions of `at`, then T, W."""
        rows, inverse = np.unique(self._row_N[at], return_inverse=True)
        found = {name: np.empty((len(rows), t, w), kind) for name, (t, w, kind) in self._shapes.items()}
        missing = np.ones(len(rows), bool)
        for request in self._requests:
            places, is_there = request.find(rows)
            self._copy(request, places, is_there & missing, found)
            missing &= ~is_there
        if missing.any():
            request = self._request(rows[missing])
            places, _ = request.find(rows)
            self._copy(request, places, missing, found)
        shape = at.shape
        return {name: torch.from_numpy(x[inverse.reshape(shape)]).float() for name, x in found.items()}

    def _copy(
        self, request: _Request, places: NDArray[np.int64], wanted: NDArray[np.bool_], found: dict[str, NDArray[Any]]
    ) -> None:
        if not wanted.any():
            return
        self._receive(request)
        for name, tokens_RTW in request.tokens.items():
            found[name][wanted] = tokens_RTW[places[wanted]]

    def _request(self, rows: NDArray[np.int64]) -> _Request:
        self._send()
        parts = []
        for shard in range(self._shards.count):
            places = np.flatnonzero(rows % self._shards.count == shard)
            if len(places):
                requested = self._shards.request(shard, rows[places] // self._shards.count)
                parts.append((shard, self.losses[shard], places, requested))
        return _Request(rows, parts, np.ones(len(rows), bool))

    def _receive(self, request: _Request) -> None:
        """Wait for the tokens of a request; fill a shard again that is lost.

        Raises:
            ShardLost: it was lost `LOSSES` times in a row.
        """
        if request.tokens:
            return
        tokens = {name: np.empty((len(request.rows_R), t, w), kind) for name, (t, w, kind) in self._shapes.items()}
        for shard, losses, places, requested in request.parts:
            rows = request.rows_R[places]
            if losses != self.losses[shard]:  # what was requested ended with the former process
                requested = self._shards.request(shard, rows // self._shards.count)  # noqa: PLW2901
            for name, tokens_RTW in self._received(shard, requested, rows).items():
                tokens[name][places] = tokens_RTW
        request.tokens = tokens

    def _received(self, shard: int, requested: Any, rows: NDArray[np.int64]) -> Tokens:
        for attempt in range(LOSSES + 1):
            try:
                return self._shards.receive(requested)
            except ShardLost:
                if attempt == LOSSES:
                    raise
                self._restart(shard)
                requested = self._shards.request(shard, rows // self._shards.count)
        raise AssertionError

    def _restart(self, shard: int) -> None:
        """Start a shard again and fill it."""
        self.losses[shard] += 1
        self._shards.restart(shard)
        self._refill(np.flatnonzero(self._row_N % self._shards.count == shard))
        self._send()

    def _send(self) -> None:
        """Send what was written."""
        written: dict[int, dict[str, tuple[list[int], list[NDArray[Any]]]]] = {}
        for (row, stream), tokens_TW in self._unsent.items():
            of_shard = written.setdefault(row % self._shards.count, {})
            rows, tokens = of_shard.setdefault(stream, ([], []))
            rows.append(row // self._shards.count)
            tokens.append(tokens_TW)
        self._unsent.clear()
        for shard, streams in written.items():
            self._shards.write(shard, {name: (np.array(rows), np.stack(x)) for name, (rows, x) in streams.items()})


def _missing(rows: NDArray[np.int64], requests: Sequence[_Request]) -> NDArray[np.int64]:
    """Return the rows that no request has as they are now."""
    for request in requests:
        rows = rows[~request.find(rows)[1]]
    return rows
