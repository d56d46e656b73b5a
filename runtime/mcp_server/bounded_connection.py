"""Bound the connections of the HTTP server so that no client is shut out: the oldest one without a request gives way.

uvicorn's own limit answers 503 to a new client, also to its `stop`, while others hold connections on which they send nothing.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 64
HEADER_S = 10.0
"""A connection on which no request is being answered by then is closed; clients open another one."""


class BoundedConnection(H11Protocol):
    """One of at most `MAX_CONNECTIONS` connections."""

    _opened_s: float = 0.0
    _limit: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered on it."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Take a new connection; close the oldest idle one, or else this one, when there are too many."""
        super().connection_made(transport)
        self._opened_s = self.loop.time()
        self._limit = self.loop.call_later(HEADER_S, self._close_if_idle)
        if len(self.connections) <= MAX_CONNECTIONS:
            return
        others = [each for each in self.connections if isinstance(each, BoundedConnection) and each is not self]
        oldest = min((each for each in others if each.is_idle), key=lambda each: each._opened_s, default=self)
        oldest.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release what belongs to the connection."""
        if self._limit is not None:
            self._limit.cancel()
        super().connection_lost(exc)

    def close(self) -> None:
        """Close it without a response; it counts no longer."""
        self.connections.discard(self)
        self.transport.abort()

    def _close_if_idle(self) -> None:
        if self.is_idle:
            self.close()
