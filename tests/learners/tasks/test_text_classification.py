"""Classes of texts, pictures and sounds; heads that grow; the registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import tinymodels
import torch
from PIL import Image
from transformers import AutoModelForAudioClassification, AutoModelForImageClassification

from learners.config.tasks import Train
from learners.data_error import DataError
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer import TrainerSettings
from learners.finetune.training_phases import tune
from learners.tasks.audio_classification import ClassifySounds
from learners.tasks.base import Prediction
from learners.tasks.inputs.pictures import read_picture
from learners.tasks.inputs.sounds import read_sound
from learners.tasks.task_classes import check_modality, known, open_task, task_class
from sensors.codecs.resampling import RATE_HZ


def test_every_kind_of_the_settings_has_a_task() -> None:
    from typing import get_args

    from learners.config.tasks import TaskSettings
    from learners.task_kinds import FORMER_KINDS

    kinds = get_args(TaskSettings.model_fields["kind"].annotation)
    assert set(kinds) == set(known())
    with pytest.raises(ValueError, match="there are audio-classification"):
        task_class("dance")
    for former, kinds in FORMER_KINDS.items():
        assert set(kinds) <= set(known())
        with pytest.raises(ValueError, match=f"renamed to {' or '.join(kinds)}"):
            task_class(former)


def test_several_labels(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path), labels=("a", "b", "c"), multi_label=True)
    rows = [{"text": "go", "label": ["a", "b"]}, {"text": "stop", "label": []}]
    assert task.features(rows[0])[0]["labels"] == [1.0, 1.0, 0.0]
    found = [Prediction(("a",)), Prediction(())]
    # a and b in one of two examples each, c in none
    assert task.prior(rows).sigmoid().tolist() == pytest.approx([0.5, 0.5, 0.25])
    assert task.metrics(rows, found) == {"accuracy": 0.5, "f1": pytest.approx(2 / 3)}
    tune(task, Splits(rows * 8, rows), TrainerSettings(epochs=20, batch=8, learning_rate=1e-2, patience=20), "full")
    assert [p.value for p in task.predict(rows)] == [("a", "b"), ()]
    with pytest.raises(DataError, match="set multi_label"):
        open_task("text-classification", tmp_path, labels=("a", "b")).features(rows[0])


def test_macro_f1_counts_every_label_alike(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path), labels=("a", "b"))
    rows = [{"label": "a"}, {"label": "a"}, {"label": "b"}]
    # a: 2 hits of 2 wanted, 3 found: 0.8; b: 0
    assert task.prior(rows).exp().tolist() == pytest.approx([3 / 5, 2 / 5])
    assert task.metrics(rows, [Prediction("a")] * 3) == {
        "accuracy": pytest.approx(2 / 3),
        "macro_f1": pytest.approx(0.4),
    }
    with pytest.raises(DataError, match="'z'"):
        task.features({"text": "x", "label": "z"})
    with pytest.raises(DataError, match="without `text`"):
        task.features({"label": "a"})


def test_a_grown_head_keeps_what_it_knew(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path), labels=("a", "b"))
    task.save(tmp_path / "o")
    grown = open_task("text-classification", tmp_path / "o", labels=("b", "new", "a"))
    old, new = task.model.classifier, grown.model.classifier
    assert torch.equal(new.weight[2], old.weight[0])
    assert torch.equal(new.weight[0], old.weight[1])
    assert torch.equal(new.bias[[2, 0]], old.bias)
    assert torch.equal(grown.model.bert.pooler.dense.weight, task.model.bert.pooler.dense.weight)
    assert open_task("text-classification", tmp_path / "o").labels == ("a", "b")


def picture(colour: tuple[int, int, int], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 60, (40, 30, 3))
    return np.clip(np.array(colour) + noise - 30, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["frozen", "top", "lora"])
def test_pictures_are_learned_from_files_and_arrays(tmp_path: Path, mode: str) -> None:
    rows = []
    for i in range(16):
        for label, colour in {"red": (220, 40, 40), "blue": (40, 40, 220)}.items():
            rows.append({"picture": picture(colour, i), "label": label})
    path = tmp_path / "a.png"
    Image.fromarray(rows[0]["picture"]).save(path)
    rows[0] = {"picture": str(path), "label": "red"}
    check_modality(task_class("image-classification"), rows)
    with pytest.raises(DataError, match="reads a text; these examples hold a picture: use image-classification"):
        check_modality(task_class("text-classification"), rows)
    task = open_task("image-classification", tinymodels.efficientnet(tmp_path / "m"), labels=("blue", "red"), flip=True)
    assert task.varying
    tuned = tune(
        task, Splits(rows[:24], rows[24:]), TrainerSettings(epochs=20, batch=8, learning_rate=5e-2, patience=20), mode
    )
    assert tuned.run.best == 1.0
    task.save(tmp_path / "o")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "o").config.id2label[1] == "red"
    again = open_task("image-classification", tmp_path / "o")
    assert again.predict(rows[:1])[0].value == "red"
    with pytest.raises(DataError, match="picture"):
        task.features({"text": "x"})


def test_transparent_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "t.png")
    assert read_picture(tmp_path / "t.png").tolist() == [[[255] * 3] * 2] * 2


def tone(hertz: float, seed: int, seconds: float = 0.4) -> np.ndarray:
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return (0.3 * np.sin(2 * np.pi * hertz * t) + 0.01 * np.random.default_rng(seed).standard_normal(len(t))).astype(
        np.float32
    )


def test_sounds_are_learned_with_a_whisper_of_one_second(tmp_path: Path) -> None:
    rows = [
        {"sound": tone(f, i), "label": label} for i in range(8) for label, f in {"low": 200.0, "high": 2000.0}.items()
    ]
    soundfile.write(tmp_path / "a.wav", tone(200, 99), RATE_HZ)
    window = ClassifySounds.fitting_window_s(rows)
    assert window == 1.0
    task = open_task(
        "audio-classification", tinymodels.whisper(tmp_path / "m"), labels=("high", "low"), window_s=window
    )
    assert task.model.config.max_source_positions == 50
    feature = task.features({"sound": str(tmp_path / "a.wav"), "label": "low"})[0]
    assert feature["input_features"].shape == (80, 100)
    tuned = tune(task, Splits(rows, rows), TrainerSettings(epochs=15, batch=8, learning_rate=5e-3, patience=15), "full")
    assert tuned.run.best == 1.0
    task.save(tmp_path / "o")
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "o")
    assert model.config.max_source_positions == 50
    again = open_task("audio-classification", tmp_path / "o")
    assert again.predict([{"sound": str(tmp_path / "a.wav")}])[0].value == "low"


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_sounds_are_learned_from_their_samples_by_a_wav2vec2(tmp_path: Path, mode: Train) -> None:
    rows = [
        {"sound": tone(f, i), "label": label} for i in range(8) for label, f in {"low": 200.0, "high": 2000.0}.items()
    ]
    labels = ("high", "low")
    task = open_task("audio-classification", tinymodels.wav2vec2(tmp_path / "m"), labels=labels, window_s=1.0)
    assert task.features(rows[0])[0]["input_values"].shape == (int(0.4 * RATE_HZ),)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    tuned = tune(task, Splits(rows, rows), TrainerSettings(epochs=20, batch=8, learning_rate=5e-3, patience=20), mode)
    assert tuned.run.best == 1.0
    assert tuned.trained < tuned.total or mode == "full"
    if mode == "lora":
        stored = "wav2vec2.encoder.layer_norm.weight"
        assert torch.equal(before[stored], dict(task.model.named_parameters())[stored])
    task.save(tmp_path / "o")
    assert AutoModelForAudioClassification.from_pretrained(tmp_path / "o").config.label2id == {"high": 0, "low": 1}
    again = open_task("audio-classification", tmp_path / "o")
    assert [p.value for p in again.predict([{"sound": tone(220, 77)}, {"sound": tone(1900, 78)}])] == ["low", "high"]


def test_sounds_are_resampled_and_mixed_down(tmp_path: Path) -> None:
    stereo = np.stack([tone(200, 0), tone(200, 0)], 1)[::2]
    soundfile.write(tmp_path / "s.wav", stereo, RATE_HZ // 2)
    got = read_sound(tmp_path / "s.wav")
    assert got.ndim == 1
    assert abs(len(got) - int(0.4 * RATE_HZ)) <= 2
