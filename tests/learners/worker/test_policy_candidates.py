"""Trials in the learner process with the real steps: a bad candidate stays out, a good one goes live, training goes on."""

from __future__ import annotations

import copy
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learning
import orjson
import pytest
import tinymodels
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learners import files
from learners.checkpoints import store
from learners.checkpoints.signing import public_pem
from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.trainer import ContinualTrainer
from learners.experience.reader import Reader
from learners.experience.store import Label, Store
from learners.fleet_data.received_policies import RECEIVED, examined, note_received, note_withdrawn
from learners.ipc.outbox import Outbox
from learners.ipc.settings import FleetRoute, LearnerConfig
from learners.promotion.feeding_tasks import FeedingTasks, HeldOutComparison
from learners.promotion.pipeline import PromotionResult
from learners.promotion.step_types import EvaluationContext, StepResult
from learners.worker.loop import LearnerLoop
from runtime.mqtt.event_sentences import sentence

torch.set_num_threads(1)


def background(folder: Path, **promotion: Any) -> LearnerLoop:
    learner = {
        "batch": 32,
        "warmup": 40,
        "reward_delay_s": 0,
        "replay_gb": 1e-3,
        "update_every_s": 0.05,
        "updates_per_step": 4,
    }
    given = LearnerConfig.model_validate(
        {"state_dir": str(folder), "device": "cpu", "learner": learner, "promotion": {"shadow_s": 0.3, **promotion}}
    )
    return LearnerLoop(given, learning.SPEC, threading.Event(), build=learning.SmallPolicy)


def events(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(event.kind, event.fields) for event in Outbox(folder / "learner" / "outbox").collect()]


def follow(one: LearnerLoop) -> None:
    """Make the proposal live, as the agent does while nothing is trusted."""
    proposed = one.checkpoints.proposed()
    assert proposed is not None
    one.checkpoints.promote(proposed, by="untrusted")


TRAINED: dict[str, torch.Tensor] = {}
"""The weights of a good policy, trained once."""


def first_live(folder: Path, **promotion: Any) -> LearnerLoop:
    """A learner of a good policy with a live first version."""
    learning.fill(folder, 0, 600)
    one = background(folder, **promotion)
    one.begin()
    one.learner.ingest()
    if not TRAINED:
        one.learner.train(float("inf"), until=600)
        TRAINED.update({name: tensor.clone() for name, tensor in one.learner.policy.state_dict().items()})
    one.learner.policy.load_state_dict(TRAINED)
    one.learner.policy.heads.choice.epsilon.fill_(0.1)
    verdict = one.candidates.run()  # nothing to compare with, so nothing to wait for
    follow(one)
    assert verdict is not None
    assert not verdict.rejected, verdict
    return one


def negate(policy: Any) -> None:
    with torch.no_grad():
        policy.heads.choice.out.weight.neg_()
        policy.heads.choice.out.bias.neg_()


def concluded(
    one: LearnerLoop, beside: Callable[[], object] = lambda: None, deadline_s: float = 240.0
) -> PromotionResult:
    end = time.monotonic() + deadline_s
    verdict = None
    while verdict is None:
        assert time.monotonic() < end
        beside()
        verdict = one.candidates.resume(time.monotonic() + 0.05)
    return verdict


def test_a_negated_candidate_is_rejected_by_what_was_logged(tmp_path: Path) -> None:
    one = first_live(tmp_path)
    good = one.checkpoints.live().version
    negate(one.learner.policy)
    verdict = one.candidates.run()
    assert verdict is not None
    assert one.checkpoints.live().version == good
    kind, fields = events(tmp_path)[-1]
    assert (kind, fields["step"], fields["live"]) == ("policy_rejected", "ope", good)
    assert fields["steps"]["ope"]["finding"] == "worse"
    assert fields["steps"]["ope"]["estimates"]["doubly_robust"]["upper"] < -0.05
    assert fields["missing"] == []


