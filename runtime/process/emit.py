"""Define the signature by which components publish events; `Reporter.event` is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Emit = Callable[[str, dict[str, Any]], None]
"""Publish an event, from any thread: its type and its data."""
