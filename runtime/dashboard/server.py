"""Serve the page over HTTP: login, static files, security headers; its web socket is in `web_socket.py`.

Every route but the login and its static files needs a session. Requests under a foreign host name (DNS rebinding) and
state changes from a foreign origin are refused. Nothing secret is ever part of a page.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from runtime.dashboard.access.auth import Access
from runtime.dashboard.access.sign_in import HEADERS, SignIn, html_page
from runtime.dashboard.browsers import Hub
from runtime.dashboard.commands import CommandPublisher
from runtime.dashboard.web_socket import WebSocketHandler
from runtime.process.http_server import put_headers


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
        router.add_get("/socket", WebSocketHandler(self.agent, self.role, self.hub, self.commands).handle)
        self.add_routes(router)
        return app

    async def index(self, request: web.Request) -> web.Response:
        """Serve the page, or redirect to the login."""
        if self.role(request) is None:
            raise web.HTTPSeeOther("/login")
        return html_page("index.html")
