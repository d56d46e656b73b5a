"""What the tools read: the newest messages of the daemon, and the decisions of the last minutes, in bounded memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from runtime.dashboard.view_state import ViewState

MAX_DECISIONS = 200
MAX_TEXT, MAX_LIST, MAX_DEPTH = 500, 512, 12
"""Characters, entries and levels of what a tool returns."""


@dataclass(slots=True)
class DaemonView(ViewState):
    """The page's state, plus the last decisions one by one."""

    decisions: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_DECISIONS))

    def _decision(self, value: dict[str, Any]) -> None:
        self.decisions.append(value)
        ViewState._decision(self, value)


def bounded(value: Any, depth: int = 0) -> Any:
    """Return a copy with cut texts, lists and levels, so that no stream can fill the context of a model."""
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "..."
    if isinstance(value, dict):
        return {str(key)[:MAX_TEXT]: bounded(each, depth + 1) for key, each in list(value.items())[:MAX_LIST]}
    if isinstance(value, list | tuple | deque):
        return [bounded(each, depth + 1) for each in list(value)[:MAX_LIST]]
    return value
