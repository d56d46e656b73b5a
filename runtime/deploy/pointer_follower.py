"""Follow a live pointer: a file that names the version that should act."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Version = TypeVar("Version")


class NoVersionLeft(Exception):  # noqa: N818 - reads as what happened
    """The version that acts was taken back, and no other one ever acted: the agent has to begin again with untrained weights."""


@dataclass(slots=True)
class PointerFollower(Generic[Version]):
    """Activates each new version once. After a refusal the pointer must name another version before this one is tried again.

    Args:
        read: returns the version that the pointer names, None for none; called in a thread.
        activate: activates a version; False where nothing changed.
    """

    read: Callable[[], Version | None]
    activate: Callable[[Version], Awaitable[bool]]
    _seen: Version | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def sync(self) -> bool:
        """Activate the version that the pointer names, if it is a new one; True when another version acts now."""
        async with self._turn:
            version = await asyncio.to_thread(self.read)
            if version is None or version == self._seen:
                return False
            seen, self._seen = self._seen, version
            try:
                return await self.activate(version)
            except OSError:  # the disk refused, not the version
                self._seen = seen
                raise
