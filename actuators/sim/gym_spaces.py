"""Map gymnasium spaces to streams and actuators, for `reflexd train` and for the simulated plant.

Observations:

- An image (uint8, height x width x 1 or 3) is the camera stream `view`.
- Another Box is the telemetry stream `state` with the fields `o0`, `o1`, and so on. A Discrete observation is the same, one-hot.
- A Dict has one stream for each key.

Actions:

- A Discrete action is the choice actuator `action`. Its choices are the environment's own numbers.
- MultiDiscrete has the choice actuators `action0`, `action1`, and so on.
- A bounded Box of floats is the continuous actuator `action`.

Every other space is refused with an error of one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from actuators.actions import ActionSpace, Actuator, Choice, Continuous, Value

ACTION, STATE, VIEW = "action", "state", "view"
PICTURE_ENCODER = "bundled:efficientnet-lite0"
PICTURE_HISTORY = 4
"""Frames that a policy sees at once, where one of the streams is a picture."""
MAX_CHOICES = MAX_COMPONENTS = 1_024
MAX_FIELDS = 4_096
"""As the settings limit them."""
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_SHOWN = 120
"""Characters of a space that a refusal shows."""


class UnsupportedSpaceError(ValueError):
    """A space has no stream or no actuator; `str` says which and why, in one line."""


def action_space(space: object) -> ActionSpace:
    """Map an action space to actuators.

    Raises:
        UnsupportedSpaceError: it has none.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpace((_choice(ACTION, int(space.n), int(space.start), space),))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and space.nvec.size:
        parts = zip(space.nvec.tolist(), space.start.tolist(), strict=True)
        return ActionSpace(tuple(_choice(f"{ACTION}{k}", n, start, space) for k, (n, start) in enumerate(parts)))
    if isinstance(space, spaces.Box):
        return ActionSpace((_continuous(space),))
    raise _refusal("action", space, "Discrete, MultiDiscrete of one axis and Box can be mapped")


def _choice(name: str, count: int, start: int, space: object) -> Actuator:
    if not 2 <= count <= MAX_CHOICES:
        raise _refusal("action", space, f"a choice needs 2 to {MAX_CHOICES} values")
    return Choice(name, tuple(str(start + index) for index in range(count)))


def _continuous(space: spaces.Box) -> Actuator:
    low, high = np.ravel(space.low).astype(float), np.ravel(space.high).astype(float)
    if not np.issubdtype(space.dtype, np.floating):
        raise _refusal("action", space, "a Box of whole numbers has no actuator; use Discrete or MultiDiscrete")
    if not 1 <= len(low) <= MAX_COMPONENTS:
        raise _refusal("action", space, f"a continuous actuator has 1 to {MAX_COMPONENTS} components")
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(np.float32(high) - np.float32(low)).all()
    if not finite:
        raise _refusal("action", space, "a continuous actuator needs finite limits; wrap it in RescaleAction")
    if not (low < high).all():
        raise _refusal("action", space, "every lower limit must be below its upper one")
    return Continuous(ACTION, tuple(low.tolist()), tuple(high.tolist()))


def to_environment(space: spaces.Space[Any], values: Mapping[str, Value]) -> Any:
    """Build what `env.step` takes from the values of all actuators."""
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(int(str(values[ACTION])))
    if isinstance(space, spaces.MultiDiscrete):
        return np.array([int(str(values[f"{ACTION}{k}"])) for k in range(len(space.nvec))], dtype=space.dtype)
    assert isinstance(space, spaces.Box)
    return np.asarray(values[ACTION], dtype=space.dtype).reshape(space.shape)


def from_environment(space: spaces.Space[Any], action: Any) -> dict[str, Value]:
    """Read the actuators' values from an action of the environment."""
    if isinstance(space, spaces.Discrete):
        return {ACTION: str(int(action))}
    if isinstance(space, spaces.MultiDiscrete):
        return {f"{ACTION}{k}": str(int(number)) for k, number in enumerate(np.asarray(action))}
    return {ACTION: tuple(float(x) for x in np.ravel(action))}


def executable(actuator: Actuator, value: Value) -> Value | None:
    """Return the value as the environment executes it, a vector clipped to its limits; None if it cannot."""
    if isinstance(actuator, Choice):
        return value if value in actuator.choices else None
    assert isinstance(actuator, Continuous)
    if not isinstance(value, tuple) or len(value) != len(actuator.low):
        return None
    return tuple(float(x) for x in np.clip(value, actuator.low, actuator.high))


def streams(space: object) -> dict[str, spaces.Space[Any]]:
    """Map an observation space to streams: the space of each, by name.

    Raises:
        UnsupportedSpaceError: it has none.
    """
    single = VIEW if is_picture(space) else STATE
    found: dict[str, Any] = dict(space.items()) if isinstance(space, spaces.Dict) else {single: space}
    if not found:
        raise _refusal("observation", space, "it is empty")
    for name, part in found.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _refusal(
                "observation", space, f"the key {name!r} is no stream's name: lower-case letters, digits, _ and -"
            )
        _check_stream(part)
    return found


def _check_stream(space: object) -> None:
    if is_picture(space):
        return
    if not isinstance(space, spaces.Box | spaces.Discrete):
        raise _refusal("observation", space, "Box, Discrete and a Dict of them can be mapped")
    if not 1 <= width(space) <= MAX_FIELDS:
        raise _refusal(
            "observation", space, f"telemetry has 1 to {MAX_FIELDS} fields; a picture is uint8 with 1 or 3 channels"
        )


def is_picture(space: object) -> bool:
    """Say whether a space holds pictures: uint8, height x width x 1 or 3."""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and space.shape[2] in (1, 3)
        and 0 not in space.shape
    )


def width(space: spaces.Space[Any]) -> int:
    """Count the numbers of a telemetry stream."""
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (), dtype=int))


def fields(space: spaces.Space[Any]) -> tuple[str, ...]:
    """Name the fields of a telemetry stream."""
    return tuple(f"o{index}" for index in range(width(space)))


def split(space: spaces.Space[Any], observation: Any) -> dict[str, Any]:
    """Split an observation into its streams."""
    return dict(observation) if isinstance(space, spaces.Dict) else dict.fromkeys(streams(space), observation)


def vector(space: spaces.Space[Any], value: Any) -> NDArray[np.float32]:
    """Return an observation as telemetry [1, W]; a discrete one becomes one-hot."""
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[[int(value) - int(space.start)]]
    return np.ravel(value).astype(np.float32)[None]


def _refusal(what: str, space: object, why: str) -> UnsupportedSpaceError:
    shown = " ".join(str(space).split())
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return UnsupportedSpaceError(f"{what} space {shown}: {why}")
