"""An encoder's weights out of a fine-tuned folder, and the folder that has an encoder's version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import tinymodels
import torch
from task_versions import promote_version

from learners.config.policy import EncoderSettings
from learners.ipc.settings import LearnerConfig
from learners.model.encoders.pretrained import load
from learners.reencoding.encoder_versions import EncoderVersions
from learners.reencoding.task_encoder import state_of
from learners.task_serving.versions import REPORT, TaskVersionStore
from learners.tasks.task_classes import open_task

CPU = torch.device("cpu")
MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "bert": (tinymodels.bert, "text-classification"),
    "whisper": (tinymodels.whisper, "audio-classification"),
    "wav2vec2": (tinymodels.wav2vec2, "audio-classification"),
    "efficientnet": (tinymodels.efficientnet, "image-classification"),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_state_is_what_loading_the_folder_as_an_encoder_gives(tmp_path: Path, name: str) -> None:
    make, kind = MODELS[name]
    source = make(tmp_path / "model")
    task = open_task(kind, source, labels=("x", "y"))
    for number, parameter in enumerate(task.model.parameters()):
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    task.save(tmp_path / "tuned")
    settings = EncoderSettings(model=str(source), follow_task=True)
    encoder = load(settings, 4, CPU, window_s=1.0)
    before = encoder.version
    encoder.load_state(state_of(settings, encoder, tmp_path / "tuned"))
    tuned = load(settings.model_copy(update={"model": str(tmp_path / "tuned")}), 4, CPU, window_s=1.0)
    assert encoder.module is not None
    assert tuned.module is not None
    want, have = tuned.module.state_dict(), encoder.module.state_dict()
    assert {key for key in have if ".pooler." not in f".{key}"} <= set(want)
    for key, tensor in have.items():
        if ".pooler." not in f".{key}":
            assert torch.equal(tensor, want[key]), key
    assert encoder.version != before


def test_a_folder_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    bert = tinymodels.bert(tmp_path / "bert")
    settings = EncoderSettings(model=str(bert), follow_task=True)
    encoder = load(settings, 1, CPU)
    other = open_task("audio-classification", tinymodels.wav2vec2(tmp_path / "other"), labels=("x", "y"))
    other.save(tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"has no weight .* another architecture than"):
        state_of(settings, encoder, tmp_path / "tuned")


def settings_of(tmp_path: Path) -> LearnerConfig:
    model = str(tinymodels.bert(tmp_path / "model"))
    return LearnerConfig.model_validate(
        {
            "state_dir": tmp_path,
            "streams": {"orders": {"kind": "text", "encoder": "language"}},
            "encoders": {"language": {"model": model, "follow_task": True}},
            "tasks": {"intents": {"kind": "text-classification", "stream": "orders", "model": model}},
            "engine": {"backend": "torch", "precision": "float32"},
        }
    )


def encoder_version(given: LearnerConfig, folder: Path) -> str:
    settings = given.encoders["language"]
    encoder = load(settings, given.policy.tokens, CPU)
    encoder.load_state(state_of(settings, encoder, folder))
    return encoder.version


def test_a_version_is_looked_up_by_the_encoders_version_once_it_is_recorded(tmp_path: Path) -> None:
    given = settings_of(tmp_path)
    made = [promote_version(tmp_path, "intents", given.tasks["intents"].model, number) for number in (1, 2, 3)]
    wanted = [encoder_version(given, one.path) for one in made]
    versions = TaskVersionStore(tmp_path / "learner" / "tasks" / "intents")
    assert [one.encoder_version for one in versions.all()] == [None, None, None], "as older folders are"
    found = EncoderVersions(given)("orders", wanted[1])
    assert found is not None
    assert found.version == wanted[1]
    assert [one.encoder_version for one in versions.all()] == [None, wanted[1], wanted[2]], "newest first, up to it"
    first, second, third = versions.all()
    assert versions.by_encoder_version(wanted[1]) == [second, third, first]
    for other in (first, third):
        (other.path / "model.safetensors").unlink()
    again = EncoderVersions(given)("orders", wanted[1])
    assert again is not None
    assert again.version == wanted[1]
    assert EncoderVersions(given)("orders", "0" * 16) is None


def test_the_record_leaves_the_rest_of_the_report(tmp_path: Path) -> None:
    given = settings_of(tmp_path)
    version = promote_version(tmp_path, "intents", given.tasks["intents"].model, 1)
    (version.path / REPORT).write_bytes(orjson.dumps({"last_label": 7}))
    version.record_encoder_version("abc")
    assert (version.encoder_version, version.last_label) == ("abc", 7)
    (version.path / REPORT).write_bytes(orjson.dumps({"encoder_version": 5}))
    assert version.encoder_version is None
