"""What one open page costs: bytes a second on its connection, and the share of a core of the page's process.

A demo-like agent (4 streams, 1 actuator) and a large one (40 streams, 12 actuators) publish at 10 Hz to a mosquitto; the page's
process serves one browser that shows every stream. Pictures are not counted: they are sent as they came.

`python tests/benchmarks/bench_page.py [--seconds S] [--seed N]`
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from free_ports import free_port  # noqa: E402 - after the path

from fakes import Mosquitto, listening, wait_for  # noqa: E402 - after the path
from runtime.config.schema import Config  # noqa: E402 - after the path
from runtime.gate.info import describe  # noqa: E402 - after the path
from runtime.mqtt import Address, Connection  # noqa: E402 - after the path
from runtime.mqtt.topics import Topics, encode  # noqa: E402 - after the path

RATE_HZ = 10.0
PREVIEW_TICKS = 4
"""The agent previews a stream at most so often."""
TOKEN = "bench-token-of-the-operator"


@dataclass(frozen=True)
class Size:
    """How large an agent is."""

    name: str
    telemetry: int
    texts: int
    choices: int
    arms: int


SIZES = (Size("demo", 3, 1, 1, 0), Size("large", 36, 4, 8, 4))


def settings(size: Size, folder: Path, broker: int, page: int) -> dict[str, Any]:
    """Return the settings of an agent of this size."""
    streams: dict[str, Any] = {
        f"sensor-{i:02d}": {"kind": "telemetry", "source": "topic", "fields": ["temperature", "pressure"]}
        for i in range(size.telemetry)
    }
    streams |= {f"text{i}": {"kind": "text", "source": "topic", "encoder": "language"} for i in range(size.texts)}
    actuators: dict[str, Any] = {
        f"drawer-{i}": {"kind": "choice", "choices": [f"position-{k}" for k in range(6)], "safe": "position-0"}
        for i in range(size.choices)
    }
    actuators |= {
        f"arm-{i}": {"kind": "continuous", "low": [-1] * 7, "high": [1] * 7, "safe": [0] * 7} for i in range(size.arms)
    }
    return {
        "agent": "bench",
        "state_dir": str(folder / "state"),
        "mqtt": {"url": f"mqtt://127.0.0.1:{broker}"},
        "streams": streams,
        "encoders": {"language": {"model": "bundled:minilm-l6"}},
        "actuators": actuators,
        "dashboard": {"listen": f"127.0.0.1:{page}", "token": TOKEN},
    }


async def act(config: Config, link: Connection, seconds: float, chance: random.Random) -> None:
    """Publish what an agent of this size publishes."""
    topics = Topics(config.agent)
    link.enqueue(
        topics("info"), encode(describe(config, version="0.1.0", policy="000001-00000000")), qos=1, retain=True
    )
    link.enqueue(topics("status"), encode({"state": "online", "reasons": []}), qos=1, retain=True)
    began_s, tick = time.monotonic(), 0
    while time.monotonic() - began_s < seconds:
        tick += 1
        actions = {}
        for name, about in config.actuators.items():
            if about.kind == "choice":
                raw = [chance.random() for _ in about.choices]
                share = {c: round(r / sum(raw), 4) for c, r in zip(about.choices, raw, strict=True)}
                value: Any = max(share, key=share.__getitem__)
                actions[name] = {"value": value, "probability": share[value], "probabilities": share}
            else:
                value = [round(chance.uniform(-1, 1), 4) for _ in range(7)]
                actions[name] = {"value": value, "probability": round(chance.random(), 4)}
            body = {"value": value, "seq": tick, "boot": "b1", "decision": f"s-{tick}", "stamp": time.time()}
            link.enqueue(topics.command(name), encode(body | {"ttl_ms": 300, "policy": "000001-00000000"}))
            link.enqueue(topics.state(name), encode({"value": value, "seq": tick, "boot": "b1"}))
        ages = {name: round(chance.uniform(0, 90), 1) for name in config.streams}
        decision = {
            "id": f"s-{tick}",
            "tick": tick,
            "stamp": time.time(),
            "policy": "000001-00000000",
            "mode": "autonomous",
        }
        decision |= {"actions": actions, "value": round(chance.random(), 4), "reward": round(chance.random(), 4)}
        link.enqueue(topics("decision"), encode(decision | {"ages_ms": ages, "missing": [], "latency_ms": 11.4}))
        for name, stream in config.streams.items():
            if stream.kind == "telemetry" and tick % PREVIEW_TICKS == 0:
                values = {"temperature": chance.random(), "pressure": chance.random()}
                link.enqueue(topics("preview", name), encode({"values": values}))
        if tick % 100 == 1:
            health = {
                "tick": {"p50_ms": 11.2, "p99_ms": 24.9, "overruns": 0, "count": tick},
                "policy": "000001-00000000",
            }
            link.enqueue(topics("health"), encode(health | {"armed": True, "stopped": False, "mode": "autonomous"}))
        await asyncio.sleep(max(0.0, began_s + tick / RATE_HZ - time.monotonic()))


@asynccontextmanager
async def counted(port: int) -> AsyncIterator[tuple[int, list[int]]]:
    """Yield the port of a proxy before `port`, and the number of bytes that came from it."""
    total = [0]

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        while data := await reader.read(65_536):
            total[0] += len(data) * count
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_connection("127.0.0.1", port)
        with suppress(asyncio.CancelledError):  # the end of the benchmark
            await asyncio.gather(pump(reader, out, count=False), pump(back, writer, count=True), return_exceptions=True)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], total
    finally:
        server.close()


async def browse(page: int, config: Config, seconds: float, process: psutil.Process) -> dict[str, float]:
    """Show every stream for a while; return bytes a second and the share of a core."""
    async with counted(page) as (port, total), aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        address = f"http://127.0.0.1:{port}"
        await http.post(f"{address}/login", data={"token": TOKEN}, headers={"Origin": address})
        async with http.ws_connect(f"{address}/socket", origin=address, compress=15) as ws:
            await ws.send_json({"do": "subscribe_previews", "streams": list(config.streams)})
            reading = asyncio.create_task(_read(ws))
            await asyncio.sleep(3.0)
            before, cpu, began_s = total[0], sum(process.cpu_times()[:2]), time.monotonic()
            await asyncio.sleep(seconds)
            took_s = time.monotonic() - began_s
            sent = (total[0] - before) / took_s / 1e3
            share = (sum(process.cpu_times()[:2]) - cpu) / took_s * 100
            reading.cancel()
            return {"kB/s a tab": sent, "% of a core in all": share}


async def _read(ws: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in ws:
        pass


def serve(path: Path) -> subprocess.Popen[bytes]:
    """Start the page's process."""
    return subprocess.Popen([sys.executable, "-m", "runtime.dashboard", str(path)], cwd=ROOT, stderr=subprocess.DEVNULL)


