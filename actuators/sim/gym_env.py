"""Create gymnasium environments and check what they return: foreign code may be faulty, and faults never train the policy.

Used by `reflexd train` and the simulated plant alike. A fault is an error of the environment, or a value that is not of its own
spaces or not finite; it carries the step at which it came.
"""

from __future__ import annotations

import importlib
import numbers
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from actuators.sim.call_limit import CALL_S, GRACE_S, LIMIT, CallTookTooLong
from actuators.sim.foreign_code import FOREIGN
from actuators.sim.gym_spaces import is_picture, split, streams
from actuators.sim.plant import PlantFault

T = TypeVar("T")
API = "gymnasium's API wants (observation, info) of reset(seed=, options=) and (observation, reward, terminated, truncated, info) of step"

FAILS = (Exception, SystemExit)
"""What foreign code may raise; a module or an environment that calls `sys.exit` must not end this program without a word."""
MAX_REWARD = 1e12
"""Larger ones are no rewards: the learner would bound them, and a network could not hold their returns."""
MOST_SHOWN = 500
"""Characters that a message shows of what an environment says."""


class EnvironmentFault(PlantFault):
    """An environment failed or returned what it may not; `str` says where, what, and what would be right."""


def find(environment: str, limit_s: float = CALL_S) -> EnvSpec:
    """Find an environment by its id; `module:ID` imports the module first, which registers it.

    Args:
        environment: the id.
        limit_s: seconds that the import may take; 0 for any time.

    Raises:
        ValueError: there is no such environment or module, or the module is not imported in time.
    """
    module, found, name = environment.rpartition(":")
    try:
        if found:
            _limited(lambda: importlib.import_module(module), limit_s, f"{environment!r}: the import of {module}")
        spec: EnvSpec = gymnasium.spec(name)
    except CallTookTooLong:
        raise ValueError(f"{environment!r}: its module {_slow(limit_s)}") from None
    except gymnasium.error.Error as error:
        raise ValueError(f"no environment {environment!r}: {_line(error)}") from None
    except ImportError as error:
        raise ValueError(
            f"no environment {environment!r}: {_line(error)}; write MODULE:ID for a module that Python finds (PYTHONPATH), or install "
            "what the environment needs"
        ) from None
    except FAILS as error:
        raise ValueError(f"{environment!r}: its module fails: {type(error).__name__}: {_line(error)}") from error
    return spec


def make(environment: str, limit_s: float = CALL_S) -> CheckedEnv:
    """Make an environment by its id.

    Args:
        environment: the id.
        limit_s: seconds that one call of it may take, its making included; 0 for any time.

    Raises:
        ValueError: as `find`, or it cannot be made, or not in time.
    """
    find(environment, limit_s)

    def made() -> CheckedEnv:
        # gymnasium's passive checker warns of some of what is checked here
        return CheckedEnv(gymnasium.make(environment, disable_env_checker=True), environment, limit_s)

    try:
        return _limited(made, limit_s, f"{environment!r}: making it")
    except CallTookTooLong:
        raise ValueError(f"{environment!r} cannot be made: it {_slow(limit_s)}") from None
    except FAILS as error:
        raise ValueError(f"{environment!r} cannot be made: {type(error).__name__}: {_line(error)}") from error


def _limited(work: Callable[[], T], limit_s: float, name: str, *, is_rare: bool = True) -> T:
    """Call foreign code for a limited time; the settings of the process are as before.

    Raises:
        CallTookTooLong: it took longer.
    """
    return FOREIGN.call(lambda: LIMIT.call(work, limit_s, name), name, is_rare=is_rare)


def _slow(limit_s: float) -> str:
    return f"has not returned after {limit_s:g} s; correct what it waits for, or give it more time"


class CheckedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrap an environment and check that its observations are finite and of its space, its rewards finite and its ends true or false.

    The spaces are those that it has when it is wrapped: a policy has one shape.

    Args:
        env: the environment.
        name: of it, for messages.
        limit_s: seconds that one call may take; 0 for any time.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str, limit_s: float = CALL_S) -> None:
        super().__init__(env)
        self.name, self.limit_s = name, limit_s
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.episodes = self.steps = 0
        self._hangs = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            EnvironmentFault: the environment fails or does not return in time, or its observation is not of its space.
        """
        self.episodes += 1
        self.steps = 0
        result = self._call(lambda: self.env.reset(seed=seed, options=options), API)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._fault(f"reset returned {_shown(result)}; {API}")
        return self._observation(result[0]), result[1] if isinstance(result[1], dict) else {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step.

        Raises:
            EnvironmentFault: the environment fails, does not return in time, or its observation is not of its space. Or its reward is no
                finite number, or an end is neither true nor false.
        """
        self.steps += 1
        result = self._call(lambda: self.env.step(action), "correct the environment's step")
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._fault(f"step returned {_shown(result)}; {API}")
        observation, reward, terminated, truncated, info = result
        return (
            self._observation(observation), self._reward(reward),
            self._flag("terminated", terminated), self._flag("truncated", truncated), info if isinstance(info, dict) else {},
        )  # fmt: skip

    def close(self) -> None:
        """Close the environment; a failure is a warning, because nothing is needed of it any more."""
        limit_s = min(self.limit_s, GRACE_S) if self._hangs else self.limit_s
        try:
            _limited(self.env.close, limit_s, f"{self.name}: close")
        except CallTookTooLong:
            warnings.warn(f"{self.name}: close has not returned for {limit_s:g} s", stacklevel=2)
        except FAILS as error:
            warnings.warn(f"{self.name}: close failed: {type(error).__name__}: {_line(error)}", stacklevel=2)

    def _call(self, work: Callable[[], Any], remedy: str) -> Any:
        """Call the environment, for `limit_s` at most.

        Raises:
            EnvironmentFault: it fails, or has not returned in time.
        """
        try:
            return _limited(work, self.limit_s, f"{self.name}: {self._place()}", is_rare=not self.steps)
        except CallTookTooLong:
            self._hangs = True
            raise self._fault(f"it {_slow(self.limit_s)}") from None
        except FAILS as error:
            raise self._fault(f"{type(error).__name__}: {_line(error)}; {remedy}") from error

    def _flag(self, name: str, value: Any) -> bool:
        """Return an end as a truth value: a bool, or one 0 or 1, as a number or in an array."""
        try:
            array = np.asarray(value)
            one = array.item() if array.dtype.kind in "biuf" else None
        except FAILS:
            one = None
        if one not in (0, 1):
            raise self._fault(f"{name} is {_shown(value)}; return True or False")
        return bool(one)

    def _reward(self, reward: Any) -> float:
        try:
            whole = isinstance(reward, numbers.Integral)  # of any size
            value = float(reward) if whole else float(np.asarray(reward).astype(float, casting="safe").item())
        except FAILS:
            raise self._fault(f"the reward is {_shown(reward)}; return one number") from None
        if not np.isfinite(value):
            raise self._fault(f"the reward is {value}; return a finite number")
        if abs(value) > MAX_REWARD:
            raise self._fault(f"the reward is {value:g}; scale rewards to at most {MAX_REWARD:g}")
        return value

    def _observation(self, observation: Any) -> Any:
        problem = observation_problem(self.observation_space, observation)
        if problem is not None:
            raise self._fault(f"{problem}; correct what the environment returns, or its observation_space")
        return observation

    def _fault(self, message: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self.name}: {self._place()}: {' '.join(message.split())}")

    def _place(self) -> str:
        return f"step {self.steps} of episode {self.episodes}" if self.steps else f"reset of episode {self.episodes}"


def _line(error: BaseException) -> str:
    """Return what an error says as a part of one line, without control characters."""
    try:
        text = " ".join(str(error).split())
    except FAILS:
        return "an error without a text"
    plain = "".join(character if character.isprintable() else "?" for character in text)
    return plain if len(plain) <= MOST_SHOWN else plain[:MOST_SHOWN] + "..."


def observation_problem(space: spaces.Space[Any], observation: Any) -> str | None:
    """Say why an observation is not of its space or not finite; None where it is right."""
    if isinstance(space, spaces.Dict) and (not isinstance(observation, dict) or set(observation) != set(space)):
        return f"the observation is {_shown(observation)}; a mapping with the keys {sorted(space)} is wanted"
    parts = split(space, observation)
    for name, part in streams(space).items():
        if (problem := _part_problem(part, parts[name])) is not None:
            return f"the observation {name!r} {problem}"
    return None


def _part_problem(space: spaces.Space[Any], value: Any) -> str | None:
    try:
        array = np.asarray(value)
        is_whole = not np.ma.is_masked(value)
        with np.errstate(over="ignore"):  # an infinite number is found below
            values = array.astype(np.float32) if array.dtype.kind in "biuf" and is_whole else None
    except FAILS:
        values = None
    if values is None:
        return f"is {_shown(value)}, no numbers"
    if array.shape != (space.shape or ()):
        return f"has the shape {array.shape}; the space says {space.shape or ()}"
    if is_picture(space) and array.dtype != np.uint8:
        return f"is a picture of {array.dtype}; the space says uint8"
    if isinstance(space, spaces.Discrete):
        first, one = int(space.start), array.item()
        if not first <= one < first + int(space.n) or one != int(one):
            return f"is {one}; the space says a whole number from {first} to {first + int(space.n) - 1}"
    if not np.isfinite(values).all():
        at = np.argwhere(~np.isfinite(values))[0].tolist()
        return f"is not finite: {float(values[tuple(at)])} at {at}"
    return None


def _shown(value: object) -> str:
    size = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
    try:
        text = f"{value!r:.60}"
    except FAILS:
        text = "without a text"
    return f"{text} ({type(value).__name__}{size})"