def test_the_event_of_a_proposal_is_in_the_outbox_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, list[str]]] = []

    def write(path: Path, content: bytes, **options: Any) -> None:
        written.append((path.name, [kind for kind, _ in events(tmp_path)]))
        files.write_atomically(path, content, **options)

    monkeypatch.setattr(store, "write_atomically", write)
    first_live(tmp_path)
    assert ("CHALLENGER", ["learner_resumed", "policy_proposed"]) in written


def test_a_good_candidate_is_proposed_after_its_shadow_while_training_goes_on(tmp_path: Path) -> None:
    one = first_live(tmp_path)
    before = one.checkpoints.live().version
    one.learner.train(float("inf"), until=one.learner.position.update + 60)
    one.learner.policy.heads.choice.epsilon.fill_(0.1)
    assert one.candidates.run() is None  # it waits for fresh ticks
    trial = one.candidates.on_trial()
    assert trial is not None
    assert trial["step"] == "shadow"
    assert one.figures()["on_trial"] == trial
    updates, rows = one.learner.position.update, iter(range(600, 10_000, 20))

    def beside() -> None:
        start = next(rows)
        learning.fill(tmp_path, start, start + 20)
        one.learner.ingest()
        one.learner.train(time.monotonic() + 0.02)

    verdict = concluded(one, beside)
    assert not verdict.rejected, verdict
    assert one.learner.position.update > updates
    assert one.checkpoints.live().version == before, "the agent decides what goes live"
    assert one.checkpoints.proposed() == trial["version"] != before
    kind, fields = events(tmp_path)[-1]
    assert kind == "policy_proposed"
    assert list(fields["steps"]) == ["integrity", "latency", "sanity", "held_out", "ope", "shadow"]
    assert fields["steps"]["shadow"]["ticks"] >= 20
    assert one.candidates.on_trial() is None


def test_judging_leaves_no_trace_in_what_is_learned_next(tmp_path: Path) -> None:
    one = first_live(tmp_path)
    before = torch.get_rng_state()
    one.candidates.begin()
    assert not concluded(one).passed  # no new tick came
    assert torch.equal(torch.get_rng_state(), before)
    assert events(tmp_path)[-1][1]["reason"] == "inconclusive: no new tick in 0.3 s"


def test_another_version_that_goes_live_ends_a_trial(tmp_path: Path) -> None:
    one = first_live(tmp_path, shadow_s=1_000)
    one.learner.train(float("inf"), until=one.learner.position.update + 10)
    one.learner.policy.heads.choice.epsilon.fill_(0.1)
    assert one.candidates.run() is None
    other = one.checkpoints.save({"policy": one.learner.policy.state_dict()}, {})
    one.checkpoints.promote(other)
    verdict = one.candidates.resume()
    assert verdict is not None
    assert not verdict.passed
    assert "another version went live" in verdict.fields()["reason"]
    assert one.checkpoints.live().version == other


def test_an_evaluation_that_ends_before_its_first_step_says_why(tmp_path: Path) -> None:
    one = first_live(tmp_path)
    one.learner.train(float("inf"), until=one.learner.position.update + 10)
    one.candidates.begin()
    other = one.checkpoints.save({"policy": one.learner.policy.state_dict()}, {})
    one.checkpoints.promote(other)
    assert one.candidates.resume() is not None
    kind, fields = events(tmp_path)[-1]
    assert kind == "policy_rejected"
    assert fields["reason"] == "another version went live during the evaluation"
    assert sentence(kind, fields).text == (
        f"Policy {fields['version']} was not promoted: another version went live during the evaluation."
    )


def test_a_candidate_that_a_person_made_live_is_not_reported_as_rejected(tmp_path: Path) -> None:
    one = first_live(tmp_path)
    one.learner.train(float("inf"), until=one.learner.position.update + 10)
    one.candidates.begin()
    trial = one.candidates.on_trial()
    assert trial is not None
    before = events(tmp_path)
    one.checkpoints.promote(trial["version"])
    assert one.candidates.resume() is None
    assert one.candidates.on_trial() is None
    assert events(tmp_path) == before


