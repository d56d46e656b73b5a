"""From a driver's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVarTuple, Unpack

Arguments = TypeVarTuple("Arguments")


def tell(
    loop: asyncio.AbstractEventLoop, callback: Callable[[Unpack[Arguments]], object], *arguments: *Arguments
) -> bool:
    """Have the loop call; False when the loop is closed already, which a thread that outlives it may find."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        return False
    return True
