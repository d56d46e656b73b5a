"""Orders of several steps: a policy that sees the goal of the deliberator, against one that sees the order alone.

    python tests/benchmarks/bench_rooms.py [--seeds 0 1 2] [--steps 6000] [--episodes 20] [--only goal order]

Both policies learn in lock-step in the corridor of `configs/rooms.yaml`, from the same rewards of the world, for the same number of
steps. Both see the robot's place and the order, as the sentence encoder of the settings reads it. The first also sees the stream `goal`
of the real deliberator, which asks the backend of the settings in the world's time. Then each plays the same fresh episodes greedily.
The simulated time passes only in steps of the world; an answer of the backend comes `LATENCY_S` after its question.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from actuators.sim import rooms_world  # noqa: E402 - after the path
from actuators.sim.rooms_world import DRIVES, ROOMS, TICK_S, RoomsWorld  # noqa: E402 - after the path
from learners.goal_models.answers import GoalAnswer, GoalQuestion  # noqa: E402 - after the path
from learners.goal_models.config import EmbeddingBackend  # noqa: E402 - after the path
from learners.goal_models.local_models import LocalModel, open_model  # noqa: E402 - after the path
from learners.gym.lock_step import GymTrainer, TrainSettings  # noqa: E402 - after the path
from learners.model.encoders.pretrained import load as load_encoder  # noqa: E402 - after the path
from learners.rewards.tick_rewards import expression_names  # noqa: E402 - after the path
from runtime.config.loader import load  # noqa: E402 - after the path
from runtime.deliberation.deliberator import Deliberator  # noqa: E402 - after the path
from sensors.readings import Observation, Reading, Telemetry, Text  # noqa: E402 - after the path

CONFIG = load(ROOT / "configs" / "rooms.yaml").config
LATENCY_S = 0.4
"""From a question to its answer: more than the sentence encoder needs."""
Sees = Literal["goal", "order"]


@cache
def backend() -> LocalModel:
    assert CONFIG.deliberator is not None
    assert isinstance(CONFIG.deliberator.backend, EmbeddingBackend)
    return open_model(CONFIG.deliberator.backend, CONFIG.deliberator.meanings)


@cache
def tokens_of(text: str) -> np.ndarray[Any, Any]:
    encoder = text_encoder()
    return np.asarray(encoder.encode(encoder.prepare([Text("orders", 0.0, 0, text)]))[0].numpy(), np.float32)


@cache
def text_encoder() -> Any:
    return load_encoder(CONFIG.encoders["language"], 1, torch.device("cpu"))


@cache
def answer_of(order: str) -> dict[str, float]:
    return backend().probabilities(GoalQuestion(0, "", (order,), ""))[0]


class Corridor(gymnasium.Env[Any, Any]):
    """The world, and in front of it the deliberator where the policy sees the goal."""

    def __init__(self, sees: Sees) -> None:
        self.sees = sees
        self.parts: dict[str, int] = {"robot": 2, "orders": tokens_of("go").size}
        assert CONFIG.deliberator is not None
        if sees == "goal":
            self.parts["goal"] = len(CONFIG.deliberator.goals)
        self.observation_space = spaces.Dict(
            {name: spaces.Box(-np.inf, np.inf, (width,), np.float32) for name, width in self.parts.items()}
        )
        self.action_space = spaces.Discrete(len(DRIVES))
        self.world = RoomsWorld(0)
        self.outcomes = Counter[str]()
        self.goals = Counter[str]()
        self.connected = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.world = RoomsWorld(seed)
        else:
            self.world.begin()
        self.now_s = 1_000.0
        self.fed: dict[str, float] = {}
        self.asked: tuple[GoalQuestion, float] | None = None
        if self.sees == "goal":
            assert CONFIG.deliberator is not None
            self.deliberator = Deliberator(
                CONFIG.deliberator, expression_names(CONFIG.streams, CONFIG.actuators), lambda *_: self, self, lambda _body: None,
                lambda _kind, _data: None, {}, ttl_s={"orders": 30.0}, clock=lambda: self.now_s, wall=lambda: self.now_s,
                state_dir=Path("/nonexistent"),
            )  # fmt: skip
            self._perceive(Text("orders", self.now_s, 1, self.world.text))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        world = self.world
        place_m, due = world.place_m, world.due
        world.drive = DRIVES[int(action)]
        world.advance(TICK_S)
        self.now_s += TICK_S
        ways = (0.0, 0.0) if due is None else (ROOMS[due] - place_m, ROOMS[due] - world.place_m)
        gain = rooms_world.reward(*ways, world.drive)
        if world.outcome:
            self.outcomes[world.outcome] += 1
        return self._observe(), gain, False, bool(world.outcome), {}

    def ask_goal(self, question: GoalQuestion) -> None:
        self.asked = (question, self.now_s)

    def take(self, values: Any, stamp_s: float) -> None:
        del stamp_s
        self.fed = dict(values)

    def _perceive(self, *readings: Reading) -> None:
        by_name = {reading.stream: reading for reading in readings}
        observation = Observation(1, self.now_s, by_name, {}, frozenset(), frozenset(by_name), frozenset())
        self.deliberator.ticked(SimpleNamespace(observation=observation, executed={}))  # type: ignore[arg-type]

    def _observe(self) -> dict[str, Any]:
        robot = np.array([self.world.place_m, self.world.stood_s], np.float32)
        seen = {"robot": robot, "orders": tokens_of(self.world.text).ravel()}
        if self.sees == "goal":
            self._perceive(Telemetry("robot", self.now_s, 1, ("place", "stood_s"), robot))
            self.deliberator.step()
            if self.asked is not None and self.now_s - self.asked[1] >= LATENCY_S:
                question, asked_s = self.asked
                self.asked = None
                found = answer_of(question.orders[0]) if question.orders else {}
                self.deliberator.answered(GoalAnswer(question.number, found, None, "m", self.now_s - asked_s))
            seen["goal"] = np.array(list(self.fed.values()), np.float32)
        return seen


def run(sees: Sees, seed: int, steps: int, episodes: int) -> Counter[str]:
    """Train, and count the outcomes of fresh episodes."""
    policy = CONFIG.policy
    made: list[Corridor] = []

    def make() -> Corridor:
        made.append(Corridor(sees))
        return made[-1]

    settings = TrainSettings(
        gamma=policy.gamma, algorithm=policy.algorithm, width=policy.width, hidden=policy.hidden, choice_steps=1,
        evaluate_every=max(1, steps // 4), evaluation_episodes=episodes, updates_per_step=1, selection_episodes=episodes,
    )  # fmt: skip
    trainer = GymTrainer(make, seed=seed, settings=settings)
    trainer.run(steps)
    trainer.policy.load_state_dict(trainer.best_checkpoints[0].weights)
    made.clear()
    trainer.play(5_000_000 + 1_000 * seed, episodes)
    return sum((env.outcomes for env in made), Counter())


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=6_000, help="of the world, for each policy")
    parser.add_argument("--episodes", type=int, default=20, help="fresh ones, played greedily")
    parser.add_argument("--only", nargs="+", choices=["goal", "order"], default=["goal", "order"])
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    for seed in options.seeds:
        for sees in options.only:
            began_s = time.monotonic()
            found = run(sees, seed, options.steps, options.episodes)
            listed = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
            print(
                f"seed {seed}, the policy sees the {sees:5}: success in {found['success']} of {options.episodes} ({listed}); "
                f"{time.monotonic() - began_s:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
