"""What programs before 0.1.0 left on disk, with the words of then, is read with the words of now."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

import learning
import numpy as np
import orjson
import pytest
import tinymodels
import torch

from actuators.actions import ActionSpace, Choice
from learners.checkpoints.store import Checkpoints
from learners.config.learner import ExperienceSettings
from learners.config.policy import EncoderSettings
from learners.experience import transition
from learners.experience.reader import Reader
from learners.experience.store import Store
from learners.experience.transition import Transition
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import read_policy_spec, spec_path
from learners.ipc.progress import read_progress
from learners.model.encoders.pretrained import load
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.tasks.task_classes import open_task
from learners.worker.journal import Position, load_position

WORDS = {b'"image"': b'"vision"', b'"audio"': b'"hearing"', b'"latent-attention"': b'"bottleneck"'}
"""Of now, and of then, in a spec."""
SPEC = PolicySpec(
    (StreamSpec("front", "image", 4, 8, 2), StreamSpec("room", "audio", 1, 8), StreamSpec("orders", "text", 1, 8)),
    ActionSpace((Choice("head", ("left", "right")),)),
    width=16, hidden=(16,), heads=2,
)  # fmt: skip


def of_then(spec: bytes) -> bytes:
    """The spec as it was written then."""
    for now, then in WORDS.items():
        assert now in spec
        spec = spec.replace(now, then)
    return spec.replace(b'"modality": "text"', b'"modality": "language"')


def test_a_spec_of_then_is_the_same_spec(tmp_path: Path) -> None:
    old = of_then(SPEC.to_json())
    assert b'"language"' in old
    assert PolicySpec.from_json(old) == SPEC
    spec_path(tmp_path).parent.mkdir()
    spec_path(tmp_path).write_bytes(old)
    assert read_policy_spec(tmp_path) == SPEC


def test_a_signed_checkpoint_of_then_verifies_and_loads(tmp_path: Path) -> None:
    made = Policy(SPEC)
    versions = Checkpoints(tmp_path, learning.KEY)
    version = versions.save({"policy": made.state_dict()}, {"spec": orjson.loads(of_then(SPEC.to_json()))})
    versions.promote(version)
    before = (tmp_path / version / "spec.json").read_bytes()
    assert b'"vision"' in before
    loaded = versions.load_live(lambda refusal: pytest.fail(str(refusal)))
    assert loaded is not None
    assert PolicySpec.from_json(orjson.dumps(loaded.documents["spec"])) == SPEC
    assert (tmp_path / version / "spec.json").read_bytes() == before, "nothing on disk is changed"


def test_stored_transitions_of_then_say_who_acted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by: Any = {"head": "nobody", "arm": "policy"}
    row = Transition(
        "s", 1, "s-1", 100.0, "v", tokens={"joints": np.ones((1, 2), np.float32)}, actions={"arm": (0.5,)}, by=by
    )
    with closing(Store(tmp_path, ExperienceSettings.model_validate({}))) as store:
        assert store.append(row)
        assert store.flush()
    head, _ = transition.encode(row)
    assert b"nobody" in head, "as it was stored then"
    with Reader(tmp_path) as reader:
        [found] = reader.rows(0, 10)
    assert found.transition.by == {"head": "none", "arm": "policy"}


def test_events_and_progress_that_a_learner_of_then_left_have_the_names_of_now(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    for kind in ("learner_waits", "task_held_back", "policy_promoted"):
        box.post(kind, {"n": 1})
    assert [event.kind for event in box.collect()] == [
        "learner_waiting_for_spec", "task_awaiting_approval", "policy_promoted",
    ]  # fmt: skip
    path = tmp_path / "progress.json"
    path.write_bytes(orjson.dumps({"drawable": 5, "taught": 4, "failures": 3, "owed": 2.5, "forgotten": 1, "row": 9}))
    assert read_progress(path) == {
        "sampleable": 5, "demonstrations": 4, "terminal": 3, "pending_updates": 2.5, "dropped_updates": 1, "row": 9,
    }  # fmt: skip


def test_the_position_of_a_learner_of_then_is_read() -> None:
    saved = {
        "update": 3,
        "owed": 2.5,
        "row": 9,
        "change": 1,
        "entry": 4,
        "recoded": 0,
        "trail": 2,
        "versions": {"e": "1"},
    }
    assert load_position(saved) == (Position(update=3, pending_updates=2.5, row=9, change=1, entry=4), 2, {"e": "1"})


@pytest.mark.parametrize(
    ("kind", "then", "make"),
    [
        ("text-classification", {"kind": "classify", "modality": "text"}, tinymodels.bert),
        ("image-classification", {"kind": "classify", "modality": "picture"}, tinymodels.efficientnet),
        ("audio-classification", {"kind": "classify", "modality": "sound"}, tinymodels.wav2vec2),
        ("token-classification", {"kind": "tag", "modality": "text"}, tinymodels.bert),
    ],
)
def test_a_fine_tuned_folder_of_then_opens_as_its_kind_of_now(
    tmp_path: Path, kind: str, then: dict[str, str], make: Any
) -> None:
    from learners.tasks.base import saved

    labels = ("O", "B-x") if kind == "token-classification" else ("a", "b")
    open_task(kind, make(tmp_path / "model"), labels=labels).save(tmp_path / "tuned")
    path = tmp_path / "tuned" / "task.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | then))
    assert saved(tmp_path / "tuned")["kind"] == kind
    assert open_task(kind, tmp_path / "tuned").labels == labels


def test_an_encoder_has_the_version_it_had_then(tmp_path: Path) -> None:
    """Tokens in the store stay those of the encoder that is in use."""
    encoder = load(EncoderSettings(model=str(tinymodels.bert(tmp_path))), 2, torch.device("cpu"))
    assert encoder.module is not None

    digest = hashlib.sha256(
        orjson.dumps([1, "language", encoder.tokens, dict(encoder.shaping)], option=orjson.OPT_SORT_KEYS)  # type: ignore[attr-defined] # of a pretrained one
    )
    for name, tensor in sorted(encoder.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    assert encoder.version == digest.hexdigest()[:16]
