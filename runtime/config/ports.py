"""Finds ports of the settings that another program listens on. Bound sockets are closed at once."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from learners.files import BusyError, exclusive_lock
from runtime.config.errors import Problem, Steps, dotted
from runtime.config.loader import LoadedConfig


def busy_ports(path: Path, loaded: LoadedConfig) -> list[Problem]:
    """Return the ports of these settings that another program listens on; none where this daemon runs and holds them itself."""
    config = loaded.config
    if _runs(config.state_dir):
        return []
    ports: list[tuple[Steps, str, int]] = []
    if config.mqtt.scheme == "embedded":
        ports.append((("mqtt", "url"), config.mqtt.host, config.mqtt.port))
    for name, part in (("dashboard", config.dashboard), ("metrics", config.metrics)):
        if part is not None:
            host, _, port = part.listen.rpartition(":")
            ports.append(((name, "listen"), host.strip("[]"), int(port)))
    return [
        Problem(
            path,
            loaded.line(where),
            dotted(where),
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            _remedy(error),
        )
        for where, host, port in ports
        if (error := _cannot_bind(host, port)) is not None
    ]


def _remedy(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return "name an address of this machine (127.0.0.1 for itself alone, 0.0.0.0 for every one)"
    if error.errno == errno.EACCES:
        return "choose a port above 1023, or give the service the right to use this one"
    return "end the program that listens there, or choose another port"


def _runs(state_dir: Path) -> bool:
    """Return whether a daemon uses the state folder."""
    if not (state_dir / "lock").exists():
        return False
    try:
        with exclusive_lock(state_dir):
            return False
    except (BusyError, OSError):
        return True


def _cannot_bind(host: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error
    return None
