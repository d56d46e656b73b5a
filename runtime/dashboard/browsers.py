"""Browsers on web sockets: each is sent what changed since its last message, and dropped when it does not read.

Values and pictures are latest-wins, so a slow browser costs a bounded amount of memory: one message in flight. Viewers can
never keep an operator out: their number is limited, in all and by address, and a further operator replaces the oldest one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from runtime.dashboard.access.auth import Role
from runtime.dashboard.sections import ClientPosition
from runtime.dashboard.view_state import ViewState

MAX_VIEWERS = 24
VIEWERS_PER_ADDRESS = 8
MAX_OPERATORS = 16
PERIOD_S = 0.2
BEAT_S = 0.8
"""A browser that receives nothing for 2 s shows that it has lost the page's server."""
PATIENCE_S = 5.0
"""A message that cannot be handed to the browser's socket within this drops the browser."""
COMMANDS_PER_S = 20.0
REPLACED = 4_001
"""The close code for a browser that must not reconnect: two that replace each other would do so for ever."""


@dataclass(slots=True, eq=False)
class Client:
    """One browser."""

    ws: web.WebSocketResponse
    role: Role
    address: str = ""
    since_s: float = 0.0
    """Monotonic seconds of its connection."""
    welcome: Callable[[], bool] = lambda: True
    """Whether its session is still good: a browser that signed out is sent nothing more."""
    replaced: bool = False
    """A newer operator has taken its place."""
    watching: frozenset[str] = frozenset()
    seen: ClientPosition = field(default_factory=ClientPosition)
    seen_pictures: dict[str, int] = field(default_factory=dict)
    replies: list[dict[str, Any]] = field(default_factory=list)
    sent_bytes: int = 0
    """Before compression."""
    _sent_s: float = -math.inf
    _credit: float = COMMANDS_PER_S
    _credit_s: float = -math.inf

    def may_send(self, now_s: float) -> bool:
        """Return whether this browser is within its quota of commands."""
        self._credit = min(COMMANDS_PER_S, self._credit + max(0.0, now_s - self._credit_s) * COMMANDS_PER_S)
        self._credit_s = now_s
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def shows(self, section: str, entry: str) -> bool:
        """Return whether the browser shows an entry of a table: of streams only those in its view."""
        return section != "streams" or entry in self.watching

    async def send_news(self, state: ViewState, now_s: float) -> None:
        """Send what changed, and pictures in view; a message without news every `BEAT_S`."""
        news = state.sections.news(self.seen, self.shows)
        if not news and not self.replies and now_s - self._sent_s < BEAT_S:
            await self._send_pictures(state)
            return
        self._sent_s = now_s
        replies, self.replies = self.replies, []
        head = b'{"now":%.3f,"replies":%s' % (time.time(), orjson.dumps(replies))
        body = head + (b"," + news if news else b"") + b"}"
        self.sent_bytes += len(body)
        await self.ws.send_str(body.decode())
        await self._send_pictures(state)

    async def _send_pictures(self, state: ViewState) -> None:
        views = state.stream_views
        for stream in self.watching & views.pictures.keys():
            if self.seen_pictures.get(stream) != views.picture_counts[stream]:
                self.seen_pictures[stream] = views.picture_counts[stream]
                await self.ws.send_bytes(bytes([len(stream)]) + stream.encode() + views.pictures[stream])


@dataclass(slots=True)
class Hub:
    """Every browser."""

    state: ViewState
    clients: set[Client] = field(default_factory=set)
    dropped: int = 0
    period_s: float = PERIOD_S
    patience_s: float = PATIENCE_S
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watch_changed: Callable[[], None] = lambda: None

    @property
    def watched(self) -> list[str]:
        """Every stream that a browser shows."""
        return sorted(frozenset().union(*(client.watching for client in self.clients)))

    def refusal(self, role: Role, address: str) -> str | None:
        """Return why there is no room for one more browser, or None; for an operator there always is."""
        if role == "operator":
            operators = [client for client in self.clients if client.role == "operator" and not client.replaced]
            if len(operators) >= MAX_OPERATORS:
                min(operators, key=lambda client: client.since_s).replaced = True
            return None
        viewers = [client for client in self.clients if client.role == "viewer"]
        if len(viewers) >= MAX_VIEWERS:
            return f"{MAX_VIEWERS} viewers are connected already"
        if sum(viewer.address == address for viewer in viewers) >= VIEWERS_PER_ADDRESS:
            return f"{VIEWERS_PER_ADDRESS} viewers from this address are connected already"
        return None

    def watch(self, client: Client, streams: list[str]) -> None:
        """Note which streams a browser shows."""
        client.watching = frozenset(streams)
        self.watch_changed()

    async def serve(self, client: Client) -> None:
        """Send until the browser disconnects, or is dropped because it does not read."""
        self.clients.add(client)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                while not client.ws.closed and not client.replaced and client.welcome():
                    limit.reschedule(loop.time() + self.patience_s)
                    await client.send_news(self.state, loop.time())
                    limit.reschedule(None)
                    await asyncio.sleep(self.period_s)
                if client.replaced:
                    limit.reschedule(loop.time() + self.patience_s)
                    await client.ws.close(code=REPLACED, message=b"another operator has taken this place")
        except TimeoutError:
            self.dropped += 1
        except ConnectionError:
            pass  # the browser disconnected between two messages
        finally:
            self.clients.discard(client)
            self.watch_changed()
