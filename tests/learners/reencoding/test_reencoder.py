"""After an encoder's swap: old ticks come back in the new version's tokens, from the very readings they saw, or stay out."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
import soundfile
import tinymodels
import torch
from PIL import Image
from task_versions import promote_version

from learners.checkpoints.store import Checkpoints
from learners.config.learner import PromotionSettings
from learners.experience.reader import Reader
from learners.experience.reading_of_tick import raw_reading
from learners.experience.snapshots import ExperienceSnapshots
from learners.experience.store import Raw, Store, Transition
from learners.ipc.settings import LearnerConfig
from learners.model.encoders.base import Encoder
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.promotion.recent_experience import RecentExperience
from learners.reencoding.encoder_versions import EncoderVersions
from learners.reencoding.reencoder import Reencoder, encode
from learners.reencoding.token_store import StoredTokens, TokenStore
from learners.task_serving.versions import TaskVersionStore
from learners.tasks.task_classes import open_task
from learners.worker.journal import Journal
from learners.worker.learner import Learner
from learners.worker.loop import LearnerLoop
from sensors.codecs.readings import decode_reading
from sensors.readings import Frame, Sound, Text

FOREVER = float("inf")
ORDERS = ("go left", "stop now", "please go", "is the red")


def inputs(tmp_path: Path) -> LearnerConfig:
    model = tmp_path / "model"
    if not model.exists():
        tinymodels.bert(model)
    return LearnerConfig.model_validate(
        {
            "state_dir": tmp_path,
            "streams": {"orders": {"kind": "text", "encoder": "language"}, "joints": {"kind": "telemetry"}},
            "encoders": {"language": {"model": str(model), "follow_task": True}},
            "tasks": {"intents": {"kind": "text-classification", "stream": "orders", "model": str(model)}},
            "engine": {"backend": "torch", "precision": "float32"},
            "learner": {"batch": 16, "warmup": 8, "reward_delay_s": 0, "replay_gb": 1e-3},
        }
    )


def promote(given: LearnerConfig, number: int) -> None:
    """A version of the task with another backbone."""
    promote_version(given.state_dir, "intents", given.tasks["intents"].model, number)


def versions_of(given: LearnerConfig) -> list[str]:
    """Of the encoder: pretrained, and as each version of the task has it."""
    from learners.model.encoders.pretrained import load
    from learners.reencoding.task_encoder import state_of

    settings = given.encoders["language"]
    encoder = load(settings, 4, torch.device("cpu"))
    found = [encoder.version]
    for one in TaskVersionStore(given.state_dir / "learner" / "tasks" / "intents").all():
        encoder.load_state(state_of(settings, encoder, one.path))
        found.append(encoder.version)
    return found


def tick(n: int, encoder: Encoder, text: str, age_s: float) -> Transition:
    made = learning.made(n)
    tokens = encode(encoder, Text("orders", 0.0, 0, text))
    return replace(
        made,
        tokens={**made.tokens, "orders": tokens},
        present={**made.present, "orders": True},
        ages_s={**made.ages_s, "orders": age_s},
        encoder_versions={"orders": encoder.version},
    )


def fill(store: Store, encoder: Encoder, start: int, stop: int, *, keep: bool = True) -> None:
    """Ticks at 10 Hz with a new order every fourth one, captured 30 ms before the tick that saw it first."""
    for n in range(start, stop):
        text = ORDERS[n // 4 % len(ORDERS)]
        assert store.append(tick(n, encoder, text, 0.03 + 0.1 * (n % 4)))
        if keep and n % 4 == 0:
            assert store.add_raw(Raw("orders", n / 10, "utf-8", text.encode()))
    assert store.flush()


def learner_of(tmp_path: Path, spec: PolicySpec, given: LearnerConfig, recoded: TokenStore) -> Learner:
    folder = tmp_path / "learner"
    return Learner(
        spec,
        given.learner,
        ExperienceSnapshots(Reader(tmp_path / "experience")),
        Checkpoints(folder / "state", learning.KEY, keep_last=2, keep_best=0, keep_promoted=2),
        Journal(folder / "journal.jsonl"),
        Policy,
        recoded=recoded,
    )


def spec_of(width: int) -> PolicySpec:
    streams = (StreamSpec("orders", "text", 1, width), StreamSpec("joints", "telemetry", 1, 2))
    return PolicySpec(streams, learning.ACTIONS, history=1, width=16, latents=2, layers=1, heads=2, gamma=0.9)


def present(learner: Learner) -> list[bool]:
    """Whether `orders` counts, of every row held, oldest first."""
    features = learner.replay.newest(10_000)
    assert features is not None
    return [bool(there) for there in features.present[:, 0, 0]]


def held_tokens(learner: Learner) -> torch.Tensor:
    features = learner.replay.newest(10_000)
    assert features is not None
    return features.tokens["orders"][:, 0]


def test_old_ticks_come_back_in_the_new_versions_tokens_and_a_crash_changes_nothing(
    tmp_path: Path, store: Store
) -> None:
    given = inputs(tmp_path)
    promote(given, 1)
    old_version, new_version = versions_of(given)
    recall = EncoderVersions(given)
    old, new = recall("orders", old_version), recall("orders", new_version)
    assert old is not None
    assert new is not None
    fill(store, old, 0, 20, keep=False)  # long ago: their readings are gone
    fill(store, old, 20, 60)
    fill(store, new, 60, 80)

    recoded = TokenStore(tmp_path / "learner" / "reencoded.db")
    spec = spec_of(new.width)
    one = learner_of(tmp_path, spec, given, recoded)
    one.ingest()
    assert present(one) == [False] * 60 + [True] * 20, "tokens of two versions are never mixed"
    statistics = one.policy.normalisers()["orders"]
    assert int(statistics.count) == 20, "the statistics of another encoder mean nothing"
    assert one.replay.outdated == 60
    one.save()
    one.train(FOREVER, until=10)

    again = Reencoder(one.source.reader, recoded, recall)
    while again.step(one.replay, 0.0):
        one.take_reencoded()
    assert present(one) == [False] * 20 + [True] * 60
    assert (int(statistics.count), one.replay.outdated) == (60, 20)
    torch.testing.assert_close(statistics.mean, held_tokens(one)[20:].mean(0).flatten(), atol=1e-4, rtol=1e-3)
    drawn = one.replay.sample(64, torch.Generator().manual_seed(0))
    assert bool(drawn.features.present.all()), "what waits for its tokens is set aside"
    assert again.figures() == {"done": 40, "without_raw": 20, "waiting": 0, "failed": 0}
    for n, tokens in enumerate(held_tokens(one)[20:60], 20):
        assert torch.equal(tokens, torch.from_numpy(encode(new, Text("orders", 0.0, 0, ORDERS[n // 4 % 4]))).float())
    assert not again.step(one.replay, 0.0), "what has no reading is not tried again"
    judged = recoded.renew(one.source.reader.newest(80), one.replay.versions)
    assert [t.encoder_versions["orders"] for t in judged] == [old_version] * 20 + [new_version] * 60
    assert np.array_equal(np.stack([t.tokens["orders"] for t in judged[20:]]), held_tokens(one)[20:].half().numpy())
    assert {t.encoder_versions["orders"] for t in recoded.renew(one.source.reader.newest(70), {})} == {
        old_version,
        new_version,
    }
    one.train(FOREVER, until=20)

    (tmp_path / "experience" / "raw.db").unlink()  # by the time of the crash the raw readings are gone
    two = learner_of(tmp_path, spec, given, TokenStore(tmp_path / "learner" / "reencoded.db"))
    assert two.resume(pytest.fail)
    two.train(FOREVER, until=20)
    assert torch.equal(held_tokens(two), held_tokens(one))
    assert present(two) == present(one)
    learning.assert_identical(learning.weights(two), learning.weights(one))
    two.save()
    three = learner_of(tmp_path, spec, given, TokenStore(tmp_path / "learner" / "reencoded.db"))
    assert three.resume(pytest.fail)
    assert present(three) == present(one), "from the saved state, too"


def test_an_encoder_that_does_not_act_yet_is_trained_and_judged_with_and_a_crash_changes_nothing(
    tmp_path: Path, store: Store
) -> None:
    """The agent goes on with the encoder of its policy; the candidate learns the task's version from the re-encoded log."""
    given = inputs(tmp_path)
    recall = EncoderVersions(given)
    assert recall.followed(pytest.fail) == {}, "the task has no version yet"
    promote(given, 1)
    old_version, new_version = versions_of(given)
    assert recall.followed(pytest.fail) == {"orders": new_version}
    old, new = recall("orders", old_version), recall("orders", new_version)
    assert old is not None
    assert new is not None
    fill(store, old, 0, 40)
    recoded = TokenStore(tmp_path / "learner" / "reencoded.db")
    spec = spec_of(new.width)
    one = learner_of(tmp_path, spec, given, recoded)
    one.ingest()
    one.save()
    one.train(FOREVER, until=5)
    one.follow_encoders({"orders": new_version})
    assert present(one) == [False] * 40
    again = Reencoder(one.source.reader, recoded, recall)
    while again.step(one.replay, 0.0):
        one.take_reencoded()
    fill(store, old, 40, 48)
    one.ingest()
    assert present(one) == [True] * 40 + [False] * 8, "what acts meanwhile does not change what is followed"
    one.train(FOREVER, until=10)

    experience = RecentExperience(lambda: one.replay.versions, one.source.reader, again)
    judged = experience.recent(48)
    assert {t.encoder_versions["orders"] for t in judged} == {new_version}, "the newest are encoded when they are read"
    assert {t.encoder_versions["orders"] for t in experience.as_logged(judged)} == {old_version}
    fresh = experience.after(46)
    assert [row.transition.encoder_versions["orders"] for row in fresh] == [new_version] * 2
    assert np.array_equal(fresh[0].transition.tokens["orders"], encode(new, Text("orders", 0.0, 0, ORDERS[11 % 4])))

    two = learner_of(tmp_path, spec, given, TokenStore(tmp_path / "learner" / "reencoded.db"))
    assert two.resume(pytest.fail)
    two.train(FOREVER, until=10)
    assert present(two) == present(one)
    assert two.replay.versions == one.replay.versions == {"orders": new_version}
    learning.assert_identical(learning.weights(two), learning.weights(one))
    two.save()
    three = learner_of(tmp_path, spec, given, TokenStore(tmp_path / "learner" / "reencoded.db"))
    assert three.resume(pytest.fail)
    assert three.position.encoders == {"orders": new_version}, "from the saved state, too"


