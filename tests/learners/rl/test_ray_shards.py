"""Shards as actors of a real Ray: the draws of one buffer, also after an actor was killed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from replay_pairs import ReplayPair

from learners.rl.tokens.local import token_shapes
from learners.rl.tokens.ray_shards import RayShards
from runtime.process.ray_cluster import start_ray


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray; imported before its settings are made, it has no token"
)
def test_real_actors_give_the_draws_of_one_buffer_also_after_one_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = start_ray(None, 1, "reflexd-test", log_to_driver=False)
    try:
        shards = RayShards(ray, 2)
        pair = ReplayPair(shards, 0)
        pair.append(150)
        for ahead in (True, False, True):
            pair.draw(16, ahead=ahead)
        ray.kill(shards._actors[0])
        for step in range(10):
            pair.append(30)
            pair.draw(16, ahead=step % 2 == 0)
        assert pair.tokens.losses == [1, 0]
        monkeypatch.setattr("learners.rl.tokens.ray_shards.START_S", 5.0)
        with pytest.raises(RuntimeError, match="no machine of Ray has"):
            shards.start(token_shapes(pair.one.spec), 1 << 50)
    finally:
        ray.shutdown()