def test_a_round_never_waits_for_a_trial(tmp_path: Path) -> None:
    one = first_live(tmp_path, shadow_s=1_000, steps=["integrity", "shadow"])
    one.learner.train(float("inf"), until=one.learner.position.update + 10)
    one.candidates.begin()
    for _ in range(5):
        one.step()
    assert one.candidates.evaluation is not None  # and every round came back


def held_out(feeding: FeedingTasks, before: dict[str, str]) -> dict[str, HeldOutComparison]:
    comparing = feeding.compare(before)
    while True:
        try:
            next(comparing)
        except StopIteration as end:
            found: dict[str, HeldOutComparison] = end.value
            return found


def test_the_task_that_feeds_the_policy_is_measured_when_it_changed(tmp_path: Path) -> None:
    tinymodels.bert(tmp_path / "model")
    store = Store(tmp_path / "experience", clock=lambda: 100.0)
    for n in range(60):
        assert store.add_label(Label("intents", ("move", "halt")[n % 2], f"{('go', 'stop')[n % 2]} {n}"))
    assert store.flush()
    store.close()
    held = tinymodels.held_out(tmp_path / "held.jsonl", 12, {"go": "move", "stop": "halt"})
    settings = TaskSettings(
        kind="text-classification",
        stream="orders",
        model=str(tmp_path / "model"),
        feeds_policy=True,
        eval_file=str(held),
    )
    finetune = FinetuneSettings.model_validate({"min_labels": 1, "validation_fraction": 0.3})
    task = ContinualTrainer("intents", settings, finetune, tmp_path / "tasks", Reader(tmp_path / "experience"))
    feeding = FeedingTasks({"intents": task})
    assert len(feeding) == 1
    assert (feeding.versions(), held_out(feeding, {})) == ({}, {})
    model = task.candidate_trainer._open(None, [one.example for one in task.labels.all()])
    first = task.versions.add(model, 1)
    task.versions.promote(first)
    assert feeding.versions() == {"intents": first.name}
    assert held_out(feeding, {"intents": first.name}) == {}  # the same version
    with torch.no_grad():
        next(iter(model.model.parameters())).add_(0.01)
    task.versions.promote(task.versions.add(model, 2))
    found = held_out(feeding, {"intents": first.name})["intents"]
    assert found.examples == 12
    assert found.metric == "accuracy"
    assert 0 <= found.before <= 1
    assert 0 <= found.after <= 1
    task.settings = settings.model_copy(update={"eval_file": None})
    assert held_out(feeding, {"intents": first.name}) == {}, "labels that came over MQTT judge nothing"


@pytest.mark.parametrize("feeds", [False, True])
def test_a_candidate_says_which_tasks_fed_it(tmp_path: Path, feeds: bool) -> None:
    learning.fill(tmp_path, 0, 200)
    one = background(tmp_path)
    if feeds:
        one.candidates.tasks.tasks["intents"] = ContinualTrainer(
            "intents",
            TaskSettings(kind="text-classification", model="m", feeds_policy=True),
            FinetuneSettings.model_validate({}),
            tmp_path / "tasks",
            one.reader,
        )
    one.begin()
    one.step()
    assert one.candidates.run() is not None
    proposed = one.checkpoints.proposed()
    manifest = next(m for m in one.checkpoints.list() if m.version == proposed)
    assert ("tasks" in manifest.data) is feeds


def test_without_experiments_an_inconclusive_candidate_is_rejected(tmp_path: Path) -> None:
    def unknown(_: EvaluationContext) -> StepResult:
        return StepResult(passed=False, inconclusive=True, reason="too little")

    for experiments, wanted in ((True, "policy_proposed"), (False, "policy_rejected")):
        folder = tmp_path / str(experiments)
        learning.fill(folder, 0, 300)
        one = background(folder, steps=["ope"], experiments=experiments)
        one.candidates.steps = {"ope": unknown}
        one.begin()
        one.step()
        one.candidates.run()
        kind, fields = events(folder)[-1]
        assert (kind, fields["held"]) == (wanted, ["ope"])
        assert (one.checkpoints.proposed() is None) is not experiments


