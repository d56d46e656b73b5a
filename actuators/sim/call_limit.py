"""Limit how long one call of foreign code may take: a simulator may wait for ever for a window, a licence or a server.

A thread watches. After the limit it raises `CallTookTooLong` in the main thread, also in a call that waits. Code that swallows it,
or that never returns to Python, ends the process some seconds later, with a sentence. Code of other languages that holds the
interpreter's lock stops the thread too, and nothing here can end it. Knows no environment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
CALL_S = 120.0
"""Longest time of one call, if no other is given."""
GRACE_S = 5.0
"""Seconds after which a call that was interrupted, and has not ended, ends the process."""
FORCED = 1
"""Exit code then."""
_SIGNAL = signal.SIGRTMIN + 3
"""Wakes a call that waits. Tests and environments use SIGALRM themselves."""


class CallTookTooLong(BaseException):
    """A call took longer than its limit."""


@dataclass(slots=True)
class CallLimit:
    """Watches the calls of the main thread; calls of other threads have no limit.

    Args:
        grace_s: see `GRACE_S`.
        end: ends the process with an exit code.
    """

    grace_s: float = GRACE_S
    end: Callable[[int], object] = os._exit
    _name: str = ""
    _limit_s: float = 0.0
    _began_s: float | None = None
    _number: int = 0
    _interrupted: int = -1
    """Number of the call that was interrupted."""
    _changed: threading.Event = field(default_factory=threading.Event)
    _watcher: threading.Thread | None = None

    def call(self, work: Callable[[], T], limit_s: float, name: str) -> T:
        """Return what `work` returns.

        Args:
            work: the foreign code.
            limit_s: seconds; 0 for no limit.
            name: of the call, for the sentence that ends the process.

        Raises:
            CallTookTooLong: it took longer.
        """
        if not limit_s or threading.current_thread() is not threading.main_thread() or self._began_s is not None:
            return work()
        self._watch(limit_s)
        self._name, self._limit_s, self._number = name, limit_s, self._number + 1
        self._began_s = time.monotonic()
        try:
            return work()
        finally:
            self._began_s = None

    def _watch(self, limit_s: float) -> None:
        """Start the thread, or wake it where the limit is another than before."""
        if self._watcher is None or not self._watcher.is_alive():  # a forked process has no threads
            signal.signal(_SIGNAL, self._interrupt)
            self._limit_s = limit_s
            self._watcher = threading.Thread(target=self._run, name="call limit", daemon=True)
            self._watcher.start()
        elif limit_s < self._limit_s:
            self._changed.set()

    def _run(self) -> None:
        while True:
            number, began_s = self._number, self._began_s
            took_s = 0.0 if began_s is None else time.monotonic() - began_s
            is_over = number == self._interrupted and took_s >= self._limit_s + self.grace_s
            if is_over and (self._number, self._began_s) == (number, began_s):  # it has not just ended
                sys.stderr.write(
                    f"{self._name} has not returned for {took_s:.0f} s and cannot be interrupted; the process ends\n"
                )
                sys.stderr.flush()
                self.end(FORCED)
            elif took_s >= self._limit_s and number != self._interrupted:
                self._interrupted = number
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            self._changed.wait(min(self.grace_s, self._limit_s) / 4)
            self._changed.clear()

    def _interrupt(self, *_: object) -> None:
        """Raise in the call that is still under way; one that has ended meanwhile goes on."""
        if self._began_s is not None and self._number == self._interrupted:
            raise CallTookTooLong


LIMIT = CallLimit()
"""The one of this process: it has one main thread."""
