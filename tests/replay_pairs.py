"""Two replay buffers with the same rows, one of them with its tokens in shards, and the comparison of what they draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actuators.actions import ActionSpace, Choice
from learners.experience.transition import Transition
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.replay_buffer import ReplayBuffer
from learners.rl.tokens.sharded import ShardedTokens, Shards
from learners.rl.transition_batch import Batch

SPEC = PolicySpec(
    (StreamSpec("front", "image", 2, 3), StreamSpec("joints", "telemetry", 1, 2)),
    ActionSpace((Choice("head", ("left", "stay", "right")),)),
    history=3,
    width=16,
    gamma=0.9,
)
CHANGED = {"reward": -3.0, "done": 0, "truncated": 0, "failure": 1, "success": 0, "demonstration": 0, "intervention": 0}


class ReplayPair:
    """Two replays with the same rows, one of them in shards, and the store that both are filled from."""

    def __init__(self, shards: Shards, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.shards = shards
        self.rows: dict[int, Transition] = {}
        fields: dict[str, Any] = {"max_bytes": 1 << 30, "max_rows": 160, "steps": 3}
        self.one = ReplayBuffer(SPEC, **fields)
        self.other = ReplayBuffer(SPEC, **fields, tokens=self._sharded)
        self.draws = [torch.Generator().manual_seed(seed) for _ in range(2)]
        self.last: dict[str, tuple[str, int]] = {}

    def _sharded(self, spec: PolicySpec, rows: int) -> ShardedTokens:
        self.tokens = ShardedTokens(spec, rows, self.shards, self._refill)
        return self.tokens

    def _refill(self, positions: NDArray[np.int64]) -> None:
        self.other.rewrite_tokens(positions, lambda numbers: {n: self.rows[n] for n in numbers if n in self.rows})

    def append(self, count: int) -> None:
        """A run of ticks of one of five agents, some of them ends, demonstrations or without a camera."""
        agent = f"agent{self.rng.integers(5)}"
        session, tick = self.last.get(agent, (f"{agent}/{self.rng.integers(1 << 30)}", 0))
        for _ in range(count):
            number, tick = len(self.rows) + 1, tick + 1
            done = self.rng.random() < 0.1
            self.rows[number] = Transition(
                session=session, tick=tick, decision=str(number), stamp_s=tick / 10, policy="p",
                tokens={
                    "front": self.rng.normal(size=(2, 3)).astype(np.float16),
                    "joints": np.full((1, 2), number, np.float32),
                },
                encoder_versions={"front": "v1"}, present={"front": self.rng.random() < 0.8, "joints": True},
                ages_s={"front": 0.5, "joints": 0.25}, actions={"head": "left"},
                by={"head": "policy"}, reward=float(self.rng.normal()), done=bool(done),
                demonstration=bool(self.rng.random() < 0.1),
            )  # fmt: skip
            for each in (self.one, self.other):
                each.append(self.rows[number], number)
            if done:
                session, tick = f"{agent}/{self.rng.integers(1 << 30)}", 0
        self.last[agent] = (session, tick)

    def change(self) -> None:
        number = int(self.rng.integers(len(self.rows))) + 1
        assert self.one.change(number, CHANGED) == self.other.change(number, CHANGED)

    def retoken(self) -> None:
        """The store of the test has the tokens of another encoder, too, so that a lost shard gets them back."""
        number = int(self.rng.integers(len(self.rows))) + 1
        tokens = self.rng.normal(size=(2, 3)).astype(np.float16)
        taken = [each.retoken(number, "front", "v1", tokens) for each in (self.one, self.other)]
        assert taken[0] == taken[1]
        if taken[0]:
            row = self.rows[number]
            self.rows[number] = replace(row, tokens={**row.tokens, "front": tokens})

    def draw(self, count: int, *, ahead: bool) -> None:
        batches: list[Batch] = []
        for each, generator in zip((self.one, self.other), self.draws, strict=True):
            try:
                batches.append(each.sample(count, generator))
            except ValueError:
                assert each is self.one or not batches
                continue
        if not batches:
            return
        same(*batches)
        if ahead:
            self.other.prefetch(count, self.draws[1])
        assert torch.equal(self.draws[0].get_state(), self.draws[1].get_state())


def same(one: Batch, other: Batch) -> None:
    """Equal bit for bit: which rows, their weights, returns and all tokens that are present."""
    mine, theirs = one.tensors(), other.tensors()
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        if ".tokens." not in name:
            assert torch.equal(values, theirs[name]), name
    for side in ("features", "next_features"):
        for s, stream in enumerate(SPEC.streams):
            there = mine[f"{side}.present"][..., s]
            name = f"{side}.tokens.{stream.name}"
            assert torch.equal(mine[name][there], theirs[name][there]), name
