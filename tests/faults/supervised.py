"""The real supervisor with fake children: `supervised.py CONFIG CHILDREN.json`, a list of `[name, linked, [command...]]`.

`{agreement}` in a command becomes that of the settings."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import orjson

from runtime.config.loader import load
from runtime.config.schema import Config
from runtime.process import child, log
from runtime.supervisor.child_processes import Spec
from runtime.supervisor.supervisor import run


def filled(command: list[str], config: Config) -> list[str]:
    """Return the command of a child with what a fake agent must know of the settings."""
    return [config.agreement if part == "{agreement}" else part for part in command]


def main() -> int:
    path, children = map(Path, sys.argv[1:3])
    loaded = load(path)
    scrubber = log.configure(secrets=loaded.secrets)

    def table() -> list[Spec]:
        rows = orjson.loads(children.read_bytes())
        return [
            Spec(
                name,
                tuple(child.outliving(command) if name == "stop listener" else child.with_parent_death(command)),
                linked=linked,
                stop_channel=name == "stop listener",
                grace_s=2.0,
            )
            for name, linked, command in ((name, linked, filled(c, loaded.config)) for name, linked, c in rows)
        ]

    return asyncio.run(run(loaded.config, path, text=loaded.text, scrubber=scrubber, children=table))


if __name__ == "__main__":
    sys.exit(main())
