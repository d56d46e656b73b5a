"""Start a local Ray, or join a cluster. The only importer of Ray, which is an extra.

Ray listens on loopback unless an address names a cluster, asks each of its processes for a token, and reports nothing to its authors.
Every process that joins a cluster may run code in it, so only machines of one owner do.
"""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

CONNECT_S = 5.0
"""For the address of a cluster; Ray itself tries for minutes."""
MAX_REASON = 300
"""Characters of why a cluster cannot be joined."""


class RayMissing(ValueError):  # noqa: N818 - reads as what happened
    """Ray is not installed; `str` says how to install it."""


def start_ray(address: str | None, cpus: int, namespace: str, **options: Any) -> Any:
    """Start a local Ray or join a cluster; return the module.

    Args:
        address: of a cluster; None for a local Ray, which ends with this process.
        cpus: cores of a local one.
        namespace: of the actors.
        options: further ones of `ray.init`.

    Raises:
        RayMissing: it is not installed.
        ConnectionError: the cluster does not answer, or refuses the token (`RAY_AUTH_TOKEN`).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError:
        raise RayMissing("Ray is not installed; run pip install 'reflexd[fleet]'") from None
    if address is not None:
        _require_listener(address)
        try:
            ray.init(address=address, namespace=namespace, logging_level="ERROR", **options)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:MAX_REASON]
            raise ConnectionError(f"Ray at {address} does not accept this process: {reason}") from None
    else:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            namespace=namespace,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            **options,
        )
    return ray


def _require_listener(address: str) -> None:
    """Return where a process listens at HOST:PORT; other forms of an address are left to Ray.

    Raises:
        ConnectionError: none does.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"Ray at {address} does not answer: {error}") from None
