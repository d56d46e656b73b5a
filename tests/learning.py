"""Helpers of the learning tests: a small policy, a store with made-up but learnable experience, a learner over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

from actuators.actions import ActionSpace, Choice
from learners.checkpoints.store import Checkpoints
from learners.config.learner import ExperienceSettings, LearnerSettings
from learners.experience.reader import Reader
from learners.experience.snapshots import ExperienceSnapshots
from learners.experience.store import Store
from learners.experience.transition import Transition
from learners.model.features import Features
from learners.model.heads import Heads
from learners.model.normalizer import Normaliser
from learners.model.spec import PolicySpec, StreamSpec
from learners.worker.journal import Journal
from learners.worker.learner import Learner

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ACTIONS = ActionSpace((Choice("head", ("left", "stay", "right")),))
SPEC = PolicySpec((StreamSpec("joints", "telemetry", 1, 2),), ACTIONS, history=1, width=16, gamma=0.9)


class SmallPolicy(nn.Module):
    """A linear encoder with dropout (so that torch's own random state matters) before the real heads."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.normalise = Normaliser(2)
        self.encoder = nn.Linear(2, 8)
        self.dropout = nn.Dropout(0.1)
        self.heads = Heads(spec.actions, 8, gamma=spec.gamma, hidden=(32,), quantiles=5)

    def encode(self, features: Features, *, generator: torch.Generator | None = None) -> Tensor:
        x = self.normalise(features.tokens["joints"][:, -1, 0])
        out: Tensor = self.dropout(torch.tanh(self.encoder(x)))
        return out

    def observe(self, features: Features) -> None:
        self.normalise.observe(features.tokens["joints"].flatten(0, -2))


def learner_settings(**fields: Any) -> LearnerSettings:
    return LearnerSettings.model_validate({"batch": 32, "warmup": 40, "reward_delay_s": 0, "replay_gb": 1e-4, **fields})


def made(n: int, session: str = "s") -> Transition:
    """The right choice is the one the first number points at."""
    rng = np.random.default_rng(n)
    joints = rng.normal(size=(1, 2)).astype(np.float32)
    index = int(rng.integers(3))
    right = int(joints[0, 0] > -0.5) + int(joints[0, 0] > 0.5)
    return Transition(
        session=session, tick=n, decision=f"{session}-{n}", stamp_s=n / 10, policy="p", tokens={"joints": joints},
        encoder_versions={}, present={"joints": True}, ages_s={"joints": 0.0},
        actions={"head": ("left", "stay", "right")[index]}, probabilities={"head": 1 / 3}, by={"head": "policy"},
        reward=float(index == right), done=n % 97 == 96,
    )  # fmt: skip


def fill(folder: Path, start: int, stop: int, session: str = "s") -> None:
    store = Store(folder / "experience", ExperienceSettings.model_validate({}))
    for n in range(start, stop):
        assert store.append(made(n, session))
    assert store.flush()
    store.close()


def make_learner(
    folder: Path, spec: PolicySpec = SPEC, build: Any = SmallPolicy, shards: Any = None, **fields: Any
) -> Learner:
    return Learner(
        spec,
        learner_settings(**fields),
        ExperienceSnapshots(Reader(folder / "experience")),
        Checkpoints(folder / "learner" / "state", KEY, keep_last=2, keep_best=0, keep_promoted=2),
        Journal(folder / "learner" / "journal.jsonl"),
        build,
        shards=shards,
    )


def weights(learner: Learner) -> dict[str, Tensor]:
    """Everything that must be equal, bit for bit."""
    state = {f"policy.{name}": value.clone() for name, value in learner.policy.state_dict().items()}
    return state | {name: value.clone() for name, value in learner.algorithm.state_dict().items()}


def assert_identical(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different
