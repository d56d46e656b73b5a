"""The learner and probation: one change at a time, and what failed is not the ground to build on, not even after a restart."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import learning
import orjson
import torch

from learners.ipc.outbox import Outbox
from learners.ipc.settings import LearnerConfig
from learners.promotion.steps import STEPS
from learners.safeguards.probation import FILE, Probation
from learners.worker.loop import LearnerLoop


def background(folder: Path, **learner: Any) -> LearnerLoop:
    fields = {"batch": 32, "warmup": 40, "reward_delay_s": 0, "replay_gb": 1e-3, "update_every_s": 0.05, **learner}
    body = {"state_dir": str(folder), "device": "cpu", "learner": fields, "promotion": {"steps": ["integrity"]}}
    return LearnerLoop(
        LearnerConfig.model_validate(body), learning.SPEC, threading.Event(), build=learning.SmallPolicy, steps=STEPS
    )


def on_probation(folder: Path, begun_s: float) -> None:
    probation = Probation()
    probation.trust("000001-00000000")
    probation.acts("000002-00000000", begun_s)
    (folder / FILE).write_bytes(orjson.dumps(probation.dump()))


def test_no_candidate_is_brought_while_one_is_on_probation(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 300)
    one = background(tmp_path, promote_every_s=1e-6)
    one.begin()
    one.step()
    on_probation(tmp_path, time.time())
    for _ in range(3):
        one.step()
    assert one.checkpoints.live().version is None
    on_probation(tmp_path, time.time() - 3_600)  # such as in shadow mode, where nothing acts
    for _ in range(4):
        one.step()
    assert one.checkpoints.live().version is not None


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
    assert not once_more._rolled_back_meanwhile()
    (again.checkpoints.folder / good / "manifest.sig").write_bytes(b"")
    again._reset_to_live()
    assert [event.kind for event in Outbox(tmp_path / "learner" / "outbox").collect()][-1] == "checkpoint_refused"
