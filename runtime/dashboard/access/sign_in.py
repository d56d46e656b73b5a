"""Let browsers sign in to a page: token for a session, host names and origins, static files. Used by every page of reflexd.

Requests under a foreign host name (DNS rebinding) and state changes from a foreign origin are refused.
"""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Awaitable, Callable
from html import escape
from importlib.resources import files

from aiohttp import web

from runtime.dashboard.access.auth import Access, RateLimited, Role
from runtime.process.http_server import SHIELD, network

HEADERS = SHIELD | {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}
FORM_S = 10.0
"""For a login form to arrive."""
COOKIE_S = 30 * 24 * 3600
"""A browser keeps its cookie so long, also through a restart of its own; the session ends earlier when it is not used."""
USUAL_PLACE = "The operator's token is in the file `token` in the agent's state folder, or is set as dashboard.token."
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SignIn:
    """The handlers of sign-in; a page has these fields."""

    agent: str
    access: Access
    hosts: frozenset[str] | None
    token_hint: str

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add sign-in and static files."""
        router.add_get("/login", self.login_form)
        router.add_post("/login", self.login)
        router.add_post("/logout", self.logout)
        for name in sorted(static_files()):
            if not name.endswith(".html"):
                router.add_get(f"/static/{name}", static_handler(name))

    @property
    def cookie(self) -> str:
        """Two agents' pages on one host must not log each other out."""
        return f"reflexd_{self.agent}"

    def role(self, request: web.Request) -> Role | None:
        """Who is asking."""
        return self.access.role(request.cookies.get(self.cookie))

    async def login_form(self, request: web.Request) -> web.Response:
        """Serve the form for the token, and say where the token is."""
        local = network(request.remote) in {"127.0.0.1", "::1"} and "X-Forwarded-For" not in request.headers
        hint = self.token_hint if local and self.token_hint else USUAL_PLACE
        body = static_files()["login.html"].replace(b"@HINT@", escape(hint).encode())
        return web.Response(body=body, content_type="text/html", charset="utf-8")

    async def login(self, request: web.Request) -> web.Response:
        """Exchange a token for a session."""
        check_origin(request, required=False)
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
        check_origin(request, required=True)
        if self.role(request) is None:
            raise web.HTTPUnauthorized(text="sign in first")
        self.access.logout(request.cookies.get(self.cookie))
        response = web.json_response({})
        response.del_cookie(self.cookie, path="/")
        return response

    @web.middleware
    async def host_check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a foreign host name."""
        if self.hosts is not None and _host(request.host) not in self.hosts:
            raise web.HTTPMisdirectedRequest(text="unknown host name; add it to dashboard.hosts")
        return await handler(request)


def static_files() -> dict[str, bytes]:
    """Return every file of the page by name."""
    folder = files("runtime.dashboard") / "static"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


def html_page(name: str) -> web.Response:
    """Return a page."""
    return web.Response(body=static_files()[name], content_type="text/html", charset="utf-8")


def static_handler(name: str) -> Handler:
    """Return the handler of a static file."""
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


def check_origin(request: web.Request, *, required: bool) -> None:
    """Refuse a request from another site.

    Raises:
        web.HTTPForbidden: it comes from one, or does not say where from although this is required.
    """
    origin = request.headers.get("Origin")
    if origin is None and not required:
        return
    if origin is None or origin.partition("://")[2] != request.host:
        raise web.HTTPForbidden(text="refused: the request comes from another site")


def _host(host: str) -> str:
    """Return the host name without the port."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
