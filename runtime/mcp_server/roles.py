"""Decide the role of a client of the MCP server from its token: the page's two tokens, and no others.

Over stdio the token of the whole process counts: the environment variable `REFLEXD_TOKEN`. Without one the client is a viewer.
Over HTTP each request has a bearer token, and a request without a valid one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from starlette.requests import Request

from runtime.config.schema import Config, DashboardSettings
from runtime.dashboard.access.auth import Access, RateLimited, Role, access

TOKEN_VARIABLE = "REFLEXD_TOKEN"  # noqa: S105 - the variable's name
PEER = "mcp"
"""Wrong tokens are limited for all clients of this server together."""


def access_of(config: Config) -> Access:
    """Return the tokens of the page, whether or not the settings have a page.

    Raises:
        OSError, ValueError: the token file cannot be used.
    """
    return access(config, config.dashboard or DashboardSettings())


def role_of_process(config: Config, token: str | None) -> Role:
    """Return the role of the client at the other end of stdio.

    Args:
        config: the daemon's settings.
        token: the value of `REFLEXD_TOKEN`; None or an empty text for none.

    Raises:
        OSError: the token file cannot be read.
        ValueError: the token belongs to no role.
    """
    if not token:
        return "viewer"
    role = access_of(config).identify(token, PEER)
    if role is None:
        raise ValueError(
            f"{TOKEN_VARIABLE}: no role has this token; use dashboard.token or {config.state_dir / 'token'}, "
            "or unset the variable for a viewer"
        )
    return role


@dataclass(slots=True)
class PageTokens:
    """Verifies bearer tokens for the HTTP transport; implements the `TokenVerifier` of the MCP package."""

    access: Access

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the role as the only scope of a token; None for a wrong token."""
        try:
            role = self.access.identify(token, PEER)
        except RateLimited:
            return None
        return None if role is None else AccessToken(token="", client_id=role, scopes=[role])


def role_of_request(context: ServerRequestContext[object, Request]) -> Role:
    """Return the role of one HTTP request; a request without a verified token is a viewer's."""
    user = context.request.scope.get("user") if context.request is not None else None
    return "operator" if isinstance(user, AuthenticatedUser) and user.scopes == ["operator"] else "viewer"
