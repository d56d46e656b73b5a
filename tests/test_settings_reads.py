"""`tests/settings_reads.py` finds the fields of settings that no code reads, by their types."""

from __future__ import annotations

from pathlib import Path

import settings_reads

MODELS = """
from typing import Literal

def model_validator(function): return function

class Settings: ...

class Camera(Settings):
    kind: Literal["camera"]
    path: str
    rate_hz: float
    width: int
    height: int
    depth: int
    gain: float
    unused: int

    @property
    def size(self) -> int: return self.width

    @property
    def area(self) -> int: return self.height

    @model_validator
    def _fits(self) -> None:
        assert self.unused > 0

class Angle(Settings):
    unit: str
"""
CODE = """
from dataclasses import dataclass
from sensors.config import Angle, Camera

@dataclass
class Recording:
    path: str

NAMES = {"depth": 1}

def of(recording: Recording) -> str: return recording.path

def width(cameras: dict[str, Camera]) -> list[int]: return [camera.size for camera in cameras.values()]

def computed(camera: Camera | None) -> list[object]: return [getattr(camera, name) for name in NAMES]

def rate(camera: Camera) -> object: return getattr(camera, "rate_hz")

def unit(kind: Angle | None) -> str:
    match kind:
        case Angle(unit=unit): return unit
    return ""
"""


def test_fields_that_only_a_validator_or_another_class_of_the_same_name_reads_are_found(tmp_path: Path) -> None:
    (tmp_path / "sensors").mkdir()
    (tmp_path / "sensors" / "__init__.py").touch()
    (tmp_path / "sensors" / "config.py").write_text(MODELS)
    (tmp_path / "sensors" / "reader.py").write_text(CODE)
    found = settings_reads.unread(tmp_path, ("sensors",))
    assert found == [f"sensors.config.Camera.{name}" for name in ("gain", "height", "path", "unused")]
