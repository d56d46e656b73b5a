"""Run the shards of a replay buffer as actors of Ray, on the machines that have the memory; imports no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.rl.tokens.local import Shapes
from learners.rl.tokens.sharded import ShardLost, Tokens, TokenShard

START_S = 300.0
"""Longest time until all shards run."""
WRITES = 16
"""Unanswered writes of a shard; further ones wait."""


class RayShards:
    """The shards of one replay; they end with the process that started them.

    Args:
        ray: the module, where Ray is started.
        count: how many.
    """

    def __init__(self, ray: Any, count: int) -> None:
        self._ray, self.count = ray, count
        self._shapes: Shapes = {}
        self._rows = 0
        self._actors: list[Any] = []
        self._writes: list[deque[Any]] = [deque() for _ in range(count)]

    @property
    def bytes(self) -> int:
        """Memory of one shard."""
        return self._rows * sum(t * w * np.dtype(kind).itemsize for t, w, kind in self._shapes.values())

    def start(self, shapes: Shapes, rows: int) -> None:
        """Start all shards with this number of rows each.

        Raises:
            RuntimeError: no machine has the memory for one.
        """
        for actor in self._actors:
            self._ray.kill(actor)
        self._shapes, self._rows = shapes, rows
        self._actors = [self._started() for _ in range(self.count)]
        self._wait(self._actors)

    def restart(self, shard: int) -> None:
        """Start a shard that is lost again, empty.

        Raises:
            RuntimeError: no machine has the memory for it.
        """
        self._ray.kill(self._actors[shard])
        self._actors[shard] = self._started()
        self._writes[shard].clear()
        self._wait([self._actors[shard]])

    def write(self, shard: int, written: Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]]) -> None:
        """Begin to write; a shard that is lost is noticed by `receive`."""
        pending = self._writes[shard]
        pending.append(self._actors[shard].write.remote(written))
        while len(pending) > WRITES:
            try:
                self._ray.get(pending.popleft())
            except self._ray.exceptions.RayActorError:
                pending.clear()

    def request(self, shard: int, rows: NDArray[np.int64]) -> Any:
        """Begin to read; return the reference of the tokens."""
        return self._actors[shard].read.remote(rows)

    def receive(self, requested: Any) -> Tokens:
        """Wait for the tokens of a request.

        Raises:
            ShardLost: the actor or its machine is gone.
        """
        try:
            found: Tokens = self._ray.get(requested)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
            raise ShardLost(str(error)) from error
        return found

    def _started(self) -> Any:
        # no restart by Ray: it would be empty without a notice
        options = {"num_cpus": 0, "memory": max(1, self.bytes), "scheduling_strategy": "SPREAD", "max_restarts": 0}
        return self._ray.remote(TokenShard).options(**options).remote(self._shapes, self._rows)

    def _wait(self, actors: list[Any]) -> None:
        try:
            self._ray.get([actor.read.remote(np.empty(0, np.int64)) for actor in actors], timeout=START_S)
        except self._ray.exceptions.GetTimeoutError:
            needed = f"{self.bytes / 1e9:.1f} GB"
            raise RuntimeError(
                f"a shard of the replay does not start in {START_S:.0f} s: no machine of Ray has {needed} of memory left"
            ) from None
