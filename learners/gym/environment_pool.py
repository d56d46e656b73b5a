"""Step several environments of one training at once, and order what they return for the replay buffer.

`EnvironmentHost` has some of the environments, in this process or as an actor of Ray (`RayEnvironments`). `EpisodeBlocks` collects the ticks of
one environment. The replay finds a transition's successor at the next position, so the ticks of one environment enter it in blocks. A
block begins with the frames that the policy saw before it, and ends with the state that was reached; neither is drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from actuators.actions import Value
from actuators.sim.call_limit import CALL_S
from actuators.sim.gym_env import EnvironmentFault, make
from learners.gym.observations import Tokens

BLOCK = 128
"""Ticks of one environment that enter the replay together, unless its episode ends before."""


@dataclass(frozen=True, slots=True)
class EnvironmentStep:
    """What one step of an environment returned; where the episode ended, `first` is the first observation of the next one."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    first: Any = None

    @property
    def ended(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


def environment_seed(seed: int, number: int) -> int:
    """Return the seed of one environment of a training; the first one has that of the training."""
    return seed if number == 0 else int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) >> 1


class EnvironmentHost:
    """Some of the environments of a training.

    Args:
        maker: makes one.
        seeds: one of each environment.
    """

    def __init__(self, maker: Callable[[], gymnasium.Env[Any, Any]], seeds: Sequence[int]) -> None:
        self._environments = [maker() for _ in seeds]
        self._seeds = list(seeds)

    def reset(self) -> list[Any]:
        """Begin the first episode of each; return their observations.

        Raises:
            EnvironmentFault: an environment failed.
        """
        return [each.reset(seed=seed)[0] for each, seed in zip(self._environments, self._seeds, strict=True)]

    def step(self, actions: Sequence[Any]) -> list[EnvironmentStep]:
        """Step as many environments as there are actions; begin the next episode where one ended.

        Raises:
            EnvironmentFault: an environment failed.
        """
        results = []
        for environment, action in zip(self._environments, actions, strict=False):
            observation, reward, terminated, truncated, _ = environment.step(action)
            first = environment.reset()[0] if terminated or truncated else None
            results.append(EnvironmentStep(observation, float(reward), bool(terminated), bool(truncated), first))
        return results


class EnvironmentPool(Protocol):
    """The environments of one training."""

    count: int

    def reset(self) -> list[Any]:
        """Begin the first episode of each; return their observations."""

    def begin(self, actions: Sequence[Any]) -> None:
        """Begin a step of as many environments as there are actions, without waiting."""

    def receive(self) -> list[EnvironmentStep]:
        """Wait for the results of `begin`."""


class RayEnvironments:
    """Environments in actors of Ray, which end with this process.

    Args:
        ray: the module, where Ray is started.
        environment: a gymnasium id.
        seed: of the training.
        count: number of environments.
        workers: number of actors, each with a core.
        limit_s: seconds that one call of an environment may take; 0 for any time.
    """

    def __init__(
        self, ray: Any, environment: str, seed: int, *, count: int, workers: int, limit_s: float = CALL_S
    ) -> None:
        self._ray, self.count = ray, count
        seeds = [environment_seed(seed, number) for number in range(count)]
        parts = [part for part in np.array_split(np.arange(count), min(workers, count)) if len(part)]
        remote = ray.remote(_RayHost).options(num_cpus=1, max_restarts=0)
        self._parts = [(int(part[0]), int(part[-1]) + 1) for part in parts]
        self._actors = [remote.remote(environment, limit_s, seeds[start:stop]) for start, stop in self._parts]
        self._begun: list[Any] = []

    def reset(self) -> list[Any]:
        """Begin the first episode of each; return their observations.

        Raises:
            EnvironmentFault: an environment failed, or its process ended.
        """
        return self._joined([actor.reset.remote() for actor in self._actors])

    def begin(self, actions: Sequence[Any]) -> None:
        """Begin a step of as many environments as there are actions, without waiting."""
        self._begun = [
            actor.step.remote(list(actions[start:stop]))
            for actor, (start, stop) in zip(self._actors, self._parts, strict=True)
            if actions[start:stop]
        ]

    def receive(self) -> list[EnvironmentStep]:
        """Wait for the results of `begin`.

        Raises:
            EnvironmentFault: an environment failed, or its process ended.
        """
        return self._joined(self._begun)

    def _joined(self, references: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for reference, (start, stop) in zip(references, self._parts, strict=False):
            try:
                found += self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, EnvironmentFault):
                    raise
                raise EnvironmentFault(str(error.cause)) from None
            except self._ray.exceptions.RayActorError as error:
                raise EnvironmentFault(f"the process of environments {start} to {stop - 1} ended: {error}") from None
        return found


class _RayHost(EnvironmentHost):
    """An `EnvironmentHost` of an environment by its id."""

    def __init__(self, environment: str, limit_s: float, seeds: Sequence[int]) -> None:
        super().__init__(lambda: make(environment, limit_s), seeds)


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One row for the replay; without values, nothing acted."""

    frame: Tokens
    tick: int
    session: str
    values: Mapping[str, Value] | None = None
    reward: float = 0.0
    done: bool = False
    is_new: bool = True
    """Whether no block had this frame before."""


class EpisodeBlocks:
    """The ticks of one environment that have not entered the replay.

    Args:
        history: frames of one state.
        size: ticks of a block.
    """

    def __init__(self, history: int, size: int = BLOCK) -> None:
        self._context: deque[BlockRow] = deque(maxlen=history - 1)
        """The frames before the first tick that waits, as rows at which nothing acted."""
        self._size = size
        self._waiting: list[BlockRow] = []
        self._session, self._tick = "", 0

    def begin(self, session: str) -> None:
        """Begin an episode, after `end` of the one before."""
        self._session, self._tick = session, 0
        self._context.clear()

    def add(self, frame: Tokens, values: Mapping[str, Value], reward: float, *, done: bool) -> None:
        """Add a tick: the frame at which the values acted, and what they earned."""
        self._tick += 1
        self._waiting.append(BlockRow(frame, self._tick, self._session, values, reward, done))

    def take(
        self, reached: Tokens, *, terminated: bool = False, truncated: bool = False, all_rows: bool = False
    ) -> list[BlockRow]:
        """Return the rows that enter the replay now; empty while the block grows.

        Args:
            reached: the frame after the last tick.
            terminated: the episode has ended.
            truncated: its time ran out.
            all_rows: the training ends.
        """
        if not self._waiting or not (terminated or truncated or all_rows or len(self._waiting) >= self._size):
            return []
        rows, self._waiting = [*self._context, *self._waiting], []
        for row in rows:
            self._context.append(BlockRow(row.frame, row.tick, row.session, is_new=False))
        if not terminated:  # the state that was reached says what was still to come
            rows.append(BlockRow(reached, self._tick + 1, self._session, is_new=truncated))
        return rows
