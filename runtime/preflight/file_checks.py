"""Check the folder of the state, the key that signs, and the files of TLS."""

from __future__ import annotations

import errno
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

from learners.checkpoints.signing import KeyRefused, load_key
from learners.files import not_plain
from runtime.config.errors import Found
from runtime.config.mqtt_settings import MqttSettings
from runtime.config.schema import Config

FOLDERS = ("broker", "checkpoints", "experience", "keys", "learner", "prepared", "recordings", "uplink")


FILES = ("experiments.json", "latches.json", "lock", "promotions.jsonl", "token")
"""What a daemon makes in its `state_dir`."""


MAY_PASS = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk, with which a daemon starts."""


def check_state_folder(config: Config) -> Found:
    """Find a folder of the state in which no daemon could write."""
    folder = config.state_dir.absolute()
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if there.is_symlink() and not there.exists():
        yield ("state_dir",), f"{there} is a link to nothing", "make the folder that it names, or name another"
    elif there == folder and folder.resolve() in (Path.home(), Path("/")):
        yield ("state_dir",), f"{folder} holds everything else, too", "name a folder of its own, such as .reflexd/NAME"
    elif not there.is_dir():
        yield ("state_dir",), f"{there} is a file", "name a folder"
    elif there != folder:
        yield from _can_be_made(folder, there)
    elif _is_read_only(folder) and (folder / "lock").exists():
        pass  # a daemon that has run there acts on; the page and `status` say that the disk is read-only
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield ("state_dir",), f"{folder} cannot be written", "name a folder that this user can write"
    else:
        yield from _kinds_in(folder)


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _can_be_made(folder: Path, there: Path) -> Found:
    """Make a folder beside the one to be, and delete it: some file systems refuse it although their rights permit it."""
    try:
        Path(tempfile.mkdtemp(dir=there, prefix=".reflexd-check-")).rmdir()
    except OSError as error:
        if error.errno not in MAY_PASS:
            yield ("state_dir",), f"{folder} cannot be made: {error.strerror}", "name a folder that this user can write"


def _kinds_in(folder: Path) -> Found:
    """Find files where a daemon has folders, and folders where it has files."""
    for name in FOLDERS:
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            yield ("state_dir",), f"{folder / name} is no folder, and the daemon needs one there", "move it away"
    for name in FILES:
        if (folder / name).is_dir():
            yield ("state_dir",), f"{folder / name} is a folder, and the daemon needs a file there", "move it away"


def check_signing_key(config: Config) -> Found:
    """Refuse a signing key with which neither agent nor learner could start; one that this user may not read is not judged."""
    path = config.state_dir / "keys" / "checkpoint-key.pem"
    if not path.exists() or not os.access(path, os.R_OK) or path.stat().st_uid not in {0, os.geteuid()}:
        return
    try:
        load_key(config.state_dir)
    except KeyRefused as refused:
        yield ("state_dir",), str(refused), ""


def check_tls(config: Config) -> Found:
    """Find files of TLS that cannot be read or do not match."""
    yield from _tls_of("mqtt", config.mqtt, "key")
    if config.fleet is not None:
        yield from _tls_of("fleet", config.fleet.mqtt(), "cert_key")


def _tls_of(section: str, mqtt: MqttSettings, key_name: str) -> Found:
    names = {"ca": "ca", "cert": "cert", "key": key_name}
    found = False
    for name, file in (("ca", mqtt.ca), ("cert", mqtt.cert), ("key", mqtt.key)):
        if file is None:
            continue
        if not os.access(file, os.R_OK) or not_plain(file) is not None or file.is_dir():
            found = True
            reason = "is a folder" if file.is_dir() else "cannot be read"
            yield (section, names[name]), f"{file} {reason}", "name a readable file in PEM format"
    if mqtt.key is not None and mqtt.cert is None:
        yield (section, key_name), "this key has no certificate", f"add {section}.cert"
    elif not found:
        for name, message, remedy in _pem(mqtt.ca, mqtt.cert, mqtt.key):
            yield (section, names[name]), message, remedy


def _pem(ca: Path | None, cert: Path | None, key: Path | None) -> Iterator[tuple[str, str, str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca is not None:
            context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        yield "ca", f"{ca} contains no certificate in PEM format ({error})", "name the authority's certificate"
    try:
        if cert is not None:
            context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        yield (
            "key" if key is not None else "cert",
            f"certificate and key do not match or are not in PEM format ({error})",
            "name the certificate and its unencrypted key",
        )
