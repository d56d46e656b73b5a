"""`python -m runtime.fleet CONFIG`: the uplink of a device as a process of its own (`uplink_process.py`), without torch."""

from __future__ import annotations

import asyncio
import sys

import structlog

from runtime.config.loader import load_argument
from runtime.fleet.uplink_process import serve
from runtime.process import child
from runtime.process.log import configure

log = structlog.get_logger(__name__)


def main(arguments: list[str]) -> int:
    """Run the process; return 0 after a signal, 2 for settings that cannot be used, 1 for a folder or certificate that cannot."""
    loaded = load_argument(arguments)
    if loaded is None:
        return 2
    config = loaded.config
    if config.fleet is None:
        sys.stderr.write("there is no `fleet:` in this settings file; add it as docs/fleet.md shows\n")
        return 2
    child.set_process_title("uplink")
    configure(secrets=loaded.secrets)
    try:
        asyncio.run(serve(config, config.fleet))
    except (OSError, ValueError) as error:
        log.error("uplink.cannot_start", reason=str(error), remedy="change `fleet:` or state_dir")  # noqa: TRY400 - the text says all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
