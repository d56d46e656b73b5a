"""A sensor without a topic or a device: the runtime gives it what to publish, so no MQTT client can write it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from sensors.base import Publish


class InternalSource:
    """Publishes only while `run` runs.

    Args:
        name: of the stream.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.drops: Counter[str] = Counter()
        self._seq = 0
        self._publish: Publish | None = None

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Accept readings until cancelled; an internal source cannot be lost."""
        del lost, recovered
        self._publish = publish
        try:
            await asyncio.Event().wait()
        finally:
            self._publish = None
