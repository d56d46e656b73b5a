"""`fleet.local: head`: small worlds where a device differs from its fleet and its head gains, and where it does not and loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError
from torch import Tensor

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.signing import public_pem
from learners.checkpoints.store import Checkpoints
from learners.config.learner import ExperienceSettings
from learners.experience.store import Store
from learners.experience.transition import Transition
from learners.fleet_data.received_policies import RECEIVED, note_received, note_withdrawn
from learners.ipc.outbox import Outbox
from learners.ipc.settings import FleetRoute, LearnerConfig
from learners.promotion.pipeline import PromotionResult
from learners.rl import starting_policy
from learners.worker.loop import LearnerLoop
from learners.worker.policy_candidates import fleet_base, local_base
from runtime.config.fleet_settings import FleetSettings

torch.set_num_threads(1)
FLEET_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
CHOICES = ("left", "stay", "right")
TRUNK = ("normalise.", "encoder.")


def mounted(one: Transition, *, mirrored: bool) -> Transition:
    """A tick of a device; on a mirrored one `left` moves to the right, so the fleet's policy earns little there."""
    return one if not mirrored else replace(one, actions={"head": CHOICES[2 - CHOICES.index(str(one.actions["head"]))]})


def fill(folder: Path, start: int, stop: int, *, mirrored: bool = False) -> None:
    store = Store(folder / "experience", ExperienceSettings.model_validate({}))
    for n in range(start, stop):
        assert store.append(mounted(learning.made(n), mirrored=mirrored))
    assert store.flush()
    store.close()


def loop(state: Path, key: Path | None = None, local: str = "all") -> LearnerLoop:
    learner = {
        "batch": 64,
        "warmup": 40,
        "reward_delay_s": 0,
        "replay_gb": 1e-3,
        "update_every_s": 0.05,
        "promote_every_s": 1e9,
    }
    body = {"state_dir": str(state), "device": "cpu", "learner": learner, "promotion": {"shadow_s": 0.3}}
    given = LearnerConfig.model_validate(body)
    if key is not None:
        given = given.model_copy(update={"fleet": FleetRoute.model_validate({"key": key, "local": local})})
    return LearnerLoop(given, learning.SPEC, threading.Event(), build=learning.SmallPolicy)


def trained(one: LearnerLoop, updates: int) -> None:
    """Train a number of further updates, as the rounds of the loop do."""
    assert one._follow_base()
    one.learner.ingest()
    one.learner.train(float("inf"), until=one.learner.position.update + updates)
    one.learner.policy.heads.choice.epsilon.fill_(0.1)


@pytest.fixture(autouse=True)
def short_priors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version counts as a few hundred updates of evidence instead of many thousands: the worlds here are small."""
    monkeypatch.setattr(starting_policy, "FIT_UPDATES", 50)
    monkeypatch.setattr(starting_policy, "HEAD_STRENGTH", 5)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    """Weights that the fleet trained on devices which are not mirrored, and its key."""
    folder = tmp_path_factory.mktemp("fleet")
    fill(folder, 0, 600)
    one = loop(folder)
    one.begin()
    trained(one, 700)
    (folder / "fleet.pem").write_bytes(public_pem(FLEET_KEY.public_key()))
    return {name: value.clone() for name, value in one.learner.policy.state_dict().items()}, folder / "fleet.pem"


def deliver(state: Path, weights: dict[str, Tensor]) -> str:
    """Leave a version of the fleet as the uplink does; return the fleet's name of it."""
    folder = state / RECEIVED
    sender = Checkpoints(folder, FLEET_KEY)
    version = sender.save({"policy": weights}, {})
    note_received(state, folder / version, version)
    return version


def live_here(one: LearnerLoop, weights: dict[str, Tensor]) -> str:
    """Make a version of the fleet live as the agent does after its experiment; return the fleet's name of it."""
    name = deliver(one.inputs.state_dir, weights)
    assert one._begin_received()
    local = one.candidates._candidate[0]
    one.candidates.evaluation, one.candidates._candidate = None, ("", None)
    one.checkpoints.promote(local, by="experiment")
    return name


def examined(one: LearnerLoop, *, mirrored: bool) -> PromotionResult:
    """Examine a candidate by the same steps as any other one, while the device acts on."""
    one.candidates.begin()
    for start in range(20_000, 30_000, 20):
        fill(one.inputs.state_dir, start, start + 20, mirrored=mirrored)
        verdict = one.candidates.resume(time.monotonic() + 0.05)
        if verdict is not None:
            return verdict
    raise AssertionError("no verdict")


