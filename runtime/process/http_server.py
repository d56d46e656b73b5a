"""Serve HTTP for the page and for /metrics, /livez and /readyz: bounded connections, time limits, headers of every answer.

`/livez` answers 200 while the event loop runs. `/readyz` asks the agent: 200 with `ready`, or 503 with one reason a line.
These routes have no login: they change nothing and show no content of any stream. They listen on loopback by default.
"""

from __future__ import annotations

import asyncio
import re
import resource
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

SHIELD = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
    "Server": "reflexd",
}
"""Headers of every answer: a browser runs, frames, stores and forwards none of it."""
REQUEST_S = 10.0
"""For the first request of a connection to arrive whole, headers included."""
IDLE_S = 15.0
"""From the end of a request to the next one."""
LINGER_S = 0.5
"""For the rest of a body that was answered before it had arrived."""
MAX_CONNECTIONS = 256
MAX_PER_ADDRESS = 64
RESERVED_FILES = 64
"""Of the descriptors that this process may open: for everything but connections."""
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")

Ready = Callable[[], Sequence[str]]
"""Returns why the agent is not ready; empty when it is."""


def application(registry: CollectorRegistry, ready: Ready) -> web.Application:
    """Build the application with the three routes."""

    async def metrics(request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(_understood(request.headers.get("Accept", "")))
        return web.Response(body=encoder(registry), headers={"Content-Type": content_type})

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = ready()
        return web.Response(text="".join(f"{r}\n" for r in reasons) or "ready\n", status=503 if reasons else 200)

    app = web.Application(client_max_size=1)
    app.on_response_prepare.append(put_headers(SHIELD))
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    return app


async def serve_metrics(registry: CollectorRegistry, ready: Ready, listen: str) -> None:
    """Serve the three routes on `listen` (HOST:PORT) until cancelled.

    Raises:
        OSError: the address is in use, or belongs to another machine.
    """
    async with serve(application(registry, ready), listen):
        await asyncio.Event().wait()


def put_headers(headers: Mapping[str, str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Return a signal handler that sets these headers on every response, errors too."""

    async def put(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(headers)

    return put


def _understood(accept: str) -> str:
    """Return the Accept header, or nothing where a version in it is malformed, which would make the chooser raise."""
    versions = (
        part.strip().partition("=")[2] for part in re.split("[;,]", accept) if part.strip().startswith("version=")
    )
    return accept if all(_VERSION.fullmatch(version) for version in versions) else ""


@dataclass(slots=True)
class Admission:
    """Bounds the open connections, in all and by address, so that no client can lock others out by holding connections open.

    A connection that is `protected` (a web socket of a signed-in browser) stays. Of the others, a new connection replaces the
    oldest: of its own address where that has too many, else of the address that has most. Connections that have sent no whole
    request yet go first.
    """

    limit: int = MAX_CONNECTIONS
    per_address: int = MAX_PER_ADDRESS
    connections: dict[Shielded, str] = field(default_factory=dict)
    """With the address of each; oldest first."""
    refused: Counter[str] = field(default_factory=Counter)
    """Connections that were cut, by cause."""

    def admit(self, new: Shielded, peer: str) -> None:
        """Add a connection; cut another one, or this one, where there are too many."""
        by_address = Counter(self.connections.values())
        self.connections[new] = peer
        if by_address[peer] >= self.per_address:
            self._replace(new, {peer})
        elif len(self.connections) > self.limit:
            counts = Counter(self.connections.values())
            open_to_cut = {address for each, address in self.connections.items() if not each.protected}
            most = max(counts[address] for address in open_to_cut)
            self._replace(new, {address for address in open_to_cut if counts[address] == most})

    def remove(self, connection: Shielded) -> None:
        """Forget a connection that is closed."""
        self.connections.pop(connection, None)

    def _replace(self, new: Shielded, addresses: set[str]) -> None:
        candidates = [each for each, address in self.connections.items() if address in addresses and not each.protected]
        silent = [each for each in candidates if each is not new and not each.has_begun]
        oldest = next(iter(silent or candidates), new)
        self.refused["too many connections"] += 1
        self.remove(oldest)
        oldest.cut()


class Shielded(web.RequestHandler):
    """One connection; it refuses malformed HTTP with the same headers and repeats nothing of the request."""

    __slots__ = ("_admission", "_timer", "has_begun", "protected")

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, admission: Admission) -> None:
        super().__init__(manager, loop=loop, access_log=None, keepalive_timeout=IDLE_S, lingering_time=LINGER_S)  # type: ignore[arg-type]  # none is wanted
        self.has_begun = self.protected = False
        self._admission = admission
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the connection, and give its first request a time limit."""
        super().connection_made(transport)
        self._timer = asyncio.get_running_loop().call_later(REQUEST_S, self._too_slow)
        peer = transport.get_extra_info("peername")
        self._admission.admit(self, network(peer[0] if peer else None))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self.begun()
        self._admission.remove(self)
        super().connection_lost(exc)

    def begun(self) -> None:
        """Note that the first request has arrived."""
        self.has_begun = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def cut(self) -> None:
        """End the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def _too_slow(self) -> None:
        self._admission.refused["no request in time"] += 1
        self.cut()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Build the response to a malformed request, or to a failure (500, which aiohttp logs).

        Raises:
            ConnectionError: a response has begun already.
        """
        if status >= 500 or request.writer.output_size > 0:
            answer = super().handle_error(request, status, exc, message)
        else:
            answer = web.Response(status=status, text="bad request\n")
            answer.force_close()
        answer.headers.update(SHIELD)
        return answer


def address(listen: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[V6]:PORT` into host and port."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


@asynccontextmanager
async def serve(app: web.Application, listen: str) -> AsyncIterator[int]:
    """Answer on `listen` while the context lasts; yield the port, which the system chooses for port 0.

    Raises:
        OSError: the address is in use, or belongs to another machine.
    """
    host, port = address(listen)
    app.middlewares.insert(0, _begun)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None, "a runner that is set up has a server"
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(1, min(MAX_CONNECTIONS, files - RESERVED_FILES))
    admission = Admission(limit, min(MAX_PER_ADDRESS, limit))
    try:
        async with await loop.create_server(
            lambda: Shielded(server, loop=loop, admission=admission), host, port
        ) as listener:
            yield listener.sockets[0].getsockname()[1]
    finally:
        await runner.cleanup()


@web.middleware
async def _begun(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Note that a connection's first request has arrived."""
    if isinstance(request.protocol, Shielded):
        request.protocol.begun()
    return await handler(request)


def protect(request: web.Request) -> None:
    """Keep the connection of this request, whatever other connections are opened: its browser has signed in."""
    if isinstance(request.protocol, Shielded):
        request.protocol.protected = True


def network(peer: str | None) -> str:
    """Return the address that limits count by: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ip_address((peer or "").partition("%")[0])
    except ValueError:
        return peer or ""
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ip_network((parsed, 64), strict=False))
