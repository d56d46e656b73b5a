"""A stream that comes from within the agent: what a task says of another stream, as telemetry with one number a label.

It has no topic, so nobody outside can write it. Which task feeds it is the runtime's affair.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from sensors.base import Publish
from sensors.readings import Telemetry


class TaskOutputSensor:
    """Probabilities of a task's labels; labels that a version does not name are 0, others are left out."""

    def __init__(self, name: str, fields: tuple[str, ...]) -> None:
        self.name = name
        self.drops: Counter[str] = Counter()
        self._fields = fields
        self._seq = 0
        self._publish: Publish | None = None

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Hand on what is taken, until cancelled; it cannot be lost."""
        del lost, recovered
        self._publish = publish
        try:
            await asyncio.Event().wait()
        finally:
            self._publish = None

    def take(self, values: Mapping[str, float], stamp_s: float) -> None:
        """Numbers by field; `stamp_s` is when what they are about was captured. Before `run` there is nobody to hand them to."""
        if self._publish is None:
            self.drops["not_running"] += 1
            return
        self._seq += 1
        numbers = np.array([values.get(field, 0.0) for field in self._fields], np.float32)
        self._publish(Telemetry(self.name, stamp_s, self._seq, self._fields, numbers))
