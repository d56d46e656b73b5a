"""Seal a folder of prepared files with hashes and a signature, and check both before anything in it is used.

`learners/model/backends/calibration_cache.py` says which folders there are. A graph acts like a policy, but no checkpoint's manifest covers a cached one.
So each folder holds `seal.json`: its name, the SHA-256 of every file, and in the daemon's own state a signature by the key that
signs checkpoints. The cache of all daemons of a user has no common key; its folder must belong to this user alone.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learners.checkpoints.signing import verified
from learners.files import write_atomically

SEAL = "seal.json"
OTHERS_WRITE = 0o022

Key = Ed25519PrivateKey
"""Signs checkpoints, and graphs in the state folder."""
Refused = Callable[[str, str], None]
"""Receives the folder that is not used, and why."""


class SealBroken(Exception):  # noqa: N818 - reads as what happened
    """Files in a folder are not those that were sealed; `str` says which and why."""


@dataclass(frozen=True, slots=True)
class SealedFolder:
    """A folder of sealed folders.

    Args:
        path: the folder.
        key: signs and verifies seals; None for the cache that daemons share.
        refused: receives every sealed folder that is not used.
    """

    path: Path
    key: Ed25519PrivateKey | None = None
    refused: Refused = lambda _folder, _reason: None


def write_seal(folder: Path, name: str, key: Ed25519PrivateKey | None = None) -> None:
    """Seal the files that lie in a folder now.

    Args:
        folder: what is sealed.
        name: the name that it has when it is used; a draft has another one.
        key: signs the seal.

    Raises:
        OSError: a file cannot be read, or the seal cannot be written.
    """
    content = orjson.dumps({"name": name, "files": _digests(folder)}, option=orjson.OPT_SORT_KEYS)
    signature = "" if key is None else key.sign(content).hex()
    seal = {"content": content.decode(), "signature": signature}
    write_atomically(folder / SEAL, orjson.dumps(seal), durable=False)


def check_seal(folder: Path, name: str, key: Ed25519PrivateKey | None = None) -> None:
    """Check that a folder holds the files that were sealed, and no others.

    Raises:
        FileNotFoundError: there is no such folder.
        SealBroken: a file was changed, added or removed, or the signature is not by this key.
        OSError: a file cannot be read now, such as with too many open files; that breaks no seal.
    """
    found = _digests(folder)
    try:
        seal: Any = orjson.loads((folder / SEAL).read_bytes())
        content, signature = str(seal["content"]).encode(), bytes.fromhex(seal["signature"])
        sealed: Any = orjson.loads(content)
        named, files = sealed["name"], dict(sealed["files"])
    except (FileNotFoundError, IsADirectoryError, ValueError, TypeError, KeyError):
        raise SealBroken(f"no readable {SEAL}") from None
    if key is not None and not verified(key.public_key(), signature, content):
        raise SealBroken("its seal is not signed by this daemon's key")
    if named != name:
        raise SealBroken(f"its seal is of {str(named)[:80]}")
    if wrong := sorted(file for file in found.keys() | files.keys() if found.get(file) != files.get(file)):
        raise SealBroken(f"{wrong[0]} is not the file that was sealed")


def owned_by_this_user(folder: Path) -> str:
    """Return why a folder that exists could have been changed by others; empty where only this user, or root, can."""
    try:
        about = folder.stat()
    except OSError:
        return ""  # absent: it is made for this user alone
    if about.st_uid not in {0, os.geteuid()}:
        return f"it belongs to user {about.st_uid}, not to {os.geteuid()}"
    if about.st_mode & OTHERS_WRITE:
        return f"others may write to it (mode {stat.S_IMODE(about.st_mode):04o}); run `chmod go-w {folder}`"
    return ""


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder but its seal; what is no plain file counts as `other`."""
    found: dict[str, str] = {}
    for path in folder.iterdir():
        if path.name == SEAL:
            continue
        if path.is_symlink() or not path.is_file():
            found[path.name] = "other"
            continue
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
