"""Episodes and their scores, scripted teachers, and pictures through an encoder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from rl import Corridor, Shrink, Tiles

from actuators.sim.gym_spaces import action_space
from learners.gym import demonstrations
from learners.gym.greedy_episodes import ReturnSummary, run_episodes
from learners.gym.observations import FrameWindow, ObservationEncoder
from learners.model.heads import HeadOutput, actuator_values


def test_scores_and_episodes_side_by_side() -> None:
    assert ReturnSummary.of([1.0, 3.0]).as_dict() == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0, "episodes": 2}
    # always right: 1 after five steps from the middle; always left never gets there within twelve
    assert run_episodes(Corridor, lambda seen, _: [1] * len(seen), range(3)) == ([1.0, 1.0, 1.0], 0)
    assert run_episodes(Corridor, lambda seen, numbers: [int(n > 0) for n in numbers], range(2)) == ([0.0, 1.0], 0)


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


def test_episodes_are_stored_in_files(tmp_path: Path) -> None:
    env = gymnasium.make("MountainCarContinuous-v0")
    episodes = demonstrations.episodes_of("MountainCarContinuous-v0", env, 2)
    path = tmp_path / "episodes.npz"
    demonstrations.save(path, episodes)
    again = demonstrations.episodes_of("unknown", env, path)
    assert [len(e.actions) for e in again] == [len(e.actions) for e in episodes]
    np.testing.assert_array_equal(again[1].observations, episodes[1].observations)
    assert again[0].dones[-1]
    with pytest.raises(ValueError, match="no scripted expert for Walker2d-v5"):
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dones_0": np.array([False, True, False])}, "it ends at step 2 of 3"),
        ({"dones_0": np.array([0, 0, 0.5])}, "true or false"),
        ({"dones_0": np.zeros((3, 1))}, "true or false"),
        ({"rewards_0": np.array(["1", "2", "3"])}, "one number a step"),
        ({"rewards_0": np.array([1j, 0, 0])}, "one number a step"),
        ({"actions_0": np.array([0, 1, 1.5])}, "the action np.float64(1.5) is not in Discrete(2)"),
        ({"actions_0": np.array([0, 1, np.nan])}, "is not in Discrete(2)"),
        ({"actions_0": np.array(["0", "1", "1"])}, "is not in Discrete(2)"),
    ],
)
def test_episodes_that_would_be_read_as_others_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """Several episodes in one, and actions that would be cut to whole numbers, are never trained on without a word."""
    env = gymnasium.make("CartPole-v1")
    arrays: dict[str, Any] = {
        "observations_0": np.zeros((4, 4)), "actions_0": np.array([0, 1.0, 1]), "rewards_0": np.ones(3), "dones_0": np.array([0, 0, 1])
    }  # fmt: skip
    path = tmp_path / "episodes.npz"
    np.savez(path, **arrays)
    assert demonstrations.episodes_of("CartPole-v1", env, path)[0].dones == [False, False, True]
    np.savez(path, **arrays | change)
    with pytest.raises(ValueError, match=re.escape(reason)):
        demonstrations.episodes_of("CartPole-v1", env, path)


def test_pictures_go_through_an_encoder_and_have_a_history() -> None:
    env = Tiles()
    senses = ObservationEncoder(env.observation_space, Shrink())  # type: ignore[arg-type]
    spec = senses.specify(env, gamma=0.9, algorithm="auto")
    assert [(s.name, s.modality, s.tokens, s.width) for s in spec.streams] == [("view", "image", 1, 12)]
    window = FrameWindow(spec)
    first = senses.tokens(env.reset(seed=0)[0])
    assert first["view"].dtype == np.float16
    features = window.remember(first).features()
    assert features.tokens["view"].shape == (1, 4, 1, 12)
    assert features.present[0, :, 0].tolist() == [True] * 4, "the first tick fills it, as it does when acting"
    window.restart()
    with pytest.raises(IndexError):
        window.features()


def test_values_are_words_and_numbers() -> None:
    actions = action_space(spaces.Discrete(3))
    assert actuator_values(actions, HeadOutput({"action": torch.tensor([2])}, {}, torch.zeros(1)), 0) == {"action": "2"}
