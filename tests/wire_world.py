"""One environment twice: through the simulated device and the messages of the wire, and in lock-step as `reflexd train` has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import orjson
from fakes_plant import Broker

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


def actions(spec: PolicySpec, seed: int) -> Iterator[dict[str, Value]]:
    """Draw the actions of a policy that acts at random."""
    rng, actuator = np.random.default_rng(seed), spec.actions.actuators[0]
    while True:
        if isinstance(actuator, Continuous):
            drawn = rng.uniform(actuator.low, actuator.high).astype(np.float32)
            yield {actuator.name: tuple(map(float, drawn))}
        else:
            yield {actuator.name: str(rng.choice(actuator.choices))}  # type: ignore[union-attr] # no texts here


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
        fields = tuple(settings_of(env, "wire")["streams"]["state"]["fields"])
        plant = GymPlant(env, "wire", self.seed, RATE_HZ)
        broker, telemetry = Broker(plant, "reflexd/wire"), TopicTelemetry("state", None, fields)
        database = Database(self.folder, max_bytes=1 << 30, reserve=0.2, raw_retention_s=1.0)
        drawn, rng, name = actions(spec, self.seed), np.random.default_rng(self.seed), spec.actions.actuators[0].name
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
                    present={"state": True}, ages_s={"state": 0.0}, actions=action, proposed=action, by={name: "policy"},
                    probabilities={name: 1.0},
                )  # fmt: skip
                database.add(row)
                self.rows.append(row)
                while late_s and broker.now_s + PERIOD_S <= due_s:  # meanwhile the device's own clock goes on
                    broker.step(PERIOD_S)
                    seen = self._take(broker, telemetry, database, seen)
                broker.now_s = due_s
                broker.command(action[name], decision)
                seen = self._take(broker, telemetry, database, seen)
                tick = int(np.ceil((due_s - start_s) / PERIOD_S - 1e-9))
        found = [row.transition for row in Reader(self.folder).rows(0, ticks + 1)]
        database.close()
        return found

    def _take(
        self, broker: Broker, telemetry: TopicTelemetry, database: Database, before: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Credit the rewards that arrived and return the tokens of the newest reading."""
        for body in broker.take("reward"):
            message = topics.decode(topics.Reward, orjson.dumps(body))
            credit = Credit(
                message.value, message.decision, message.stamp, message.done, message.source, message.truncated
            )
            database.credit(credit, 0.0)
            self.earned, self.steps = self.earned + message.value, self.steps + 1
        readings = broker.take("in", "state")
        if not readings:
            return before or {}
        reading = telemetry.decode(orjson.dumps(readings[-1]), broker.now_s)
        return {"state": reading.values.astype(np.float32)[None]}


def comparable(rows: list[Transition]) -> list[Transition]:
    """Leave out what is only the last state of an episode, and set aside what names rows alone."""
    same = {"session": "", "tick": 0, "decision": "", "stamp_s": 0.0, "proposed": {}, "by": {}, "probabilities": {}}
    return [replace(row, **same) for row in rows if row.actions]  # type: ignore[arg-type] # names and values fit
