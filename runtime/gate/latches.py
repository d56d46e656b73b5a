"""Store what the gate must remember over a restart: the software stop, an operator's disarming, the modes, and what it moved.

One small JSON file, replaced as a whole and synced. A missing file is a first start. A file that cannot be read counts as
stopped, because it may hold a stop. A write that fails is tried again until it succeeds; the gate announces nothing that is
not on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson
import structlog

from learners.files import private_folder, write_atomically
from runtime.gate.stop.latch import StopLatch

log = structlog.get_logger(__name__)

UNREADABLE: dict[str, object] = {}
"""What `load` returns for a broken file; the gate takes it as stopped."""
RETRY_S = (0.1, 2.0)
"""A failed write is tried again after the first number of seconds, then twice as late, up to the second."""
SLOW_S = 1.0
"""A write that takes longer is reported as failed until it ends."""
LAST_TRIES = 3
"""Writes tried at the end of the daemon."""
Saved = Callable[[str | None], None]
"""Called with None once a change is on the disk, and before that with the reason of each failed write."""


def load(path: Path) -> dict[str, object] | None:
    """Return the latches, None when there are none yet, `UNREADABLE` when they cannot be read."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError):
        return UNREADABLE
    return value if isinstance(value, dict) else UNREADABLE


def save(path: Path, latches: Mapping[str, object]) -> None:
    """Replace the file and return once it is on the disk.

    Raises:
        OSError: it could not be written; the old one is intact.
    """
    private_folder(path.parent)
    write_atomically(path, orjson.dumps(dict(latches), option=orjson.OPT_INDENT_2), mode=0o600)


class LatchWriter:
    """Writes the latches whenever they have changed; the loop never waits for the disk.

    Args:
        path: the file.
        current: returns the latches as they are now.
        on_disk: the latches that were loaded, or None.
    """

    def __init__(
        self, path: Path, current: Callable[[], Mapping[str, object]], on_disk: Mapping[str, object] | None = None
    ) -> None:
        self.path, self.current = path, current
        self.on_disk: dict[str, object] = dict(on_disk or {})
        self.error: str | None = None
        """Why the newest write failed; None after one that succeeded."""
        self.release = False
        """The next write is a release: the latch of the stop listener goes too."""
        self.on_written: Callable[[], None] = lambda: None
        """Called after each write, also after one that failed or is slow."""
        self._stop_latch = StopLatch.of(path.parent)
        self._dirty = asyncio.Event()
        self._waiting: list[Saved] = []
        self._writing = asyncio.Lock()
        """Two writes at once could end in the other order, and the older one would stay."""

    @property
    def is_saved(self) -> bool:
        """Whether the disk has everything."""
        return not self._dirty.is_set() and not self._waiting and self.error is None

    def has(self, name: str, value: object) -> bool:
        """Return whether the disk has this value."""
        return self.on_disk.get(name) == value

    @property
    def moved(self) -> frozenset[str]:
        """Actuators that the disk calls moved."""
        names = self.on_disk.get("moved")
        return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()

    def changed(self, saved: Saved | None = None) -> None:
        """Have the latches written; `saved` is called with what becomes of it."""
        if saved is not None:
            self._waiting.append(saved)
        self._dirty.set()

    async def run(self) -> None:
        """Write the latches whenever they have changed, until cancelled."""
        delay_s = RETRY_S[0]
        while True:
            await self._dirty.wait()
            if await self._write():
                delay_s = RETRY_S[0]
            else:
                await asyncio.sleep(delay_s)
                delay_s = min(RETRY_S[1], 2 * delay_s)

    async def finish(self) -> None:
        """Write what is still to be written."""
        for _ in range(LAST_TRIES):
            if not self._dirty.is_set() or await self._write():
                return

    def write_now(self) -> bool:
        """Write in this thread; False when it failed."""
        latches, waiting = self._begin()
        try:
            self._save(latches)
        except OSError as error:
            return self._failed(waiting, error)
        return self._succeeded(latches, waiting)

    async def _write(self) -> bool:
        async with self._writing:
            return await self._write_alone()

    async def _write_alone(self) -> bool:
        latches, waiting = self._begin()
        writing = asyncio.ensure_future(asyncio.to_thread(self._save, latches))
        try:
            if not (await asyncio.wait({writing}, timeout=SLOW_S))[0]:
                self.error = f"{self.path}: still writing after {SLOW_S:g} s"
                for saved in waiting:
                    saved(self.error)
                self.on_written()
            await asyncio.wait({writing})
        finally:
            if not writing.done():  # this task was cancelled; `finish` writes again, after this write
                self._waiting = waiting + self._waiting
                self._dirty.set()
                await asyncio.wait({writing})
        error = writing.exception()
        if error is None:
            return self._succeeded(latches, waiting)
        if isinstance(error, OSError):
            return self._failed(waiting, error)
        raise error

    def _save(self, latches: Mapping[str, object]) -> None:
        save(self.path, latches)
        if self.release and latches.get("stopped") is False:
            self._stop_latch.remove()
            self.release = False

    def _begin(self) -> tuple[dict[str, object], list[Saved]]:
        self._dirty.clear()
        waiting, self._waiting = self._waiting, []
        return dict(self.current()), waiting

    def _failed(self, waiting: list[Saved], error: OSError) -> bool:
        reason = f"{self.path}: {error.strerror or error}"
        if self.error is None:
            log.error("gate.latches_not_written", file=str(self.path), reason=reason)
        self.error = reason
        self._waiting = waiting + self._waiting
        self._dirty.set()
        for saved in waiting:
            saved(reason)
        self.on_written()
        return False

    def _succeeded(self, latches: dict[str, object], waiting: list[Saved]) -> bool:
        self.error, self.on_disk = None, latches
        for saved in waiting:
            saved(None)
        self.on_written()
        return True
