"""Define the types of single values in the settings: paths and addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field


def _given(path: object) -> object:
    if isinstance(path, str) and not path.strip():
        raise ValueError("the path is empty; write one, as .reflexd/NAME")
    return path


GivenPath = Annotated[Path, BeforeValidator(_given)]
"""A path that is not empty: an empty one would mean the working directory."""


def _port(listen: str) -> str:
    if int(listen.rpartition(":")[2]) > 65_535:
        raise ValueError("the port must be between 0 and 65535")
    return listen


Listen = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$"), AfterValidator(_port)]
"""HOST:PORT; port 0 is any free one."""
