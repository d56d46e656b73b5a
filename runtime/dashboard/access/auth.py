"""Roles: tokens, sessions, and the limit on wrong tokens.

Two roles: a viewer changes nothing, an operator may do everything. A token is compared in constant time and exchanged for a
random session name in a cookie. A right token always opens a session, whatever was tried before; wrong tokens are answered
with a limit and logged with a limit. Sessions survive a restart: `dump` and `restore` hold digests of their names, never the
names. It knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learners.files import private_folder, write_atomically
from runtime.config.schema import Config, DashboardSettings
from runtime.dashboard.access.login_link import redeem

log = structlog.get_logger(__name__)

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "operator")

SESSION_S = 24 * 3600.0
"""A session ends so long after its last use; an open page is a use."""
MAX_SESSIONS = 128
"""Sessions of each role; the one that was unused for longest makes room."""
WINDOW_S = 60.0
TRIES = 5
"""Wrong tokens from one address within `WINDOW_S`."""
MAX_PEERS = 4_096
LOGGED = 10
"""Wrong tokens that are logged one by one within `WINDOW_S`; the others are counted."""
MIN_TOKEN = 16
MAX_FILE = 262_144


class RateLimited(Exception):  # noqa: N818 - reads as what happened
    """Too many wrong tokens; `retry_s` until the next wrong one is answered as such."""

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"too many wrong tokens; try again in {retry_s:.0f} s")
        self.retry_s = retry_s


@dataclass(slots=True)
class Session:
    """One login."""

    role: Role
    until_s: float
    """Monotonic seconds; moves with every use."""


class StoredSession(BaseModel):
    """One session on disk."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    role: Role
    until: float
    """Unix seconds."""


class Stored(BaseModel):
    """All sessions on disk."""

    model_config = ConfigDict(extra="forbid")
    tokens: dict[Role, str]
    """A keyed digest of each role's token: a changed token ends the sessions of its role."""
    sessions: list[StoredSession] = Field(max_length=len(ROLES) * MAX_SESSIONS)


