"""Learn the heater of the simulated room in virtual time, with the settings of `configs/thermostat.yaml`, against a thermostat rule.

    python tests/benchmarks/bench_thermostat.py --seeds 20 21 22
    python tests/benchmarks/bench_thermostat.py --seeds 20 --changes '{"policy": {"algorithm": "xqc"}}'

The whole daemon in virtual time (`tests/virtual_daemon.py`), in mode `autonomous` from the start: learner, promotion steps, races and
experiments, and the checks of the gate. Only broker and clocks are replaced. A command takes effect when the reading came, and 0.75 s
later the next one is taken.

- `error`: mean distance of the true temperature from 22 degrees, from `--minutes` on, over as many minutes.
- `furthest`: largest distance until then, after the room first reached 22 degrees.
- `switches`: of the heater an hour, from `--minutes` on; `rule`: switches of a rule (off above 22 + h, on below 22 - h) with the largest
  h that has no larger error. The rule obeys `min_hold_s` as well.

The goals are an error of at most 0.35 K after 10 minutes, at most 4 K on the way, and fewer switches than the rule.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import structlog
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from virtual_daemon import virtual_daemon  # noqa: E402 - after the path

from actuators.sim.room_plant import COMMAND, SENSOR, RoomPlant  # noqa: E402
from actuators.wire import DeviceMessage  # noqa: E402
from runtime.config.loader import load  # noqa: E402

SETTINGS = ROOT / "configs/thermostat.yaml"
WANTED_C = 22.0
LATENCY_S = 0.75
"""From a reading to the command that follows from it, as in the virtual daemon."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The room second by second: true temperatures, and whether the heater was on after the decision."""

    temperatures_C: list[float]
    on: list[bool]

    def error(self, since: int) -> float:
        """Return the mean distance from the wanted temperature, in kelvins."""
        return float(np.abs(np.array(self.temperatures_C[since:]) - WANTED_C).mean())

    def furthest(self, until: int) -> float:
        """Return the largest distance after the wanted temperature was first reached, in kelvins; infinity if it never was."""
        distance = np.array(self.temperatures_C[:until]) - WANTED_C
        reached = np.flatnonzero(np.sign(distance) != np.sign(distance[0]))
        return float(np.abs(distance[reached[0] :]).max()) if len(reached) else float("inf")

    def switches(self, since: int) -> float:
        """Return the switches an hour."""
        on = np.array(self.on[since:], dtype=int)
        return float(np.abs(np.diff(on)).sum()) * 3_600 / len(on)


class Room:
    """The plant with a clock, for the rule."""

    def __init__(self, seed: int) -> None:
        self.plant, self.now_s = RoomPlant(seed), 0.0

    def read(self) -> float:
        """Advance by a second and return the thermometer's reading, in degrees Celsius."""
        self.now_s += 1.0
        (found,) = [m for m in self.plant.step(self.now_s) if m.topic == SENSOR]
        return float(orjson.loads(found.payload)["temperature"])

    def command(self, word: str) -> None:
        """Switch the heater, as late as the daemon does."""
        self.plant.receive(COMMAND, word.encode(), retained=False, now_s=self.now_s + LATENCY_S)


def of_rule(seed: int, seconds: int, half_K: float, hold_s: float) -> Trace:
    """Let a thermostat rule with a dead band of 2 `half_K` control the room; a value stays for `hold_s` at least."""
    room, word, since_s = Room(seed), "OFF", 0.0
    temperatures_C, on = [], []
    for _ in range(seconds):
        reading = room.read()
        temperatures_C.append(room.plant.temperature_c)
        wanted = "ON" if reading < WANTED_C - half_K else "OFF" if reading > WANTED_C + half_K else word
        if wanted != word and room.now_s - since_s >= hold_s:
            word, since_s = wanted, room.now_s
        room.command(word)
        on.append(word == "ON")
    return Trace(temperatures_C, on)


@dataclass
class Watched:
    """A room that notes its temperature at each reading, and the command then in force."""

    room: RoomPlant
    temperatures_C: list[float] = field(default_factory=list)
    on: list[bool] = field(default_factory=list)

    @property
    def period_s(self) -> float:
        """Of the readings."""
        return self.room.period_s

    def subscriptions(self) -> Sequence[str]:
        """List the topics that `receive` needs."""
        return self.room.subscriptions()

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[DeviceMessage]:
        """Switch the heater."""
        return self.room.receive(topic, payload, retained=retained, now_s=now_s)

    def step(self, now_s: float) -> list[DeviceMessage]:
        """Advance, and note."""
        messages = self.room.step(now_s)
        self.temperatures_C.append(self.room.temperature_c)
        self.on.append(self.room.heats)
        return messages


async def learned(seed: int, seconds: int, changes: dict[str, Any]) -> tuple[Trace, str]:
    """Learn for a number of seconds of the room; return what it did and what became of the versions."""
    merged = {"mode": "autonomous", **changes}
    with tempfile.TemporaryDirectory() as folder:
        async with virtual_daemon(Path(folder), "room", seed=seed, config=SETTINGS, judged=True, **merged) as daemon:
            room = daemon.plant = Watched(daemon.plant)  # type: ignore[arg-type]
            await daemon.run(seconds)
            counts = {kind: len(daemon.reported(kind)) for kind in ("policy_promoted", "policy_rolled_back")}
            trusted = daemon.parts.experiments.state.trust.anchor
    return Trace(room.temperatures_C, room.on), f"{counts}, trusted {trusted}"


def main() -> None:
    """Print one line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0, help="of learning; as many are measured after it")
    parser.add_argument("--changes", type=orjson.loads, default={}, help="of the settings, as JSON by section")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    half = round(arguments.minutes * 60)
    hold_s = load(SETTINGS).config.actuators["heater"].min_hold_s
    for seed in arguments.seeds:
        trace, versions = asyncio.run(learned(seed, 2 * half, arguments.changes))
        error = trace.error(half)
        rules = [of_rule(seed, 2 * half, h, hold_s) for h in np.arange(0.0, 2.0, 0.02)]
        fitting = [rule for rule in rules if rule.error(half) <= error]
        switches = (
            f"{fitting[-1].switches(half):.0f}"
            if fitting
            else f"none has so small an error, the least {rules[0].error(half):.2f} K"
        )
        minutes = [
            f"{np.abs(np.array(trace.temperatures_C[60 * m : 60 * m + 60]) - WANTED_C).mean():.2f}"
            for m in range(2 * half // 60)
        ]
        print(
            f"seed {seed}: error {error:.2f} K, furthest {trace.furthest(half):.1f} K, "
            f"switches {trace.switches(half):.0f} an hour, rule {switches}; {versions}; "
            f"error of each minute {' '.join(minutes)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
