"""Browsers on web sockets: each is sent what it has not seen yet, newest only, and dropped when it does not read.

Sections and pictures are latest-wins, so a slow browser costs a bounded amount of memory: one message in flight. It knows
nothing of roles beyond passing them on.
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

from runtime.dashboard.auth import Role
from runtime.dashboard.state import ViewState

MAX_CLIENTS = 32
PERIOD_S = 0.2
BEAT_S = 0.8
"""A browser that hears nothing for 2 s says that it has lost the page's server."""
PATIENCE_S = 5.0
"""A message that cannot be handed to the browser's socket within this drops the browser."""
COMMANDS_PER_S = 20.0


@dataclass(slots=True, eq=False)
class Client:
    """One browser."""

    ws: web.WebSocketResponse
    role: Role
    welcome: Callable[[], bool] = lambda: True
    """Whether its session is still good: who signed out is sent nothing more."""
    watching: frozenset[str] = frozenset()
    seen: dict[str, int] = field(default_factory=dict)
    seen_pictures: dict[str, int] = field(default_factory=dict)
    replies: list[dict[str, Any]] = field(default_factory=list)
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


@dataclass(slots=True)
class Hub:
    """Everyone who is looking."""

    state: ViewState
    clients: set[Client] = field(default_factory=set)
    dropped: int = 0
    patience_s: float = PATIENCE_S
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watch_changed: Callable[[], None] = lambda: None

    @property
    def watched(self) -> list[str]:
        """Every stream that someone looks at."""
        return sorted(frozenset().union(*(client.watching for client in self.clients)))

    def watch(self, client: Client, streams: list[str]) -> None:
        """Remember what a browser looks at."""
        client.watching = frozenset(streams)
        self.watch_changed()

    async def serve(self, client: Client) -> None:
        """Send until the browser goes, or is dropped because it does not read."""
        self.clients.add(client)
        try:
            async with asyncio.timeout(None) as limit:
                while not client.ws.closed and client.welcome():
                    limit.reschedule(asyncio.get_running_loop().time() + self.patience_s)
                    await self._send_news(client)
                    limit.reschedule(None)
                    await asyncio.sleep(PERIOD_S)
        except TimeoutError:
            self.dropped += 1
        except ConnectionError:
            pass  # the browser went between two messages
        finally:
            self.clients.discard(client)
            self.watch_changed()

    async def _send_news(self, client: Client) -> None:
        news = [(name, version) for name, version in self.state.versions.items() if client.seen.get(name) != version]
        parts = [b'"%s":%s' % (name.encode(), self.state.encoded(name)) for name, _ in news]
        client.seen.update(news)
        replies, client.replies = client.replies, []
        body = b'{"now":%.3f,"replies":%s,"sections":{%s}}' % (time.time(), orjson.dumps(replies), b",".join(parts))
        await client.ws.send_str(body.decode())
        views = self.state.stream_views
        for stream in client.watching & views.pictures.keys():
            if client.seen_pictures.get(stream) != views.picture_counts[stream]:
                client.seen_pictures[stream] = views.picture_counts[stream]
                await client.ws.send_bytes(bytes([len(stream)]) + stream.encode() + views.pictures[stream])
