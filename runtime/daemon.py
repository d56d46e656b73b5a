"""What `reflexd run` does before and after the event loop: logging, and an exit code."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runtime import log, supervisor
from runtime.config import Loaded


def run_daemon(path: Path, loaded: Loaded, *, faults: tuple[str, ...], verbose: bool) -> int:
    """Run the daemon until it ends; returns its exit code."""
    scrubber = log.configure(verbose=verbose, secrets=loaded.secrets)
    return asyncio.run(
        supervisor.run(loaded.config, path, text=loaded.text, faults=faults, verbose=verbose, scrubber=scrubber)
    )
