"""How the demo learns: its score over time, as numbers, a table and a plot.

`python tests/benchmarks/demo_curve.py --minutes 10 --seeds 0 1 2 3 --out runs/demo`. Score = (policy - random) / (oracle - random) of
the mean reward of the last minute; oracle and random are scripted heads in the same world at the same time (topic `plant`).

With `--virtual` the daemon runs in virtual time (`tests/virtual_daemon.py`): the learner does every update that it owes, however busy the
machine is, and the same seed gives the same run. The files are then `curve.jsonl` and `events.jsonl`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import paho.mqtt.client as mqtt
import structlog
import torch
import yaml
from paho.mqtt.enums import CallbackAPIVersion

mpl.use("Agg")
from matplotlib import pyplot as plt

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from free_ports import free_port  # noqa: E402 - after the path
from virtual_daemon import virtual_daemon  # noqa: E402

MARKS = (1, 2, 5, 8, 9, 10)
SLACK = 0.05
"""Minutes: the world speaks once a second, and a run of ten minutes ends a little before its tenth."""


def settings(seed: int, folder: Path, port: int, *, simulated_overrides: bool) -> Path:
    config: dict[str, Any] = yaml.safe_load(Path("configs/demo.yaml").read_text())
    config["mqtt"]["url"] = f"embedded://127.0.0.1:{port}"
    config["state_dir"] = str(folder / "state")
    config["plant"] |= {"seed": seed, "simulated_overrides": simulated_overrides}
    config["learner"]["seed"] = seed
    config.pop("dashboard", None)
    config.pop("metrics", None)
    shutil.rmtree(folder, ignore_errors=True)  # from nothing: a state of an earlier run would be resumed
    folder.mkdir(parents=True)
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(seed: int, folder: Path, minutes: float, *, simulated_overrides: bool) -> None:
    """One run from nothing; the score that the world publishes once a second is in `curve.jsonl`."""
    port = free_port()
    rows: list[dict[str, Any]] = []
    config = settings(seed, folder, port, simulated_overrides=simulated_overrides)
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen([sys.executable, "-m", "runtime.cli", "run", str(config)], stdout=log, stderr=log)
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.on_connect = lambda c, *_: c.subscribe([("reflexd/demo/plant", 0), ("reflexd/demo/decision", 0)])
        first = threading.Event()

        def received(_client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
            if message.topic.endswith("decision"):
                first.set()
            elif first.is_set():
                rows.append(json.loads(message.payload))

        client.on_message = received
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                client.connect("127.0.0.1", port)
                break
            except OSError:
                time.sleep(0.2)
        client.loop_start()
        first.wait(180)
        time.sleep(minutes * 60)
        client.loop_stop()
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.wait(60)
    write(folder / "curve.jsonl", rows)


async def run_virtual(seed: int, folder: Path, minutes: float, *, simulated_overrides: bool) -> None:
    """Run once from nothing in virtual time, in an empty folder; say every minute how far it is."""
    plant = {"environment": "panorama", "simulated_overrides": simulated_overrides}
    async with virtual_daemon(
        folder, "panorama", seed=seed, config=Path("configs/demo.yaml"), judged=True, plant=plant
    ) as daemon:
        for minute in range(1, math.ceil(minutes) + 1):
            await daemon.run(60.0 * min(1.0, minutes - minute + 1))
            assert daemon.learner is not None
            score = daemon.states[-1][1]["score"]
            state = daemon.parts.experiments.state
            print(
                f"{folder.name} minute {minute}: score {score}, {daemon.learner.learner.position.update} updates, "
                f"{daemon.acted[-1]} acts, leader {state.proof.leader}, trusted {state.trust.anchor}",
                flush=True,
            )
        rows = [body for _, body in daemon.states]
        events = [{"at_s": round(at_s, 1), "type": kind, **data} for at_s, kind, data in daemon.events]
    write(folder / "curve.jsonl", rows)
    write(folder / "events.jsonl", events)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def scores(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Minutes and scores, where the world knew one."""
    start = rows[0]["stamp"] if rows else 0.0
    known = [row for row in rows if row.get("score") is not None]
    return [(row["stamp"] - start) / 60 for row in known], [row["score"] for row in known]


def tell(folder: Path) -> None:
    """A line of a run's scores."""
    minutes, values = scores([json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()])
    marks = {
        m: next((round(v, 2) for t, v in zip(minutes, values, strict=True) if t >= m - SLACK), None) for m in MARKS
    }
    print(f"{folder.name}: last {values[-1] if values else None}; at minute {marks}", flush=True)


def draw(out: Path) -> None:
    """Every run that is there, in one plot."""
    paths = sorted(out.glob("seed*/curve.jsonl"))
    if not paths:
        sys.exit(f"{out}: no seed*/curve.jsonl there; run some --seeds first")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for path in paths:
        minutes, values = scores([json.loads(line) for line in path.read_text().splitlines()])
        axes.plot(minutes, values, label=path.parent.name.replace("-", " "))
    axes.axhline(0.7, linestyle=":", color="grey")
    axes.axhline(0.0, linewidth=0.5, color="grey")
    axes.set(xlabel="minutes", ylabel="score of the last minute", title="demo: (policy - random) / (oracle - random)")
    axes.legend()
    figure.savefig(out / "curve.png", dpi=110)
    print(f"plot: {out / 'curve.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3], help="none: only draw what is there")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--no-simulated-overrides", action="store_true", help="the world never corrects")
    parser.add_argument("--virtual", action="store_true", help="in virtual time, at any load of the machine")
    given = parser.parse_args()
    if given.virtual:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    for seed in given.seeds:
        folder = given.out / f"seed{seed}{'-without-overrides' if given.no_simulated_overrides else ''}"
        corrects = not given.no_simulated_overrides
        if given.virtual:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            asyncio.run(run_virtual(seed, folder, given.minutes, simulated_overrides=corrects))
        else:
            run(seed, folder, given.minutes, simulated_overrides=corrects)
        tell(folder)
    draw(given.out)


if __name__ == "__main__":
    main()
