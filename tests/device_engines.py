"""Engines in torch on a device of choice, over policies of every kind: for tests and benchmarks that compare a GPU with the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import policy_files
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from actuators.actions import ActionSpace, Choice, Continuous
from learners.checkpoints.manifest import Manifest
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from runtime.inference.torch_engine import TorchEngine
from sensors.readings import Frame, Observation, Reading, Telemetry

HEAD, LAMP = Choice("head", ("left", "stay", "right")), Choice("lamp", ("OFF", "ON"))
ARM = Continuous("arm", (-1.0, -1.0), (1.0, 2.0))
JOINTS, GPS = StreamSpec("joints", "telemetry", 1, 2), StreamSpec("gps", "telemetry", 1, 3)
FRONT = StreamSpec("front", "image", 4, 16, columns=2)
POLICIES = {
    "choices": PolicySpec((FRONT, JOINTS), ActionSpace((HEAD, LAMP)), width=32, history=3),
    "continuous": PolicySpec((FRONT, JOINTS), ActionSpace((ARM,)), width=32, history=2),
    "mixed": PolicySpec((FRONT, JOINTS, GPS), ActionSpace((HEAD, ARM)), width=32, history=4),
    "categorical": PolicySpec((JOINTS, GPS), ActionSpace((HEAD, ARM)), width=32, history=2, algorithm="xqc"),
    "bandit": PolicySpec((JOINTS, GPS), ActionSpace((HEAD,)), width=32, history=1, gamma=0.0),
    "plain": PolicySpec((JOINTS,), ActionSpace((HEAD, ARM)), history=1),
    "plain with history": PolicySpec((JOINTS,), ActionSpace((HEAD,)), history=4),
}


class Patches(nn.Module):
    """Four tokens of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 16, 8, 8)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        out: Tensor = self.layer(x_BCYX.float() / 255).flatten(2).transpose(1, 2)
        return out


@dataclass
class Eyes:
    """A small encoder of pictures on a device."""

    device: torch.device
    modality: Any = "image"
    version: str = "eyes-0"
    tokens: int = 4
    width: int = 16
    run: Any = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        self.module: nn.Module | None = Patches().eval().to(self.device)
        self.run = self.module

    def prepare(self, readings: list[Reading]) -> tuple[Tensor, ...]:
        pictures = [torch.from_numpy(r.image.copy()).permute(2, 0, 1) for r in readings if isinstance(r, Frame)]
        return (torch.stack(pictures).to(self.device),)

    def encode(self, inputs: tuple[Tensor, ...]) -> Tensor:
        out: Tensor = self.run(*inputs)
        return out

    def examples(self) -> list[tuple[Tensor, ...]]:
        return [(torch.zeros(1, 3, 16, 16, dtype=torch.uint8, device=self.device),)]


def engine_of(spec: PolicySpec, device: str, folder: Path) -> TorchEngine:
    def weights(version: str, _shapes: Any, _meaning: Any) -> Any:
        tensors = {"policy": load_file(folder / version / policy_files.WEIGHTS)}
        return SimpleNamespace(tensors=tensors, graphs={}, documents={}, manifest=Manifest(version, None, 0.0, {}, {}))

    torch.manual_seed(0)
    policy, place = Policy(spec), torch.device(device)
    seeing = "front" in spec.names
    return TorchEngine(
        policy,
        {"eyes": Eyes(place)} if seeing else {},  # type: ignore[dict-item]
        {"front": "eyes"} if seeing else {},
        Calibrations(None, BackendSettings("torch", "float32")),
        weights,
        device=place,
        seed=3,
    )


def version_of(spec: PolicySpec, folder: Path, seed: int) -> str:
    """Save other weights; return their name."""
    torch.manual_seed(seed)
    name = f"{seed:06d}-0000000a"
    (folder / name).mkdir(parents=True, exist_ok=True)
    policy_files.save(Policy(spec).eval(), folder / name)
    return name


def observation(spec: PolicySpec, tick: int) -> Observation:
    """Random readings; a picture comes every third tick, and a stream is missing now and then."""
    noise = np.random.default_rng(tick)
    found: dict[str, Reading] = {}
    for stream in spec.telemetry:
        values = noise.normal(size=stream.width).astype(np.float32)
        found[stream.name] = Telemetry(stream.name, 0.0, tick, tuple("abc"[: stream.width]), values)
    if "front" in spec.names:
        image = np.random.default_rng(tick // 3).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        found["front"] = Frame("front", 0.0, tick // 3, image)
    if len(found) > 1 and tick % 7 == 6:
        found.pop(spec.streams[0].name)
    return Observation(tick, float(tick), found, dict.fromkeys(found, 0.1), frozenset(set(spec.names) - set(found)))
