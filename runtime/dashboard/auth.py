"""Who may see and who may steer: tokens, sessions and the limit on wrong tokens.

Two roles: a viewer changes nothing, an operator may do everything. A token is compared in constant time and exchanged for
a random session name in a cookie; sessions live in memory only, so a restart logs everybody out. It knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Role = Literal["viewer", "operator"]

SESSION_S = 12 * 3600.0
MAX_SESSIONS = 256
WINDOW_S = 60.0
TRIES = 5
"""Wrong tokens from one address within `WINDOW_S`."""
ALL_TRIES = 60
"""Wrong tokens from anywhere within `WINDOW_S`: many addresses are no way round."""
MAX_PEERS = 4_096


class RateLimited(Exception):  # noqa: N818 - reads as what happened
    """Too many wrong tokens; `retry_s` until the next try is looked at."""

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"too many wrong tokens; try again in {retry_s:.0f} s")
        self.retry_s = retry_s


@dataclass(frozen=True, slots=True)
class Session:
    """One login."""

    role: Role
    until_s: float


@dataclass(slots=True)
class Access:
    """Tokens in, sessions out."""

    operator_token: str
    viewer_token: str | None
    now: Callable[[], float]
    _sessions: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    _wrong: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    _all_wrong: deque[float] = field(default_factory=lambda: deque(maxlen=ALL_TRIES))

    def login(self, token: str, peer: str) -> tuple[str, Role] | None:
        """A new session's name and role, or None for a wrong token.

        Raises:
            Limited: too many wrong tokens lately; the token was not even looked at.
        """
        self._check_limit(peer)
        role = self._role_of(token)
        if role is None:
            self._note_wrong(peer)
            return None
        self._wrong.pop(peer, None)
        name = secrets.token_urlsafe(32)
        self._sessions[name] = Session(role, self.now() + SESSION_S)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return name, role

    def role(self, session: str | None) -> Role | None:
        """The role of a session that is still good."""
        found = self._sessions.get(session or "")
        if found is None:
            return None
        if found.until_s <= self.now():
            del self._sessions[session or ""]
            return None
        return found.role

    def logout(self, session: str | None) -> None:
        """Forget a session."""
        self._sessions.pop(session or "", None)

    def _role_of(self, token: str) -> Role | None:
        role: Role | None = None
        if self.viewer_token is not None and _same(token, self.viewer_token):
            role = "viewer"
        if _same(token, self.operator_token):
            role = "operator"
        return role

    def _check_limit(self, peer: str) -> None:
        oldest = self.now() - WINDOW_S
        wrong = self._wrong.get(peer, deque())
        while wrong and wrong[0] <= oldest:
            wrong.popleft()
        if len(wrong) >= TRIES:
            raise RateLimited(wrong[0] - oldest)
        if len(self._all_wrong) == ALL_TRIES and self._all_wrong[0] > oldest:
            raise RateLimited(self._all_wrong[0] - oldest)

    def _note_wrong(self, peer: str) -> None:
        self._wrong.setdefault(peer, deque(maxlen=TRIES)).append(self.now())
        self._wrong.move_to_end(peer)
        self._all_wrong.append(self.now())
        while len(self._wrong) > MAX_PEERS:
            self._wrong.popitem(last=False)


def _same(a: str, b: str) -> bool:
    """Equality that takes the same time whatever differs, also in length."""
    return hmac.compare_digest(hashlib.sha256(a.encode()).digest(), hashlib.sha256(b.encode()).digest())


def token_file(path: Path) -> str:
    """The operator's token kept in `path`, made (mode 0600) where there is none.

    Raises:
        OSError: the file can be neither read nor made.
        ValueError: the file is there and too short to be a secret.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if len(token) < 16:
            raise ValueError(f"{path} holds fewer than 16 characters; remove it and a new token is made") from None
        return token
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token
