"""Serve the page over HTTP: login, static files, one web socket, and security headers.

Every route but the login and its static files needs a session. Requests under a foreign host name (DNS rebinding) and
state changes from a foreign origin are refused. Nothing secret is ever part of a page.
"""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from aiohttp import WSMsgType, web
from pydantic import ValidationError

from runtime.dashboard.auth import Access, RateLimited, Role
from runtime.dashboard.bridge import Unreachable
from runtime.dashboard.commands import COMMANDS, AnyCommand, CommandPublisher, Forbidden, SubscribePreviews
from runtime.dashboard.settings_file import SettingsRefused
from runtime.dashboard.sockets import Client, Hub
from runtime.mqtt.topics import Refused, parse
from runtime.process.http_server import SHIELD, network, protect, put_headers

HEADERS = SHIELD | {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}
MAX_COMMAND = 196_608
"""Bytes of one message of a browser; the text of the settings file is the longest."""
FORM_S = 10.0
"""For a login form to arrive."""
COOKIE_S = 30 * 24 * 3600
"""A browser keeps its cookie so long, also through a restart of its own; the session ends earlier when it is not used."""
USUAL_PLACE = "The operator's token is in the file `token` in the agent's state folder, or is set as dashboard.token."
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Page:
    """The handlers, and what they need."""

    agent: str
    access: Access
    hub: Hub
    commands: CommandPublisher
    hosts: frozenset[str] | None
    """Host names taken; None takes any."""
    token_hint: str = ""
    """Where the operator's token is on this machine; shown to browsers of this machine alone."""

    def application(self) -> web.Application:
        """Build the application: the routes, with the checks around them."""
        app = web.Application(middlewares=[self._host_check], client_max_size=4_096)
        app.on_response_prepare.append(put_headers(HEADERS))
        router = app.router
        router.add_get("/", self.index)
        router.add_get("/login", self.login_form)
        router.add_post("/login", self.login)
        router.add_post("/logout", self.logout)
        router.add_get("/socket", self.socket)
        for name in sorted(static_files()):
            if not name.endswith(".html"):
                router.add_get(f"/static/{name}", _static(name))
        return app

    @property
    def cookie(self) -> str:
        """Two agents' pages on one host must not log each other out."""
        return f"reflexd_{self.agent}"

    def role(self, request: web.Request) -> Role | None:
        """Who is asking."""
        return self.access.role(request.cookies.get(self.cookie))

    async def index(self, request: web.Request) -> web.Response:
        """Serve the page, or redirect to the login."""
        if self.role(request) is None:
            raise web.HTTPSeeOther("/login")
        return _html("index.html")

    async def login_form(self, request: web.Request) -> web.Response:
        """Serve the form for the token, and say where the token is."""
        local = network(request.remote) in {"127.0.0.1", "::1"} and "X-Forwarded-For" not in request.headers
        hint = self.token_hint if local and self.token_hint else USUAL_PLACE
        body = static_files()["login.html"].replace(b"@HINT@", escape(hint).encode())
        return web.Response(body=body, content_type="text/html", charset="utf-8")

    async def login(self, request: web.Request) -> web.Response:
        """Exchange a token for a session."""
        _check_origin(request, required=False)
        token = await _token(request)
        try:
            found = self.access.login(token, network(request.remote))
        except RateLimited as limit:
            return web.json_response(
                {"error": str(limit)}, status=429, headers={"Retry-After": f"{limit.retry_s + 1:.0f}"}
            )
        if found is None:
            return web.json_response(
                {"error": "wrong token; `reflexd link` prints a link that signs you in"}, status=401
            )
        response = web.json_response({"role": found[1]})
        response.set_cookie(
            self.cookie,
            found[0],
            max_age=COOKIE_S,
            httponly=True,
            samesite="Strict",
            path="/",
            secure=request.scheme == "https",
        )
        return response

    async def logout(self, request: web.Request) -> web.Response:
        """End the session."""
        _check_origin(request, required=True)
        if self.role(request) is None:
            raise web.HTTPUnauthorized(text="sign in first")
        self.access.logout(request.cookies.get(self.cookie))
        response = web.json_response({})
        response.del_cookie(self.cookie, path="/")
        return response

    async def socket(self, request: web.Request) -> web.StreamResponse:
        """Send sections and pictures, receive commands."""
        role = self.role(request)
        if role is None:
            raise web.HTTPUnauthorized(text="sign in first")
        _check_origin(request, required=True)
        ws = web.WebSocketResponse(heartbeat=10.0, max_msg_size=MAX_COMMAND, compress=True)
        if not ws.can_prepare(request).ok:
            raise web.HTTPUpgradeRequired(text="this address takes WebSocket connections only")
        address = network(request.remote)
        refusal = self.hub.refusal(role, address)
        if refusal is not None:
            raise web.HTTPServiceUnavailable(text=refusal)
        protect(request)
        await ws.prepare(request)
        client = Client(
            ws, role, address, asyncio.get_running_loop().time(), welcome=lambda: self.role(request) == role
        )
        client.replies.append({"role": role, "agent": self.agent})
        sender = asyncio.create_task(self.hub.serve(client), name=f"browser {id(client)}")
        sender.add_done_callback(lambda _: _cut(request))
        try:
            await self._listen(client, request)
        finally:
            sender.cancel()
            await asyncio.wait([sender])
        return ws

    async def _listen(self, client: Client, request: web.Request) -> None:
        async with asyncio.TaskGroup() as group:
            async for message in client.ws:
                if message.type is not WSMsgType.TEXT:
                    break
                if self.role(request) is None:  # signed out in another tab, or the session is over
                    break
                if not client.may_send(asyncio.get_running_loop().time()):
                    client.replies.append({"id": 0, "error": "too many commands at once; wait a moment"})
                    del client.replies[:-20]
                    continue
                group.create_task(self._answer(client, message.data), name="command")
            await client.ws.close()

    async def _answer(self, client: Client, text: str) -> None:
        try:
            command: AnyCommand = COMMANDS.validate_python(parse(text.encode()))
        except ValidationError as error:
            client.replies.append({"id": 0, "error": _first(error)})
            return
        except Refused as refusal:
            client.replies.append({"id": 0, "error": str(refusal)})
            return
        if isinstance(command, SubscribePreviews):
            self.hub.watch(client, command.streams)
            return
        reply: dict[str, Any] = {"id": command.id}
        try:
            reply["data"] = await self.commands.execute(client.role, command)
        except (Forbidden, SettingsRefused, Unreachable) as refusal:
            reply["error"] = str(refusal)
        client.replies.append(reply)

    @web.middleware
    async def _host_check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.hosts is not None and _host(request.host) not in self.hosts:
            raise web.HTTPMisdirectedRequest(text="unknown host name; add it to dashboard.hosts")
        return await handler(request)


