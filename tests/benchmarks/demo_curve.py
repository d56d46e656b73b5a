"""How the demo learns: its score over time, as numbers, a table and a plot.

`python tests/benchmarks/demo_curve.py --minutes 10 --seeds 0 1 2 3 --out runs/demo`. Score = (policy - random) / (oracle - random) of
the mean reward of the last minute; oracle and random are scripted heads in the same world at the same time (topic `plant`).
"""

from __future__ import annotations

import argparse
import json
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
import yaml
from paho.mqtt.enums import CallbackAPIVersion

mpl.use("Agg")
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))
from free_ports import free_port

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
    (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    given = parser.parse_args()
    for seed in given.seeds:
        folder = given.out / f"seed{seed}{'-without-overrides' if given.no_simulated_overrides else ''}"
        run(seed, folder, given.minutes, simulated_overrides=not given.no_simulated_overrides)
        tell(folder)
    draw(given.out)


if __name__ == "__main__":
    main()
