"""Request and response over MQTT 5: what a handler answers, and how it refuses."""

from __future__ import annotations

from typing import Any

Answer = dict[str, Any]


class RequestFailed(Exception):  # noqa: N818 - reads as what happened
    """A request that cannot be fulfilled; `str` is the answer's error."""
