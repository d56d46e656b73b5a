"""Serve HTTP in an event loop: /metrics, /livez and /readyz for the agent, and the server that the dashboard uses too.

`/livez` answers 200 while the loop runs. `/readyz` answers 200 with `ready`, or 503 with one reason a line. The three
routes need no login: they change nothing and show no content of a stream. The settings choose the address.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

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
"""Headers of every response: they forbid a browser to run, frame, store or forward it."""
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")

Ready = Callable[[], Sequence[str]]
"""Returns the reasons why the agent is not ready; empty when it is."""


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


class Shielded(web.RequestHandler):
    """One connection; it refuses malformed HTTP with the same headers and repeats nothing of the request."""

    __slots__ = ()

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
    """Serve on `listen` while the context lasts; yield the port, which the system chooses for port 0.

    Raises:
        OSError: the address is in use, or belongs to another machine.
    """
    host, port = address(listen)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None, "a runner has a server after its setup"
    try:
        async with await loop.create_server(lambda: Shielded(server, loop=loop, access_log=None), host, port) as door:  # type: ignore[arg-type]  # none is wanted
            yield door.sockets[0].getsockname()[1]
    finally:
        await runner.cleanup()
