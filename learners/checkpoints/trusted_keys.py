"""Decide which key may have signed a policy that was made elsewhere: this installation's, a trusted one, or one that an operator names.

A key that lies adjacent the checkpoint proves nothing: whoever changed the checkpoint could write it. It is used only after an
operator has named its fingerprint, or confirmed it once. Confirmed keys are remembered in `keys/trusted-keys`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from learners.checkpoints.manifest import MANIFEST, SIGNATURE
from learners.checkpoints.signing import CREDENTIAL, KeyRefused, verified
from learners.files import private_folder, write_atomically

PREFIX = "SHA256:"
TRUSTED = "trusted-keys"
"""One raw public key a line, in hexadecimal; what follows a space is a remark."""
MAX_BYTES = 65_536
Ask = Callable[[str], bool]
"""Show a fingerprint to the operator; return whether the operator trusts it."""


def fingerprint(public: Ed25519PublicKey) -> str:
    """Return `SHA256:` and the digest of a public key in base64, as ssh-keygen shows keys."""
    return PREFIX + base64.b64encode(hashlib.sha256(public.public_bytes_raw()).digest()).decode().rstrip("=")


def read_public(path: Path) -> Ed25519PublicKey:
    """Return the public key of a PEM file, of either a public or a private key.

    Raises:
        KeyRefused: the file cannot be read, or holds no Ed25519 key.
    """
    key: object
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
        if b"PRIVATE KEY" in content:
            private = serialization.load_pem_private_key(content, password=None)
            key = private.public_key() if isinstance(private, Ed25519PrivateKey) else private
        else:
            key = serialization.load_pem_public_key(content)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRefused(f"{path}: no key can be read ({error}); name a PEM file of an Ed25519 key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyRefused(f"{path} holds a {type(key).__name__}; an Ed25519 key is needed")
    return key


class TrustedKeys:
    """The keys that an operator has confirmed.

    Args:
        state_dir: of this installation.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "keys" / TRUSTED

    def all(self) -> list[Ed25519PublicKey]:
        """Return the remembered keys.

        Raises:
            KeyRefused: the file cannot be read.
        """
        try:
            lines = self.path.read_text().splitlines()
            return [
                Ed25519PublicKey.from_public_bytes(bytes.fromhex(line.split()[0])) for line in lines if line.strip()
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise KeyRefused(f"{self.path}: {error}; delete it and confirm the keys again") from None

    def remember(self, public: Ed25519PublicKey) -> None:
        """Trust a key from now on.

        Raises:
            KeyRefused: the file cannot be read.
            OSError: the file cannot be written.
        """
        keys = {each.public_bytes_raw(): each for each in (*self.all(), public)}
        private_folder(self.path.parent)
        text = "".join(f"{raw.hex()} {fingerprint(each)}\n" for raw, each in keys.items())
        write_atomically(self.path, text.encode(), mode=0o600)


def signer(
    directory: Path, own: Ed25519PublicKey, trusted: TrustedKeys, named: str | None, ask: Ask
) -> Ed25519PublicKey:
    """Return the key that must have signed a version's directory.

    Args:
        directory: of the version.
        own: this installation's key.
        trusted: the keys confirmed before.
        named: a fingerprint or a PEM file that the operator names; None to look among the known keys and to ask.
        ask: called with the fingerprint of an unknown key that lies adjacent the version.

    Raises:
        KeyRefused: there is no key that the operator trusts.
        OSError: the confirmed key cannot be stored.
    """
    adjacent = _adjacent_keys(directory)
    if named is not None and not named.startswith(PREFIX):
        return read_public(Path(named))
    known = [own, *trusted.all()]
    if named is not None:
        match = next((each for each in (*known, *adjacent) if fingerprint(each) == named), None)
        if match is None:
            found = ", ".join(map(fingerprint, adjacent)) or "none"
            raise KeyRefused(
                f"{named}: {directory} has another key adjacent it ({found}); do not import it, or name its key"
            )
        return match
    for each in known:
        if _has_signed(each, directory):
            return each
    if not adjacent:
        raise KeyRefused(f"{directory}: signed with an unknown key; name it with --key FILE")
    if not ask(fingerprint(adjacent[0])):
        raise KeyRefused(
            f"{directory}: its key {fingerprint(adjacent[0])} is not trusted; name it with --key if it is yours"
        )
    trusted.remember(adjacent[0])
    return adjacent[0]


def _adjacent_keys(directory: Path) -> list[Ed25519PublicKey]:
    """Return the key in the output folder of `reflexd train`; it is a proposal, and proves nothing."""
    for folder in (directory, *directory.parents[:2]):
        path = folder / "keys" / f"{CREDENTIAL}.pem"
        if path.is_file():
            return [read_public(path)]
    return []


def _has_signed(public: Ed25519PublicKey, directory: Path) -> bool:
    try:
        return verified(public, (directory / SIGNATURE).read_bytes(), (directory / MANIFEST).read_bytes())
    except OSError:
        return False
