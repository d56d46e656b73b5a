"""Learn the heater of the simulated room in virtual time, with the settings of `configs/thermostat.yaml`, against a thermostat rule.

    python tests/benchmarks/bench_thermostat.py --seeds 0 1 2
    python tests/benchmarks/bench_thermostat.py --seeds 0 --algorithm xqc --minutes 30

The learner, the policy and the room are those of the daemon. Broker, gate and promotion take no part: every `promote_every_s` the
acting policy becomes what the learner has. Times are of the room: a command takes effect 50 ms after its reading.

- `error`: mean distance of the true temperature from 22 degrees, from `--minutes` on, over as many minutes.
- `furthest`: largest distance until then, after the room first reached 22 degrees.
- `switches`: of the heater an hour, from `--minutes` on; `rule`: switches of a rule (off above 22 + h, on below 22 - h) with the largest
  h that has no larger error.

The goals are an error of at most 0.35 K after 10 minutes, at most 4 K on the way, and fewer switches than the rule.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from actuators.actions import ActionSpace, Choice  # noqa: E402 - after the path
from actuators.sim.room_plant import COMMAND, SENSOR, RoomPlant  # noqa: E402
from learners.experience.transition import Transition  # noqa: E402
from learners.model.features import Features, recorded  # noqa: E402
from learners.model.heads import actuator_values  # noqa: E402
from learners.model.policy import Policy, build  # noqa: E402
from learners.model.spec import PolicySpec, StreamSpec  # noqa: E402
from learners.rl.algorithm import Algorithm  # noqa: E402
from learners.rl.replay_buffer import ReplayBuffer  # noqa: E402
from runtime.config.loader import load  # noqa: E402

WANTED_C = 22.0
LATENCY_S = 0.05
WORDS = ("OFF", "ON")


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
    """The plant with a clock."""

    def __init__(self, seed: int) -> None:
        self.plant, self.now_s = RoomPlant(seed), 0.0
        self.temperatures_C: list[float] = []
        self.on: list[bool] = []

    def read(self) -> float:
        """Advance by a second and return the thermometer's reading, in degrees Celsius."""
        self.now_s += 1.0
        (found,) = [m for m in self.plant.step(self.now_s) if m.topic == SENSOR]
        self.temperatures_C.append(self.plant.temperature_c)
        return float(orjson.loads(found.payload)["temperature"])

    def command(self, word: str) -> None:
        """Switch the heater, as late as a daemon does."""
        self.plant.receive(COMMAND, word.encode(), retained=False, now_s=self.now_s + LATENCY_S)
        self.on.append(word == "ON")


def of_rule(seed: int, seconds: int, half_K: float) -> Trace:
    """Let a thermostat rule with a dead band of 2 `half_K` control the room."""
    room, word = Room(seed), "OFF"
    for _ in range(seconds):
        reading = room.read()
        word = "ON" if reading < WANTED_C - half_K else "OFF" if reading > WANTED_C + half_K else word
        room.command(word)
    return Trace(room.temperatures_C, room.on)


def learned(seed: int, seconds: int, algorithm: str | None) -> Trace:
    """Learn for a number of seconds of the room."""
    config = load(ROOT / "configs/thermostat.yaml").config
    p, learner = config.policy, config.learner
    torch.manual_seed(seed)
    spec = PolicySpec(
        (StreamSpec("room", "telemetry", 1, 1, fields=("temperature",)),),
        ActionSpace((Choice("heater", WORDS),)),
        history=p.history,
        gamma=p.gamma,
        hidden=tuple(p.hidden),
        algorithm=algorithm or p.algorithm,  # type: ignore[arg-type]
    )
    policy = Policy(spec).eval()
    acting = build(spec, policy.state_dict())
    generator = torch.Generator().manual_seed(seed)
    learning = Algorithm(policy, generator)
    settle = round(learner.reward_delay_s)
    replay = ReplayBuffer(spec, max_bytes=1 << 24, steps=learner.n_step, settle=settle, centre=learner.center_rewards)
    room, window = Room(seed), deque[Features](maxlen=spec.history)
    before: tuple[dict[str, np.ndarray], str] | None = None  # type: ignore[type-arg]
    for tick in range(seconds):
        reading = room.read()
        token = {"room": np.array([[reading]], np.float32)}
        if before is not None:
            row = Transition(
                "s", tick, str(tick), 0.0, "p", before[0], {}, {"room": True}, {"room": 0.0}, {"heater": before[1]},
                reward=-abs(reading - WANTED_C),
            )  # fmt: skip
            learning.normalise(recorded(spec, [before[0]], [{"room": True}], [{"room": 0.0}]))
            replay.append(row, tick)
        one = recorded(spec, [token], [{"room": True}], [{"room": 0.0}])
        window.append(one)
        frames = [window[0]] * (spec.history - len(window)) + list(window)
        tokens = {"room": torch.stack([f.tokens["room"] for f in frames], 1)}
        present = torch.stack([f.present for f in frames], 1)
        found = acting.act(Features(tokens, present, torch.zeros(present.shape)), generator=generator, explore=True)
        word = str(actuator_values(spec.actions, found)["heater"])
        room.command(word)
        before = (token, word)
        if tick > learner.warmup:
            for _ in range(int(learner.updates_per_step)):
                if learning.needs_return_scale:
                    learning.rescale(replay.return_scale())
                learning.update(replay.sample(learner.batch, generator))
        if tick % int(learner.promote_every_s) == 0:
            acting = build(spec, {name: x.clone() for name, x in policy.state_dict().items()})
    return Trace(room.temperatures_C, room.on)


def main() -> None:
    """Print one line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0, help="of learning; as many are measured after it")
    parser.add_argument("--algorithm", help="instead of the settings' one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    half = round(arguments.minutes * 60)
    for seed in arguments.seeds:
        trace = learned(seed, 2 * half, arguments.algorithm)
        error = trace.error(half)
        rules = [of_rule(seed, 2 * half, h) for h in np.arange(0.0, 2.0, 0.02)]
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
            f"switches {trace.switches(half):.0f} an hour, rule {switches}; error of each minute {' '.join(minutes)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