def accuracy(policy: Any, *, mirrored: bool) -> float:
    """Of greedy actions on ticks that no training saw."""
    joints = np.stack([learning.made(n).tokens["joints"][0] for n in range(50_000, 51_000)])
    right = (joints[:, 0] > -0.5).astype(int) + (joints[:, 0] > 0.5)
    with torch.no_grad():
        context = policy.encoder(policy.normalise(torch.from_numpy(joints))).tanh()
        chosen = policy.heads.choice_scores(context)[0].argmax(-1).numpy()
    return float((chosen == (2 - right if mirrored else right)).mean())


def trunk(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items() if name.startswith(TRUNK)}


def moved(weights: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    """Other weights of a fleet, with the same trunk."""
    return {
        name: value if name.startswith(TRUNK) or not value.is_floating_point() else value + by
        for name, value in weights.items()
    }


def policy_of(one: LearnerLoop, version: str) -> Any:
    policy = learning.SmallPolicy(learning.SPEC).eval()
    policy.load_state_dict(one._weights(version))
    return policy


def device(
    folder: Path, fleet: tuple[dict[str, Tensor], Path], local: str, *, mirrored: bool
) -> tuple[LearnerLoop, str]:
    """A device with rows of its own and the fleet's version live."""
    fill(folder, 10_000, 10_600, mirrored=mirrored)
    one = loop(folder, fleet[1], local)
    one.begin()
    return one, live_here(one, fleet[0])


def test_the_head_of_a_device_that_differs_gains_and_passes_its_own_examination(
    tmp_path: Path, fleet: tuple[dict[str, Tensor], Path]
) -> None:
    one, base = device(tmp_path, fleet, "head", mirrored=True)
    before = accuracy(policy_of(one, str(one.checkpoints.live().version)), mirrored=True)
    trained(one, 600)
    verdict = examined(one, mirrored=True)
    assert not verdict.rejected, verdict
    proposed = one.checkpoints.proposed()
    assert proposed is not None
    after = accuracy(policy_of(one, proposed), mirrored=True)
    assert before < 0.5
    assert after > 0.85
    manifest = next(m for m in one.checkpoints.list() if m.version == proposed)
    assert (local_base(manifest), fleet_base(manifest)) == (base, base)
    weights = one._weights(proposed)
    learning.assert_identical(trunk(weights), trunk(fleet[0]))  # only the heads differ
    assert not torch.equal(weights["heads.choice.out.weight"], fleet[0]["heads.choice.out.weight"])


def test_the_head_of_a_device_that_does_not_differ_loses_nothing(
    tmp_path: Path, fleet: tuple[dict[str, Tensor], Path]
) -> None:
    one, _ = device(tmp_path, fleet, "head", mirrored=False)
    before = accuracy(policy_of(one, str(one.checkpoints.live().version)), mirrored=False)
    trained(one, 600)
    assert before > 0.85
    assert accuracy(one.learner.policy, mirrored=False) > before - 0.03
    one.candidates.run()
    assert (
        fleet_base(next(m for m in one.checkpoints.list() if m.version == one.checkpoints.live().version)) is not None
    )


def test_a_new_version_of_the_fleet_replaces_the_base_and_drops_the_local_head(
    tmp_path: Path, fleet: tuple[dict[str, Tensor], Path]
) -> None:
    one, _ = device(tmp_path, fleet, "head", mirrored=True)
    trained(one, 100)
    one.candidates.begin()
    waiting = one.candidates._candidate[0]
    one.candidates.evaluation, one.candidates._candidate = None, ("", None)
    one.checkpoints.propose(waiting)
    newer = moved(fleet[0], 0.125)
    second = live_here(one, newer)
    assert one._follow_base()
    learning.assert_identical(dict(one.learner.policy.state_dict()), newer)
    assert one.checkpoints.proposed() is None
    assert waiting in one.checkpoints.live().failed
    assert not one.candidates.has_new_updates  # what is left to evaluate was dropped, too
    trained(one, 20)
    one.learner.save()
    again = loop(tmp_path, fleet[1], "head")  # a restart goes on exactly, on the same base
    again.begin()
    assert again._follow_base()
    learning.assert_identical(learning.weights(again.learner), learning.weights(one.learner))
    assert again.candidates.local_base == second


def test_a_withdrawn_base_takes_every_local_head_on_it_back(
    tmp_path: Path, fleet: tuple[dict[str, Tensor], Path]
) -> None:
    one, _ = device(tmp_path, fleet, "head", mirrored=True)
    first = one.checkpoints.live().version
    second = live_here(one, moved(fleet[0], 0.0625))
    trained(one, 100)
    one.candidates.begin()
    head = one.candidates._candidate[0]
    one.candidates.evaluation, one.candidates._candidate = None, ("", None)
    one.checkpoints.promote(head, by="experiment")
    trained(one, 10)
    note_withdrawn(tmp_path, [second])
    one.step()
    live = one.checkpoints.live()
    assert live.version == first
    assert head in live.failed
    kinds = [event.kind for event in Outbox(tmp_path / "learner" / "outbox").collect()]
    assert "policy_rolled_back" in kinds
    assert one._follow_base()
    learning.assert_identical(trunk(dict(one.learner.policy.state_dict())), trunk(fleet[0]))


def test_after_the_only_version_that_acted_was_withdrawn_none_is_live_and_it_is_never_returned_to(
    tmp_path: Path, fleet: tuple[dict[str, Tensor], Path]
) -> None:
    fill(tmp_path, 0, 100)
    one = loop(tmp_path, fleet[1], "none")
    one.begin()
    name = live_here(one, fleet[0])
    first = one.checkpoints.live().version
    note_withdrawn(tmp_path, [name])
    one.step()
    live = one.checkpoints.live()
    assert (live.version, live.failed, live.by) == (None, (first,), "fleet")
    back = [e.fields for e in Outbox(tmp_path / "learner" / "outbox").collect() if e.kind == "policy_rolled_back"]
    assert [(each["version"], each["to"]) for each in back] == [(first, None)]
    live_here(one, moved(fleet[0], 0.0625))
    one.step()
    assert one.checkpoints.live().failed == (first,)
    with pytest.raises(CheckpointRefused, match="no earlier version"):  # as the guard would return
        one.checkpoints.rollback(failing=one.checkpoints.live().version)


@pytest.mark.parametrize("local", ["none", "head"])
def test_without_a_version_of_the_fleet_and_with_none_nothing_is_trained(
    tmp_path: Path, fleet: tuple[dict[str, Tensor], Path], local: str
) -> None:
    fill(tmp_path, 0, 600)
    one = loop(tmp_path, fleet[1], local)
    one.begin()
    before = {name: value.clone() for name, value in one.learner.policy.named_parameters()}
    one.step()
    assert one.learner.position.update == 0
    assert one.learner.position.row == 600  # its rows are read: the examination of the fleet's versions needs them
    learning.assert_identical(dict(one.learner.policy.named_parameters()), before)
    if local == "none":
        live_here(one, fleet[0])
        one.step()
        assert one.learner.position.update == 0


def test_another_setting_starts_from_the_live_version_and_not_from_moments_of_other_parameters(
    tmp_path: Path, fleet: tuple[dict[str, Tensor], Path]
) -> None:
    one, _ = device(tmp_path, fleet, "head", mirrored=True)
    trained(one, 50)
    one.learner.save()
    settings: tuple[tuple[Callable[[], LearnerLoop], bool], ...] = (
        (lambda: loop(tmp_path, fleet[1], "all"), False),
        (lambda: loop(tmp_path, fleet[1], "head"), True),
    )
    for opened, heads_only in settings:
        other = opened()
        other.begin()
        assert other.learner.heads_only is heads_only
        assert other._follow_base()
        learning.assert_identical(trunk(dict(other.learner.policy.state_dict())), trunk(fleet[0]))
        trained(other, 5)
        other.learner.save()


def test_a_head_needs_the_key_of_the_fleet() -> None:
    url = {"group": "arms", "url": "mqtt://127.0.0.1"}
    assert FleetSettings.model_validate(url).local == "all"
    assert FleetSettings.model_validate({**url, "local": "head", "key": "fleet.pem"}).local == "head"
    for local in ("head", "none"):
        with pytest.raises(ValidationError, match=f"{local} builds on policies of the fleet"):
            FleetSettings.model_validate({**url, "local": local})
