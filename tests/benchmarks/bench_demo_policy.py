"""What helps the demo's policy to learn from few ticks: fusion, mirroring, centring, one at a time left out.

`python tests/benchmarks/bench_demo_policy.py`: logs the demo's world in lock-step through the real encoders (a third of the actions
the scripted controller's, the others random), learns from the first N ticks with the demo's settings, and tells in how many
ticks of another world the greedy action is the scripted controller's: where the picture is in sight, by written and by spoken
order. Same updates, same batches, one thread. About eight minutes. `--worlds` logs other worlds, `--only` learns with some variants.
The last two columns are the same shares in the ticks that were learned from: what is far below them was learned by heart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from actuators.sim.panorama_env import Panorama
from learners.experience.transition import Transition
from learners.ipc.settings import encoder_window_s
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.encoders.base import Encoder
from learners.model.encoders.pretrained import load as load_encoder
from learners.model.features import Features, recorded
from learners.model.policy import Policy
from learners.model.spec import PolicySpec
from learners.rl.algorithm import Algorithm
from learners.rl.mirror_augmentation import MirrorAugmentation
from learners.rl.replay_buffer import ReplayBuffer
from runtime.config.loader import load as load_settings
from runtime.config.schema import Config
from runtime.inference.build import build_spec
from sensors.readings import Frame, Reading, Sound, Text

IN_SIGHT_DEG = 100.0
ORACLE_SHARE = 0.35


@dataclass(frozen=True, slots=True)
class Log:
    """Ticks of one world, and what the scripted controller would have done."""

    transitions: list[Transition]
    best: torch.Tensor
    in_sight: torch.Tensor
    spoken: torch.Tensor

    def first(self, ticks: int) -> Log:
        """The log of the first `ticks` ticks."""
        return Log(self.transitions[:ticks], self.best[:ticks], self.in_sight[:ticks], self.spoken[:ticks])


def encoders_of(config: Config) -> dict[str, Encoder]:
    made = {
        name: load_encoder(
            s, config.policy.tokens, torch.device("cpu"), window_s=encoder_window_s(config.streams.values(), name)
        )
        for name, s in config.encoders.items()
    }
    calibrations = Calibrations(Path(tempfile.mkdtemp()), BackendSettings())
    for encoder in made.values():
        if encoder.module is not None:
            encoder.run, _ = calibrations.runner(encoder.module, encoder.examples(), encoder.version)
    return made


def tokens_of(
    observation: dict[str, Any], encoders: dict[str, Encoder], without: tuple[str, ...] = ()
) -> dict[str, Any]:
    readings: dict[str, Reading] = {
        "front": Frame("front", 0.0, 0, observation["image"]),
        "room": Sound("room", 0.0, 0, observation["sound"]),
        "orders": Text("orders", 0.0, 0, observation["text"]),
    }
    kinds = {"front": "vision", "room": "hearing", "orders": "language"}
    tokens = {
        name: encoders[kinds[name]].encode(encoders[kinds[name]].prepare([reading]))[0].half().numpy()
        for name, reading in readings.items()
        if name not in without
    }
    return tokens | {"joints": np.concatenate((observation["angle"], observation["speed"]))[None]}


def play(seed: int, ticks: int, encoders: dict[str, Encoder], spec: PolicySpec) -> Log:
    world, draw = Panorama(), np.random.default_rng(seed)
    observation, _ = world.reset(seed=seed)
    turns = spec.actions.choices[0].choices
    present, ages = dict.fromkeys(spec.names, True), dict.fromkeys(spec.names, 0.05)
    transitions, best, in_sight, spoken = [], [], [], []
    for tick in track(range(ticks), f"world {seed}"):
        best.append(world.oracle())
        in_sight.append(abs(world.world.distance_deg()) < IN_SIGHT_DEG)
        spoken.append(world.world.spoken)
        tokens = tokens_of(observation, encoders)
        action = best[-1] if draw.random() < ORACLE_SHARE else int(draw.integers(len(turns)))
        observation, reward, _, over, _ = world.step(np.int64(action))
        transitions.append(
            Transition(
                "s", tick, str(tick), 0.0, "log", tokens=tokens, present=present, ages_s=ages,
                actions={"head": turns[action]}, probabilities={"head": 1 / 3}, by={"head": "policy"}, reward=reward, done=over,
            )
        )  # fmt: skip
        if over:
            observation, _ = world.reset()
    return Log(transitions, torch.tensor(best), torch.tensor(in_sight), torch.tensor(spoken))


def learn(
    spec: PolicySpec, config: Config, log: Log, ticks: int, updates: int, *, mirror: bool, centre: bool
) -> Policy:
    torch.manual_seed(0)
    policy = Policy(spec).eval()
    algorithm = Algorithm(policy, torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(0)
    memory = ReplayBuffer(
        spec, max_bytes=500_000_000, steps=config.learner.n_step, demonstration_fraction=0.0, centre=centre
    )
    for transition in log.transitions[:ticks]:
        memory.append(transition)
    change: Callable[..., Any] = (
        MirrorAugmentation(spec, config.learner.mirror_augmentation) if mirror else lambda batch, _: batch
    )
    for _ in track(range(updates), "learning", transient=True):
        algorithm.update(change(memory.sample(config.learner.batch, draw), draw))
    return policy.eval()


@torch.no_grad()
def judge(policy: Policy, log: Log, without: tuple[str, ...] = ()) -> tuple[float, float]:
    """Share of the scripted controller's actions, by written and by spoken order; streams `without` are masked."""
    rows = log.transitions
    features: Features = recorded(
        policy.spec, [t.tokens for t in rows], [t.present for t in rows], [t.ages_s for t in rows]
    )
    features = features.without(policy.spec, without)
    assert policy.heads.choice is not None
    scores = [policy.heads.choice(policy.encode(features[s : s + 500]))[0].mean(-1) for s in range(0, len(rows), 500)]
    right = (torch.cat(scores).argmax(-1) == log.best).float()
    written, spoken = log.in_sight & ~log.spoken, log.in_sight & log.spoken
    return float(right[written].mean()), float(right[spoken].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, nargs="+", default=[3_000, 6_000])
    parser.add_argument("--updates", type=int, default=1_600)
    parser.add_argument("--test-ticks", type=int, default=3_000, help="of the world that measures")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1], help="seeds of the worlds that are learned from")
    parser.add_argument("--only", nargs="+", default=[], help="names of variants, as they are printed; none: all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    config = load_settings(Path("configs/demo.yaml")).config
    encoders = encoders_of(config)
    spec = build_spec(config, encoders)
    test = play(99, given.test_ticks, encoders, spec)
    variants: dict[str, tuple[PolicySpec, bool, bool]] = {
        "as shipped": (spec, True, True),
        "not mirrored": (spec, False, True),
        "rewards not centred": (spec, True, False),
        "gamma 0.9": (replace(spec, gamma=0.9), True, True),
        "latent-attention": (replace(spec, fusion="latent-attention"), True, True),
        "latent-attention, not mirrored, gamma 0.9, not centred": (
            replace(spec, fusion="latent-attention", gamma=0.9),
            False,
            False,
        ),
    } | {
        f"feature_dropout {share}": (replace(spec, feature_dropout=share), True, True) for share in (0.0, 0.3, 0.8, 0.9)
    }
    unknown = sorted(set(given.only) - set(variants))
    if unknown:
        parser.error(f"--only {unknown}: the variants are {sorted(variants)}")
    sys.stdout.write(f"{'':50} {'world':>6} {'ticks':>6} {'written':>8} {'spoken':>8} {'learned from':>16}\n")
    for world in given.worlds:
        train = play(world, max(given.ticks), encoders, spec)
        for ticks in given.ticks:
            for name, (variant, mirror, centre) in variants.items():
                if not given.only or name in given.only:
                    policy = learn(variant, config, train, ticks, given.updates, mirror=mirror, centre=centre)
                    tell(name, policy, test, train.first(ticks), world)


def tell(name: str, policy: Policy, test: Log, own: Log, world: int) -> None:
    """Print what a variant has learned; of the shipped settings also without one half of what it reads."""
    masks: list[tuple[str, ...]] = [(), *([("orders", "room"), ("front",)] if name == "as shipped" else [])]
    for masked in masks:
        (written, spoken), (old_written, old_spoken) = judge(policy, test, masked), judge(policy, own, masked)
        shown = f"  without {' and '.join(masked)}" if masked else name
        sys.stdout.write(
            f"{shown:50} {world:6d} {len(own.transitions):6d} {written:8.2f} {spoken:8.2f} {old_written:8.2f}{old_spoken:8.2f}\n"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
