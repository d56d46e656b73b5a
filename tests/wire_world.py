"""One environment twice: through the simulated device and the messages of the wire, and in lock-step as `reflexd train` has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import orjson
from fakes_plant import Broker
from gymnasium import spaces

from actuators.actions import Continuous, Value
from actuators.sim.gym_plant import GymPlant, settings_of
from learners.experience.database import Database
from learners.experience.reader import Reader
from learners.experience.records import Credit
from learners.experience.transition import Transition
from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.model.spec import PolicySpec
from runtime.mqtt import topics
from sensors.streams.telemetry import TopicTelemetry

RATE_HZ = 50.0
PERIOD_S = 1 / RATE_HZ


class EveryEnding(gymnasium.Env[dict[str, Any], Any]):
    """Episodes of 1 to 12 steps that end in the world, by their time, or by both at once; it draws its own numbers.

    Args:
        space: `several` choices with numbers from another one than 0, `one` such choice, or a `motion`.
    """

    metadata = {"render_modes": [], "render_fps": 50}  # noqa: RUF012 - as gymnasium declares it
    observation_space = spaces.Dict({"joints": spaces.Box(-9.0, 9.0, (3,), np.float32), "room": spaces.Discrete(4)})
    SPACES: ClassVar[dict[str, spaces.Space[Any]]] = {
        "several": spaces.MultiDiscrete([3, 2], start=[2, 0]),
        "one": spaces.Discrete(3, start=1),
        "motion": spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 5.0], np.float32)),
    }

    def __init__(self, space: str) -> None:
        self.action_space = self.SPACES[space]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw how long the episode is and how it ends."""
        super().reset(seed=seed, options=options)
        self.left = int(self.np_random.integers(1, 13))
        self.terminates, self.truncates = [(True, False), (False, True), (True, True)][self.np_random.integers(3)]
        return self._seen(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Earn what the action is worth, and noise."""
        self.left -= 1
        earned = float(np.sum(action)) + float(self.np_random.normal() * 100)
        is_over = self.left == 0
        return self._seen(), earned, is_over and self.terminates, is_over and self.truncates, {}

    def _seen(self) -> dict[str, Any]:
        joints = self.np_random.uniform(-9, 9, 3).astype(np.float32)
        return {"joints": joints, "room": int(self.np_random.integers(4))}


for name in EveryEnding.SPACES:
    gymnasium.register(f"EveryEnding-{name}-v0", EveryEnding, kwargs={"space": name}, disable_env_checker=True)


def actions(spec: PolicySpec, seed: int) -> Iterator[dict[str, Value]]:
    """Draw the actions of a policy that acts at random."""
    rng = np.random.default_rng(seed)
    while True:
        drawn: dict[str, Value] = {}
        for actuator in spec.actions.actuators:
            if isinstance(actuator, Continuous):
                numbers = rng.uniform(actuator.low, actuator.high).astype(np.float32)
                drawn[actuator.name] = tuple(map(float, numbers))
            else:
                drawn[actuator.name] = str(rng.choice(actuator.choices))  # type: ignore[union-attr] # no texts here
        yield drawn


def lock_step(environment: str, seed: int, steps: int) -> tuple[PolicySpec, list[Transition]]:
    """Return the rows that `reflexd train` stores."""
    rows: list[Transition] = []

    class Recorder(GymTrainer):
        def _keep(self, transition: Transition) -> None:
            rows.append(transition)
            super()._keep(transition)

        def _decide(self) -> dict[str, Value]:
            return next(drawn)

        def _learn(self, step: int) -> None:
            del step

        def evaluate(self, step: int) -> Any:
            del step

    trainer = Recorder(lambda: gymnasium.make(environment), seed=seed, settings=TrainSettings(memory_bytes=1 << 20))
    drawn = actions(trainer.spec, seed)
    trainer.run(steps)
    return trainer.spec, rows


@dataclass
class Wire:
    """A device, a daemon's path from its messages to rows, and a clock."""

    environment: str
    seed: int
    folder: Path
    overruns: float = 0.0
    """Share of ticks at which the command comes one to two periods late."""
    earned: float = 0.0
    """All rewards of the environment."""
    steps: int = 0
    rows: list[Transition] = field(default_factory=list)

    def run(self, spec: PolicySpec, ticks: int) -> list[Transition]:
        """Act for some ticks; return the stored rows."""
        env = gymnasium.make(self.environment)
        streams = settings_of(env, "wire")["streams"]
        telemetry = {name: TopicTelemetry(name, None, tuple(each["fields"])) for name, each in streams.items()}
        plant = GymPlant(env, "wire", self.seed, RATE_HZ)
        broker = Broker(plant, "reflexd/wire")
        database = Database(self.folder, max_bytes=1 << 30, reserve=0.2, raw_retention_s=1.0)
        drawn, rng, names = actions(spec, self.seed), np.random.default_rng(self.seed), list(plant.devices)
        broker.step(0.0)
        start_s, tick = broker.now_s, 0
        seen = self._take(broker, telemetry, database)
        with database:
            while len(self.rows) < ticks:
                action, decision = next(drawn), f"s-{tick}"
                late_s = float(rng.uniform(1, 2)) * PERIOD_S if rng.random() < self.overruns else 0.0
                due_s = start_s + (tick + 1) * PERIOD_S + late_s
                row = Transition(
                    session="s", tick=tick, decision=decision, stamp_s=start_s + tick * PERIOD_S, policy="", tokens=seen,
                    present=dict.fromkeys(seen, True), ages_s=dict.fromkeys(seen, 0.0), actions=action, proposed=action,
                    by=dict.fromkeys(names, "policy"), probabilities=dict.fromkeys(names, 1.0),
                )  # fmt: skip
                database.add(row)
                self.rows.append(row)
                while late_s and broker.now_s + PERIOD_S <= due_s:  # meanwhile the device's own clock goes on
                    broker.step(PERIOD_S)
                    seen = self._take(broker, telemetry, database, seen)
                broker.now_s = due_s
                for index, name in enumerate(names):
                    broker.command(action[name], decision, index=index)
                seen = self._take(broker, telemetry, database, seen)
                tick = int(np.ceil((due_s - start_s) / PERIOD_S - 1e-9))
        found = [row.transition for row in Reader(self.folder).rows(0, ticks + 1)]
        database.close()
        return found

    def _take(
        self,
        broker: Broker,
        telemetry: dict[str, TopicTelemetry],
        database: Database,
        before: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Credit the rewards that arrived and return the tokens of the newest reading."""
        for body in broker.take("reward"):
            message = topics.decode(topics.Reward, orjson.dumps(body))
            credit = Credit(
                message.value, message.decision, message.stamp, message.done, message.source, message.truncated
            )
            database.credit(credit, 0.0)
            self.earned, self.steps = self.earned + message.value, self.steps + 1
        seen = dict(before or {})
        for name, decoder in telemetry.items():
            readings = broker.take("in", name)
            if readings:
                values = decoder.decode(orjson.dumps(readings[-1]), broker.now_s).values
                seen[name] = values.astype(np.float32)[None]
        return seen


def comparable(rows: list[Transition]) -> list[Transition]:
    """Leave out what is only the last state of an episode, and set aside what names rows alone."""
    same = {"session": "", "tick": 0, "decision": "", "stamp_s": 0.0, "proposed": {}, "by": {}, "probabilities": {}}
    return [replace(row, **same) for row in rows if row.actions]  # type: ignore[arg-type] # names and values fit
