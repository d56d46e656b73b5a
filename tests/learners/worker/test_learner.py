"""Interrupted and uninterrupted runs give the same weights bit for bit; the learner learns and stays with the present."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import learning
import pytest
import torch
from rl import ARM

from actuators.actions import ActionSpace
from learners.config.learner import ExperienceSettings
from learners.experience.reader import Reader
from learners.experience.snapshots import ExperienceSnapshots, SnapshotId
from learners.experience.store import Mark, Store
from learners.model.heads import Heads
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, fields_version
from learners.worker.journal import Journal, JournalEntry
from learners.worker.learner import Learner

torch.set_num_threads(1)
FOREVER = float("inf")


def no_version(version: str) -> dict[str, torch.Tensor]:
    raise AssertionError(version)


def late(folder: Path, first: int, last: int) -> None:
    """Rewards and marks that arrive long after their ticks."""
    store = Store(folder / "experience", ExperienceSettings.model_validate({}))
    for n in range(first, last, 7):
        store.credit(-1.5, decision=f"s-{n}")
        store.mark(Mark(f"s-{n + 1}", intervention=True))
    assert store.flush()
    store.close()


def story(folder: Path) -> list[Callable[[Learner], object]]:
    """What happens to a learner, step by step; each step may be followed by a crash."""
    return [
        lambda one: (learning.fill(folder, 0, 300), one.ingest()),
        lambda one: one.train(FOREVER, until=40),
        lambda one: (late(folder, 0, 200), one.ingest()),
        lambda one: one.train(FOREVER, until=70),
        lambda one: one.save(),
        lambda one: one.train(FOREVER, until=95),
        lambda one: (learning.fill(folder, 300, 1_500), late(folder, 250, 400), one.ingest()),
        lambda one: one.train(FOREVER, until=140),
        lambda one: (learning.fill(folder, 1_500, 1_600), one.ingest()),
        lambda one: one.train(FOREVER, until=180),
    ]


def crashing(folder: Path, crashes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The weights after the story, with a crash after each of these steps."""
    one = learning.make_learner(folder)
    one.resume(no_version)
    one.save()
    for number, step in enumerate(story(folder)):
        step(one)
        if number in crashes:  # kill -9: nothing but the files is left
            update = one.position.update
            one = learning.make_learner(folder)
            assert one.resume(no_version)
            one.train(FOREVER, until=update)  # what came after the last thing taken in is done again
    assert one.position.update == 180
    return learning.weights(one)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after the story without a crash."""
    return crashing(tmp_path_factory.mktemp("whole"), ())


@pytest.mark.parametrize("crashes", [(0,), (3,), (4,), (5, 6), (1, 7, 8), (9,), tuple(range(10))])
def test_a_run_that_crashed_ends_with_the_same_weights(
    tmp_path: Path, expected: dict[str, torch.Tensor], crashes: tuple[int, ...]
) -> None:
    learning.assert_identical(crashing(tmp_path, crashes), expected)


def test_weights_depend_on_the_seed_and_on_what_was_taken_in(tmp_path: Path) -> None:
    """So that the equality above is worth something."""
    learning.fill(tmp_path, 0, 200)
    results = []
    for number, fields in enumerate(({}, {"seed": 1}, {"n_step": 1})):
        one = learning.make_learner(tmp_path, **fields)
        one.journal = Journal(tmp_path / f"journal-{number}")
        one.ingest()
        one.train(FOREVER, until=20)
        results.append(learning.weights(one)["policy.encoder.weight"])
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_it_learns_what_the_rewards_say(tmp_path: Path) -> None:
    spec = PolicySpec(learning.SPEC.streams, learning.ACTIONS, history=1, width=16, gamma=0.1)
    learning.fill(tmp_path, 0, 2_000)
    one = learning.make_learner(tmp_path, spec, replay_gb=1e-3, n_step=1, batch=64)
    one.ingest()
    assert one.reward_mean == pytest.approx(1 / 3, abs=0.05)
    one.train(FOREVER, until=800)
    batch = one.replay.ordered(0, 10_000)
    assert batch is not None
    scores = one.policy.heads.act(
        one.policy.encode(batch.features), generator=torch.Generator().manual_seed(0), explore=False
    ).values["head"]
    first = batch.features.tokens["joints"][:, 0, 0, 0]
    right = (first > -0.5).long() + (first > 0.5).long()
    assert float((scores == right).float().mean()) > 0.85


def test_nothing_is_owed_before_the_warm_up_and_debts_are_bounded(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 30)
    one = learning.make_learner(tmp_path)
    assert one.ingest() == 30
    assert one.ingest() == 0
    assert one.train(FOREVER) == 0
    learning.fill(tmp_path, 30, 1_000)
    one.ingest()
    assert one.position.pending_updates == 600  # a minute of ticks
    assert one.dropped_updates == 370
    assert one.train(-1.0) == 0


def test_exploration_fades_by_decisions_however_few_updates_are_made(tmp_path: Path) -> None:
    """A learner without processor time explores as little as one with it; a full store does not end exploration at once."""
    learning.fill(tmp_path, 0, 500)
    one = learning.make_learner(tmp_path)
    epsilon = one.policy.heads.choice.epsilon
    one.ingest()
    one.train(FOREVER, until=1)
    assert float(epsilon) == pytest.approx(1 - 0.98 * 500 / 2_000)
    one.train(FOREVER, until=3)  # no decision is counted twice
    assert float(epsilon) == pytest.approx(1 - 0.98 * 500 / 2_000)
    learning.fill(tmp_path, 500, 1_500)
    one.ingest()
    one.train(FOREVER, until=4)
    assert float(epsilon) == pytest.approx(1 - 0.98 * 1_100 / 2_000)  # a minute of 600 ticks, of a thousand


def test_a_store_that_began_again_is_followed(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 100)
    one = learning.make_learner(tmp_path)
    one.ingest()
    shutil.rmtree(tmp_path / "experience")
    learning.fill(tmp_path, 0, 50, "t")
    assert one.ingest() == 50
    assert len(one.replay) == 150
    assert one.position.row == 50


def test_experience_with_fields_in_another_order_trains_nothing_and_a_removed_stream_ends_nothing(
    tmp_path: Path,
) -> None:
    """Before, numbers of the same width were read as the fields of today."""
    one = learning.make_learner(tmp_path, learning.SPEC, Policy)
    store = Store(tmp_path / "experience", ExperienceSettings.model_validate({}))
    for n in range(90):
        fields = fields_version(("q1", "q2") if n < 60 else ("q2", "q1"))
        versions = {"joints": fields, "removed": f"v{n // 30}"}
        assert store.append(replace(learning.made(n), encoder_versions=versions))
    assert store.flush()
    store.close()
    assert one.ingest() == 90
    assert one.replay.outdated == 60
    assert one.replay.strata().sampleable == 29, "the newest waits for its successor"
    assert one.replay.versions == {"joints": fields_version(("q2", "q1"))}
    assert float(one.policy.normalisers()["joints"].count) == 30, "the statistics are those of today's fields"


def test_a_loss_that_is_not_finite_is_counted_and_left_out(tmp_path: Path, monkeypatch: Any) -> None:
    learning.fill(tmp_path, 0, 100)
    one = learning.make_learner(tmp_path)
    one.ingest()

    def fail(_batch: Any, _decisions: float) -> dict[str, float]:
        raise FloatingPointError

    monkeypatch.setattr(one.algorithm, "update", fail)
    assert one.train(FOREVER, until=3) == 3
    assert (one.skipped, one.position.update) == (3, 3)
    assert one.position.new_decisions == 100  # they count at the next update


def test_a_bandit_sees_each_settled_transition_once_and_in_order(tmp_path: Path, monkeypatch: Any) -> None:
    spec = PolicySpec(learning.SPEC.streams, learning.ACTIONS, history=1, width=16, gamma=0.0)
    one = learning.make_learner(tmp_path, spec, reward_delay_s=0.5)
    assert isinstance(one.policy.heads, Heads)
    seen: list[float] = []
    monkeypatch.setattr(
        one.algorithm, "observe", lambda b, _: seen.extend(b.features.tokens["joints"][:, 0, 0, 0].tolist())
    )
    for start in (0, 20, 23, 60):
        learning.fill(tmp_path, start, {0: 20, 20: 23, 23: 60, 60: 90}[start])
        one.ingest()
    expected = [float(learning.made(n).tokens["joints"][0, 0]) for n in range(90 - 6)]
    assert seen == pytest.approx(expected)


def bandit_after(folder: Path, delay_ticks: int, ticks: int, *, crash_at: int | None = None) -> Learner:
    """Choose at random; `stay` earns 1, known `delay_ticks` later. The learner reads the store once a second."""
    spec = PolicySpec(learning.SPEC.streams, learning.ACTIONS, history=1, width=16, gamma=0.0)
    one = learning.make_learner(folder, spec, Policy, reward_delay_s=1.0)
    one.resume(no_version)
    one.save()
    store = Store(folder / "experience", limit=10_000)
    for n in range(ticks):
        made = replace(learning.made(n), reward=0.0, done=False)
        assert store.append(made)
        if n >= delay_ticks:
            earned = float(learning.made(n - delay_ticks).actions["head"] == "stay")
            assert store.credit(earned, decision=f"s-{n - delay_ticks}")
        if n % 10 == 9:
            assert store.flush()
            one.ingest()
        if n == crash_at:
            one = learning.make_learner(folder, spec, Policy, reward_delay_s=1.0)
            one.resume(no_version)
    for n in range(ticks - delay_ticks, ticks):
        assert store.credit(float(learning.made(n).actions["head"] == "stay"), decision=f"s-{n}")
    assert store.flush()
    store.close()
    one.ingest()
    return one


@pytest.mark.parametrize("ticks", [200, 400])
def test_a_bandit_learns_from_rewards_however_late_they_are(tmp_path: Path, ticks: int) -> None:
    """The posterior is that of the same rewards in time, before and after its normalisation settles."""
    in_time, late = (bandit_after(tmp_path / str(delay), delay, ticks) for delay in (0, 30))
    posteriors = [one.policy.heads.bandit for one in (in_time, late)]
    torch.testing.assert_close(posteriors[1].moment, posteriors[0].moment)
    torch.testing.assert_close(posteriors[1].covariance, posteriors[0].covariance)
    features = late.replay.newest(64)
    mean, _ = posteriors[1](late.policy.encode(features))[0]
    assert float(mean[:, 1].min()) > 0.6
    assert float(mean[:, (0, 2)].max()) < 0.3


def test_a_crash_between_a_transition_and_its_reward_changes_nothing(tmp_path: Path) -> None:
    one, two = bandit_after(tmp_path / "one", 30, 200), bandit_after(tmp_path / "two", 30, 200, crash_at=115)
    learning.assert_identical(learning.weights(two), learning.weights(one))


def test_weights_of_a_version_are_taken_up_again_after_a_crash(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 100)
    one = learning.make_learner(tmp_path)
    one.save()
    one.ingest()
    one.train(FOREVER, until=10)
    given = {name: value + 1 for name, value in one.policy.state_dict().items() if value.is_floating_point()}
    given = {**one.policy.state_dict(), **given}
    one.reset_to_version("000001-00000000", given)
    one.train(FOREVER, until=20)
    two = learning.make_learner(tmp_path)
    assert two.resume(lambda version: {"000001-00000000": given}[version])
    two.train(FOREVER, until=20)
    learning.assert_identical(learning.weights(two), learning.weights(one))


def test_a_broken_state_falls_back_to_the_one_before(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 100)
    one = learning.make_learner(tmp_path)
    one.ingest()
    one.train(FOREVER, until=10)
    one.save()
    one.train(FOREVER, until=20)
    broken = one.save()
    (tmp_path / "learner" / "state" / broken / "learner.safetensors").write_bytes(b"")
    two = learning.make_learner(tmp_path)
    assert two.resume(no_version)
    assert two.position.update == 10
    assert [refusal.reason for refusal in two.refused] == ["wrong_hash"]


def test_a_state_of_another_shape_is_not_resumed(tmp_path: Path) -> None:
    one = learning.make_learner(tmp_path)
    one.save()
    actions = learning.ActionSpace((learning.Choice("head", ("left", "right")),))
    two = learning.make_learner(tmp_path, PolicySpec(learning.SPEC.streams, actions, history=1, width=16, gamma=0.9))
    assert not two.resume(no_version)
    assert two.refused[0].reason == "wrong_shapes"


def test_a_moment_reads_the_same_whatever_came_later(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 50)
    with Reader(tmp_path / "experience") as reader:
        source = ExperienceSnapshots(reader)
        moment = source.now()
        before = [row.transition.reward for row in source.rows(SnapshotId(), moment)]
        late(tmp_path, 0, 40)
        late(tmp_path, 0, 40)
        learning.fill(tmp_path, 50, 60)
        assert [row.transition.reward for row in source.rows(SnapshotId(), moment)] == before
        picked = source.pick([1, 8, 9], moment)
        assert [picked[n].reward for n in (1, 8, 9)] == [before[n - 1] for n in (1, 8, 9)]
        assert not picked[9].intervention
        assert source.pick([9], source.now())[9].intervention
        assert len(source.changes(moment, source.now())) == 18  # the second mark changed nothing


def test_a_torn_line_of_the_journal_had_not_happened(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.entries() == []
    journal.note(JournalEntry(1, 5, 10, 2))
    journal.note(JournalEntry(2, 9, version="x"))
    with journal.path.open("ab") as file:
        file.write(b'{"number":3,"upd')
    assert journal.entries() == [JournalEntry(1, 5, 10, 2), JournalEntry(2, 9, version="x")]
    with journal.path.open("ab") as file:
        file.write(b'\n{"number":4,"update":1}\n')
    assert len(journal.entries()) == 2
    journal.restart([JournalEntry(2, 9)])
    assert journal.entries() == [JournalEntry(2, 9)]


def test_the_first_update_waits_longer_where_no_actuator_is_a_choice(tmp_path: Path) -> None:
    continuous = replace(learning.SPEC, actions=ActionSpace((ARM,)))
    assert learning.make_learner(tmp_path / "a", warmup=None).warmup == 256
    assert learning.make_learner(tmp_path / "b", continuous, warmup=None).warmup == 1_000
    assert learning.make_learner(tmp_path / "c", continuous, warmup=40).warmup == 40


def test_the_journal_of_a_state_that_cannot_be_loaded_is_not_repeated(tmp_path: Path) -> None:
    """It would be trained again from nothing, up to the update that the journal names."""
    learning.fill(tmp_path, 0, 60)
    one = learning.make_learner(tmp_path)
    one.ingest()
    saved = one.state.load(one.save())
    foreign = {**saved.documents, "spec": {"streams": [], "actions": []}}
    one.state.promote(version := one.state.save(saved.tensors, foreign))
    for other in one.state.list():
        if other.version != version:
            (one.state.folder / other.version / "manifest.sig").write_bytes(b"")
    one.journal.note(JournalEntry(99, 10**9, row=60))
    two = learning.make_learner(tmp_path)
    assert not two.resume(lambda _: pytest.fail("no version is named"))
    assert "other_meaning" in {refusal.reason for refusal in two.refused}
    assert two.position == type(two.position)()
    assert two.journal.entries() == []
