"""Store the sign-ins of the page in a file, so that people need not sign in again after its process restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from learners.files import write_atomically
from runtime.dashboard.access.auth import Access

log = structlog.get_logger(__name__)

SESSIONS = "dashboard-sessions.json"
"""Below `state_dir`."""
STORE_S = 600.0
"""The file is written at least this often."""


@asynccontextmanager
async def stored_sessions(roles: Access, path: Path) -> AsyncIterator[None]:
    """Restore the sessions of an earlier process, and store them while the context lasts and at its end."""
    try:
        roles.restore(await asyncio.to_thread(path.read_bytes), time.time())
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.warning(
            "dashboard.sessions_unreadable", path=str(path), reason=str(error), effect="everybody signs in again"
        )
    storing = asyncio.create_task(_store(roles, path), name="sessions")
    try:
        yield
    finally:
        storing.cancel()
        await asyncio.wait([storing])
        _write(path, roles.dump(time.time()))


async def _store(roles: Access, path: Path) -> None:
    """Store the sessions soon after a change, and now and then because their ends move."""
    stored_s = time.monotonic()
    while True:
        await asyncio.sleep(1.0)
        if roles.changed or time.monotonic() - stored_s > STORE_S:
            stored_s = time.monotonic()
            await asyncio.to_thread(_write, path, roles.dump(time.time()))


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content, mode=0o600)
    except OSError as error:
        log.warning("dashboard.sessions_not_stored", path=str(path), reason=str(error))
