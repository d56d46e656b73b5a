"""Load the fine-tuned encoders of an untrained policy, and publish every change of an encoder.

A trained policy acts with the encoder versions of its manifest: the engine loads both together (`Engine.load`). A new version of
a task therefore does not change the inputs of a trained policy. The learner evaluates it with the next candidate, and both go
live and are rolled back together. Only an untrained policy follows the task directly, from before its first tick. A recording
names the encoder versions of every decision; `restore` loads them for a replay, before the tick that first had them.

Events: `encoder_swapped`, `encoder_refused`, `encoder_on_trial` (a trained policy waits for a candidate that was trained with
the new weights), `encoder_without_task` (it should follow a task, and no task fits).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from learners.model.backends.definitions import NotCompiled
from learners.reencoding.task_encoder import encoder_tasks, encoders_without_task, state_of
from learners.task_serving.versions import TaskVersion, TaskVersionStore
from runtime.config.schema import Config
from runtime.deploy.pointer_follower import PointerFollower
from runtime.inference.engine import UNTRAINED, Engine
from runtime.inference.graph_compiler import CompilationFailed
from runtime.process.emit import Emit
from runtime.process.read_again import ReadAgain

if TYPE_CHECKING:
    from torch import Tensor

POLL_S = 0.5


class EncoderVersionNotFound(ValueError):  # noqa: N818 - reads as what happened
    """An encoder version is no longer on disk; `str` says which."""


@dataclass(slots=True)
class EncoderUpdater:
    """Follows one live pointer for each encoder that a task fine-tunes. Call `start` before the first tick."""

    config: Config
    engine: Engine
    emit: Emit
    tasks: dict[str, str] = field(init=False)
    """By encoder."""
    _pointers: dict[str, PointerFollower[TaskVersion]] = field(init=False)
    _acting: dict[str, str] = field(init=False)
    """The encoder versions that acted at the last look, by encoder."""

    def __post_init__(self) -> None:
        routes = {name: stream.encoder for name, stream in self.config.streams.items()}
        self.tasks = encoder_tasks(self.config.encoders, self.config.tasks, routes)
        self._pointers = {
            encoder: PointerFollower(TaskVersionStore(self.folder / task).live, partial(self._activate, encoder))
            for encoder, task in self.tasks.items()
        }
        self._acting = self._present()

    @property
    def folder(self) -> Path:
        """Where the tasks' versions are."""
        return self.config.state_dir / "learner" / "tasks"

    async def start(self) -> None:
        """Load the encoders of an untrained policy, so that no tick acts on others."""
        for encoder in self.tasks:
            await self.sync(encoder)
        self._acting = self._present()

    async def run(self) -> None:
        """Follow until cancelled."""
        used = {name: one for name, one in self.config.encoders.items() if name in self.engine.encoders}
        for encoder, reason in encoders_without_task(used, self.tasks).items():
            self.emit("encoder_without_task", {"encoder": encoder, "reason": reason})
        again = ReadAgain("the versions of the encoders", self.emit)
        while self.tasks:
            with again.attempt():
                for encoder in self.tasks:
                    await self.sync(encoder)
            self._publish_swaps()
            await asyncio.sleep(POLL_S)

    async def sync(self, encoder: str) -> bool:
        """Look at the task's live version: load a new one if the policy is untrained. True when the encoder changed."""
        return await self._pointers[encoder].sync()

    async def restore(self, wanted: Mapping[str, str]) -> None:
        """Load encoders in the given versions, out of the tasks' versions on disk.

        Raises:
            EncoderVersionNotFound: no version of the task has these weights.
        """
        for name, version in wanted.items():
            encoder = self.engine.encoders.get(name)
            if encoder is None or encoder.version == version:
                continue
            versions = TaskVersionStore(self.folder / self.tasks[name]) if name in self.tasks else None
            for one in versions.by_encoder_version(version) if versions is not None else ():
                await self.engine.load_encoder(name, self._state(name, one.path))
                one.record_encoder_version(self.engine.encoders[name].version)
                if self.engine.encoders[name].version == version:
                    break
            else:
                raise EncoderVersionNotFound(
                    f"encoder {name}: its version {version} is no longer here (now {encoder.version})"
                )

    def _present(self) -> dict[str, str]:
        return {name: encoder.version for name, encoder in self.engine.encoders.items()}

    def _publish_swaps(self) -> None:
        """Publish the encoders that changed with the policy since the last look."""
        before, self._acting = self._acting, self._present()
        for name, version in self._acting.items():
            if version != before.get(name, version):
                fields = {"encoder": name, "task": self.tasks.get(name), "before": before[name], "version": version}
                self.emit("encoder_swapped", {**fields, "policy": self.engine.version})

    def _state(self, encoder: str, folder: Path) -> dict[str, Tensor]:
        settings, base = self.config.encoders[encoder], self.engine.encoders[encoder]
        return state_of(settings, base, folder)

    async def _activate(self, encoder: str, version: TaskVersion) -> bool:
        task = self.tasks[encoder]
        fields = {"encoder": encoder, "task": task, "task_version": version.name}
        before = self.engine.encoders[encoder].version
        if self.engine.version != UNTRAINED:
            if version.encoder_version != before:
                self.emit("encoder_on_trial", {**fields, "acting": before, "policy": self.engine.version})
            return False
        try:
            state = await asyncio.to_thread(self._state, encoder, version.path)
            changed = await self.engine.load_encoder(encoder, state)
            await asyncio.to_thread(version.record_encoder_version, self.engine.encoders[encoder].version)
        except (OSError, ValueError, RuntimeError, SafetensorError, NotCompiled, CompilationFailed) as error:
            self.emit("encoder_refused", {**fields, "version": before, "reason": str(error)})
            return False
        if changed:
            self._acting[encoder] = now = self.engine.encoders[encoder].version
            self.emit("encoder_swapped", {**fields, "before": before, "version": now, "policy": self.engine.version})
        return changed
