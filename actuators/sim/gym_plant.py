"""Run any gymnasium environment as a device behind the broker, in real time.

`gym_spaces.py` maps the environment's spaces to streams and actuators. The reward of a step names the decision that the step
executed. At the end of an episode the reward has `done`, and the environment is reset.

The environment steps when every actuator has a new command, at most at twice its own rate. Without new commands it steps at its
own rate. So each decision sees its own consequence, although the two clocks differ. The first step waits for a command to every
actuator.
"""

from __future__ import annotations

import math
import numbers
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from actuators.actions import Actuator, Choice, Continuous, Value
from actuators.sim.gym_env import CheckedEnv, make
from actuators.sim.gym_spaces import (
    PICTURE_ENCODER,
    PICTURE_HISTORY,
    action_space,
    executable,
    fields,
    is_picture,
    split,
    streams,
    to_environment,
    vector,
)
from actuators.sim.plant import Device, jpeg, message
from actuators.wire import DeviceMessage

MIN_RATE_HZ, MAX_RATE_HZ = 1e-3, 50.0
EARLIEST = 0.5
"""A command steps the environment when at least this share of a period has passed."""
PATIENCE = 1.6
"""Periods without a command after which the clock steps, while commands come; without any, it steps every period."""
GONE_PERIODS = 10
MAX_REWARD = 10_000.0
"""Limit of a reward in the generated settings: an environment is trusted, and its rewards have any size."""
SHOWN_EPISODES = 20
CHOICE_BATCH, BATCH = {"batch": 64, "n_step": 3}, {"batch": 256, "n_step": 1}
"""Of the learner, with and without a choice: the same as in lock-step."""
REWARD_PERIODS = 3
"""Periods until a reward has arrived: the environment steps when the command comes, or when its patience ends."""
ENCODER = "vision"


class GymPlant:
    """A `Plant` that steps one gymnasium environment in real time.

    Args:
        environment: a gymnasium id, or an environment.
        agent: the name in the topics.
        seed: of the environment.
        rate_hz: steps a second; default: its own, at most 50.

    Raises:
        ValueError: there is no such environment, a space of it cannot be mapped, or its first observation is wrong.

    `receive` and `step` raise EnvironmentFault when the environment fails.
    """

    def __init__(
        self, environment: str | gymnasium.Env[Any, Any], agent: str, seed: int = 0, rate_hz: float | None = None
    ) -> None:
        self.env = make(environment) if isinstance(environment, str) else CheckedEnv(environment, "the environment")
        self.streams = streams(self.env.observation_space)
        actuators = action_space(self.env.action_space).actuators
        self.period_s = 1.0 / (rate_hz or native_rate_hz(self.env))
        self.env.limit_s = max(self.env.limit_s, self.period_s)
        self._base = f"reflexd/{agent}"
        self.devices = {one.name: Device(self._base, one.name, partial(executable, one)) for one in actuators}
        self._lock = threading.Lock()
        self._observation, _ = self.env.reset(seed=seed)
        self._values: dict[str, Value] = {}
        """In force, by actuator."""
        self._due: set[str] = set()
        """Actuators with a command that was not executed yet."""
        self._stepped_s = self._commanded_s = float("-inf")
        self._greeted = False
        self.episode, self._return, self._length = 0, 0.0, 0
        self.returns: list[float] = []
        """Of the last episodes, newest last."""

    def subscriptions(self) -> tuple[str, ...]:
        """List the topics of the actuators' commands."""
        return tuple(device.topic for device in self.devices.values())

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[DeviceMessage]:
        """Take a command: report it at once, and step once every actuator has a new one, unless the last step was just now."""
        name = next((name for name, device in self.devices.items() if device.topic == topic), None)
        if name is None:
            return []
        with self._lock:
            device = self.devices[name]
            value = device.take(payload, retained=retained, now_s=now_s)
            if value is None:
                return device.refusal(self._values.get(name), now_s)
            self._values[name], self._commanded_s = value, now_s
            self._due.add(name)
            out = [device.report(value, now_s)]
            if len(self._due) == len(self.devices) and now_s - self._stepped_s >= EARLIEST * self.period_s:
                out += self._step(now_s)
            return out

    def step(self, now_s: float) -> list[DeviceMessage]:
        """Step by the environment's own clock."""
        with self._lock:
            if not self._greeted:
                self._greeted = True
                return [*(device.report(None) for device in self.devices.values()), *self._observed()]
            if len(self._values) < len(self.devices):
                return self._observed()
            silent = now_s - self._commanded_s > GONE_PERIODS * self.period_s
            # half a period of slack: both clocks jitter
            wait_s = (0.5 if silent else PATIENCE) * self.period_s
            late = now_s - self._stepped_s >= wait_s
            return self._step(now_s) if late else []

    def _step(self, now_s: float) -> list[DeviceMessage]:
        action = to_environment(self.env.action_space, self._values)
        self._observation, reward, terminated, truncated, _ = self.env.step(action)
        self._stepped_s = now_s
        self._return += float(reward)
        self._length += 1
        ended = bool(terminated or truncated)
        out = [self._rewarded(float(reward), now_s, done=bool(terminated), truncated=bool(truncated))]
        if ended:
            out.append(self._ended(now_s))
        return out + self._observed()

    def _rewarded(self, reward: float, now_s: float, *, done: bool, truncated: bool) -> DeviceMessage:
        """Name the decision that was executed, also where it is repeated; credit one without decision, and an old one, by time.

        By time alone, a step at which the next command was late would reward the decision that was not executed yet.
        """
        commands = [self.devices[name].command for name in self._due or self.devices]
        decisions = {command.decision if command is not None else None for command in commands}
        self._due.clear()
        is_old = now_s - self._commanded_s > GONE_PERIODS * self.period_s
        decision = decisions.pop() if len(decisions) == 1 and not is_old else None
        credit = {"decision": decision} if decision is not None else {"stamp": now_s}
        body = {"value": reward, "done": done, "truncated": truncated and not done, "source": "environment"}
        return message(f"{self._base}/reward", body | credit, qos=1)

    def _ended(self, now_s: float) -> DeviceMessage:
        self.episode += 1
        self.returns = [*self.returns, self._return][-SHOWN_EPISODES:]
        body = {
            "episode": self.episode,
            "return": self._return,
            "length": self._length,
            "mean_return": float(np.mean(self.returns)),
            "episodes_in_mean": len(self.returns),
            "drops": dict(sum((device.inbox.drops for device in self.devices.values()), Counter())),
            "stamp": now_s,
        }
        self._return, self._length = 0.0, 0
        self._observation, _ = self.env.reset()
        return message(f"{self._base}/plant", body)

    def _observed(self) -> list[DeviceMessage]:
        parts = split(self.env.observation_space, self._observation)
        return [self._stream(name, space, parts[name]) for name, space in self.streams.items()]

    def _stream(self, name: str, space: spaces.Space[Any], value: Any) -> DeviceMessage:
        topic = f"{self._base}/in/{name}"
        if is_picture(space):
            return DeviceMessage(topic, jpeg(_image(value)))
        return message(topic, dict(zip(fields(space), vector(space, value)[0].tolist(), strict=True)))


