"""Encode readings of slow streams when they arrive, beside the tick: one thread for each encoder, newest reading first.

A reading waits here until its tokens are ready, and the inbox stores it only then. So a tick never waits for such an encoder: it
observes the newest reading that has tokens, with that reading's true age. Experience and recordings hold what was observed, hence
training and replay see the same. Imports no torch.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog

from sensors.readings import Reading

_LOG = structlog.get_logger(__name__)
WARN_EVERY_S, MOST_REASON = 10.0, 300


class ArrivalEncoder:
    """Holds at most one waiting reading of each stream.

    Args:
        routes: which encoder reads each of these streams.
        encode: makes and stores the tokens of one reading; called in the encoder's thread.
        prepare: called once in each thread.
    """

    def __init__(
        self, routes: Mapping[str, str], encode: Callable[[Reading], None], prepare: Callable[[], None]
    ) -> None:
        self.routes = dict(routes)
        self._encode = encode
        self._threads = {route: ThreadPoolExecutor(1, f"arrival-{route}", prepare) for route in {*self.routes.values()}}
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[Reading, Callable[[Reading], None]]] = {}
        self._closed = False
        self.failures: Counter[str] = Counter()
        """Readings that could not be encoded, by stream; a tick never sees them."""
        self._warned_s: dict[str, float] = {}

    def offer(self, reading: Reading, store: Callable[[Reading], None]) -> bool:
        """Encode a reading, then store it; called from any thread.

        Args:
            reading: of one of the streams in `routes`.
            store: receives the reading in the encoder's thread.

        Returns:
            Whether an older reading of the stream waited and is dropped.
        """
        with self._lock:
            if self._closed:
                return False
            superseded = reading.stream in self._waiting
            self._waiting[reading.stream] = (reading, store)
            if not superseded:
                self._threads[self.routes[reading.stream]].submit(self._work, reading.stream)
        return superseded

    def _work(self, stream: str) -> None:
        with self._lock:
            reading, store = self._waiting.pop(stream)
        try:
            self._encode(reading)
        except Exception as error:  # noqa: BLE001 - encoders raise anything; the reading is dropped, and its stream ages
            self._report(stream, error)
        else:
            store(reading)

    def _report(self, stream: str, error: Exception) -> None:
        """Count a reading that could not be encoded; log it, at most every `WARN_EVERY_S` for one stream."""
        self.failures[stream] += 1
        now_s = time.monotonic()
        if now_s - self._warned_s.get(stream, float("-inf")) >= WARN_EVERY_S:
            self._warned_s[stream] = now_s
            reason = f"{type(error).__name__}: {error}"[:MOST_REASON]
            _LOG.warning("arrival.not_encoded", stream=stream, reason=reason, count=self.failures[stream])

    def close(self) -> None:
        """End the threads; readings that wait are dropped."""
        with self._lock:
            self._closed = True
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)
