"""Any gymnasium environment as a device behind the broker, in real time.

A vector observation becomes the telemetry `state` (`o0`, `o1`, ...), a picture the camera `view`; `act/action/set` is the action;
every step's reward names the decision whose action it executed, with `done` at the end of an episode, after which the
environment starts anew. The environment steps when a command arrives, at most twice as fast as its own pace, and by its own
clock when none does: so each decision sees its own consequence although two clocks never agree. It stands still until the
first command. Knows observation spaces Box of one dimension or of uint8 pictures, and action spaces Discrete and Box.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from actuators.actions import Value
from actuators.sim.plant import Device, jpeg, message
from actuators.wire import Outgoing

MAX_RATE_HZ = 50.0
ACTUATOR, TELEMETRY, CAMERA = "action", "state", "view"
EARLIEST = 0.5
"""A command steps the environment when at least this share of a period has passed."""
PATIENCE = 1.6
"""Periods without a command after which the clock steps, while commands come; without any, it steps every period."""
GONE_PERIODS = 10
SHOWN_EPISODES = 20


class UnsupportedEnvironmentError(ValueError):
    """The environment's spaces cannot be put on the wire; `str` says which."""


class GymPlant:
    """See the module; a `Plant`.

    Args:
        environment: a gymnasium id, or an environment.
        agent: whose topics to use.
        seed: of the environment.
        rate_hz: steps a second; default: its own, at most 50.

    Raises:
        UnsupportedEnvironmentError: an observation or action space that is not known.
    """

    def __init__(
        self, environment: str | gymnasium.Env[Any, Any], agent: str, seed: int = 0, rate_hz: float | None = None
    ) -> None:
        self.env = gymnasium.make(environment) if isinstance(environment, str) else environment
        check_spaces(self.env)
        self.period_s = 1.0 / (rate_hz or native_rate_hz(self.env))
        self._base = f"reflexd/{agent}"
        self.device = Device(self._base, ACTUATOR, lambda value: understood(self.env.action_space, value))
        self._lock = threading.Lock()
        self._observation, _ = self.env.reset(seed=seed)
        self._value: Value | None = None
        self._stepped_s = self._commanded_s = float("-inf")
        self._due = False
        """The command in force has not been executed yet."""
        self._greeted = False
        self.episode, self._return, self._length = 0, 0.0, 0
        self.returns: list[float] = []
        """Of the last episodes, newest last."""

    def subscriptions(self) -> tuple[str, ...]:
        """The action's commands."""
        return (self.device.topic,)

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[Outgoing]:
        """A command: reported at once, and executed at once unless the last step was just now."""
        with self._lock:
            value = self.device.take(payload, retained=retained, now_s=now_s) if topic == self.device.topic else None
            if value is None:
                return []
            self._value, self._due, self._commanded_s = value, True, now_s
            out = [self.device.report(value)]
            if now_s - self._stepped_s >= EARLIEST * self.period_s:
                out += self._step(now_s)
            return out

    def step(self, now_s: float) -> list[Outgoing]:
        """The environment's own clock."""
        with self._lock:
            if not self._greeted:
                self._greeted = True
                return [self.device.report(None), *self._observed()]
            if self._value is None:
                return self._observed()
            silent = now_s - self._commanded_s > GONE_PERIODS * self.period_s
            # half a period of slack: both clocks jitter
            wait_s = (0.5 if silent else PATIENCE) * self.period_s
            late = now_s - self._stepped_s >= wait_s
            return self._step(now_s) if late else []

    def _step(self, now_s: float) -> list[Outgoing]:
        assert self._value is not None
        action = native_action(self.env.action_space, self._value)
        self._observation, reward, terminated, truncated, _ = self.env.step(action)
        self._stepped_s = now_s
        self._return += float(reward)
        self._length += 1
        ended = bool(terminated or truncated)
        out = [self._rewarded(float(reward), now_s, ended=ended)]
        if ended:
            out.append(self._ended(now_s))
        return out + self._observed()

    def _rewarded(self, reward: float, now_s: float, *, ended: bool) -> Outgoing:
        """By the decision's name the first time; a repeated action, and one without decision, by time."""
        command = self.device.command
        named = command is not None and command.decision is not None and self._due
        credit = {"decision": command.decision} if named and command is not None else {"stamp": now_s}
        self._due = False
        body = {"value": reward, "done": ended, "source": "environment"}
        return message(f"{self._base}/reward", body | credit, qos=1)

    def _ended(self, now_s: float) -> Outgoing:
        self.episode += 1
        self.returns = [*self.returns, self._return][-SHOWN_EPISODES:]
        told = {
            "episode": self.episode,
            "return": self._return,
            "length": self._length,
            "mean_return": float(np.mean(self.returns)),
            "episodes_in_mean": len(self.returns),
            "drops": dict(self.device.inbox.drops),
            "stamp": now_s,
        }
        self._return, self._length = 0.0, 0
        self._observation, _ = self.env.reset()
        return message(f"{self._base}/plant", told)

    def _observed(self) -> list[Outgoing]:
        if _is_picture(self.env.observation_space):
            image = np.ascontiguousarray(np.squeeze(self._observation))
            return [Outgoing(f"{self._base}/in/{CAMERA}", jpeg(image))]
        numbers = np.asarray(self._observation, np.float32)
        return [message(f"{self._base}/in/{TELEMETRY}", {f"o{i}": float(x) for i, x in enumerate(numbers)})]


