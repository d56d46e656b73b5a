"""Forward the events of the learner, which has no connection of its own, from its outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from learners.ipc.outbox import Outbox
from runtime.process.emit import Emit
from runtime.process.read_again import ReadAgain

POLL_S = 2.0
"""The policy updater forwards sooner, unless it is loading a version."""


@dataclass(slots=True)
class LearnerEvents:
    """Publishes each event once, in the order the learner wrote them.

    Args:
        outbox: of the learner.
        emit: publishes an event.
        handlers: by event type, a component that acts on the event and publishes it itself.
        before: by event type, what must have happened when the event is published.
    """

    outbox: Outbox
    emit: Emit
    handlers: Mapping[str, Callable[[dict[str, Any]], None]]
    before: Mapping[str, Callable[[], Awaitable[object]]] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Forward until cancelled."""
        again = ReadAgain("the events of the learner", self.emit)
        while True:
            with again.attempt():
                await self.forward()
            await asyncio.sleep(POLL_S)

    async def forward(self) -> None:
        """Publish every event that waits, oldest first."""
        async with self._turn:
            for event in await asyncio.to_thread(self.outbox.collect):
                if event.kind in self.before:
                    await self.before[event.kind]()
                handler = self.handlers.get(event.kind)
                if handler is None:
                    self.emit(event.kind, event.fields)
                else:
                    handler(event.fields)
                event.acknowledge()
