"""Store the state of one component in a JSON file, so that it survives restarts.

The component says what to store and how to restore it; this writes the file atomically, at most once an interval, off the
event loop. A full disk does not end the process: the event `state_write_failed` says so once, and the next interval tries
again. Knows nothing of the content.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from learners.files import private_folder, write_atomically
from runtime.process.emit import Emit


class StateUnreadable(ValueError):  # noqa: N818 - reads as what happened
    """A state file that cannot be restored; `str` names the file and the reason."""


@dataclass(slots=True)
class StateFile:
    """The state file of one component. Create it in the event loop or before the loop runs.

    Args:
        path: of the file; its folder is made when it is missing.
        dump: returns the state as plain data; called in the event loop.
        restore: takes what `dump` returned; raises KeyError, TypeError, AttributeError or ValueError for anything else.
        every_s: seconds between two writes of a state that changes all the time.
        emit: publishes an event, from any thread.
        durable: wait until the bytes are on disk; without it a power cut may lose the last write, a crash does not.
    """

    path: Path
    dump: Callable[[], dict[str, Any]]
    restore: Callable[[dict[str, Any]], None]
    every_s: float
    emit: Emit
    durable: bool = True
    _changed: bool = False
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _dumped: int = 0
    _written: int = 0
    _failing: bool = False
    """The last write failed."""

    def load(self) -> bool:
        """Restore the state from the file; False where there is no file.

        Raises:
            StateUnreadable: the file is broken or of another format; the state is as it was.
        """
        try:
            self.restore(orjson.loads(self.path.read_bytes()))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StateUnreadable(f"{self.path.name} cannot be read: {error.strerror}") from error
        except (orjson.JSONDecodeError, AttributeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise StateUnreadable(f"{self.path.name} is broken: {error}") from error
        return True

    def changed(self, *, urgent: bool = False) -> None:
        """Have the state written at the end of the interval, or now where it is `urgent`."""
        self._changed = True
        if urgent:
            self._wake.set()

    async def run(self) -> None:
        """Write the state when it has changed, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.every_s):
                    await self._wake.wait()
            self._wake.clear()
            if self._changed:
                await self.save()

    async def save(self) -> None:
        """Write the state now; returns once it is in the file, or could not be written."""
        await asyncio.to_thread(self._write, *self._body())

    def write(self) -> None:
        """Write the state now, blocking: before the event loop runs and after it ended."""
        self._write(*self._body())

    def _body(self) -> tuple[int, bytes]:
        self._changed = False
        self._dumped += 1
        return self._dumped, orjson.dumps(self.dump())

    def _write(self, number: int, body: bytes) -> None:
        """Replace the file, unless a newer state is in it already: two threads may write at once."""
        with self._writing:
            if number < self._written:
                return
            try:
                private_folder(self.path.parent)
                write_atomically(self.path, body, durable=self.durable)
            except OSError as error:
                self._changed = True
                if not self._failing:
                    self.emit("state_write_failed", {"file": str(self.path), "reason": str(error)})
                self._failing = True
                return
            self._written, self._failing = number, False