def static_files() -> dict[str, bytes]:
    """Return every file of the page by name."""
    folder = files("runtime.dashboard") / "static"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


def _html(name: str) -> web.Response:
    return web.Response(body=static_files()[name], content_type="text/html", charset="utf-8")


def _static(name: str) -> Handler:
    body = static_files()[name]
    content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    charset = "utf-8" if content_type.startswith("text/") else None

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, charset=charset)

    return handler


async def _token(request: web.Request) -> str:
    if request.content_type != "application/x-www-form-urlencoded":
        raise web.HTTPUnsupportedMediaType(text="send the token as a form")
    if (request.charset or "utf-8").lower() != "utf-8":  # some codecs give half characters, which no token has
        raise web.HTTPUnsupportedMediaType(text="send the token in UTF-8")
    try:
        async with asyncio.timeout(FORM_S):
            form = await request.post()
    except (ValueError, LookupError):
        raise web.HTTPBadRequest(text="the body is not a form") from None
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the form did not arrive in time") from None
    token = form.get("token")
    if not isinstance(token, str) or not token:
        raise web.HTTPBadRequest(text="send the token as `token`")
    return token


def _check_origin(request: web.Request, *, required: bool) -> None:
    origin = request.headers.get("Origin")
    if origin is None and not required:
        return
    if origin is None or origin.partition("://")[2] != request.host:
        raise web.HTTPForbidden(text="refused: the request comes from another site")


def _host(host: str) -> str:
    """Return the host name without the port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if detail["type"] in {"union_tag_invalid", "extra_forbidden"}:
        return "the page's server does not know this command: reload the page, which may be older than its server"
    return f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"


def _cut(request: web.Request) -> None:
    """Abort the connection of a browser that no longer reads."""
    if request.transport is not None:
        request.transport.abort()
