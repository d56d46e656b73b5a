"""Speech recognition: error rates by hand, words learned from sounds, and folders that plain transformers opens."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import soundfile
import tinymodels
import torch
import transformers

from learners.config.tasks import TaskSettings
from learners.data_error import DataError
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer import TrainerSettings
from learners.finetune.training_phases import tune
from learners.task_kinds import TaskKind
from learners.task_serving.options import options_of
from learners.tasks.base import IGNORED, Prediction
from learners.tasks.speech_recognition import edits, error_rate
from learners.tasks.task_classes import open_task, task_class

KIND: TaskKind = "automatic-speech-recognition"
WORDS = {"go": 0.05, "stop": 0.2, "left": 0.8}


def spoken(count: int, seed: int) -> list[dict[str, Any]]:
    """Sounds of two tones; each tone is a word."""
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = [rng.choice(list(WORDS)) for _ in range(2)]
        tones = [np.sin(np.arange(8_000) * WORDS[word]) for word in words]
        sound = np.concatenate(tones) * 0.3 + generator.standard_normal(16_000) * 0.01
        found.append({"sound": sound.astype(np.float32), "target": " ".join(words)})
    return found


def test_error_rates_by_hand(tmp_path: Path) -> None:
    assert edits(["go", "left", "now"], ["go", "right"]) == 2
    assert edits([], ["a"]) == edits(["a"], []) == 1
    assert error_rate([(["a", "b"], ["a", "b"]), (["c"], ["d", "e"])]) == pytest.approx(2 / 3)
    task = open_task(KIND, tinymodels.speech(tmp_path))
    rows = [{"target": "Front, center."}, {"target": "go left"}]
    figures = task.metrics(rows, [Prediction("front center"), Prediction("go right now")])
    assert figures["word_error_rate"] == pytest.approx(2 / 4), "case and punctuation do not count"
    worse, better = [Prediction("x x x x x"), Prediction("y y")], [Prediction("x front cente"), Prediction("g righ")]
    assert task.metrics(rows, worse)["word_accuracy"] == task.metrics(rows, better)["word_accuracy"] == 0.0
    assert task.tie_break(rows, better) > task.tie_break(rows, worse), "it has learned something"
    assert figures["word_accuracy"] == pytest.approx(0.5)


def test_words_of_signs_of_many_bytes_are_whole(tmp_path: Path) -> None:
    task: Any = open_task(KIND, tinymodels.speech(tmp_path / "model"))
    spelling = transformers.AutoTokenizer.from_pretrained(tinymodels.spelling(tmp_path / "bytes", "llama"))
    task.processor = replace(task.processor, tokenizer=spelling)
    ids = task.processor.tokenizer("né 中文字 😀 ok")["input_ids"]
    logs = [-0.1] * len(ids)
    logs[ids.index(task.processor.tokenizer("中")["input_ids"][0])] = -2.0
    words = task._words(ids, logs)
    assert [one["word"] for one in words] == ["né", "中文字", "😀", "ok"]
    assert [round(one["confidence"], 2) for one in words] == [0.9, 0.14, 0.9, 0.9]
    assert [one["word"] for one in task._words(ids[:-4], logs[:-4])][:2] == ["né", "中文字"], "cut inside a sign"


def test_no_transcript_is_longer_than_the_model(tmp_path: Path) -> None:
    task: Any = open_task(KIND, tinymodels.speech(tmp_path), max_new_tokens=192)
    end, task.end = task.end, -1  # it never ends a text
    sound = np.random.default_rng(0).standard_normal(160_000).astype(np.float32)
    (feature,) = task.features({"sound": sound})
    ids, _, _ = task.outputs(task.model, task.collate([feature]))[0]
    assert len(ids) == 16, "each token but the last is placed"
    task.end = end
    example = {"sound": sound, "target": " ".join(["go"] * 28)}
    assert task.unread(example) == pytest.approx(0.5)
    assert torch.isfinite(task.loss(task.model, task.collate(task.features(example))))
    assert "16 positions" in task.notes[0]


def test_words_are_learned_from_sounds_and_the_folder_is_a_plain_one(tmp_path: Path) -> None:
    task = open_task(KIND, tinymodels.speech(tmp_path / "model"), max_new_tokens=6)
    held = spoken(16, 1)
    before = task.metrics(held, task.predict(held))["word_error_rate"]
    settings = TrainerSettings(epochs=30, batch=8, learning_rate=5e-3, patience=30)
    tuned = tune(task, Splits(spoken(48, 0), held), settings, "full")
    after = tuned.run.history[tuned.run.best_epoch - 1]["word_error_rate"]
    assert after <= 0.2 < before, f"{before} before, {after} after"
    one = task.predict(held[:1])[0]
    assert [word["word"] for word in one.details["words"]] == str(one.value).split()
    task.save(tmp_path / "out")
    again = open_task(KIND, tmp_path / "out", max_new_tokens=6)
    assert [p.value for p in again.predict(held)] == [p.value for p in task.predict(held)]
    plain: Any = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "out")
    extractor: Any = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    mels = extractor(held[0]["sound"], sampling_rate=16_000, return_tensors="pt").input_features
    ids = plain.generate(mels, max_new_tokens=6)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip() == one.value


def test_only_the_words_and_their_end_are_learned(tmp_path: Path) -> None:
    task = open_task(KIND, tinymodels.speech(tmp_path))
    feature = task.features(spoken(1, 0)[0] | {"target": "go left"})[0]
    assert [one for one in feature["labels"] if one != IGNORED][-1] == 2
    assert task.processor.tokenizer.decode([one for one in feature["labels"] if one > 2]) == "go left"
    with pytest.raises(DataError, match="without `sound`"):
        task.features({"target": "go"})


def of_several_languages(folder: Path) -> Path:
    """The small Whisper, with two languages among its words."""
    source = tinymodels.speech(folder)
    path = source / "generation_config.json"
    config = orjson.loads(path.read_bytes()) | {
        "lang_to_id": {"<|de|>": 5, "<|en|>": 6},
        "task_to_id": {"transcribe": 8},
        "_from_model_config": False,
    }
    path.write_bytes(orjson.dumps(config))
    return source


def test_the_language_of_each_sound_is_its_own_in_a_batch_too(tmp_path: Path) -> None:
    """The language of the first sound was that of all sounds in its batch."""
    task = open_task(KIND, of_several_languages(tmp_path / "model"), max_new_tokens=4)
    sounds = [{"sound": (np.sin(np.arange(16_000) * 0.03 * i**2) * 0.3).astype(np.float32)} for i in range(1, 9)]
    states: list[torch.Tensor] = []
    with task.model.proj_out.register_forward_pre_hook(lambda _, given: states.append(given[0][:, -1])):
        task.predict(sounds)
    with torch.no_grad():  # English is where the first state differs from the mean
        mean_X, apart_X = states[0].mean(0), states[0][0] - states[0].mean(0)
        apart_X -= mean_X * (apart_X @ mean_X) / (mean_X @ mean_X)
        rows_VX = task.model.proj_out.weight
        rows_VX[6] = rows_VX[5] + apart_X / apart_X.norm()
    prefixes: list[list[int]] = []
    prefix = task.prefix  # type: ignore[attr-defined]
    task.prefix = lambda language=None: prefixes.append(prefix(language)) or prefixes[-1]  # type: ignore[attr-defined]
    together = task.predict(sounds)
    of_batch = list(prefixes)
    prefixes.clear()
    alone = [task.predict([one])[0] for one in sounds]
    assert len({tuple(one) for one in prefixes}) > 1, "the sounds are of several languages"
    assert sorted(of_batch) == sorted(prefixes)
    assert [one.value for one in together] == [one.value for one in alone]
    assert [one.confidence for one in together] == pytest.approx([one.confidence for one in alone], abs=1e-5)


def test_a_model_of_several_languages_learns_the_one_that_is_given(tmp_path: Path) -> None:
    source = of_several_languages(tmp_path / "model")
    with pytest.raises(DataError, match="give --language"):
        open_task(KIND, source).features(spoken(1, 0)[0])
    settings = TaskSettings(kind=KIND, model=str(source), stream="room", language="en")
    task = open_task(KIND, source, **options_of(settings))
    assert task.features(spoken(1, 0)[0])[0]["decoder_input_ids"][1:3] == [6, 8]
    with pytest.raises(ValueError, match="transcribes no speech"):
        TaskSettings(kind="text-classification", model="m", language="en")


def test_a_table_of_sounds_and_texts_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800, np.float32), 16_000)
    (tmp_path / "said.csv").write_text("file,text\na.wav,go left\n")
    rows = datasets.read(tmp_path / "said.csv", task_class(KIND))
    assert rows == [{"sound": str(tmp_path / "a.wav"), "target": "go left"}]
    (tmp_path / "bad.csv").write_text("file,label\na.wav,go\n")
    with pytest.raises(DataError, match=r"bad.csv:1: no column `target`"):
        datasets.read(tmp_path / "bad.csv", task_class(KIND))
