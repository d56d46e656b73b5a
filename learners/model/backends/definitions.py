"""Describe backends, settings and choices, and this processor. Imports no torch: the agent reads here what others measured."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from learners.checkpoints.manifest import GraphFiles
from learners.model.backends.graphs import GraphLibrary, LibraryName, Precision

Backend = Literal["torch"] | LibraryName
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert"})
FAR = 1e30
"""The difference of what did not run or was not a number; JSON has no infinity."""


class HasDeviceType(Protocol):
    """A device by its type, as `torch.device` has it."""

    @property
    def type(self) -> str:
        """`cpu` or `cuda`."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor, where torch is not imported."""

    type: str = "cpu"


CPU = Cpu()


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of a backend on a module: median milliseconds, and the distance from float32 torch."""

    backend: Backend
    precision: Precision
    ms: float
    cosine: float
    difference: float
    failed: str = ""
    """Why it could not run; empty where it did."""


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """The settings under `engine`."""

    backend: Literal["auto"] | Backend = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 1
    tolerance: float = 0.02


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The backend chosen for a module, and all measurements."""

    backend: Backend
    precision: Precision
    measured: tuple[Measured, ...]


class NoBackend(ValueError):  # noqa: N818 - reads as what happened
    """The required backend cannot run the module or exceeds the tolerance; `str` has the numbers."""


class NotCompiled(Exception):  # noqa: N818 - reads as what happened
    """No graph or no choice of a backend is on disk, and this process does not convert; `str` says of what."""


class EncoderNotCompiled(NotCompiled):
    """The same of an encoder: its name in the settings, and its version."""

    def __init__(self, name: str, version: str, reason: str) -> None:
        super().__init__(f"encoder {name}: {reason}")
        self.name, self.version = name, version


def in_float32(choice: BackendChoice) -> BackendChoice:
    """Return the fastest backend in float32 among those measured."""
    whole = [m for m in choice.measured if m.precision == "float32" and not m.failed]
    best = min(whole, key=lambda m: m.ms, default=None)
    return replace(choice, backend="torch" if best is None else best.backend, precision="float32")


def processor() -> str:
    """Describe the processor: model name, a digest of its instructions, and whether it computes in bfloat16."""
    facts = _cpu_facts()
    flags = hashlib.sha256(" ".join(sorted(facts.get("flags", "").split())).encode()).hexdigest()[:8]
    return f"{facts.get('model name') or platform.processor()} {flags} bf16={int(has_bfloat16())}"


def has_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions (avx512_bf16, amx, or avx_ne_convert of smaller ones)."""
    return not BFLOAT16_FLAGS.isdisjoint(_cpu_facts().get("flags", "").split())


def _cpu_facts() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    return dict(_field(line) for line in reversed(path.read_text().splitlines())) if path.is_file() else {}


def readable_graph(version: str, files: GraphFiles, library: GraphLibrary) -> Any:
    """Return the graph that a checkpoint holds.

    Raises:
        NotCompiled: this library cannot read it.
    """
    try:
        return library.read(files)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise NotCompiled(f"{version}: its graph cannot be read: {reason}") from None


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
