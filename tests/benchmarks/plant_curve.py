"""Learning over the wire, from nothing: mosquitto as it comes, `reflexd plant ENV`, `reflexd run` with the settings that fit.

    python tests/benchmarks/plant_curve.py --env CartPole-v1 --seeds 0 1 --minutes 30

The daemon gets only what `reflexd plant ENV --config` prints and the seed. Prints a line for each version that goes live and each that comes
back out, the mean return of the last 20 episodes (explored, as it acts) minute by minute, and when that first reached `--goal`; a run goes
on for `--hold` minutes after that, and ends early when they are over.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.enums import CallbackAPIVersion

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from free_ports import free_port  # noqa: E402 - after the path

from fakes import Mosquitto, connect_when_up  # noqa: E402 - after the path

EPISODES = 20
SHOWN = ("policy_promoted", "policy_rejected", "policy_rolled_back")


@dataclass
class Seen:
    """What passed by since the plant's first episode."""

    began_s: float = field(default_factory=time.monotonic)
    means: list[tuple[float, float]] = field(default_factory=list)
    """Seconds, mean return of the last episodes."""
    events: list[str] = field(default_factory=list)

    def received(self, message: mqtt.MQTTMessage) -> None:
        """Take a message of the plant, or an event."""
        body, at_s = json.loads(message.payload), time.monotonic() - self.began_s
        if message.topic.endswith("/plant"):
            if body["episodes_in_mean"] == EPISODES:
                self.means.append((at_s, body["mean_return"]))
        elif body["type"] in SHOWN:
            line = f"{at_s / 60:5.1f} min  {body['type']} {body['data'].get('version', '')}"
            self.events.append(line)
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def reached(self, goal: float) -> float | None:
        """Seconds until the mean return first was at the goal."""
        return next((at_s for at_s, mean in self.means if mean >= goal), None)

    def minutes(self) -> list[tuple[int, float]]:
        """The last mean of every minute."""
        last = {int(at_s // 60) + 1: mean for at_s, mean in self.means}
        return sorted(last.items())


def settings(environment: str, folder: Path, url: str, seed: int) -> Path:
    """What `reflexd plant --config` prints, with a seed and a folder."""
    printed = subprocess.run(
        [sys.executable, "-m", "runtime.cli", "plant", environment, "--agent", "bench", "--mqtt", url, "--config"],
        check=True, capture_output=True, text=True, cwd=ROOT,
    ).stdout  # fmt: skip
    config: dict[str, Any] = yaml.safe_load(printed)
    config |= {"state_dir": str(folder / "state"), "learner": {**config["learner"], "seed": seed}}
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(environment: str, seed: int, minutes: float, goal: float, hold: float) -> Seen:
    """One run from nothing."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        broker = Mosquitto(folder, port, extra=f"listener {port} 127.0.0.1\nallow_anonymous true\n").start()
        stack.callback(broker.stop)
        path = settings(environment, folder, broker.url, seed)
        seen = Seen()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.on_connect = lambda c, *_: c.subscribe([("reflexd/bench/plant", 0), ("reflexd/bench/event", 0)])
        client.on_message = lambda _client, _data, message: seen.received(message)
        connect_when_up(client, port, 10.0)
        stack.callback(client.loop_stop)
        log = stack.enter_context((folder / "log").open("w"))
        plant = ["plant", environment, "--agent", "bench", "--mqtt", broker.url, "--seed", str(seed)]
        for arguments in (plant, ["run", str(path)]):
            child = subprocess.Popen(
                [sys.executable, "-m", "runtime.cli", *arguments], stdout=log, stderr=log, cwd=ROOT
            )
            stack.callback(child.wait)
            stack.callback(child.send_signal, signal.SIGINT)
        stack.callback(client.disconnect)  # first of all: a plant without its daemon falls
        until, over = time.monotonic() + 60 * minutes, threading.Event()
        while time.monotonic() < until:
            over.wait(1.0)
            at_s = seen.reached(goal)
            if at_s is not None and time.monotonic() - seen.began_s - at_s > 60 * hold:
                break
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--goal", type=float, default=475.0)
    parser.add_argument("--hold", type=float, default=2.0)
    given = parser.parse_args()
    for seed in given.seeds:
        seen = run(given.env, seed, given.minutes, given.goal, given.hold)
        at_s = seen.reached(given.goal)
        outcome = "not reached" if at_s is None else f"reached after {at_s / 60:.1f} minutes"
        sys.stdout.write(f"{given.env}, seed {seed}: mean return {given.goal:g} of {EPISODES} episodes {outcome}\n")
        sys.stdout.write("  by minute: " + " ".join(f"{minute}:{mean:.0f}" for minute, mean in seen.minutes()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