def check_spaces(env: gymnasium.Env[Any, Any]) -> None:
    """Refuse what cannot be put on the wire.

    Raises:
        UnsupportedEnvironmentError: with the space.
    """
    seen, act = env.observation_space, env.action_space
    vector = isinstance(seen, spaces.Box) and len(seen.shape) == 1
    if not vector and not _is_picture(seen):
        raise UnsupportedEnvironmentError(
            f"observation space {seen}: a vector or a uint8 picture is wanted; flatten it with a wrapper"
        )
    bounded = isinstance(act, spaces.Box) and len(act.shape) == 1 and np.isfinite([act.low, act.high]).all()
    if not isinstance(act, spaces.Discrete) and not bounded:
        raise UnsupportedEnvironmentError(f"action space {act}: Discrete or a bounded vector is wanted")


def native_rate_hz(env: gymnasium.Env[Any, Any]) -> float:
    """Steps a second of the environment itself, at most 50; where it does not say, 30."""
    step_s = getattr(env.unwrapped, "dt", None) or getattr(env.unwrapped, "tau", None)
    rate = 1.0 / step_s if step_s else float(env.metadata.get("render_fps") or 30.0)
    return min(MAX_RATE_HZ, rate)


def understood(space: spaces.Space[Any], value: Value) -> Value | None:
    """The value if the environment can execute it; a vector is clipped to the box."""
    if isinstance(space, spaces.Discrete):
        return value if value in choices(space) else None
    if not isinstance(space, spaces.Box) or not isinstance(value, tuple) or len(value) != space.shape[0]:
        return None
    return tuple(float(x) for x in np.clip(value, space.low, space.high))


def native_action(space: spaces.Space[Any], value: Value) -> Any:
    """The environment's own form of an understood value."""
    if isinstance(space, spaces.Discrete):
        return np.int64(int(str(value)))
    return np.asarray(value, np.float32)


def choices(space: spaces.Discrete) -> tuple[str, ...]:
    """The words for the actions of a Discrete space: their numbers."""
    start = int(space.start)
    return tuple(str(start + index) for index in range(int(space.n)))


def settings(environment: str, agent: str, rate_hz: float | None = None) -> dict[str, Any]:
    """A settings file for an agent that controls this environment, as plain values.

    Raises:
        UnsupportedEnvironmentError: an observation or action space that is not known.
    """
    env = gymnasium.make(environment)
    try:
        check_spaces(env)
        rate = rate_hz or native_rate_hz(env)
        streams, encoders = _streams(env.observation_space, rate)
        body: dict[str, Any] = {
            "agent": agent,
            "tick": {"rate_hz": min(MAX_RATE_HZ, float(rate))},
            "state_dir": f".reflexd/{agent}",
            "streams": streams,
        }
        policy = {"history": 4 if encoders else 1, "gamma": 0.99}
        extra = {"encoders": encoders} if encoders else {}
        return body | extra | {"actuators": {ACTUATOR: _actuator(env.action_space)}, "policy": policy}
    finally:
        env.close()


def _streams(space: spaces.Space[Any], rate_hz: float) -> tuple[dict[str, Any], dict[str, Any]]:
    common = {"source": "topic", "max_age_s": max(0.25, math.ceil(1_000 * 5 / rate_hz) / 1_000), "required": True}
    if _is_picture(space):
        camera = {"kind": "camera", **common, "rate_hz": rate_hz, "encoder": "vision"}
        return {CAMERA: camera}, {"vision": {"model": "bundled:efficientnet-lite0"}}
    assert space.shape is not None
    fields = [f"o{index}" for index in range(space.shape[0])]
    return {TELEMETRY: {"kind": "telemetry", **common, "fields": fields}}, {}


def _actuator(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"kind": "choice", "choices": list(choices(space)), "safe": "hold"}
    assert isinstance(space, spaces.Box)
    low, high = space.low.astype(float).tolist(), space.high.astype(float).tolist()
    zero_is_inside = bool(np.all(space.low <= 0) and np.all(space.high >= 0))
    safe = [0.0] * len(low) if zero_is_inside else "hold"
    return {"kind": "continuous", "low": low, "high": high, "safe": safe, "out_of_range": "clamp"}


def _is_picture(space: spaces.Space[Any]) -> bool:
    shape = space.shape or ()
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(shape) == 3 and shape[2] in (1, 3)
