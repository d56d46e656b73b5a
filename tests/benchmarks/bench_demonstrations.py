"""What twenty demonstrations save: the demo's world in lock-step, with its encoders and settings, from random weights.

    python tests/benchmarks/bench_demonstrations.py --seeds 0 1

Twice for each seed, in the same world: from nothing, and with 20 episodes of the scripted controller in the replay before the
first step. One update a tick. Every `--every` ticks the greedy policy plays `EVALUATED` episodes of another world; score =
(policy - random) / (scripted controller - random) of the mean reward there. Prints the curves, and after how many ticks the
threshold was first reached, the demonstrations' own ticks left out and counted in. One thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_demo_policy import encoders_of, tokens_of
from rich.progress import track

from actuators.sim.panorama_env import Panorama
from learners.experience.transition import Transition
from learners.model.encoders.base import Encoder
from learners.model.features import recorded
from learners.model.policy import Policy
from learners.model.spec import PolicySpec
from learners.rl.algorithm import Algorithm
from learners.rl.mirror_augmentation import MirrorAugmentation
from learners.rl.replay_buffer import ReplayBuffer
from runtime.config.loader import load as load_settings
from runtime.config.schema import Config
from runtime.inference.build import build_spec

EVALUATED, EVALUATION_WORLD, TEACHING_WORLD = 20, 1_000_000, 2_000_000
WARMUP = 64
Controller = Callable[[Panorama, dict[str, Any]], int]


def remembering(encoders: dict[str, Encoder]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Encode an observation; an order that was just encoded is not encoded again, as in the daemon."""
    last: dict[str, Any] = {}

    def encode(observation: dict[str, Any]) -> dict[str, Any]:
        if last.get("text") != observation["text"]:
            last.update(text=observation["text"], tokens=tokens_of(observation, encoders)["orders"])
        some = {name: encoder for name, encoder in encoders.items() if name != "language"}
        return tokens_of(observation, some, without=("orders",)) | {"orders": last["tokens"]}

    return encode


class Learning:
    """The demo's learner without its process: one policy, one replay, one update a tick."""

    def __init__(self, spec: PolicySpec, config: Config, seed: int) -> None:
        torch.manual_seed(seed)
        self.spec, self.config = spec, config
        self.policy = Policy(spec).eval()
        self.generator = torch.Generator().manual_seed(seed)
        self.algorithm = Algorithm(self.policy, self.generator)
        s = config.learner
        self.replay = ReplayBuffer(
            spec,
            max_bytes=1 << 30,
            steps=s.n_step,
            demonstration_fraction=s.demonstration_fraction,
            centre=s.center_rewards,
        )
        self.mirror = MirrorAugmentation(spec, s.mirror_augmentation)
        self.turns = spec.actions.choices[0].choices
        self.ticks = 0

    @torch.no_grad()
    def act(self, tokens: dict[str, Any], *, explore: bool) -> int:
        present, ages = dict.fromkeys(self.spec.names, True), dict.fromkeys(self.spec.names, 0.05)
        context = self.policy.encode(recorded(self.spec, [tokens], [present], [ages]))
        return int(self.policy.heads.act(context, generator=self.generator, explore=explore).values["head"])

    def remember(self, tokens: dict[str, Any], action: int, reward: float, *, over: bool, demonstration: bool) -> None:
        self.ticks += 1
        present, ages = dict.fromkeys(self.spec.names, True), dict.fromkeys(self.spec.names, 0.05)
        self.replay.append(
            Transition(
                "s", self.ticks, str(self.ticks), 0.0, "p", tokens=tokens, present=present, ages_s=ages,
                actions={"head": self.turns[action]}, reward=reward, done=over, demonstration=demonstration,
            )
        )  # fmt: skip

    def update(self) -> None:
        batch = self.replay.sample(self.config.learner.batch, self.generator)
        self.algorithm.update(self.mirror(batch, self.generator))


def rollout(seed: int, episodes: int, controller: Controller) -> float:
    """Mean reward a tick."""
    world = Panorama()
    observation, _ = world.reset(seed=seed)
    rewards: list[float] = []
    for _ in range(episodes):
        over = False
        while not over:
            observation, reward, _, over, _ = world.step(np.int64(controller(world, observation)))
            rewards.append(reward)
        observation, _ = world.reset()
    return float(np.mean(rewards))


def teach(learning: Learning, episodes: int, seed: int, encode: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    world = Panorama()
    observation, _ = world.reset(seed=TEACHING_WORLD + seed)
    for _ in range(episodes):
        over = False
        while not over:
            tokens, action = encode(observation), world.oracle()
            observation, reward, _, over, _ = world.step(np.int64(action))
            learning.remember(tokens, action, reward, over=over, demonstration=True)
        observation, _ = world.reset()
    return learning.ticks


def run(
    learning: Learning, seed: int, ticks: int, every: int, encode: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[tuple[int, float]]:
    """Learn while acting; return the evaluations as (tick, mean reward)."""
    world = Panorama()
    observation, _ = world.reset(seed=seed)
    found = []
    for tick in track(range(1, ticks + 1), f"seed {seed}", transient=True):
        tokens = encode(observation)
        action = learning.act(tokens, explore=True)
        observation, reward, _, over, _ = world.step(np.int64(action))
        learning.remember(tokens, action, reward, over=over, demonstration=False)
        if over:
            observation, _ = world.reset()
        if tick >= WARMUP:
            learning.update()
        if tick % every == 0:
            mean = rollout(EVALUATION_WORLD, EVALUATED, lambda _, seen: learning.act(encode(seen), explore=False))
            found.append((tick, mean))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ticks", type=int, default=6_000)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--threshold", type=float, default=0.7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    config = load_settings(Path("configs/demo.yaml")).config
    encoders = encoders_of(config)
    spec, encode = build_spec(config, encoders), remembering(encoders)
    draw = np.random.default_rng(0)
    floor = rollout(EVALUATION_WORLD, EVALUATED, lambda *_: int(draw.integers(3)))
    ceiling = rollout(EVALUATION_WORLD, EVALUATED, lambda world, _: world.oracle())
    for seed in given.seeds:
        for count in (given.demonstrations, 0):
            learning = Learning(spec, config, seed)
            extra = teach(learning, count, seed, encode) if count else 0
            scores = [
                (tick, (mean - floor) / (ceiling - floor))
                for tick, mean in run(learning, seed, given.ticks, given.every, encode)
            ]
            reached = next((tick for tick, score in scores if score >= given.threshold), None)
            reached_after = (
                "never" if reached is None else f"{reached} ticks ({reached + extra} with the demonstrations)"
            )
            sys.stdout.write(
                f"seed {seed}, {count} demonstrations ({extra} ticks): {given.threshold} after {reached_after}\n"
            )
            sys.stdout.write("  " + " ".join(f"{tick}:{score:.2f}" for tick, score in scores) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
