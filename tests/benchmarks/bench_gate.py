"""How fast the gate is at a device when the agent or the broker fails: `python tests/benchmarks/bench_gate.py [REPEATS]`.

A 20 Hz fake agent, the real supervisor, a real mosquitto, a simulated device; each fault `REPEATS` times (default 20). Prints
the distribution in ms and the bound; the exit code is 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faults.harness import Daemon, Device, under_test  # noqa: E402 - after the path

from fakes import Mosquitto, eventually  # noqa: E402 - after the path

PERIOD_MS, DEADMAN_MS, MARGIN_MS = 50, 150, 50
FROZEN_MS = PERIOD_MS + DEADMAN_MS + MARGIN_MS
KILLS_A_DAEMON = 4
"""More within a minute would end it, as it should."""
Measure = Callable[[Mosquitto, Daemon, Device], Awaitable[dict[str, float]]]


async def killed(_broker: Mosquitto, daemon: Daemon, device: Device) -> dict[str, float]:
    return {"agent kill -9 -> safe": await _fault(daemon, device, signal.SIGKILL)}


async def frozen(_broker: Mosquitto, daemon: Daemon, device: Device) -> dict[str, float]:
    took_s = await _fault(daemon, device, signal.SIGSTOP)
    daemon.agent().send_signal(signal.SIGCONT)
    return {"agent SIGSTOP -> safe": took_s}


async def locked(_broker: Mosquitto, daemon: Daemon, device: Device) -> dict[str, float]:
    return {"interpreter lock held 3 s -> safe": await _fault(daemon, device, signal.SIGUSR1)}


async def broker_frozen(broker: Mosquitto, daemon: Daemon, device: Device) -> dict[str, float]:
    return await _broker_fault(broker, daemon, device, freeze=True)


async def broker_killed(broker: Mosquitto, daemon: Daemon, device: Device) -> dict[str, float]:
    return await _broker_fault(broker, daemon, device, freeze=False)


async def _fault(daemon: Daemon, device: Device, number: signal.Signals) -> float:
    await device.moving()
    agent = daemon.agent()
    begun_s = time.monotonic()
    agent.send_signal(number)
    return await device.safe_after(begun_s, timeout_s=10)


async def _broker_fault(broker: Mosquitto, daemon: Daemon, device: Device, *, freeze: bool) -> dict[str, float]:
    await device.moving()
    lost, back = _count(daemon, "broker_lost"), _count(daemon, "broker_recovered")
    broker.signal(signal.SIGSTOP) if freeze else broker.stop()
    noticed_s = await eventually(lambda: _count(daemon, "broker_lost") > lost, "noticing")
    await asyncio.sleep(2.0)  # into the back-off's longest wait
    broker.signal(signal.SIGCONT) if freeze else broker.start()
    back_s = await eventually(lambda: _count(daemon, "broker_recovered") > back, "reconnecting")
    await eventually(lambda: device.connection.connected, "the device's own return")
    await eventually(lambda: device.statuses[-1]["state"] == "online", "the retained status")
    await device.moving()
    name = "broker SIGSTOP" if freeze else "broker kill -9"
    return {f"{name} -> noticed": noticed_s, f"{name} -> reconnected": back_s}


def _count(daemon: Daemon, kind: str) -> int:
    return daemon.log.read_text().count(f'"type":"{kind}"')


BOUNDS_MS = {
    "agent kill -9 -> safe": 50,
    "agent SIGSTOP -> safe": FROZEN_MS,
    "interpreter lock held 3 s -> safe": FROZEN_MS,
    "broker SIGSTOP -> noticed": 1_000,
    "broker SIGSTOP -> reconnected": 3_000,
    "broker kill -9 -> noticed": 1_000,
    "broker kill -9 -> reconnected": 3_000,
}


async def repeat(measure: Measure, repeats: int, times: dict[str, list[float]]) -> tuple[int, float]:
    """Fill `times` (ms); returns how many commands the devices carried out and the oldest one's age in ms."""
    done, oldest = 0, 0.0
    left = repeats
    while left:
        now = min(left, KILLS_A_DAEMON)
        left -= now
        with tempfile.TemporaryDirectory() as folder:
            broker = Mosquitto(Path(folder)).start()
            try:
                async with under_test(Path(folder), broker) as (daemon, device):
                    for _ in range(now):
                        for name, took_s in (await measure(broker, daemon, device)).items():
                            times.setdefault(name, []).append(took_s * 1e3)
            finally:
                broker.stop()
        done += len(device.done)
        oldest = max(oldest, *(age * 1e3 for age in device.ages_s))
    return done, oldest


async def main(repeats: int) -> int:
    times: dict[str, list[float]] = {}
    done, oldest = 0, 0.0
    for measure in (killed, frozen, locked, broker_frozen, broker_killed):
        more, age = await repeat(measure, repeats, times)
        done, oldest = done + more, max(oldest, age)
    print(f"{'ms':34}{'n':>4}{'min':>9}{'median':>9}{'p95':>9}{'max':>9}{'bound':>8}")
    missed = 0
    for name, values in times.items():
        ordered = sorted(values)
        p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
        late = ordered[-1] > BOUNDS_MS[name]
        missed += late
        figures = (ordered[0], statistics.median(ordered), p95, ordered[-1])
        print(
            f"{name:34}{len(ordered):>4}"
            + "".join(f"{v:9.1f}" for v in figures)
            + f"{BOUNDS_MS[name]:8}{' MISSED' if late else ''}"
        )
    print(f"{done} commands carried out; the oldest was {oldest:.1f} ms old (ttl 300 ms)")
    return 1 if missed else 0


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repeats", nargs="?", type=int, default=20, help="measurements of each reaction")
    sys.exit(asyncio.run(main(parser.parse_args().repeats)))
