"""Demonstrations for gymnasium environments: scripted controllers and recorded episodes.

A file of episodes is an `.npz` with, for each episode i, `observations_i` (one more than steps), `actions_i` (as the
environment takes them), `rewards_i` and `dones_i`.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from actuators.sim.gym_env import observation_problem

Controller = Callable[[NDArray[np.float64]], Any]
"""From an observation to an action of the environment."""


@dataclass(frozen=True, slots=True)
class DemonstrationEpisode:
    """What an expert did: n + 1 observations, n actions (as the environment takes them), rewards and dones.

    `dones` says where the world ended, which is at most at the last step; otherwise time ran out.
    """

    observations: list[Any]
    actions: list[Any]
    rewards: list[float]
    dones: list[bool]


def cart_pole(observation_4: NDArray[np.float64]) -> int:
    """Push towards where the pole falls, and back to the middle."""
    x, v, angle, spin = observation_4
    return int(0.1 * x + 0.3 * v + 3.0 * angle + spin > 0)


def acrobot(observation_6: NDArray[np.float64]) -> int:
    """Pump energy: torque along the first joint's spin."""
    return 0 if observation_6[4] > 0 else 2


def pendulum(observation_3: NDArray[np.float64]) -> NDArray[np.float32]:
    """Pump energy until the pendulum can reach the top, then hold it there (Astrom and Furuta 2000)."""
    cosine, sine, spin = observation_3
    if cosine > 0.9:
        angle = float(np.arctan2(sine, cosine))
        return np.array([np.clip(-12.0 * angle - 3.0 * spin, -2, 2)], np.float32)
    missing = 15.0 * (1 - cosine) - 0.5 * spin**2
    return np.array([2.0 * np.sign(spin or 1.0) * np.sign(missing)], np.float32)


def mountain_car(observation_2: NDArray[np.float64]) -> NDArray[np.float32]:
    """Push along the speed."""
    return np.array([1.0 if observation_2[1] >= 0 else -1.0], np.float32)


HOPPER_GAINS = np.array([
    [0.268, -1.98, -0.618, -0.224, -0.0263, 0.0941, -0.00641, -0.143, -0.149, 0.0957, 0.0167],
    [-0.779, -1.9, 0.307, -0.9, 0.186, 0.0535, -0.0667, -0.188, 0.0498, -0.102, -0.0118],
    [1.55, -4.15, 0.49, -0.352, 0.0702, -0.477, -0.0325, 0.0224, 0.0457, 0.00408, 0.0245],
])  # fmt: skip
"""Torques of thigh, leg and foot for each of height, four angles, two speeds and four angular speeds."""
HOPPER_OFFSET = np.array([-0.78, 0.368, -1.38])


def hopper(observation_11: NDArray[np.float64]) -> NDArray[np.float32]:
    """Hop by one fixed linear feedback; `tests/benchmarks/search_gains.py Hopper-v5 --seed 1` found the gains."""
    torque_3: NDArray[np.float64] = np.clip(HOPPER_GAINS @ observation_11 + HOPPER_OFFSET, -1, 1)
    return torque_3.astype(np.float32)


SCRIPTS: Mapping[str, Controller] = {
    "CartPole-v1": cart_pole,
    "Acrobot-v1": acrobot,
    "Pendulum-v1": pendulum,
    "MountainCarContinuous-v0": mountain_car,
    "Hopper-v5": hopper,
}


def demonstrate(env: gymnasium.Env[Any, Any], controller: Controller, seeds: range) -> list[DemonstrationEpisode]:
    """Let a controller play one episode for each seed."""
    episodes = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        episode = DemonstrationEpisode([observation], [], [], [])
        ended = False
        while not ended:
            action = controller(observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            episode.observations.append(observation)
            episode.actions.append(action)
            episode.rewards.append(float(reward))
            episode.dones.append(bool(terminated))
            ended = bool(terminated or truncated)
        episodes.append(episode)
    return episodes


def save(path: Path, episodes: list[DemonstrationEpisode]) -> None:
    """Write episodes to an `.npz`."""
    arrays: dict[str, NDArray[Any]] = {}
    for i, e in enumerate(episodes):
        arrays |= {f"observations_{i}": np.asarray(e.observations), f"actions_{i}": np.asarray(e.actions)}
        arrays |= {f"rewards_{i}": np.asarray(e.rewards), f"dones_{i}": np.asarray(e.dones, bool)}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type] # the names are no keyword of savez