def _image(value: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture as the codec takes it: height x width x 3, or height x width where it is grey."""
    return np.ascontiguousarray(value[:, :, 0] if value.shape[2] == 1 else value)


def native_rate_hz(env: gymnasium.Env[Any, Any]) -> float:
    """Return the environment's own steps per second, from `MIN_RATE_HZ` to 50; 30 where it names none.

    `dt` and `tau` are no part of gymnasium's API, so that what is no number of seconds means something else.
    """
    metadata = getattr(env.unwrapped, "metadata", None)
    fps = metadata.get("render_fps") if isinstance(metadata, Mapping) else None
    steps_s = [_positive(getattr(env.unwrapped, name, None)) for name in ("dt", "tau")]
    rate = next((1.0 / step_s for step_s in steps_s if step_s), _positive(fps) or 30.0)
    return min(MAX_RATE_HZ, max(MIN_RATE_HZ, rate))


def _positive(value: object) -> float | None:
    """Return a positive finite number as it is; None for anything else."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if is_number and 0 < float(value) < math.inf else None  # type: ignore[arg-type] # is_number


def settings(environment: str, agent: str, rate_hz: float | None = None) -> dict[str, Any]:
    """Return a settings file for an agent that controls this environment, as plain values.

    Raises:
        UnsupportedSpaceError: a space of the environment cannot be mapped.
    """
    env = make(environment)
    try:
        return settings_of(env, agent, rate_hz)
    finally:
        env.close()


def settings_of(env: gymnasium.Env[Any, Any], agent: str, rate_hz: float | None = None) -> dict[str, Any]:
    """Return the same for an environment that exists already.

    Raises:
        UnsupportedSpaceError: a space of the environment cannot be mapped.
    """
    seen, acts = streams(env.observation_space), action_space(env.action_space)
    rate = rate_hz or native_rate_hz(env)
    pictures = any(map(is_picture, seen.values()))
    body: dict[str, Any] = {
        "agent": agent,
        "tick": {"rate_hz": min(MAX_RATE_HZ, float(rate))},
        "state_dir": f".reflexd/{agent}",
        "streams": {name: _stream(space, rate) for name, space in seen.items()},
    }
    extra: dict[str, Any] = {"encoders": {ENCODER: {"model": PICTURE_ENCODER}}} if pictures else {}
    policy = {"history": PICTURE_HISTORY if pictures else 1, "gamma": 0.99}
    extra |= {"rewards": [{"name": "environment", "kind": "topic", "clip": MAX_REWARD}]}
    actuators = {one.name: _actuator(one) for one in acts.actuators}
    return body | extra | {"actuators": actuators, "policy": policy, "learner": _learner(acts.actuators, rate)}


def _learner(actuators: Sequence[Actuator], rate_hz: float) -> dict[str, Any]:
    """Return batch and n-step returns as `reflexd train` has them, and the delay of a reward that names its decision."""
    sizes = CHOICE_BATCH if any(isinstance(one, Choice) for one in actuators) else BATCH
    return {**sizes, "reward_delay_s": math.ceil(1_000 * REWARD_PERIODS / rate_hz) / 1_000}


def _stream(space: spaces.Space[Any], rate_hz: float) -> dict[str, Any]:
    common = {"source": "topic", "max_age_s": max(0.25, math.ceil(1_000 * 5 / rate_hz) / 1_000), "required": True}
    if is_picture(space):
        return {"kind": "camera", **common, "rate_hz": rate_hz, "encoder": ENCODER}
    return {"kind": "telemetry", **common, "fields": list(fields(space))}


def _actuator(actuator: Actuator) -> dict[str, Any]:
    if isinstance(actuator, Choice):
        return {"kind": "choice", "choices": list(actuator.choices), "safe": "hold"}
    assert isinstance(actuator, Continuous)
    low, high = list(actuator.low), list(actuator.high)
    zero_is_inside = all(a <= 0 <= b for a, b in zip(low, high, strict=True))
    safe = [0.0] * len(low) if zero_is_inside else "hold"
    return {"kind": "continuous", "low": low, "high": high, "safe": safe, "out_of_range": "clamp"}
