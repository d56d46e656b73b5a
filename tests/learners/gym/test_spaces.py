"""Environments as streams and actuators, scripted teachers, and pictures through an encoder."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rl import Corridor, Shrink, Tiles

from actuators.actions import Choice, Continuous
from learners.gym import demonstrations
from learners.gym.observations import ObservationEncoder, Window, values_of
from learners.gym.spaces import (
    Score,
    action_space,
    from_environment,
    is_picture,
    run_episodes,
    split,
    streams,
    to_environment,
    vector,
)
from learners.model.heads import HeadOutput


def test_action_spaces_become_actuators_and_values_come_back() -> None:
    discrete = spaces.Discrete(3, start=5)
    assert action_space(discrete).actuators == (Choice("action", ("0", "1", "2")),)
    assert to_environment(discrete, {"action": "2"}) == 7
    assert from_environment(discrete, 7) == {"action": "2"}
    several = spaces.MultiDiscrete([2, 3])
    assert [a.name for a in action_space(several).actuators] == ["action0", "action1"]
    assert to_environment(several, {"action0": "1", "action1": "2"}).tolist() == [1, 2]
    assert from_environment(several, np.array([1, 2])) == {"action0": "1", "action1": "2"}
    box = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))
    assert action_space(box).actuators == (Continuous("action", (-1.0, 0.0), (1.0, 2.0)),)
    assert to_environment(box, {"action": (0.5, 1.5)}).dtype == np.float32
    assert from_environment(box, np.array([0.5, 1.5])) == {"action": (0.5, 1.5)}


def test_what_has_no_actuator_or_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="finite limits"):
        action_space(spaces.Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match="no actuator"):
        action_space(spaces.Tuple((spaces.Discrete(2),)))
    with pytest.raises(ValueError, match="no stream"):
        streams(spaces.Tuple((spaces.Discrete(2),)))


def test_observations_become_streams() -> None:
    picture = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    assert is_picture(picture)
    assert not is_picture(spaces.Box(0, 1, (8, 8, 3), np.float32))
    assert set(streams(picture)) == {"view"}
    assert set(streams(spaces.Discrete(3))) == {"state"}
    both = spaces.Dict({"a": picture, "b": spaces.Discrete(3, start=1)})
    assert set(streams(both)) == {"a", "b"}
    assert split(both, {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert vector(both["b"], 2).tolist() == [[0.0, 1.0, 0.0]]
    assert vector(spaces.Box(0, 1, (2, 2)), np.ones((2, 2))).shape == (1, 4)


def test_scores_and_episodes_side_by_side() -> None:
    assert Score.of([1.0, 3.0]).as_dict() == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "episodes": 2}
    # always right: 1 after five steps from the middle; always left never gets there within twelve
    assert run_episodes(Corridor, lambda seen, _: [1] * len(seen), range(3)) == [1.0, 1.0, 1.0]
    assert run_episodes(Corridor, lambda seen, numbers: [int(n > 0) for n in numbers], range(2)) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("environment", "least"),
    [
        ("CartPole-v1", 450.0),
        ("Acrobot-v1", -120.0),
        ("Pendulum-v1", -350.0),
        ("MountainCarContinuous-v0", 85.0),
        ("Hopper-v5", 2_900.0),
    ],
)
def test_scripted_teachers_are_good(environment: str, least: float) -> None:
    env = gymnasium.make(environment)
    episodes = demonstrations.episodes_of(environment, env, 4)
    assert len(episodes) == 4
    assert np.mean([sum(e.rewards) for e in episodes]) > least


def test_episodes_are_kept_in_files(tmp_path: Path) -> None:
    env = gymnasium.make("MountainCarContinuous-v0")
    episodes = demonstrations.episodes_of("MountainCarContinuous-v0", env, 2)
    path = tmp_path / "episodes.npz"
    demonstrations.save(path, episodes)
    again = demonstrations.episodes_of("unknown", env, path)
    assert [len(e.actions) for e in again] == [len(e.actions) for e in episodes]
    np.testing.assert_array_equal(again[1].observations, episodes[1].observations)
    assert again[0].dones[-1]
    with pytest.raises(ValueError, match="no scripted teacher for Walker2d-v5"):
        demonstrations.episodes_of("Walker2d-v5", env, 2)
    np.savez(
        path,
        observations_0=np.zeros((3, 2)),
        actions_0=np.zeros((3, 1)),
        rewards_0=np.zeros(3),
        dones_0=np.zeros(3, bool),
    )
    with pytest.raises(ValueError, match="one observation more"):
        demonstrations.load(path)
    np.savez(path, observations_0=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="actions_0"):
        demonstrations.load(path)


def test_pictures_go_through_an_encoder_and_have_a_history() -> None:
    env = Tiles()
    senses = ObservationEncoder(env.observation_space, Shrink())  # type: ignore[arg-type]
    spec = senses.specify(env, gamma=0.9, algorithm="auto")
    assert [(s.name, s.modality, s.tokens, s.width) for s in spec.streams] == [("view", "vision", 1, 12)]
    window = Window(spec)
    first = senses.tokens(env.reset(seed=0)[0])
    assert first["view"].dtype == np.float16
    features = window.remember(first).features()
    assert features.tokens["view"].shape == (1, 4, 1, 12)
    assert features.present[0, :, 0].tolist() == [False, False, False, True]
    window.restart()
    with pytest.raises(IndexError):
        window.features()


def test_values_are_words_and_numbers() -> None:
    actions = action_space(spaces.Discrete(3))
    assert values_of(actions, HeadOutput({"action": torch.tensor([2])}, {}, torch.zeros(1)), 0) == {"action": "2"}