async def measure(size: Size, folder: Path, seconds: float, seed: int) -> dict[str, float]:
    """Return the figures of one size."""
    page = free_port()
    broker = Mosquitto(folder).start()
    path = folder / "bench.yaml"
    known = settings(size, folder, broker.port, page)
    path.write_text(yaml.safe_dump(known))
    config = Config.model_validate(known)
    process = serve(path)
    link = Connection(Address("127.0.0.1", broker.port), "bench-agent", max_outgoing=2_000)
    running = asyncio.create_task(link.run())
    try:
        await asyncio.to_thread(wait_for, lambda: listening(page), "the page")
        await link.up()
        acting = asyncio.create_task(act(config, link, 2 * seconds + 30, random.Random(seed)))
        await asyncio.sleep(3.0)
        idle, began_s = sum(psutil.Process(process.pid).cpu_times()[:2]), time.monotonic()
        await asyncio.sleep(seconds / 2)
        used = sum(psutil.Process(process.pid).cpu_times()[:2]) - idle
        alone = used / (time.monotonic() - began_s) * 100
        figures = await browse(page, config, seconds, psutil.Process(process.pid))
        figures["% of a core without a tab"] = alone
        acting.cancel()
        assert not link.drops["outgoing full"], "this machine is too busy for the benchmark's agent"
        return figures
    finally:
        running.cancel()
        process.terminate()
        await asyncio.to_thread(process.wait, 20)
        broker.stop()


def main(arguments: list[str] | None = None) -> None:
    """Print the figures of every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            figures = asyncio.run(measure(size, Path(folder), given.seconds, given.seed))
        print(f"{size.name:<8}" + "  ".join(f"{value:8.1f} {name}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
