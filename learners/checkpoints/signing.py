"""Ed25519 keys that sign checkpoints (RFC 8032, by `cryptography`).

The key comes from systemd (`$CREDENTIALS_DIRECTORY/checkpoint-key`, PEM) or is made at the first start in
`state_dir/keys`, readable by its owner alone. Whoever can read it can sign; it protects against files that were swapped,
damaged or copied in, not against an intruder with the daemon's own rights.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from learners.files import private_folder, write_atomically

PrivateKey: TypeAlias = Ed25519PrivateKey
PublicKey: TypeAlias = Ed25519PublicKey
"""The keys, for packages that do not import `cryptography` themselves."""
CREDENTIAL = "checkpoint-key"
REFUSED_EXIT = 78
"""Exit code of a process that cannot start with its key (EX_CONFIG in sysexits.h): the supervisor does not try it again."""


class KeyRefused(ValueError):  # noqa: N818 - reads as what happened
    """The signing key cannot be used; `str` says which file, why, and the remedy."""


def load_key(state_dir: Path, credentials: Path | None = None) -> Ed25519PrivateKey:
    """Return the key of this installation; create it if there is none.

    Args:
        state_dir: where `keys/checkpoint-key.pem` lives.
        credentials: systemd's `$CREDENTIALS_DIRECTORY`, if the service has one.

    Raises:
        KeyRefused: not an Ed25519 key, readable by others, or of another owner.
    """
    given = credentials / CREDENTIAL if credentials is not None else None
    if given is not None and given.exists():
        return _read(given)
    path = state_dir / "keys" / f"{CREDENTIAL}.pem"
    if not path.exists():
        _make(path)
    about = path.stat()
    mode = stat.S_IMODE(about.st_mode)
    if about.st_uid not in {0, os.geteuid()}:
        raise KeyRefused(
            f"{path} belongs to user {about.st_uid}, who may know or change it; delete it and a new one is made"
        )
    if mode & 0o077:
        raise KeyRefused(f"{path} has mode {mode:04o}: others may read it; run `chmod 600 {path}` or delete it")
    return _read(path)


def verified(public: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    """Return whether `signature` is our signature of `data`."""
    try:
        public.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def public_pem(key: Ed25519PublicKey) -> bytes:
    """Return a public key as the content of a PEM file, which `read_public` reads."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRefused(
            f"{path} is not an unencrypted PEM private key ({error}); delete it to have one made"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyRefused(f"{path} holds a {type(key).__name__}; an Ed25519 key is needed")
    return key


def _make(path: Path) -> None:
    """Write a new key unless there is one: two processes that start at once agree on one."""
    private_folder(path.parent)
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with contextlib.suppress(FileExistsError):
        write_atomically(path, pem, mode=0o600, overwrite=False)


def credentials_folder() -> Path | None:
    """Return the folder in which systemd provides credentials to this service, if it does."""
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(given) if given else None
