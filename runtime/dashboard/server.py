"""Serve the page over HTTP: login, static files, one web socket, and security headers.

Every route but the login and its static files needs a session. Requests under a foreign host name (DNS rebinding) and
state changes from a foreign origin are refused. Nothing secret is ever part of a page.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from aiohttp import WSMsgType, web
from pydantic import ValidationError

from runtime.dashboard.auth import Access
from runtime.dashboard.bridge import Unreachable
from runtime.dashboard.commands import COMMANDS, AnyCommand, CommandPublisher, Forbidden, SubscribePreviews
from runtime.dashboard.settings_file import SettingsRefused
from runtime.dashboard.sign_in import HEADERS, SignIn, check_origin, html_page
from runtime.dashboard.sockets import Client, Hub
from runtime.mqtt.topics import Refused, parse
from runtime.process.http_server import network, protect, put_headers

MAX_COMMAND = 196_608
"""Bytes of one message of a browser; the text of the settings file is the longest."""


@dataclass(slots=True)
class Page(SignIn):
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
        app = web.Application(middlewares=[self.host_check], client_max_size=4_096)
        app.on_response_prepare.append(put_headers(HEADERS))
        router = app.router
        router.add_get("/", self.index)
        router.add_get("/socket", self.socket)
        self.add_routes(router)
        return app

    async def index(self, request: web.Request) -> web.Response:
        """Serve the page, or redirect to the login."""
        if self.role(request) is None:
            raise web.HTTPSeeOther("/login")
        return html_page("index.html")

    async def socket(self, request: web.Request) -> web.StreamResponse:
        """Send sections and pictures, receive commands."""
        role = self.role(request)
        if role is None:
            raise web.HTTPUnauthorized(text="sign in first")
        check_origin(request, required=True)
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


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if detail["type"] in {"union_tag_invalid", "extra_forbidden"}:
        return "the page's server does not know this command: reload the page, which may be older than its server"
    return f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"


def _cut(request: web.Request) -> None:
    """Abort the connection of a browser that no longer reads."""
    if request.transport is not None:
        request.transport.abort()
