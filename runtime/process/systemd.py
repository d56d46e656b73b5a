"""Notify systemd over NOTIFY_SOCKET (sd_notify(3), without libsystemd), and decide when to feed its watchdog.

Without the variable all of it does nothing. A datagram that cannot be sent is counted and not retried.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass


@dataclass(slots=True)
class Notifier:
    """Send states to the service manager."""

    address: str | None = None
    watchdog_s: float | None = None
    """The manager's WatchdogSec=, or None when it does not watch."""
    unsent: int = 0

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Read and remove NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, so that children cannot notify for the service."""
        address = environment.pop("NOTIFY_SOCKET", None)
        usec = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", str(os.getpid()))
        watched = usec.isdigit() and int(usec) > 0 and pid == str(os.getpid())
        return cls(address, int(usec) / 1e6 if watched else None)

    def send(self, *lines: str) -> bool:
        """Send one datagram of `VARIABLE=value` lines; return False when it could not be sent."""
        if not self.address:
            return False
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto("\n".join(lines).encode(), name)
        except OSError:
            self.unsent += 1
            return False
        return True

    def ready(self, status: str) -> None:
        """Report that the service is ready, after the start or a reload."""
        self.send("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """Report that a reload begins; `ready` ends it. Type=notify-reload needs MONOTONIC_USEC."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")

    def stopping(self, status: str = "draining") -> None:
        """Report that the shutdown begins."""
        self.send("STOPPING=1", f"STATUS={_line(status)}")

    def extend(self, seconds: float) -> None:
        """Ask for `seconds` from now before a time-out."""
        self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def status(self, text: str) -> None:
        """Set the text that `systemctl status` shows."""
        self.send(f"STATUS={_line(text)}")

    def watchdog(self) -> None:
        """Feed the watchdog."""
        self.send("WATCHDOG=1")


@dataclass(slots=True)
class Feeder:
    """Feed the watchdog and report READY, from completed ticks only: it has no timer.

    A tick counts when the agent was ready and the gate has answered it. A missing stream does not count against it: no restart
    of the service plugs in a camera. The daemon is degraded then, and its driver reconnects.
    """

    notifier: Notifier
    required: frozenset[str]
    """Streams without which the daemon is degraded; named in the manager's status line."""
    ready_sent: bool = False
    fed_s: float = float("-inf")

    def ticked(self, *, ready: bool, stale: tuple[str, ...], now_s: float, status: str) -> bool:
        """Register one tick that the gate has answered; return whether the manager was notified."""
        if not ready:
            return False
        missing = sorted(self.required.intersection(stale))
        if missing:
            status = f"degraded: no recent data from {', '.join(missing)}"
        if not self.ready_sent:
            self.ready_sent = True
            self.notifier.ready(status)
        elif now_s - self.fed_s < (self.notifier.watchdog_s or 1.0) / 5:
            return False
        self.fed_s = now_s
        if self.notifier.watchdog_s is not None:
            self.notifier.watchdog()
        return True


def _line(text: str) -> str:
    return " ".join(text.split())
