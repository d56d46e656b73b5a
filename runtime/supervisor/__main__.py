"""Run the daemon for the console: `python -m runtime.supervisor CONFIG`, with its output in the log file.

The console has checked the settings and holds the terminal. Without a terminal `reflexd run` calls `run_daemon` itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runtime.config.loader import ConfigError, load
from runtime.supervisor.supervisor import MEND_SETTINGS, run_daemon


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon until it ends; return its exit code."""
    parser = argparse.ArgumentParser(prog="runtime.supervisor", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--fault", action="append", default=[])
    given = parser.parse_args(arguments)
    try:
        loaded = load(given.config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return MEND_SETTINGS
    return run_daemon(given.config, loaded, faults=tuple(given.fault), verbose=False)


if __name__ == "__main__":
    sys.exit(main())
