"""How long a message takes through a broker as it comes (mosquitto's default keeps Nagle's algorithm on): `bench_wire.py [ROUNDS]`.

A sender publishes pairs of small QoS 0 messages fifty times a second, as a tick does (a command and its decision). The receiver is
the daemon's connection, with and without acknowledging at once, in turn; and with a broker that has `set_tcp_nodelay` on. Prints
the median and the 99th percentile of publish to handler, medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from free_ports import free_port  # noqa: E402 - the path comes first
from wire_helpers import address, running  # noqa: E402 - the path comes first

from fakes import Mosquitto  # noqa: E402 - the path comes first
from runtime.mqtt import (  # noqa: E402
    Connection,
    Message,
)
from runtime.mqtt import aiomqtt_client as own  # noqa: E402 - the path comes first

RATE_HZ, SECONDS = 50, 10


async def latencies(broker: Mosquitto) -> list[float]:
    """Milliseconds from publish to handler."""
    found: list[float] = []

    def took(message: Message) -> None:
        found.append(1_000 * (time.monotonic() - float(message.payload)))

    sender, receiver = (Connection(address(broker.port), name) for name in ("sender", "receiver"))
    receiver.subscribe("command", took, qos=0)
    receiver.subscribe("decision", lambda _: None, qos=0)
    async with AsyncExitStack() as stack:
        for link in (receiver, sender):
            await stack.enter_async_context(running(link))
        for _ in range(RATE_HZ * SECONDS):
            for topic in ("decision", "command"):
                sender.enqueue(topic, f"{time.monotonic():.6f}".encode(), qos=0)
            await asyncio.sleep(1 / RATE_HZ)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=3, help="rounds of each kind")
    rounds = parser.parse_args().rounds
    kinds = (("off", "delayed"), ("off", "at once"), ("on", "delayed"), ("on", "at once"))
    found: dict[tuple[str, str], list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for nodelay, acknowledged in kinds:
            port = free_port()
            settings = (
                f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay {str(nodelay == 'on').lower()}\n"
            )
            broker = Mosquitto(Path(tempfile.mkdtemp()), port, extra=settings).start()
            try:
                if acknowledged == "delayed":
                    with patch.object(own, "acknowledge_at_once", lambda _: None):
                        ms = asyncio.run(latencies(broker))
                else:
                    ms = asyncio.run(latencies(broker))
            finally:
                broker.stop()
            found[nodelay, acknowledged].append((float(np.median(ms)), float(np.percentile(ms, 99))))
    sys.stdout.write(f"{'set_tcp_nodelay':16} {'acknowledged':13} {'p50':>8} {'p99':>8} ms\n")
    for (nodelay, acknowledged), pairs in found.items():
        p50, p99 = (statistics.median(column) for column in zip(*pairs, strict=True))
        sys.stdout.write(f"{nodelay:16} {acknowledged:13} {p50:8.2f} {p99:8.2f}\n")


if __name__ == "__main__":
    main()
