"""Store raw readings for a while: for encoders that are fine-tuned, and for labels of tasks.

A fine-tuned encoder encodes them again, and a label may name a decision instead of quoting its text. Encoding to JPEG and FLAC
runs in a thread; a reading that finds `MAX_WAITING` others waiting is dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from learners.experience.store import Raw, Store
from runtime.config.schema import Config
from runtime.control.tick import TickResult
from sensors.codecs.readings import encode_reading
from sensors.readings import Reading

MAX_WAITING = 4


@dataclass(slots=True)
class RawCapture:
    """Listens to ticks and stores the fresh readings of some streams."""

    store: Store
    streams: frozenset[str]
    executor: Executor
    drops: Counter[str] = field(default_factory=Counter)
    _waiting: list[Future[None]] = field(default_factory=list)

    def ticked(self, ticked: TickResult) -> None:
        """Store what is fresh at this tick."""
        self._waiting = [future for future in self._waiting if not future.done()]
        for name in ticked.observation.fresh & self.streams:
            if len(self._waiting) >= MAX_WAITING:
                self.drops[name] += 1
                continue
            reading = ticked.observation.readings[name]
            self._waiting.append(self.executor.submit(self._store, reading, ticked.stamp_unix_s))

    def _store(self, reading: Reading, stamp_s: float) -> None:
        encoded = encode_reading(reading)
        if encoded is not None and not self.store.add_raw(Raw(reading.stream, stamp_s, *encoded)):
            self.drops[reading.stream] += 1


def streams_to_keep(config: Config) -> frozenset[str]:
    """Return the streams with a fine-tuned encoder and the streams that a task reads."""
    trained = {name for name, encoder in config.encoders.items() if encoder.follow_task}
    tasks = {name for task in config.tasks.values() for name in (task.stream, task.context)}
    return frozenset(name for name, stream in config.streams.items() if stream.encoder in trained or name in tasks)