def received(folder: Path, one: LearnerLoop, policy: Any, key: Any = learning.KEY) -> None:
    """Leave a policy of a fleet as the uplink does."""
    fleet = store.Checkpoints(folder / RECEIVED, key)
    version = fleet.save({"policy": policy.state_dict()}, {"spec": orjson.loads(one.spec.to_json())})
    note_received(folder, fleet.folder / version, version)


def test_a_policy_of_the_fleet_takes_the_way_of_a_candidate(tmp_path: Path) -> None:
    """The promotion steps of this device decide: a negated policy stays out, and one of another key is not even examined."""
    one = first_live(tmp_path)
    (tmp_path / "fleet.pem").write_bytes(public_pem(learning.KEY.public_key()))
    one.inputs = one.inputs.model_copy(update={"fleet": FleetRoute(key=tmp_path / "fleet.pem")})
    good = one.checkpoints.live().version
    bad = copy.deepcopy(one.learner.policy)
    negate(bad)
    received(tmp_path, one, bad, Ed25519PrivateKey.generate())
    one.step()
    assert one.candidates.evaluation is None
    assert events(tmp_path)[-1][0] == "checkpoint_refused"
    received(tmp_path / "again", one, bad)
    (tmp_path / "again" / RECEIVED).rename(tmp_path / "received")
    shutil.rmtree(tmp_path / RECEIVED)
    (tmp_path / "received").rename(tmp_path / RECEIVED)
    one.step()
    assert len(examined(tmp_path)) == 1
    assert [path.name for path in (tmp_path / RECEIVED).iterdir() if path.is_dir()] == []
    on_trial = one.candidates.on_trial() or {"version": events(tmp_path)[-1][1]["version"]}
    assert on_trial["version"] != good
    while one.candidates.evaluation is not None:
        one.candidates.resume(time.monotonic() + 0.05)
    kind, fields = events(tmp_path)[-1]
    assert (kind, fields["step"], fields["live"]) == ("policy_rejected", "ope", good)
    assert one.checkpoints.live().version == good


def test_a_policy_that_the_fleet_withdrew_is_rolled_back_where_it_is_live(tmp_path: Path) -> None:
    one = first_live(tmp_path)
    (tmp_path / "fleet.pem").write_bytes(public_pem(learning.KEY.public_key()))
    one.inputs = one.inputs.model_copy(update={"fleet": FleetRoute(key=tmp_path / "fleet.pem")})
    good = one.checkpoints.live().version
    received(tmp_path, one, one.learner.policy)
    directory = next(path for path in (tmp_path / RECEIVED).iterdir() if path.is_dir())
    bad = one.checkpoints.import_version(directory, learning.KEY.public_key())
    one.checkpoints.promote(bad, by="untrusted")
    note_withdrawn(tmp_path, [directory.name])
    one.step()
    assert one.checkpoints.live().version == good
    assert bad in one.checkpoints.live().failed
    rolled_back = [fields for kind, fields in events(tmp_path) if kind == "policy_rolled_back"]
    assert [(each["version"], each["to"], each["by"]) for each in rolled_back] == [(bad, good, "fleet")]
    note_withdrawn(tmp_path, ["000099-aaaaaaaa"])
    one.step()
    assert len([kind for kind, _ in events(tmp_path) if kind == "policy_rolled_back"]) == 1


def test_a_learner_that_was_killed_while_it_stored_a_policy_of_the_fleet_stores_it_once(tmp_path: Path) -> None:
    one = first_live(tmp_path)
    (tmp_path / "fleet.pem").write_bytes(public_pem(learning.KEY.public_key()))
    one.inputs = one.inputs.model_copy(update={"fleet": FleetRoute(key=tmp_path / "fleet.pem")})
    received(tmp_path, one, one.learner.policy)
    directory = next(path for path in (tmp_path / RECEIVED).iterdir() if path.is_dir())
    own = one.checkpoints.import_version(directory, learning.KEY.public_key())  # killed here: the note is still there
    one.step()
    adopted = [m.version for m in one.checkpoints.list() if m.metrics.get("adopted_from") == directory.name]
    assert adopted == [own]
    assert examined(tmp_path) == {directory.name}