_DAMAGED = (
    *(
        ValueError,
        EOFError,
        BadZipFile,
        AttributeError,
        TypeError,
        RuntimeError,
        OSError,
        OverflowError,
        IndexError,
        SyntaxError,
    ),
    *(MemoryError, struct.error, zlib.error, lzma.LZMAError),
)
"""What numpy and the decompressors raise for a damaged file."""


def load(path: Path) -> list[DemonstrationEpisode]:
    """Read episodes; pickled objects are refused.

    Raises:
        ValueError: it is no `.npz`, an array is missing, or the lengths do not fit each other.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as data:
            count = sum(name.startswith("observations_") for name in data.files)
            arrays = [
                [np.asarray(data[f"{name}_{i}"]) for name in ("observations", "actions", "rewards", "dones")]
                for i in range(count)
            ]
    except KeyError as error:
        raise ValueError(f"{path}: {error}; write the four arrays of every episode") from None
    except _DAMAGED as error:
        raise ValueError(
            f"{path}: no file of episodes ({type(error).__name__}); write one with numpy.savez_compressed"
        ) from None
    if not count:
        raise ValueError(f"{path}: no episodes in it; write `observations_0`, `actions_0`, `rewards_0`, `dones_0`")
    return [_episode(path, i, *each) for i, each in enumerate(arrays)]


def _episode(
    path: Path, i: int, o: NDArray[Any], a: NDArray[Any], r: NDArray[Any], d: NDArray[Any]
) -> DemonstrationEpisode:
    if min(o.ndim, a.ndim, r.ndim, d.ndim) < 1 or not len(o) - 1 == len(a) == len(r) == len(d) > 0:
        raise ValueError(
            f"{path}: episode {i}: arrays of the shapes {o.shape}, {a.shape}, {r.shape} and {d.shape};"
            " there must be one observation more than actions, rewards and dones"
        )
    if r.ndim > 1 or r.dtype.kind not in "biuf" or not np.isfinite(r).all():
        raise ValueError(f"{path}: episode {i}: a reward is not finite; write one number a step")
    if d.ndim > 1 or d.dtype.kind not in "biuf" or not np.isin(d, (0, 1)).all():
        raise ValueError(f"{path}: episode {i}: `dones_{i}` is not of one true or false a step")
    if d[:-1].any():
        step = int(np.flatnonzero(d)[0]) + 1
        raise ValueError(
            f"{path}: episode {i}: it ends at step {step} of {len(d)}; write each episode with arrays of its own, and its last"
            " observation with it"
        )
    return DemonstrationEpisode(list(o), list(a), [float(x) for x in r], [bool(x) for x in d])


def episodes_of(environment: str, env: gymnasium.Env[Any, Any], source: int | Path) -> list[DemonstrationEpisode]:
    """Return scripted episodes (`source` is their number), or those of a file.

    Raises:
        ValueError: there is no script for the environment, or the file is no file of episodes.
    """
    if isinstance(source, Path):
        episodes = load(source)
        for i, episode in enumerate(episodes):
            problem = next(
                filter(None, (observation_problem(env.observation_space, o) for o in episode.observations)), None
            )
            wrong = next((a for a in episode.actions if not _is_action(env.action_space, a)), None)
            if problem is None and wrong is not None:
                problem = f"the action {wrong!r} is not in {env.action_space}"
            if problem is not None:
                raise ValueError(f"{source}: episode {i}: {problem}; record it in {environment}")
        return episodes
    if environment not in SCRIPTS:
        raise ValueError(
            f"no scripted expert for {environment}; there are {', '.join(SCRIPTS)}; or give a file of episodes"
        )
    return demonstrate(env, SCRIPTS[environment], range(4_000_000, 4_000_000 + source))


def _is_action(space: spaces.Space[Any], action: Any) -> bool:
    """Return whether an action is one of the space; one of another type of numbers must be equal in the type of the space."""
    given = np.asarray(action)
    if given.dtype.kind not in "biuf" or not np.isfinite(given).all():
        return False
    as_space = given.astype(space.dtype)
    is_equal = as_space.dtype.kind == "f" or np.array_equal(as_space, given)  # floats may only be rounded
    return bool(is_equal and space.contains(as_space))
