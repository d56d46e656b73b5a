"""Speech recognition: error rates by hand, words learned from sounds, and folders that plain transformers opens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tinymodels
import transformers

from learners.finetune import datasets
from learners.finetune.run import Splits, tune
from learners.finetune.trainer import TrainerSettings
from learners.tasks.base import IGNORED, DataError, Prediction
from learners.tasks.speech_recognition import edits, error_rate
from learners.tasks.task_classes import open_task, task_class

KIND = "automatic-speech-recognition"
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
    assert figures["word_accuracy"] == pytest.approx(0.5)


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


def test_a_table_of_sounds_and_texts_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800, np.float32), 16_000)
    (tmp_path / "said.csv").write_text("file,text\na.wav,go left\n")
    rows = datasets.read(tmp_path / "said.csv", task_class(KIND))
    assert rows == [{"sound": str(tmp_path / "a.wav"), "target": "go left"}]
    (tmp_path / "bad.csv").write_text("file,label\na.wav,go\n")
    with pytest.raises(DataError, match=r"bad.csv:1: no column `target`"):
        datasets.read(tmp_path / "bad.csv", task_class(KIND))
