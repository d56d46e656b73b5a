"""Brings a task's fine-tuned encoder into the engine, between two ticks: watches the task's live version.

Only for encoders whose `train` is not frozen. Tokens that were remembered under the older version stay what they are, under
its name: the learner leaves them out, and what is seen now is encoded anew.

A recording names the encoders of every decision; `recall` brings them back for a replay, before the tick that first had them.

Events: `encoder_swapped`, `encoder_refused`, `encoder_untaught` (it should be trained, and no task would).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from learners.continual.versions import Versions
from learners.reencoding.task_encoder import encoder_tasks, encoders_without_task, state_of
from runtime.config.schema import Config
from runtime.inference.engine import Engine
from runtime.process.events import Emit

POLL_S = 0.5


class EncoderVersionNotFound(ValueError):  # noqa: N818 - reads as what happened
    """An encoder cannot become what it was; `str` says which and why."""


@dataclass(slots=True)
class EncoderUpdater:
    """Keeps the engine's encoders at the live versions of the tasks that fine-tune them."""

    config: Config
    engine: Engine
    emit: Emit
    tasks: dict[str, str] = field(init=False)
    """By encoder."""
    _seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        routes = {name: stream.encoder for name, stream in self.config.streams.items()}
        self.tasks = encoder_tasks(self.config.encoders, self.config.tasks, routes)

    @property
    def folder(self) -> Path:
        """Where the tasks' versions are."""
        return self.config.state_dir / "learner" / "tasks"

    async def run(self) -> None:
        """Follow until cancelled."""
        used = {name: one for name, one in self.config.encoders.items() if name in self.engine.encoders}
        for encoder, reason in encoders_without_task(used, self.tasks).items():
            self.emit("encoder_untaught", {"encoder": encoder, "reason": reason})
        while self.tasks:
            for encoder in self.tasks:
                await self.follow(encoder)
            await asyncio.sleep(POLL_S)

    async def recall(self, wanted: Mapping[str, str]) -> None:
        """Bring encoders back to the versions they had, out of what is still there of their tasks.

        Raises:
            VersionGone: no version of the task gives these weights.
        """
        for name, version in wanted.items():
            encoder = self.engine.encoders.get(name)
            if encoder is None or encoder.version == version:
                continue
            versions = Versions(self.folder / self.tasks[name]) if name in self.tasks else None
            for one in versions.by_encoder_version(version) if versions is not None else ():
                await self.engine.load_encoder(name, self._state(name, one.path))
                one.record_encoder_version(self.engine.encoders[name].version)
                if self.engine.encoders[name].version == version:
                    break
            else:
                raise EncoderVersionNotFound(
                    f"encoder {name}: its version {version} is no longer here (now {encoder.version})"
                )

    def _state(self, encoder: str, folder: Path) -> dict[str, Tensor]:
        settings, base = self.config.encoders[encoder], self.engine.encoders[encoder]
        return state_of(settings, base, folder)

    async def follow(self, encoder: str) -> bool:
        """Take up the task's live version if it is another one than before; True when the encoder changed."""
        task = self.tasks[encoder]
        live = await asyncio.to_thread(Versions(self.folder / task).live)
        if live is None or self._seen.get(encoder) == live.name:
            return False
        self._seen[encoder] = live.name
        told = {"encoder": encoder, "task": task, "task_version": live.name}
        before = self.engine.encoders[encoder].version
        try:
            state = await asyncio.to_thread(self._state, encoder, live.path)
            changed = await self.engine.load_encoder(encoder, state)
            await asyncio.to_thread(live.record_encoder_version, self.engine.encoders[encoder].version)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            self.emit("encoder_refused", {**told, "version": before, "reason": str(error)})
            return False
        if changed:
            self.emit("encoder_swapped", {**told, "before": before, "version": self.engine.encoders[encoder].version})
        return changed
