"""The demo in lock-step, as logs to evaluate policies on: what was seen, done, with which probability, and what came of it.

A policy learns the demo's world with one update a tick, as the daemon would, and its latest version acts. It stores every
transition and the weights every few ticks, so that a trial can take any moment of it: the version that acted, the ticks
it was evaluated on, and candidates.

`Cheap` inputs give the world's truth as one telemetry stream (the way to the photograph that is asked for): minutes of
learning in seconds. `Real` inputs are the demo's own: picture, sound and text through the encoders of `configs/demo.yaml`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from actuators.actions import ActionSpace, Choice
from actuators.sim.panorama_env import Panorama
from actuators.sim.panorama_world import TURNS
from learners.config.policy import EncoderSettings, PolicySettings
from learners.experience.transition import Transition
from learners.model.encoders.base import Encoder
from learners.model.encoders.pretrained import load
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.algorithm import Algorithm
from learners.rl.replay_buffer import ReplayBuffer
from sensors.readings import Frame, Reading, Sound, Text

ACTIONS = ActionSpace((Choice("head", tuple(TURNS)),))
WARMUP = 256
RATE_HZ = 10
GAMMA = 0.8

Tokens = dict[str, NDArray[Any]]


class DemoInput(Protocol):
    """Makes tokens of what the world shows."""

    streams: tuple[StreamSpec, ...]
    history: int
    world: type[Panorama]

    def __call__(self, env: Panorama, seen: Mapping[str, Any]) -> Tokens:
        """Tokens of each stream."""


class Unseen(Panorama):
    """The same world without pictures and sound: several times faster."""

    def _hear(self, count: int) -> None:
        del count

    def _observe(self) -> dict[str, Any]:
        return {"angle": np.array([self.world.head.angle_deg], np.float32)}


class Cheap:
    """Sine and cosine of the way to the photograph that is asked for, and of the head's angle."""

    streams = (StreamSpec("truth", "telemetry", 1, 4),)
    history = 1
    world: type[Panorama] = Unseen

    def __call__(self, env: Panorama, seen: Mapping[str, Any]) -> Tokens:
        way, angle = np.deg2rad([env.world.distance_deg(), float(seen["angle"][0])])
        return {"truth": np.array([[np.sin(way), np.cos(way), np.sin(angle), np.cos(angle)]], np.float32)}


class Real:
    """The demo's streams and encoders."""

    def __init__(self) -> None:
        config: dict[str, Any] = yaml.safe_load(Path("configs/demo.yaml").read_text())
        policy = PolicySettings.model_validate(config.get("policy", {}))
        cpu = torch.device("cpu")
        self.encoders: dict[str, Encoder] = {
            name: load(EncoderSettings.model_validate(value), policy.tokens, cpu)
            for name, value in config["encoders"].items()
        }
        encoders = {"front": "vision", "room": "hearing", "orders": "language"}
        self.streams = (
            *(
                StreamSpec(n, self.encoders[e].modality, self.encoders[e].tokens, self.encoders[e].width)
                for n, e in encoders.items()
            ),
            StreamSpec("joints", "telemetry", 1, 2),
        )
        self.history = policy.history
        self.world = Panorama
        self._texts: dict[str, NDArray[Any]] = {}

    def __call__(self, env: Panorama, seen: Mapping[str, Any]) -> Tokens:
        text = seen["text"]
        if text not in self._texts:
            self._texts[text] = self._encode("language", Text("orders", 0.0, 0, text))
        samples = np.round(seen["sound"] * 32_768.0).clip(-32_768, 32_767).astype(np.int16)
        return {
            "front": self._encode("vision", Frame("front", 0.0, 0, seen["image"])),
            "room": self._encode("hearing", Sound("room", 0.0, 0, samples, 16_000)),
            "orders": self._texts[text],
            "joints": np.concatenate((seen["angle"], seen["speed"])).reshape(1, 2),
        }

    def _encode(self, name: str, reading: Reading) -> NDArray[Any]:
        encoder = self.encoders[name]
        tokens_BTW = encoder.encode(encoder.prepare([reading]))
        array: NDArray[Any] = tokens_BTW[0].half().numpy()
        return array


@dataclass(slots=True)
class Log:
    """What one run left."""

    spec: PolicySpec
    seed: int
    every: int
    transitions: list[Transition] = field(default_factory=list)
    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Of the learner, by tick."""
    acted: dict[int, int] = field(default_factory=dict)
    """By tick of a decision on promotion: the tick of the weights that act from then on."""

    def policy(self, tick: int) -> Policy:
        """The learner's policy of a tick."""
        policy = Policy(self.spec).eval()
        policy.load_state_dict(self.weights[tick])
        return policy


