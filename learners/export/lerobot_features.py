"""Define the columns of a LeRobotDataset frame, and convert steps of experience to them.

`complementary_info.*` holds what the format has no name for; its HIL-SERL buffer reads such columns and policies leave them
alone. Sound, tokens of encoders and text actuators are left out. Knows no file.

Shapes: N frames of an episode, F telemetry numbers, A action numbers, S streams, H x W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actuators.actions import ActionSpace, Choice, Continuous, Value
from learners.experience.episodes import Step
from learners.experience.transition import Transition
from learners.export.dataset_stats import Column
from learners.model.spec import fields_version
from sensors.codecs.images import decode_image

ORIENTATION = 0x0112
"""Tag of EXIF."""
MAX_PIXELS = 1 << 28
"""Of a stored picture."""
BY = ("none", "policy", "override", "gate")
"""Codes of `complementary_info.by`: who moved an actuator at this frame."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a frame consists of."""

    actions: ActionSpace
    fields: Mapping[str, tuple[str, ...]]
    """Names of the numbers of each telemetry stream."""
    streams: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]
    """Height and width of the pictures of each exported camera; others are brought to it."""
    words: tuple[str, ...] = ()
    """Text streams in order of preference: the newest text of the first one that has a text is the task."""

    @property
    def learned(self) -> tuple[Choice | Continuous, ...]:
        """The actuators that are part of `action`, in the order of the settings."""
        return tuple(a for a in self.actions.actuators if isinstance(a, Choice | Continuous))

    def fits(self, tick: Transition) -> bool:
        """Return whether a tick has these fields and actions; one that was stored under other settings may not."""
        return all(has_fields(tick, *stream) for stream in self.fields.items()) and all(
            _can_act(a, tick.actions[a.name]) for a in self.learned if a.name in tick.actions
        )

    def features(self) -> dict[str, dict[str, Any]]:
        """Return the features as in `meta/info.json`, without the format's own columns."""
        state = [f"{stream}.{name}" for stream, names in self.fields.items() for name in names]
        moved = [a.name for a in self.learned]
        out = {"observation.state": numbers("float32", state)} if state else {}
        for name, (height, width) in self.cameras.items():
            shape = [height, width, 3]
            out[f"observation.images.{name}"] = {
                "dtype": "image", "shape": shape, "names": ["height", "width", "channels"],
            }  # fmt: skip
        out["action"] = numbers("float32", [name for a in self.learned for name in _components(a)])
        out["action"]["info"] = {"choices": {a.name: list(a.choices) for a in self.learned if isinstance(a, Choice)}}
        out |= {"next.reward": numbers("float32"), "next.done": numbers("bool")}
        more = {
            "is_intervention": numbers("bool"),
            "is_demonstration": numbers("bool"),
            "by": numbers("int64", moved) | {"info": {"codes": list(BY)}},
            "probability": numbers("float32", moved),
            "present": numbers("bool", list(self.streams)),
            "age_s": numbers("float32", list(self.streams)),
            "value": numbers("float32"),
            "tick": numbers("int64"),
            "start_s": numbers("int64"),
            "stamp_s": numbers("float64"),
        }
        return out | {f"complementary_info.{name}": feature for name, feature in more.items()}


def has_fields(tick: Transition, stream: str, names: tuple[str, ...]) -> bool:
    """Return whether the stored numbers of a telemetry stream are these fields; True where the stream is missing."""
    if not tick.present.get(stream) or stream not in tick.tokens:
        return True
    stored = tick.encoder_versions.get(stream, "")  # rows of older programs do not say it
    return tick.tokens[stream].size == len(names) and stored in ("", fields_version(names))


def _can_act(actuator: Choice | Continuous, value: Value) -> bool:
    if isinstance(actuator, Choice):
        return value in actuator.choices
    return isinstance(value, tuple) and len(value) == len(actuator.low)


def numbers(dtype: str, names: list[str] | None = None) -> dict[str, Any]:
    """Return a feature of one number, or of one for each name."""
    return {"dtype": dtype, "shape": [len(names) if names else 1], "names": names}


def _components(actuator: Choice | Continuous) -> list[str]:
    if isinstance(actuator, Choice):
        return [actuator.name]
    return [f"{actuator.name}.{i}" for i in range(len(actuator.low))]


