"""The learner on a GPU: every algorithm trains, a saved state moves between devices, the worker proposes. Skipped without CUDA."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
import torch

from actuators.actions import ActionSpace, Choice, Continuous
from fakes import wait_for
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.config.learner import ExperienceSettings
from learners.experience.reader import Reader
from learners.experience.snapshots import ExperienceSnapshots
from learners.experience.store import Store
from learners.ipc.settings import LearnerConfig
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.worker.journal import Journal
from learners.worker.learner import Learner
from learners.worker.loop import LearnerLoop

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
HEAD, ARM = Choice("head", ("left", "stay", "right")), Continuous("arm", (-1.0,), (1.0,))
JOINTS, MORE = StreamSpec("joints", "telemetry", 1, 2), StreamSpec("more", "telemetry", 1, 3)
FOREVER = float("inf")


def spec_of(*actuators: Choice | Continuous, **fields: Any) -> PolicySpec:
    return PolicySpec(
        (JOINTS, MORE),
        ActionSpace(actuators),
        **{"history": 2, "width": 16, "hidden": (32, 32), "gamma": 0.9, **fields},
    )


SPECS = {
    "dqn": spec_of(HEAD),
    "dqn alone": PolicySpec((JOINTS,), ActionSpace((HEAD,)), history=1, hidden=(32, 32)),
    "crossq": spec_of(ARM),
    "sac": spec_of(ARM, algorithm="sac"),
    "mixed": spec_of(HEAD, ARM),
    "xqc": spec_of(HEAD, ARM, algorithm="xqc"),
    "bandit": spec_of(HEAD, gamma=0.0),
}


def fill(folder: Path, start: int, stop: int) -> None:
    store = Store(folder / "experience", ExperienceSettings.model_validate({}))
    for n in range(start, stop):
        one, noise = learning.made(n), np.random.default_rng(n)
        tokens = {**one.tokens, "more": noise.normal(size=(1, 3)).astype(np.float32)}
        actions = {"head": one.actions["head"], "arm": [float(noise.uniform(-1, 1))]}
        present, ages = dict.fromkeys(tokens, True), dict.fromkeys(tokens, 0.0)
        assert store.append(
            replace(
                one, tokens=tokens, present=present, ages_s=ages, actions=actions,
                probabilities={"head": 1 / 3, "arm": 0.5}, by=dict.fromkeys(actions, "policy"),
            )
        )  # fmt: skip
    assert store.flush()
    store.close()


def learner_of(folder: Path, spec: PolicySpec, device: str) -> Learner:
    return Learner(
        spec,
        learning.learner_settings(),
        ExperienceSnapshots(Reader(folder / "experience")),
        Checkpoints(folder / "learner" / "state", learning.KEY, keep_last=2, keep_best=0, keep_promoted=2),
        Journal(folder / "learner" / "journal.jsonl"),
        Policy,
        device=device,
    )


def no_version(version: str) -> dict[str, torch.Tensor]:
    raise AssertionError(version)


@pytest.mark.parametrize("kind", SPECS)
def test_every_algorithm_trains_and_its_state_moves_to_the_gpu_and_back(kind: str, tmp_path: Path) -> None:
    fill(tmp_path, 0, 200)
    for number, device in enumerate(("cpu", "cuda", "cuda", "cpu"), start=1):
        one = learner_of(tmp_path, SPECS[kind], device)
        assert one.resume(no_version) == (number > 1)
        one.ingest()
        one.train(FOREVER, until=15 * number)
        assert (one.position.update, one.skipped) == (15 * number, 0)
        assert all(np.isfinite(value) for value in one.metrics.values())
        assert {x.device.type for x in one.policy.state_dict().values()} == {device}
        one.save()


@pytest.mark.parametrize("kind", ["dqn", "mixed"])
def test_on_a_gpu_a_resumed_run_ends_close_to_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    """A GPU may add in another order from run to run, so the weights are close, not equal bit for bit."""
    ends = []
    for name, stops in (("whole", (40,)), ("resumed", (20, 40))):
        fill(tmp_path / name, 0, 200)
        for stop in stops:
            one = learner_of(tmp_path / name, SPECS[kind], "cuda")
            one.resume(no_version)
            one.ingest()
            one.train(FOREVER, until=stop)
            one.save()
        ends.append({key: x.double().cpu() for key, x in one.policy.state_dict().items()})
    distance = max(float((ends[0][key] - ends[1][key]).abs().max()) for key in ends[0])
    print(f"{kind}: largest distance of a weight {distance:.3g}")
    assert distance < 1e-2


def settings_of(folder: Path) -> LearnerConfig:
    return LearnerConfig.model_validate(
        {
            "state_dir": str(folder),
            "device": "cuda",
            "learner": {"batch": 32, "warmup": 40, "reward_delay_s": 0, "replay_gb": 1e-3, "update_every_s": 0.2},
            "promotion": {"steps": ["integrity", "latency"]},
        }
    )


def test_the_worker_trains_on_a_stream_of_its_own(tmp_path: Path) -> None:
    """`run`, as the process calls it."""
    fill(tmp_path, 0, 300)
    stop = threading.Event()
    one = LearnerLoop(settings_of(tmp_path), SPECS["mixed"], stop)

    def end() -> None:
        try:
            wait_for(lambda: one.learner.position.update > 0, "an update")
        finally:
            stop.set()

    beside = threading.Thread(target=end)
    beside.start()
    one.run()
    beside.join()
    assert one.learner.position.update > 0
    assert one.learner.state.list()


def test_the_worker_trains_on_the_gpu_and_proposes_a_version(tmp_path: Path) -> None:
    fill(tmp_path, 0, 300)
    one = LearnerLoop(settings_of(tmp_path), SPECS["mixed"], threading.Event())
    one.begin()
    one.step()
    assert one.learner.position.update > 0
    verdict = one.candidates.run()
    assert verdict is not None
    assert not verdict.rejected, verdict
    version = one.checkpoints.proposed()
    assert version is not None
    held = Checkpoints(tmp_path / "checkpoints", load_key(tmp_path)).load(version)
    policy = Policy(SPECS["mixed"])
    policy.load_state_dict(held.tensors["policy"])
    mine = one.learner.policy.state_dict()
    assert all(torch.equal(mine[name].cpu(), x) for name, x in policy.state_dict().items())
