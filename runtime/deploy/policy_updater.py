"""Brings the live checkpoint into the engine: watches the LIVE pointer and flips between two ticks.

The learner, an operator's request or probation move the pointer; this follows it. Probation hears of a version before it acts. A
version that cannot be loaded is named in an event and the policy that acts stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints
from runtime.inference.engine import Engine
from runtime.process.events import Emit

POLL_S = 0.2


class ActivationListener(Protocol):
    """Who wants to know which version acts."""

    async def before_activation(self, version: str) -> None:
        """It is about to act."""

    def refused(self, version: str) -> None:
        """It could not be loaded after all."""


@dataclass(slots=True)
class PolicyUpdater:
    """Keeps the engine at the live version."""

    checkpoints: Checkpoints
    engine: Engine
    emit: Emit
    swapped: Callable[[str], None] = lambda _version: None
    watcher: ActivationListener | None = None
    refused: set[str] = field(default_factory=set)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Follow LIVE until cancelled."""
        while True:
            await self.follow()
            await asyncio.sleep(POLL_S)

    async def follow(self) -> bool:
        """Load the live version if it is not the one that acts; True when it was flipped in."""
        async with self._turn:
            live = await asyncio.to_thread(self.checkpoints.live)
            version = live.version
            if version is None or version == self.engine.version or version in self.refused:
                return False
            return await self._bring(version)

    async def _bring(self, version: str) -> bool:
        before = self.engine.version
        if self.watcher is not None:
            await self.watcher.before_activation(version)
        try:
            await self.engine.load(version)
        except CheckpointRefused as refusal:
            self.refused.add(version)
            if self.watcher is not None:
                self.watcher.refused(version)
            self.emit(
                "checkpoint_refused",
                {"version": version, "reason": refusal.reason, "detail": refusal.detail, "live": before},
            )
            return False
        self.emit("policy_swapped", {"version": version, "before": before})
        self.swapped(version)
        return True