def test_a_candidate_names_the_encoder_it_learned_with_and_the_live_policy_is_judged_with_its_own(
    tmp_path: Path, store: Store
) -> None:
    given = inputs(tmp_path)
    loop_given = given.model_copy(update={"promotion": PromotionSettings(steps=("integrity", "sanity"))})
    recall = EncoderVersions(given)
    promote(given, 1)
    old_version, new_version = versions_of(given)
    old = recall("orders", old_version)
    assert old is not None
    fill(store, old, 0, 40)
    background = LearnerLoop(loop_given, spec_of(old.width), threading.Event())
    background.begin()
    manager = background.candidates
    background.learner.ingest()
    manager.begin()
    first = manager.resume()
    assert first is not None
    assert not first.rejected
    manager.checkpoints.promote(str(manager.checkpoints.proposed()), by="untrusted")
    for _ in range(20):
        background.step()
        if background.figures()["reencoded"]["done"] == 40:
            break
    assert background.learner.position.encoders == {"orders": new_version}
    manager.begin()
    assert manager.evaluation is not None
    context = manager.evaluation.context
    assert (context.manifest.encoder_versions, context.live_encoder_versions) == (
        {"orders": new_version}, {"orders": old_version},
    )  # fmt: skip
    assert context.live is not None
    logged = context.logged(context.experience.recent(40))
    seen_by = {who: logged.of(who).seen(np.arange(40)).tokens["orders"] for who in (context.candidate, context.live)}
    wanted = [torch.from_numpy(encode(old, Text("orders", 0.0, 0, ORDERS[n // 4 % 4]))).float() for n in range(40)]
    assert torch.equal(seen_by[context.live], torch.stack(wanted))
    assert not torch.isclose(seen_by[context.candidate], seen_by[context.live]).all(-1).any()
    ended = manager.resume()
    assert ended is not None
    assert manager.checkpoints.load(str(manager.checkpoints.proposed())).manifest.encoder_versions == {
        "orders": new_version if not ended.rejected else old_version
    }


def test_a_task_version_that_does_not_fit_its_encoder_is_reported_once(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    wide = open_task("text-classification", str(tinymodels.bert(tmp_path / "wide", width=64)), labels=("x", "y"))
    versions = TaskVersionStore(tmp_path / "learner" / "tasks" / "intents")
    versions.promote(versions.add(wide, 1))
    recall, refused = EncoderVersions(given), list[dict[str, str]]()
    assert recall.followed(refused.append) == recall.followed(refused.append) == {}
    assert len(refused) == 1
    assert "the encoder has" in refused[0]["reason"]


def test_the_running_learner_does_it_beside_training_and_says_so(tmp_path: Path, store: Store) -> None:
    given = inputs(tmp_path)
    promote(given, 1)
    recall = EncoderVersions(given)
    old, new = (recall("orders", version) for version in versions_of(given))
    assert old is not None
    assert new is not None
    fill(store, old, 0, 40)
    fill(store, new, 40, 44)
    background = LearnerLoop(given, spec_of(new.width), threading.Event())
    background.begin()
    for _ in range(20):  # a step has little time; on a busy machine the work takes more of them
        background.step()
        if background.figures()["reencoded"]["done"] == 40 and not background.reencoder._encoders:
            break
    assert present(background.learner) == [True] * 44
    assert background.figures()["reencoded"] == {"done": 40, "without_raw": 0, "waiting": 0, "failed": 0}
    assert not background.reencoder._encoders, "nothing is left to encode, so nothing stays in memory"


def test_a_version_that_is_gone_leaves_its_ticks_out(tmp_path: Path, store: Store) -> None:
    given = inputs(tmp_path)
    promote(given, 1)
    known = versions_of(given)
    wide = open_task("text-classification", str(tinymodels.bert(tmp_path / "wide", width=64)), labels=("x", "y"))
    TaskVersionStore(tmp_path / "learner" / "tasks" / "intents").add(
        wide, 2
    )  # of another architecture: no version of the encoder
    recall = EncoderVersions(given)
    old = recall("orders", known[0])
    assert old is not None
    assert recall("orders", known[1]) is not None
    fill(store, old, 0, 8)
    assert store.append(replace(tick(8, old, "go", 0.0), encoder_versions={"orders": "0" * 16}))
    assert store.flush()
    recoded = TokenStore(tmp_path / "learner" / "reencoded.db")
    one = learner_of(tmp_path, spec_of(old.width), given, recoded)
    one.ingest()
    again = Reencoder(one.source.reader, recoded, recall)
    assert again.step(one.replay, FOREVER) == 0
    assert again.figures() == {"done": 0, "without_raw": 8, "waiting": 0, "failed": 0}
    assert recall("joints", "") is None
    assert recall("unknown", "") is None


def test_which_raw_reading_a_tick_saw(tmp_path: Path, store: Store) -> None:
    """Captured at 0.09 and first seen at 0.2, because it came late: at 0.1 the one before was still in use."""
    ages = {0.1: 0.05, 0.2: 0.11, 0.3: 0.21, 0.4: 0.02}
    for n, (stamp_s, age_s) in enumerate(ages.items()):
        assert store.append(replace(learning.made(n), stamp_s=stamp_s, ages_s={"orders": age_s}))
    assert store.add_raw(Raw("orders", 0.1, "utf-8", b"first"))
    assert store.flush()
    reader = Reader(tmp_path / "experience")
    seen = [row.transition for row in reader.rows(1, 5)]
    first = raw_reading(reader, seen[0], "orders")
    assert first is not None
    assert first.data == b"first"
    assert raw_reading(reader, seen[1], "orders") is None, "its own was not stored, and the first is not taken for it"
    assert store.add_raw(Raw("orders", 0.2, "utf-8", b"second"))
    assert store.flush()
    found = [raw_reading(reader, one, "orders") for one in seen]
    assert [None if raw is None else raw.data for raw in found] == [b"first", b"second", b"second", None]


def test_readings_come_back_as_they_were() -> None:
    picture, sound = io.BytesIO(), io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture, "PNG")
    samples = (np.arange(-400, 400) / 32_768).astype(np.float32)
    soundfile.write(sound, samples, 16_000, format="FLAC", subtype="PCM_16")
    frame = decode_reading(*("front", 1.0, "png", picture.getvalue()))
    received = decode_reading(*("room", 1.0, "flac", sound.getvalue()))
    assert isinstance(frame, Frame)
    assert np.array_equal(frame.image, pixels)
    assert isinstance(received, Sound)
    assert np.array_equal(received.samples, samples)
    assert decode_reading(*("front", 1.0, "png", b"torn")) is None


def entries(recoded: TokenStore) -> list[Any]:
    return [(one.row, one.version) for one in recoded.between(0, recoded.last())]


def test_what_no_one_holds_any_more_is_forgotten_and_numbers_never_come_twice(tmp_path: Path) -> None:
    recoded = TokenStore(tmp_path / "reencoded.db")
    row = StoredTokens(1, "orders", "a", np.ones((1, 4), np.float16))
    assert recoded.last() == 0
    recoded.add([row, replace(row, row=2), replace(row, row=2, version="b"), replace(row, row=2, stream="room")])
    recoded.tidy(2, {"orders": "b"})
    assert entries(recoded) == [(2, "b"), (2, "a")]
    recoded.clear()
    assert recoded.last() == 4
    recoded.add([row])
    assert recoded.last() == 5
    recoded.close()


def test_a_full_disk_refuses_tokens_and_takes_them_later(tmp_path: Path) -> None:
    recoded = TokenStore(tmp_path / "reencoded.db")
    made = [StoredTokens(row, "orders", "v", np.ones((64, 384), np.float16)) for row in range(4)]
    recoded._db.execute("PRAGMA max_page_count = 8")
    assert not recoded.add(made)
    assert recoded.last() == 0
    recoded._db.execute("PRAGMA max_page_count = 100000")
    assert recoded.add(made)
    assert recoded.last() == 4
    recoded.close()
