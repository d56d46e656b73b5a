"""What the gate must not forget over a restart: the software stop, a person's disarming, the modes.

One small JSON file, replaced as a whole and synced. A missing file is a first start; one that cannot be read counts as
stopped, because a stop may stand in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson
import structlog

from learners.files import write_atomically

log = structlog.get_logger(__name__)

UNREADABLE: dict[str, object] = {}
"""What `load` gives for a broken file; the gate takes it as stopped."""


def load(path: Path) -> dict[str, object] | None:
    """The latches, None when there are none yet, `UNREADABLE` when they cannot be read."""
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
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, orjson.dumps(dict(latches), option=orjson.OPT_INDENT_2))


class LatchWriter:
    """Keeps the file up to date; the loop never waits for the disk.

    Args:
        path: the file.
        current: gives the latches as they are now.
    """

    def __init__(self, path: Path, current: Callable[[], Mapping[str, object]]) -> None:
        self.path, self.current = path, current
        self._dirty = asyncio.Event()

    def changed(self) -> None:
        """Have the latches written soon."""
        self._dirty.set()

    async def run(self) -> None:
        """Write the latches whenever they have changed, until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._write()

    async def finish(self) -> None:
        """Write what is still to be written."""
        if self._dirty.is_set():
            await self._write()

    async def _write(self) -> None:
        try:
            await asyncio.to_thread(save, self.path, dict(self.current()))
        except OSError as error:
            log.error("gate.latches_not_written", file=str(self.path), reason=str(error))  # noqa: TRY400 - the reason is whole