@dataclass(slots=True)
class Access:
    """Tokens in, sessions out.

    Args:
        operator_token: of at least `MIN_TOKEN` characters.
        viewer_token: likewise; None for no viewers.
        now: monotonic seconds.

    Raises:
        ValueError: a token is too short to resist guessing.
    """

    operator_token: str
    viewer_token: str | None
    now: Callable[[], float]
    redeem: Callable[[str], bool] = lambda _code: False
    """Whether a text is the code of a one-time link, which it uses up."""
    changed: bool = False
    """Sessions were added or ended since the last `dump`."""
    _sessions: dict[Role, OrderedDict[str, Session]] = field(
        default_factory=lambda: {role: OrderedDict() for role in ROLES}
    )
    """By role and digest of the name; the one used last comes last."""
    _wrong: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _logged: deque[float] = field(default_factory=lambda: deque(maxlen=LOGGED))
    _unlogged: int = 0

    def __post_init__(self) -> None:
        for name, token in (("token", self.operator_token), ("viewer_token", self.viewer_token)):
            if token is not None and len(token) < MIN_TOKEN:
                raise ValueError(f"dashboard.{name} has fewer than {MIN_TOKEN} characters and could be guessed")

    def login(self, token: str, peer: str) -> tuple[str, Role] | None:
        """Return a new session's name and role, or None for a wrong token. The code of a one-time link is a token, too.

        Raises:
            RateLimited: the token is wrong, and too many were wrong lately from this address.
        """
        role = self._role_of(token)
        if role is None and self.redeem(token):
            role = "operator"
        if role is None:
            self._note_wrong(peer)
            return None
        self._wrong.pop(peer, None)
        name = secrets.token_urlsafe(32)
        sessions = self._sessions[role]
        sessions[_digest(name)] = Session(role, self.now() + SESSION_S)
        while len(sessions) > MAX_SESSIONS:
            sessions.popitem(last=False)
        self.changed = True
        return name, role

    def identify(self, token: str, peer: str) -> Role | None:
        """Return the role of a token without a session, or None for a wrong token. No code of a one-time link is accepted.

        Raises:
            RateLimited: the token is wrong, and too many were wrong lately from this peer.
        """
        role = self._role_of(token)
        if role is None:
            self._note_wrong(peer)
        return role

    def role(self, session: str | None) -> Role | None:
        """Return the role of a session that is still good, and extend it."""
        digest = _digest(session or "")
        for role, sessions in self._sessions.items():
            found = sessions.get(digest)
            if found is None:
                continue
            if found.until_s <= self.now():
                del sessions[digest]
                return None
            found.until_s = self.now() + SESSION_S
            sessions.move_to_end(digest)
            return role
        return None

    def logout(self, session: str | None) -> None:
        """End a session."""
        for sessions in self._sessions.values():
            self.changed |= sessions.pop(_digest(session or ""), None) is not None

    def dump(self, wall_s: float) -> bytes:
        """Return all sessions for `restore`; `wall_s` is the Unix time now."""
        self.changed = False
        now_s = self.now()
        stored = [
            StoredSession(digest=digest, role=role, until=wall_s + session.until_s - now_s)
            for role, sessions in self._sessions.items()
            for digest, session in sessions.items()
        ]
        return orjson.dumps(Stored(tokens=self._tokens(), sessions=stored).model_dump())

    def restore(self, content: bytes, wall_s: float) -> None:
        """Restore the sessions of an earlier process, except for roles with a changed token.

        Raises:
            ValueError: the content is malformed.
        """
        if len(content) > MAX_FILE:
            raise ValueError(f"{len(content)} bytes of sessions; at most {MAX_FILE} are read")
        try:
            stored = Stored.model_validate_json(content)
        except ValidationError as error:
            raise ValueError(f"{error.error_count()} malformed sessions") from None
        tokens, now_s = self._tokens(), self.now()
        for each in stored.sessions:
            same = hmac.compare_digest(stored.tokens.get(each.role, ""), tokens.get(each.role, "-"))
            left_s = min(SESSION_S, each.until - wall_s)
            if same and left_s > 0 and len(self._sessions[each.role]) < MAX_SESSIONS:
                self._sessions[each.role][each.digest] = Session(each.role, now_s + left_s)

    def _tokens(self) -> dict[Role, str]:
        tokens: dict[Role, str | None] = {"operator": self.operator_token, "viewer": self.viewer_token}
        return {
            role: hmac.new(token.encode(), b"reflexd sessions", hashlib.sha256).hexdigest()
            for role, token in tokens.items()
            if token is not None
        }

    def _role_of(self, token: str) -> Role | None:
        role: Role | None = None
        if self.viewer_token is not None and _same(token, self.viewer_token):
            role = "viewer"
        if _same(token, self.operator_token):
            role = "operator"
        return role

    def _note_wrong(self, peer: str) -> None:
        now_s = self.now()
        self._log_wrong(peer, now_s)
        wrong = self._wrong.setdefault(peer, deque(maxlen=TRIES))
        self._wrong.move_to_end(peer)
        while len(self._wrong) > MAX_PEERS:
            self._wrong.popitem(last=False)
        if len(wrong) == TRIES and now_s - wrong[0] < WINDOW_S:
            raise RateLimited(wrong[0] + WINDOW_S - now_s)
        wrong.append(now_s)

    def _log_wrong(self, peer: str, now_s: float) -> None:
        oldest_s = self._logged[0] if len(self._logged) == LOGGED else -math.inf
        if now_s - oldest_s < WINDOW_S:
            self._unlogged += 1
            return
        self._logged.append(now_s)
        log.warning("dashboard.wrong_token", address=peer, unlogged_before=self._unlogged)
        self._unlogged = 0


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


def _same(a: str, b: str) -> bool:
    """Equality that takes the same time whatever differs, also in length."""
    return hmac.compare_digest(hashlib.sha256(a.encode()).digest(), hashlib.sha256(b.encode()).digest())


def token_file(path: Path) -> str:
    """Return the operator's token in `path`; make it (mode 0600) where there is none.

    Raises:
        OSError: the file can be neither read nor made.
        ValueError: the token is too short to be a secret, or another user may have written it.
    """
    token = secrets.token_urlsafe(32)
    if not path.exists():  # a full or read-only disk refuses to write, and lets the file be read
        try:
            write_atomically(path, f"{token}\n".encode(), mode=0o600, overwrite=False)
        except FileExistsError:
            pass
        else:
            return token
    about = path.stat()
    if about.st_mode & 0o022 or about.st_uid not in {0, os.geteuid()}:
        raise ValueError(
            f"{path} may have been written by another user (mode {about.st_mode & 0o777:04o}, owner {about.st_uid}); "
            "remove it and a new token is made"
        )
    token = path.read_text().strip()
    if len(token) < MIN_TOKEN:
        raise ValueError(f"{path} holds fewer than {MIN_TOKEN} characters; remove it and a new token is made")
    return token


def access(config: Config, settings: DashboardSettings) -> Access:
    """Return the tokens, from the settings or from `state_dir/token`, which is made where it is missing.

    Raises:
        OSError, ValueError: the token file cannot be used.
    """
    viewer = settings.viewer_token.get_secret_value() if settings.viewer_token else None
    private_folder(config.state_dir)
    token = settings.token.get_secret_value() if settings.token else token_file(config.state_dir / "token")
    return Access(token, viewer, time.monotonic, lambda code: redeem(config.state_dir, code, time.time()))
