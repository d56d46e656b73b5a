"""A replay buffer with its tokens in shards draws what one without draws, row by row, whatever happens to rows and shards meanwhile."""

from __future__ import annotations

from pathlib import Path

import learning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_shards import LocalShards
from replay_pairs import ReplayPair

from learners.rl.tokens.sharded import ShardLost

torch.set_num_threads(1)
STEPS = st.lists(
    st.sampled_from(["append", "append", "many", "change", "retoken", "draw", "draw ahead", "lose"]), max_size=40
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shards=st.integers(1, 4), seed=st.integers(0, 1_000), steps=STEPS)
def test_the_draws_are_those_of_one_buffer(shards: int, seed: int, steps: list[str]) -> None:
    store = LocalShards(shards)
    pair = ReplayPair(store, seed)
    pair.append(20)
    for step in [*steps, "draw ahead", "draw"]:
        if step in ("append", "many"):
            pair.append(3 if step == "append" else 120)
        elif step.startswith("draw"):
            pair.draw(16, ahead=step == "draw ahead")
        elif step == "lose":
            store.lose(int(pair.rng.integers(shards)))
        else:
            getattr(pair, step)()


def test_the_next_batch_is_there_before_it_is_drawn() -> None:
    store = LocalShards(2)
    pair = ReplayPair(store, 0)
    pair.append(100)
    pair.draw(16, ahead=True)
    before = store.read_rows
    pair.draw(16, ahead=False)
    assert store.read_rows == before
    pair.draw(16, ahead=False)
    assert store.read_rows > before


def test_rows_that_the_store_lost_with_the_shard_are_not_drawn_any_more() -> None:
    store = LocalShards(2)
    pair = ReplayPair(store, 0)
    pair.append(100)
    for number in range(1, 41):
        del pair.rows[number]
    store.lose(0)
    for seed in range(20):
        pair.other.sample(16, torch.Generator().manual_seed(seed))
    assert pair.tokens.losses == [1, 0]
    held = pair.other._columns
    gone = np.flatnonzero((held.number_N >= 1) & (held.number_N <= 40) & ~held.acted_NU.any(-1))
    assert len(gone) == 20, "every second row was in the shard"


def test_a_shard_that_is_lost_again_and_again_is_an_error() -> None:
    store = LocalShards(1)
    pair = ReplayPair(store, 0)
    pair.append(50)
    store.restart = lambda _shard: None  # type: ignore[method-assign]
    store.lose(0)
    with pytest.raises(ShardLost):
        pair.other.sample(4, torch.Generator())


def test_a_learner_with_shards_gets_the_weights_of_one_without_also_after_a_loss_and_a_restart(tmp_path: Path) -> None:
    def trained(folder: Path, first: LocalShards | None, second: LocalShards | None) -> dict[str, torch.Tensor]:
        learning.fill(folder, 0, 150)
        learner = learning.make_learner(folder, shards=first)
        learner.ingest()
        assert learner.train(float("inf"), until=20) == 20
        if first is not None:
            first.lose(1)
        learner.train(float("inf"), until=40)
        learner.save()
        learner = learning.make_learner(folder, shards=second)
        assert learner.resume(lambda _: {})
        learner.train(float("inf"), until=60)
        return learning.weights(learner)

    one = trained(tmp_path / "one", None, None)
    learning.assert_identical(one, trained(tmp_path / "other", LocalShards(3), LocalShards(2)))
