"""/metrics, /livez and /readyz on one port, inside the agent's event loop.

`/livez` answers 200 as long as the loop turns. `/readyz` asks the agent: 200 with `ready`, or 503 with one reason a line.
It has no login: it changes nothing and shows no content of any stream; it listens on loopback unless told.
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
"""Headers of every answer: a browser is to run, frame, keep and send on nothing of it."""
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")

Ready = Callable[[], Sequence[str]]
"""What keeps the agent from being ready, in words; empty when it is."""


def application(registry: CollectorRegistry, ready: Ready) -> web.Application:
    """The three routes."""

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
    """A signal handler that puts these headers on each answer, also on refusals."""

    async def put(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(headers)

    return put


def _understood(accept: str) -> str:
    """The Accept header, or nothing where a version in it is no version: the chooser would stumble over it."""
    versions = (
        part.strip().partition("=")[2] for part in re.split("[;,]", accept) if part.strip().startswith("version=")
    )
    return accept if all(_VERSION.fullmatch(version) for version in versions) else ""


class Shielded(web.RequestHandler):
    """One connection. What is no HTTP never reaches a route; it is refused here, with the same headers and no echo of itself."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be read, or to what failed (500, which aiohttp logs).

        Raises:
            ConnectionError: an answer was begun already.
        """
        if status >= 500 or request.writer.output_size > 0:
            answer = super().handle_error(request, status, exc, message)
        else:
            answer = web.Response(status=status, text="that is no request\n")
            answer.force_close()
        answer.headers.update(SHIELD)
        return answer


def address(listen: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT` as host and port."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


@asynccontextmanager
async def serve(app: web.Application, listen: str) -> AsyncIterator[int]:
    """Answer on `listen` while the context lasts; gives the port, which is the system's choice for port 0.

    Raises:
        OSError: the address is taken or not ours.
    """
    host, port = address(listen)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None, "a runner that is set up has a server"
    try:
        async with await loop.create_server(lambda: Shielded(server, loop=loop, access_log=None), host, port) as door:  # type: ignore[arg-type]  # none is wanted
            yield door.sockets[0].getsockname()[1]
    finally:
        await runner.cleanup()
