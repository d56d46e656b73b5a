"""Brings the live checkpoint into the engine: watches the LIVE pointer and flips between two ticks.

The learner, an operator's request or probation move the pointer; this follows it. A version that cannot be loaded is named in
an event and the policy that acts stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from learners.checkpoints import CheckpointRefused, Checkpoints
from runtime.engine import Engine

POLL_S = 0.2
Emit = Callable[[str, dict[str, Any]], None]


@dataclass(slots=True)
class Swap:
    """Keeps the engine at the live version."""

    checkpoints: Checkpoints
    engine: Engine
    emit: Emit
    swapped: Callable[[str], None] = lambda _version: None
    refused: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Follow LIVE until cancelled."""
        while True:
            await self.follow()
            await asyncio.sleep(POLL_S)

    async def follow(self) -> bool:
        """Load the live version if it is not the one that acts; True when it was flipped in."""
        live = await asyncio.to_thread(self.checkpoints.live)
        version = live.version
        if version is None or version == self.engine.version or version in self.refused:
            return False
        before = self.engine.version
        try:
            await self.engine.load(self.checkpoints.folder / version)
        except CheckpointRefused as refusal:
            self.refused.add(version)
            self.emit(
                "checkpoint_refused",
                {"version": version, "reason": refusal.reason, "detail": refusal.detail, "live": before},
            )
            return False
        self.emit("policy_swapped", {"version": version, "before": before})
        self.swapped(version)
        return True