Judge = Callable[[Policy, Policy | None, list[Transition], int], bool]
"""Whether the candidate goes live: candidate, live, transitions so far, tick."""


def run(
    inputs: DemoInput,
    seed: int,
    ticks: int,
    *,
    every: int = 200,
    judge: Judge = lambda *_: True,
    tell: Callable[[int], None] = lambda _: None,
    gamma: float = GAMMA,
) -> Log:
    """Learn for `ticks` ticks; a candidate every `every` of them, which acts if `judge` returns true."""
    torch.manual_seed(seed)
    spec = PolicySpec(inputs.streams, ACTIONS, history=inputs.history, gamma=gamma)
    learner = Policy(spec).eval()
    algorithm = Algorithm(learner, torch.Generator().manual_seed(seed))
    acting, live = copy.deepcopy(learner), None
    draw, explore = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    replay = ReplayBuffer(spec, max_bytes=1 << 30, max_rows=round(1.3 * ticks))
    log = Log(spec, seed, every)
    env, window = inputs.world(), HistoryWindow(spec)
    seen: Mapping[str, Any] = env.reset(seed=seed)[0]
    for tick in range(1, ticks + 1):
        made = step(env, inputs, seen, acting, window, explore, tick)
        seen = made.seen
        log.transitions.append(made.transition)
        replay.append(made.transition, tick)
        if tick > WARMUP:
            algorithm.update(replay.sample(64, draw))
        if tick % every == 0 and tick > WARMUP:
            log.weights[tick] = {name: value.clone() for name, value in learner.state_dict().items()}
            candidate = log.policy(tick)
            if judge(candidate, live, log.transitions, tick):
                acting = live = candidate
                log.acted[tick] = tick
        tell(tick)
    return log


class HistoryWindow:
    """The newest observations, as the engine keeps them."""

    def __init__(self, spec: PolicySpec) -> None:
        self.replay_spec = spec
        self.frames: list[Tokens] = []

    def features(self, tokens: Tokens) -> Any:
        """Features [1, H] with the newest observation."""
        from learners.model.features import recorded, stack

        spec = self.replay_spec
        self.frames = [*(self.frames or [tokens] * (spec.history - 1)), tokens][-spec.history :]
        there = dict.fromkeys(spec.names, True)
        ages = dict.fromkeys(spec.names, 0.0)
        return stack([recorded(spec, [frame], [there], [ages]) for frame in self.frames], 1)


@dataclass(frozen=True, slots=True)
class Made:
    """A tick and what is seen after it."""

    transition: Transition
    seen: Mapping[str, Any]


def step(
    env: Panorama,
    inputs: DemoInput,
    seen: Mapping[str, Any],
    acting: Policy,
    window: HistoryWindow,
    generator: torch.Generator,
    tick: int,
    explore: bool | float = True,
) -> Made:
    """Decide, act and remember."""
    tokens = inputs(env, seen)
    out = acting.act(window.features(tokens), generator=generator, explore=explore)
    choice = int(out.values["head"][0])
    seen, reward, _, over, _ = env.step(np.int64(choice))
    if over:
        seen, _ = env.reset()
    names = tuple(tokens)
    made = Transition(
        session="demo", tick=tick, decision=f"demo-{tick}", stamp_s=tick / RATE_HZ, policy="acting", tokens=tokens,
        present=dict.fromkeys(names, True), ages_s=dict.fromkeys(names, 0.0), actions={"head": TURNS[choice]},
        probabilities={"head": float(out.probabilities["head"][0])}, by={"head": "policy"}, reward=reward, done=over,
        value=float(out.value[0]),
    )  # fmt: skip
    return Made(made, seen)


def played(
    policy: Policy, inputs: DemoInput, seed: int, ticks: int, *, explore: bool | float = True
) -> NDArray[np.float64]:
    """The rewards of a policy that acts in a world of its own."""
    env, window = inputs.world(), HistoryWindow(policy.spec)
    generator = torch.Generator().manual_seed(seed)
    seen: Mapping[str, Any] = env.reset(seed=seed)[0]
    rewards = []
    for tick in range(ticks):
        made = step(env, inputs, seen, policy, window, generator, tick, explore)
        seen = made.seen
        rewards.append(made.transition.reward)
    return np.array(rewards)
