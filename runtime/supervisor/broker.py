"""Run the embedded broker: mosquitto with a generated configuration, or iotcore if mosquitto is not installed.

Knows how each is configured and started; the supervisor runs it like any other child. Without credentials it accepts
everybody and therefore listens on loopback only.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import structlog

from learners.files import private_folder, storage_problem, write_atomically
from runtime.config.mqtt_settings import Credentials, MqttSettings
from runtime.process import child

log = structlog.get_logger(__name__)

MAX_PACKET = 16_777_216
LARGEST_PACKET = 67_108_864
"""Bytes that the broker delivers; the agent refuses and counts payloads above its own limits."""
ITERATIONS = 101
"""PBKDF2 rounds of mosquitto_passwd 2.x."""
Kind = Literal["mosquitto", "iotcore"]


class ExposedError(Exception):
    """The settings would admit every client on the network; `str` says what to change."""


class BrokerError(Exception):
    """No broker can be started; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that is ready to be started as a child."""

    kind: Kind
    command: list[str]
    host: str
    port: int


def prepare(settings: MqttSettings, state_dir: Path, kind: Kind | None = None) -> Broker:
    """Choose a broker, check that its port is free, and write its configuration.

    Raises:
        BrokerError: none is installed, or the port is taken.
        ExposedError: it would listen beyond loopback for everybody.
    """
    check_exposure(settings)
    users = _users(settings)
    _check_free(settings.host, settings.port)
    folder = state_dir / "broker"
    chosen = kind or installed()
    if chosen == "mosquitto":
        config = _written(_mosquitto, settings, folder, users, "mosquitto.conf")
        command = [str(_mosquitto_binary()), "-c", str(config)]
        # SIGTERM at the parent's death: mosquitto then saves what is retained
        return Broker(
            chosen,
            child.with_parent_death(command, title="broker", number=signal.SIGTERM, priority="tick"),
            settings.host,
            settings.port,
        )
    config = _written(_iotcore, settings, folder, users, "iotcore.toml")
    return Broker(
        chosen,
        child.with_parent_death(
            [sys.executable, "-m", "runtime.supervisor.broker_iotcore", str(config)], priority="tick"
        ),
        settings.host,
        settings.port,
    )


def _written(
    write: Callable[[MqttSettings, Path, list[Credentials]], Path],
    settings: MqttSettings,
    folder: Path,
    users: list[Credentials],
    name: str,
) -> Path:
    """Write the configuration; where the disk refuses it, that of the last start is used, so that the policy acts all the same.

    Raises:
        OSError: the file cannot be written, and there is none.
    """
    try:
        private_folder(folder)
        return write(settings, folder, users)
    except OSError as error:
        reason = storage_problem(error, folder)
        if reason is None or not (folder / name).is_file():
            raise
        log.warning("supervisor.broker_settings_not_written", reason=reason, remedy="free the disk, then restart")
        return folder / name


def check_exposure(settings: MqttSettings) -> None:
    """Refuse a broker without logins that listens beyond this machine.

    Raises:
        ExposedError: with the remedy.
    """
    if not _users(settings) and not _is_loopback(settings.host):
        raise ExposedError(
            f"mqtt.url: {settings.url} would admit every client on the network; set mqtt.username and mqtt.password, or use embedded://127.0.0.1"
        )


def installed() -> Kind:
    """Return the preferred broker among the installed ones.

    Raises:
        BrokerError: there is none.
    """
    if _mosquitto_binary() is not None:
        return "mosquitto"
    if find_spec("iotcore") is not None:
        return "iotcore"
    raise BrokerError(
        "mqtt.url is embedded:// but no broker is installed: apt-get install mosquitto, or pip install 'reflexd[embedded]', or name a running one with mqtt://HOST:PORT"
    )


def accepts(host: str, port: int) -> bool:
    """Return whether a process listens on the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host if host not in {"0.0.0.0", "::"} else "localhost", port)) == 0  # noqa: S104 - compared, not bound


def _mosquitto_binary() -> Path | None:
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerError(
                f"mqtt.url: cannot listen on {host}:{port}: {error.strerror}; if a broker runs there, use it with mqtt://{host}:{port}, else choose another port (embedded://{host}:{port + 1})"
            ) from None


def _users(settings: MqttSettings) -> list[Credentials]:
    own = list(settings.logins.values())
    own += [login.for_media() for login in own if login.media is not None]
    if settings.username is not None:
        own.append(Credentials(username=settings.username, password=settings.password))
    own += [login.for_stop() for login in own if login.stop is not None]
    return [*own, *(login.for_requests() for login in own if login.requests is not None)]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _mosquitto(settings: MqttSettings, folder: Path, users: list[Credentials]) -> Path:
    lines = [
        f"listener {settings.port} {settings.host}",
        f"allow_anonymous {'false' if users else 'true'}",
        "set_tcp_nodelay true",
        f"max_packet_size {LARGEST_PACKET}",
        "max_inflight_messages 100",
        "max_queued_messages 1000",
        "queue_qos0_messages true",  # a stop of QoS 0 is stored too while the gate is away
        f"max_queued_bytes {4 * MAX_PACKET}",
        "persistence true",
        f"persistence_location {folder.resolve()}/",
        "autosave_interval 60",
        "connection_messages false",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    if os.geteuid() == 0:  # mosquitto would change to a user that may not write the folder
        lines.append(f"user {getpass.getuser()}")
    if users:
        passwords = folder / "passwords"
        _write_private(passwords, "".join(map(password_line, users)))
        lines.append(f"password_file {passwords.resolve()}")
    config = folder / "mosquitto.conf"
    _write_private(config, "\n".join(lines) + "\n")
    return config


def password_line(user: Credentials) -> str:
    """Return a line in mosquitto_passwd's `$7$` format: PBKDF2-HMAC-SHA512."""
    salt = secrets.token_bytes(12)
    password = user.password.get_secret_value() if user.password else ""
    derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS, 64)
    return f"{user.username}:$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(derived).decode()}\n"


def _iotcore(settings: MqttSettings, folder: Path, users: list[Credentials]) -> Path:
    """Rumqttd's TOML. Segments are its memory: 10 of 16 MB for every topic filter at most."""
    auth = "\n".join(
        f"{_toml(user.username)} = {_toml(user.password.get_secret_value() if user.password else '')}" for user in users
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host.replace("localhost", "127.0.0.1")
    text = f"""id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = {MAX_PACKET}
max_segment_count = 10
[v5.1]
name = "v5"
listen = "{host}:{settings.port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 5000
max_payload_size = {MAX_PACKET}
max_inflight_count = 100
dynamic_filters = true
"""
    if users:
        text += f"[v5.1.connections.auth]\n{auth}\n"
    config = folder / "iotcore.toml"
    _write_private(config, text)
    return config


def _toml(text: str) -> str:
    """Return a TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), durable=False, mode=0o600)
