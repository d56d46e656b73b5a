"""Shards of a replay buffer in this process, which a test can lose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.rl.tokens.local import Shapes
from learners.rl.tokens.sharded import ShardLost, Tokens, TokenShard


class LocalShards:
    """As actors: calls take effect in their order, and what was asked of a lost one fails when it is waited for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.shards: list[TokenShard | None] = []
        self.read_rows = 0
        """Rows that were requested."""

    def start(self, shapes: Shapes, rows: int) -> None:
        self.shapes, self.rows = shapes, rows
        self.shards = [TokenShard(shapes, rows) for _ in range(self.count)]

    def lose(self, shard: int) -> None:
        self.shards[shard] = None

    def restart(self, shard: int) -> None:
        assert self.shards[shard] is None, "only a lost one is started again"
        self.shards[shard] = TokenShard(self.shapes, self.rows)

    def write(self, shard: int, written: Mapping[str, tuple[NDArray[np.int64], NDArray[Any]]]) -> None:
        if (found := self.shards[shard]) is not None:
            found.write(written)

    def request(self, shard: int, rows: NDArray[np.int64]) -> Any:
        self.read_rows += len(rows)
        found = self.shards[shard]
        return None if found is None else (shard, found, found.read(rows))

    def receive(self, requested: Any) -> Tokens:
        if requested is None or self.shards[requested[0]] is not requested[1]:
            raise ShardLost
        tokens: Tokens = requested[2]
        return tokens
