"""The page's server on a free port with a broker that only writes down what it is given, and ways in for tests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import canaries
from aiohttp import ClientSession, web

from runtime.dashboard.access.auth import Access
from runtime.dashboard.broker_connections import Unreachable
from runtime.dashboard.browsers import Hub
from runtime.dashboard.commands import CommandPublisher
from runtime.dashboard.server import Page
from runtime.dashboard.view_state import ViewState
from runtime.mqtt.topics import Topics, encode
from runtime.process.http_server import serve

LOCAL = frozenset({"127.0.0.1", "localhost"})


class FakeBridge:
    def __init__(self) -> None:
        self.sent: list[str] = []
        self.requested: list[tuple[str, object]] = []
        self.refuses = False

    async def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        self.sent.append(topic)

    async def request(self, parts: tuple[str, ...], body: dict[str, object], timeout_s: float) -> dict[str, object]:
        encode(body)  # as the real one does: what cannot be encoded fails here too
        if self.refuses:
            raise Unreachable(f"{' '.join(parts)}: no gate received it: no response within {timeout_s:g} s")
        if parts[0] == "request":
            self.requested.append((parts[1], body))
            return {"verb": parts[1]}
        self.sent.append("/".join(("reflexd/demo", *parts)))
        return {"sent": True, "rule": None}


@dataclass
class Site:
    port: int
    hub: Hub
    bridge: FakeBridge
    http: ClientSession
    access: Access
    app: web.Application

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def sign_in(self, token: str) -> str:
        answer = await self.http.post(f"{self.url}/login", data={"token": token})
        assert answer.status == 200
        return answer.headers["Set-Cookie"].split(";")[0]

    async def talk(self, cookie: str, **headers: str) -> aiohttp.ClientWebSocketResponse:
        return await self.http.ws_connect(
            f"{self.url}/socket", headers={"Cookie": cookie, "Origin": self.url, **headers}, max_msg_size=0
        )


@asynccontextmanager
async def site(known: frozenset[str] | None = LOCAL) -> AsyncIterator[Site]:
    hub, bridge = Hub(ViewState(Topics("demo")), period_s=0.01), FakeBridge()
    access = Access(canaries.OPERATOR, canaries.VIEWER, time.monotonic)
    commands = CommandPublisher(Topics("demo"), bridge, str)  # type: ignore[arg-type]
    app = Page("demo", access, hub, commands, known).application()
    async with (
        serve(app, "127.0.0.1:0") as port,
        ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
    ):
        yield Site(port, hub, bridge, http, access, app)


async def comes(hub: Hub, condition: Callable[[Hub], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition(hub):  # noqa: ASYNC110 - the hub announces nothing to wait for
            await asyncio.sleep(0.005)


async def reply(ws: aiohttp.ClientWebSocketResponse, number: int) -> dict[str, object]:
    async with asyncio.timeout(60):
        while True:
            for entry in json.loads((await ws.receive()).data)["replies"]:
                if entry.get("id") == number:
                    return dict(entry)
