"""Define the types of single values in the settings: paths and addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from runtime.config.mqtt_names import host_problem

MOST_NAME, MOST_PATH = 255, 3_000
"""Bytes and characters. Linux has 4,096 for a path; files of the daemon lie below it."""


def _given(path: object) -> object:
    if isinstance(path, str) and not path.strip():
        raise ValueError("the path is empty; write one, such as .reflexd/NAME")
    if isinstance(path, str) and (problem := _path_problem(path)) is not None:
        raise ValueError(problem)
    return path


def _path_problem(path: str) -> str | None:
    """Return why no file can have this path, or why it is not the one that was meant."""
    first = path.split("/", maxsplit=1)[0]
    if "\0" in path:
        return "the path contains a zero byte; delete it"
    if first.startswith("~"):
        return f"{first} is not replaced by a home directory; write ~/FOLDER, or the whole path"
    if "$" in first or first.startswith("%"):
        return f"{first} is not replaced; write the whole path, or `${{env:NAME}}` for a variable"
    if any(len(part.encode("utf-8", "surrogatepass")) > MOST_NAME for part in path.split("/")) or len(path) > MOST_PATH:
        return f"the path is too long; a name in it has at most {MOST_NAME} bytes, and the whole {MOST_PATH}"
    return None


GivenPath = Annotated[Path, BeforeValidator(_given)]
"""A path that is not empty: an empty one would mean the working directory."""


def _address(listen: str) -> str:
    host, _, port = listen.rpartition(":")
    if int(port) > 65_535:
        raise ValueError("the port must be between 0 and 65535")
    if (problem := host_problem(host)) is not None:
        raise ValueError(problem)
    return listen


Listen = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$"), AfterValidator(_address)]
"""HOST:PORT; port 0 is any free one."""
