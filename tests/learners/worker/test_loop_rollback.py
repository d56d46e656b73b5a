"""What was rolled back is not the ground to build on, not even after a restart of the learner."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import learning
import torch

from learners.ipc.outbox import Outbox
from learners.ipc.settings import LearnerConfig
from learners.promotion.steps import STEPS
from learners.worker.loop import LearnerLoop


def background(folder: Path, **learner: Any) -> LearnerLoop:
    fields = {"batch": 32, "warmup": 40, "reward_delay_s": 0, "replay_gb": 1e-3, "update_every_s": 0.05, **learner}
    body = {"state_dir": str(folder), "device": "cpu", "learner": fields, "promotion": {"steps": ["integrity"]}}
    return LearnerLoop(
        LearnerConfig.model_validate(body), learning.SPEC, threading.Event(), build=learning.SmallPolicy, steps=STEPS
    )


def test_a_rollback_while_it_was_dead_is_followed(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 300)
    one = background(tmp_path)
    one.begin()
    one.step()
    good = one.checkpoints.save({"policy": one.learner.policy.state_dict()}, {})
    one.checkpoints.promote(good)
    one.learner.train(float("inf"), until=one.learner.position.update + 20)
    bad = one.checkpoints.save({"policy": one.learner.policy.state_dict()}, {})
    one.checkpoints.promote(bad)
    one.learner.save()
    one.checkpoints.rollback()
    again = background(tmp_path)
    again.begin()
    weights = again.checkpoints.load(good).tensors["policy"]
    assert all(torch.equal(value, weights[name]) for name, value in again.learner.policy.state_dict().items())
    once_more = background(tmp_path)
    once_more.learner.train(float("inf"), until=0)
    once_more.begin()  # it was saved since: nothing is taken up again
    assert not once_more._changed_meanwhile()
    (again.checkpoints.folder / good / "manifest.sig").write_bytes(b"")
    again._reset_to_live()
    assert [event.kind for event in Outbox(tmp_path / "learner" / "outbox").collect()][-1] == "checkpoint_refused"


def test_the_newest_proposal_replaces_the_one_that_waits(tmp_path: Path) -> None:
    one = background(tmp_path)
    assert one.checkpoints.proposed() is None
    first, second = (one.checkpoints.save({"policy": one.learner.policy.state_dict()}, {}) for _ in range(2))
    one.checkpoints.propose(first)
    one.checkpoints.propose(second)
    assert one.checkpoints.proposed() == second
    assert one.checkpoints.live().version is None, "the learner moves no pointer"
    one.checkpoints.promote(first)
    one.checkpoints.rollback(failing=second)
    assert one.checkpoints.proposed() is None, "a version that was taken back is not tried again"


def test_an_imported_policy_is_the_prior_of_a_running_and_of_a_resumed_learner(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 300)
    one = background(tmp_path)
    one.begin()
    one.step()
    one.learner.save()
    weights = {name: value + 0.5 for name, value in one.learner.policy.state_dict().items()}
    imported = one.checkpoints.save({"policy": weights}, {})
    one.checkpoints.promote(imported, by="import")
    two = background(tmp_path)
    two.begin()  # the import is newer than its saved state
    one.candidates.follow_live()
    for loop in (one, two):
        found = loop.learner.policy.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in found.items())
        assert loop.learner.algorithm.prior is not None
    one.learner.train(float("inf"), until=one.learner.position.update + 5)
    one.candidates.follow_live()  # once is enough
    assert one.learner.algorithm.prior is not None
    assert one.learner.algorithm.prior.updates == 5
