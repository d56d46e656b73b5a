"""How soon a daemon decides: from the start of its process to what `mosquitto_sub` sees on `decision`.

`python tests/benchmarks/bench_start.py [ROUNDS]`. The demo on ports of its own; each round once with an empty `state_dir` and once
again with what the first start left there. `--empty-cache` begins with an empty model cache as well: conversion and
calibration then happen in the first start, as they do on a machine without prepared models. `agent starts` is the time to the start
of the agent's process, which waits for the check of the settings. After the table: processor time and memory of each process of the
last start at its first decision, which other programs of the machine change little.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from free_ports import free_port  # noqa: E402 - after the path

DEADLINE_S = 120.0


def settings(path: Path, folder: Path) -> tuple[Path, int, str]:
    """The settings on free ports and with a state folder below `folder`: the file, the broker's port, the agent."""
    made: dict[str, Any] = yaml.safe_load(path.read_text())
    port = free_port()
    made["state_dir"] = str(folder / "state")
    made["mqtt"] = {"url": f"embedded://127.0.0.1:{port}"}
    for name in ("dashboard", "metrics"):
        if name in made:
            made[name]["listen"] = f"127.0.0.1:{free_port()}"
    file = folder / "start.yaml"
    file.write_text(yaml.safe_dump(made))
    return file, port, made["agent"]


def decisions(port: int, agent: str, until_s: float) -> Iterator[tuple[float, dict[str, Any]]]:
    """When `mosquitto_sub` printed each decision, and the decision; it is started again until the broker listens."""
    command = ["mosquitto_sub", "-p", str(port), "-t", f"reflexd/{agent}/decision"]
    while time.monotonic() < until_s:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watcher:
            timer = threading.Timer(max(0.1, until_s - time.monotonic()), watcher.kill)
            timer.start()
            assert watcher.stdout is not None
            try:
                for line in watcher.stdout:
                    yield time.monotonic(), json.loads(line)
            finally:
                timer.cancel()
                watcher.kill()
        time.sleep(0.02)
    raise SystemExit(f"no decision within {DEADLINE_S:.0f} s")


def usage(daemon: int) -> dict[str, tuple[float, float]]:
    """Return seconds of processor time and megabytes of memory of each process of a daemon, by its title."""
    found = {}
    for process in (psutil.Process(daemon), *psutil.Process(daemon).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            title = " ".join(process.cmdline())[:40]
            found[title] = (times.user + times.system, process.memory_info().rss / 2**20)
    return found


def agent_started_s(log: Path, begun_unix_s: float) -> float:
    """Seconds from the start of the daemon to the start of its agent, by the daemon's log."""
    for line in log.read_text().splitlines():
        if '"child.started"' in line and '"agent"' in line:
            return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp() - begun_unix_s
    return float("nan")


def start(
    file: Path, port: int, agent: str, environment: dict[str, str]
) -> tuple[float, float, float, dict[str, tuple[float, float]]]:
    """Seconds to the agent's start, to the first decision, and to the first that misses no stream; processor time and memory."""
    begun_s, begun_unix_s = time.monotonic(), time.time()
    with (file.parent / "log").open("w") as log:
        command = [sys.executable, "-m", "runtime.cli", "run", str(file)]
        daemon = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
    first_s, used = None, {}
    try:
        for at_s, decision in decisions(port, agent, begun_s + DEADLINE_S):
            if first_s is None:
                first_s, used = at_s - begun_s, usage(daemon.pid)
            if not decision["missing"]:
                return agent_started_s(file.parent / "log", begun_unix_s), first_s, at_s - begun_s, used
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
    raise SystemExit("the daemon ended")


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--empty-cache", action="store_true", help="begin each round with an empty model cache")
    parser.add_argument("--log", action="store_true", help="show the log of the daemon")
    given = parser.parse_args()
    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    used: dict[str, tuple[float, float]] = {}
    found: dict[str, list[tuple[float, ...]]] = {"empty state_dir": [], "again": []}
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            environment = dict(os.environ) | ({"REFLEXD_CACHE": str(folder / "cache")} if given.empty_cache else {})
            for times in found.values():
                *moments, used = start(*settings(given.config, folder), environment)
                times.append(tuple(moments))
                if given.log:
                    print((folder / "log").read_text())
    print(
        f"{'start with':18}{'agent starts, s':>16}{'first decision, s':>20}{'worst':>8}{'no stream missing':>20}{'worst':>8}"
    )
    for what, times in found.items():
        agent, first, whole = ([each[i] for each in times] for i in range(3))
        print(
            f"{what:18}{statistics.median(agent):16.1f}{statistics.median(first):20.1f}{max(first):8.1f}{statistics.median(whole):20.1f}{max(whole):8.1f}"
        )
    print(f"{'process':40}{'processor, s':>14}{'MB':>6}")
    for title, (seconds, megabytes) in used.items():
        print(f"{title:40}{seconds:14.2f}{megabytes:6.0f}")
    print(f"{'all':40}{sum(seconds for seconds, _ in used.values()):14.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
