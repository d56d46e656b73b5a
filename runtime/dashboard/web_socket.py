"""Handle the web socket of a browser: refuse who is not signed in, read its commands, and answer each with a result or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import WSMsgType, web
from pydantic import ValidationError

from runtime.dashboard.access.auth import Role
from runtime.dashboard.access.sign_in import check_origin
from runtime.dashboard.broker_connections import Unreachable
from runtime.dashboard.browsers import Client, Hub
from runtime.dashboard.commands import COMMANDS, AnyCommand, CommandPublisher, Forbidden, SubscribePreviews
from runtime.dashboard.settings_file import SettingsRefused
from runtime.mqtt.topics import Refused, parse
from runtime.process.http_server import network, protect

MAX_COMMAND = 196_608
"""Bytes of one message of a browser; the text of the settings file is the longest."""


@dataclass(slots=True)
class WebSocketHandler:
    """The handler of `/socket`."""

    agent: str
    role: Callable[[web.Request], Role | None]
    """Who is asking; None for a browser that is not signed in."""
    hub: Hub
    commands: CommandPublisher

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Send sections and pictures, receive commands, until the browser disconnects."""
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