def columns(layout: Layout, steps: Sequence[Step]) -> dict[str, Column]:
    """Return all columns except the format's own, by feature."""
    ticks, features = [step.transition for step in steps], layout.features()
    out: dict[str, Column] = {}
    if layout.fields:
        out["observation.state"] = np.stack([_state(step, layout) for step in steps])
    for name, size in layout.cameras.items():
        out[f"observation.images.{name}"] = [fitted(step.seen[name], size) for step in steps]
    out["action"] = np.stack([_action(step, layout) for step in steps])
    out["next.reward"] = np.array([t.reward for t in ticks], np.float32)
    out["next.done"] = np.array([t.done for t in ticks])
    names = [a.name for a in layout.learned]
    start_s = int(ticks[0].stamp_s)
    more: dict[str, list[Any]] = {
        "is_intervention": [t.intervention for t in ticks],
        "is_demonstration": [t.demonstration for t in ticks],
        "by": [[BY.index(t.by.get(name, "none")) for name in names] for t in ticks],
        "probability": [[t.probabilities.get(name, 0.0) for name in names] for t in ticks],
        "present": [[t.present.get(name, False) for name in layout.streams] for t in ticks],
        "age_s": [[_age(t.ages_s, t.present, name) for name in layout.streams] for t in ticks],
        "value": [t.value for t in ticks],
        "tick": [t.tick for t in ticks],
        "start_s": [start_s] * len(ticks),
        "stamp_s": [t.stamp_s - start_s for t in ticks],
    }
    for name, rows in more.items():
        key = f"complementary_info.{name}"
        feature = features[key]
        out[key] = np.array(rows, feature["dtype"]).reshape(len(steps), *width_of(feature))
    return out


def width_of(feature: Mapping[str, Any]) -> list[int]:
    """Return the shape of one entry; a single number has none."""
    return [] if feature["shape"] == [1] else list(feature["shape"])


def _state(step: Step, layout: Layout) -> NDArray[np.float32]:
    """Telemetry of all streams, F or a number; zeros where a stream is missing."""
    parts = [
        np.asarray(step.transition.tokens[name], np.float32).ravel()
        if step.transition.present.get(name) and name in step.transition.tokens
        else np.zeros(len(names), np.float32)
        for name, names in layout.fields.items()
    ]
    return _squeezed(np.concatenate(parts))


def _action(step: Step, layout: Layout) -> NDArray[np.float32]:
    """Return a choice as its index, a motion in the actuator's units; an actuator that never moved is 0."""
    out: list[float] = []
    for actuator in layout.learned:
        value = step.actions.get(actuator.name)
        if isinstance(actuator, Choice):
            out.append(float(actuator.choices.index(str(value))) if value in actuator.choices else 0.0)
        else:
            out += value if isinstance(value, tuple) else [0.0] * len(actuator.low)
    return _squeezed(np.array(out, np.float32))


def _squeezed(x_A: NDArray[np.float32]) -> NDArray[np.float32]:
    return x_A[0] if len(x_A) == 1 else x_A


def _age(ages_s: Mapping[str, float], present: Mapping[str, bool], name: str) -> float:
    return ages_s.get(name, 0.0) if present.get(name) else 0.0


def size_of(picture: bytes) -> tuple[int, int]:
    """Height and width as the policy saw it, from the header.

    Raises:
        ValueError: it is no picture.
    """
    height, width, is_plain = _header(picture)
    return (height, width) if is_plain else _seen(picture).shape[:2]


def fitted(picture: bytes | str, size: tuple[int, int]) -> bytes:
    """Return the same bytes, or a PNG if the camera changed its size, or other readers would see another picture than the policy.

    These are pictures with an orientation, and all but RGB of 8 bits: grey, 16 bits, palettes, CMYK, transparent parts.

    Raises:
        ValueError: it is no picture.
    """
    assert isinstance(picture, bytes)
    height, width, is_plain = _header(picture)
    if is_plain and (height, width) == size:
        return picture
    out = io.BytesIO()
    image = Image.fromarray(_seen(picture))
    image = image if (image.height, image.width) == size else image.resize((size[1], size[0]))
    image.save(out, "PNG")
    return out.getvalue()


def _header(picture: bytes) -> tuple[int, int, bool]:
    """Return height and width, and whether every reader sees the same RGB picture in these bytes.

    Raises:
        ValueError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(picture)) as image:
            is_plain = (
                image.mode == "RGB" and "transparency" not in image.info and image.getexif().get(ORIENTATION, 1) == 1
            )
            return image.height, image.width, is_plain
    except (OSError, SyntaxError) as error:
        raise ValueError(f"a stored picture cannot be read: {error}") from None


def _seen(picture: bytes) -> NDArray[np.uint8]:
    """Return a picture as streams decode it, HxWx3."""
    return decode_image(picture, MAX_PIXELS)
