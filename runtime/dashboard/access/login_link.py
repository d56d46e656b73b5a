"""Create and redeem links that sign one browser in, once, without the operator's token.

The console writes the digest of a random code into `state_dir/login-link`, and prints the link. The page accepts the code
once, within its time. Whoever may write `state_dir` could read the token as well, so a link gives no new right.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from contextlib import suppress
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learners.files import private_folder, write_atomically
from runtime.process.http_server import address

FILE = "login-link"
PREFIX = "once-"
LASTS_S = 3_600.0
MAX_FILE = 1_024


class StoredLink(BaseModel):
    """The newest link on disk."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    until: float
    """Unix seconds."""


def create_link(state_dir: Path, listen: str, wall_s: float) -> str:
    """Write a new code, which replaces an earlier one, and return the address of the page with it.

    Args:
        state_dir: the agent's folder.
        listen: `dashboard.listen`.
        wall_s: Unix seconds now.

    Raises:
        OSError: the file cannot be written.
    """
    code = PREFIX + secrets.token_urlsafe(24)
    stored = StoredLink(digest=_digest(code), until=wall_s + LASTS_S)
    private_folder(state_dir)
    write_atomically(state_dir / FILE, stored.model_dump_json().encode(), durable=False, mode=0o600)
    return f"{page_address(listen)}/login#token={code}"


def page_address(listen: str) -> str:
    """Return the address under which a browser of this machine reaches the page."""
    host, port = address(listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def redeem(state_dir: Path, code: str, wall_s: float) -> bool:
    """Return whether the code is the newest link's and in time; a code works once."""
    if not code.startswith(PREFIX):
        return False
    path = state_dir / FILE
    try:
        with path.open("rb") as file:
            stored = StoredLink.model_validate(orjson.loads(file.read(MAX_FILE)))
    except (OSError, ValueError, ValidationError):
        return False
    if stored.until < wall_s or not hmac.compare_digest(stored.digest, _digest(code)):
        return False
    with suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode(errors="surrogatepass")).hexdigest()
