"""Compile graphs in a process that ends, so that the agent converts nothing while it acts.

A conversion holds the interpreter lock for up to seconds. The process (`compile_process.py`) has low priority, dies with the
agent, and leaves graphs and choices of backends in the cache folders, where the agent finds them. One runs at a time.

Event: `graph_compiled`, with the reason why it was necessary.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from learners.config.policy import EncoderSettings
from learners.model.backends.calibration_cache import Calibrations
from runtime.process.child import with_parent_death
from runtime.process.emit import Emit

TIMEOUT_S = 900.0
"""On a busy machine the process, at a low priority, gets little of the processor."""
MOST_REASON = 300
"""Characters of the process's last line that an error quotes."""


class CompilationFailed(Exception):  # noqa: N818 - reads as what happened
    """The process could not compile; `str` is the reason."""


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """How an encoder is built, and where its fine-tuned weights are."""

    settings: EncoderSettings
    tokens: int
    window_s: float
    versions: Path
    """The folder of the versions of the task that it follows."""


@dataclass(slots=True)
class GraphCompiler:
    """Starts the process.

    Args:
        state_dir: the daemon's folder.
        calibrations: have the settings under `engine`, and make a folder for a graph that `state_dir` does not take.
        spec: of the policy, as JSON.
        encoders: those that follow a task, by name.
        emit: publishes an event.
        timeout_s: after this the process is killed.
    """

    state_dir: Path
    calibrations: Calibrations
    spec: bytes
    encoders: Mapping[str, EncoderSource]
    emit: Emit
    timeout_s: float = TIMEOUT_S
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def policy(self, version: str, reason: str) -> None:
        """Compile the fused part of a checkpoint.

        Raises:
            CompilationFailed: with the reason.
        """
        await self._run({"version": version, "spec": self.spec.decode()}, {"version": version, "reason": reason})

    async def encoder(self, name: str, version: str, reason: str) -> None:
        """Compile a version of an encoder that follows a task.

        Raises:
            CompilationFailed: with the reason.
        """
        source = self.encoders.get(name)
        if source is None:
            raise CompilationFailed(f"encoder {name} does not follow a task, so no version can be compiled")
        body = {
            "encoder": source.settings.model_dump(mode="json"),
            "encoder_version": version,
            "tokens": source.tokens,
            "window_s": source.window_s,
            "versions": str(source.versions),
        }
        await self._run(body, {"encoder": name, "version": version, "reason": reason})

    async def _run(self, work: Mapping[str, Any], fields: dict[str, Any]) -> None:
        command = with_parent_death([sys.executable, "-m", "runtime.inference.compile_process"], priority="swap")
        async with self._turn:
            begun_s = time.monotonic()
            spare = self.calibrations.make_spare()
            body = orjson.dumps({
                "state_dir": str(self.state_dir), "spare": None if spare is None else str(spare),
                "settings": asdict(self.calibrations.settings), **work,
            })  # fmt: skip
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                )
            except OSError as error:
                raise CompilationFailed(f"the compiler process cannot be started: {error.strerror}") from None
            try:
                async with asyncio.timeout(self.timeout_s):
                    _, errors = await process.communicate(body)
            except TimeoutError:
                raise CompilationFailed(f"the compiler process did not end within {self.timeout_s:g} s") from None
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
                self.calibrations.drop_spare()
        if process.returncode != 0:
            lines = errors.decode(errors="replace").strip().splitlines() or [f"it ended with {process.returncode}"]
            raise CompilationFailed(f"the compiler process failed: {lines[-1][:MOST_REASON]}")
        self.emit("graph_compiled", {**fields, "seconds": round(time.monotonic() - begun_s, 1)})
