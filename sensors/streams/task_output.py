"""Telemetry from one of the agent's tasks: the probability of each label, as one number a field.

It has no topic, so no MQTT client can write it. The runtime connects it to its task.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sensors.readings import Telemetry
from sensors.streams.internal_source import InternalSource


class TaskOutputSensor(InternalSource):
    """Publish the probabilities of a task's labels; a field without a value is 0, a value without a field is ignored."""

    def __init__(self, name: str, fields: tuple[str, ...]) -> None:
        super().__init__(name)
        self._fields = fields

    def take(self, values: Mapping[str, float], stamp_s: float) -> None:
        """Publish numbers by field; `stamp_s` is the capture time of what they describe. Outside `run` they are dropped and counted."""
        if self._publish is None:
            self.drops["not_running"] += 1
            return
        self._seq += 1
        numbers = np.array([values.get(field, 0.0) for field in self._fields], np.float64)
        self._publish(Telemetry(self.name, stamp_s, self._seq, self._fields, numbers))
