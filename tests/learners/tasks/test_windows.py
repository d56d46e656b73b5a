"""Windows are features: whatever is longer than a model trains and predicts in all its windows; batches change nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels
import torch

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.candidate_training import CandidateTrainer
from learners.continual.splits import LabelSplits
from learners.finetune.build import build
from learners.finetune.labelled_files.example_fields import to_row
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer import Trainer, TrainerSettings
from learners.finetune.training_phases import tune
from learners.tasks.task_classes import open_task

WORDS = tinymodels.WORDS[:20]


def test_each_word_of_a_long_text_belongs_to_the_window_that_shows_most_around_it(tmp_path: Path) -> None:
    task = open_task(
        "token-classification", tinymodels.bert(tmp_path / "bert"), labels=("O", "B-X", "I-X"), max_length=22
    )
    words = random.Random(0).choices(WORDS, k=200)
    words[50] = ""  # without a piece
    tags = ["B-X" if i % 7 == 0 else "O" for i in range(200)]
    features = task.features({"tokens": words, "tags": tags})
    owned = [word for feature in features for word in feature["words"]]
    assert owned == [i for i in range(200) if i != 50]
    for feature in features[1:-1]:
        assert min(feature["first"]) > 3, "context before"
        assert max(feature["first"]) < len(feature["input_ids"]) - 4, "context after"
        assert len(feature["input_ids"]) <= 22
    learned = [label for feature in features for label in feature["labels"] if label >= 0]
    assert learned == [task.labels.index(tag) for i, tag in enumerate(tags) if i != 50]
    assert len(task.predict([{"tokens": words}])[0].value) == 200
    trainer = Trainer(task, task.model, [{"tokens": words, "tags": tags}], [], TrainerSettings(batch=4))
    trained = [trainer._units[number] for batch in trainer._batches(0) for number in batch]
    assert sorted(trained) == [(0, window) for window in range(len(features))], "every window in every epoch"


def test_a_sentence_of_words_without_a_piece_costs_no_run(tmp_path: Path) -> None:
    """A batch without a target has a loss of 0, not one that is no number."""
    task = open_task("token-classification", tinymodels.bert(tmp_path / "bert"), labels=("O", "B-X", "I-X"))
    rows = [{"tokens": ["\u200b"], "tags": ["O"]}, {"tokens": ["go"], "tags": ["B-X"]}]
    run = Trainer(task, task.model, rows, rows, TrainerSettings(batch=1, epochs=2)).run()
    assert np.isfinite(run.losses).all()
    assert task.predict([{"tokens": ["\u200b"]}])[0].value == ["O"]


def test_a_long_text_is_the_mean_of_its_windows(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path / "bert"), labels=("a", "b"), max_length=16)
    text = " ".join(random.Random(0).choices(WORDS, k=60))
    features = task.features({"text": text, "label": "a"})
    assert len(features) > 4
    assert {feature["labels"] for feature in features} == {0}
    with torch.inference_mode():
        alone = [task.outputs(task.model, task.collate([feature]))[0] for feature in features]
    found = task.predict([{"text": text}])[0].probabilities
    assert found["a"] == pytest.approx(float(np.mean(alone, axis=0)[0]), abs=1e-5)


def test_answers_in_squads_forms_and_without_an_answer(tmp_path: Path) -> None:
    task = open_task("question-answering", tinymodels.bert(tmp_path / "bert"), unanswerable=True)
    body = {"question": "what is", "context": "Paris a Paris"}
    rows = [
        to_row({**body, "answers": [{"text": "Paris", "answer_start": 8}]}, tmp_path, 1),
        to_row({**body, "answers": {"text": ["Paris"], "answer_start": [8]}}, tmp_path, 2),
        to_row({**body, "answer": "Paris", "answer_start": "8"}, tmp_path, 3),
    ]
    for row in rows:
        feature = task.features(row)[0]
        assert feature["offsets"][feature["labels"][0]] == (8, 13), row
    none = to_row({**body, "answers": {"text": [], "answer_start": []}}, tmp_path, 4)
    assert task.features(none)[0]["labels"] == [0, 0]
    with torch.no_grad():
        task.model.qa_outputs.bias.zero_()
        task.model.qa_outputs.weight.zero_()
    assert task.metrics([none], task.predict([none])) in (
        {"exact_match": 1.0, "f1": 1.0},
        {"exact_match": 0.0, "f1": 0.0},
    )


@pytest.mark.parametrize("kind", ["question-answering", "audio-classification"])
def test_a_batch_changes_no_prediction(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    examples: list[dict[str, Any]]
    if kind == "question-answering":
        task = open_task(kind, tinymodels.bert(tmp_path / "model"))
        examples = [{"question": "what is", "context": " ".join(WORDS[:n])} for n in (4, 20, 9)]
    else:
        task = open_task(kind, tinymodels.wav2vec2(tmp_path / "model"), labels=("a", "b"))
        lengths = (8_000, 30_000, 16_000, 80_000)
        examples = [{"sound": (rng.standard_normal(n) * 0.1).astype(np.float32), "rate_hz": 16_000} for n in lengths]
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    together, alone = task.predict(examples), [task.predict([one])[0] for one in examples]
    assert [one.confidence for one in together] == pytest.approx([one.confidence for one in alone], abs=1e-5)


def test_a_sound_longer_than_the_window_is_heard_to_its_end(tmp_path: Path) -> None:
    task = open_task("audio-classification", tinymodels.wav2vec2(tmp_path / "model"), labels=("a", "b"))
    rng = np.random.default_rng(0)
    sound = (rng.standard_normal(64_000) * 0.1).astype(np.float32)
    newest = sound.copy()
    newest[32_000:] = np.sin(np.arange(32_000) * 0.2)
    before, after = (task.predict([{"sound": one, "rate_hz": 16_000}])[0].probabilities for one in (sound, newest))
    assert before != after
    parts = {
        task.features({"sound": sound, "rate_hz": 16_000}, rng=np.random.default_rng(i))[0]["input_values"]
        .numpy()
        .tobytes()
        for i in range(4)
    }
    assert len(parts) == 4, "training hears another part each time"


def test_a_long_sound_that_nothing_changes_trains_in_all_its_windows(tmp_path: Path) -> None:
    """Without augmentation the features are made once: a random part would be the only one that ever trains."""
    model = tinymodels.wav2vec2(tmp_path / "model")
    task = open_task("audio-classification", model, labels=("a", "b"), window_s=2.0, augment=())
    row = {"sound": np.arange(64_000, dtype=np.float32) / 64_000, "rate_hz": 16_000, "label": "a"}
    trainer = Trainer(task, task.model, [row], [], TrainerSettings())
    assert sorted(trainer._units) == [(0, 0), (0, 1), (0, 2)], "windows of 2 s that overlap by half"
    made = task.features(row, rng=np.random.default_rng(0))
    assert all(
        torch.equal(one["input_values"], two["input_values"]) for one, two in zip(made, task.features(row), strict=True)
    )


def test_a_label_about_a_long_sound_sets_the_window_of_its_task(tmp_path: Path) -> None:
    settings = TaskSettings(
        kind="audio-classification", stream="room", model=str(tinymodels.wav2vec2(tmp_path / "m")), train="frozen"
    )
    rows = [{"sound": np.full(64_000, 0.01 * i, np.float32), "rate_hz": 16_000, "label": "ab"[i % 2]} for i in range(4)]
    lesson = CandidateTrainer(settings, FinetuneSettings(), 0, {})
    parts = LabelSplits(new=rows, known=[], tried=[], known_validation=[], uncovered=())
    assert lesson.train(None, parts, 0, None, None).task.options.window_s == 4.0


def test_values_that_are_no_numbers_are_no_prediction(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path / "m"), labels=("a", "b"))
    with torch.no_grad():
        task.model.classifier.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="no numbers"):
        task.predict([{"text": "go"}])


def test_several_labels_are_learned_with_the_default_recipe(tmp_path: Path) -> None:
    """The whole set is never right in the first epochs; F1, and likelihood while F1 is 0, choose the epoch."""
    rng = random.Random(0)
    names = WORDS[:8]

    def rows(count: int) -> list[dict[str, Any]]:
        sets = [rng.sample(names, rng.randint(3, 5)) for _ in range(count)]
        return [{"text": " ".join(some), "label": some} for some in sets]

    train, validation = rows(160), rows(40)
    tinymodels.bert(tmp_path / "bert")
    options = {"multi_label": True, "epochs": 25, "learning_rate": 3e-3, "seed": 0}
    task, settings, _ = build("text-classification", str(tmp_path / "bert"), train, "full", options)
    run = tune(task, Splits(train, validation), settings, "full").run
    assert run.best > 0.7, "naming every label reaches 0.67"
    assert task.options.threshold == run.threshold


def test_equal_seeds_give_equal_weights_whatever_the_global_generators_were(tmp_path: Path) -> None:
    """wav2vec2 masks spans of its input with numpy's global generator."""
    import orjson

    folder = tinymodels.wav2vec2(tmp_path / "model")
    config = orjson.loads((folder / "config.json").read_bytes())
    config |= {"apply_spec_augment": True, "mask_time_prob": 0.2, "mask_time_length": 4}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    rng = np.random.default_rng(0)
    train = [
        {"sound": (rng.standard_normal(16_000) * 0.1).astype(np.float32), "rate_hz": 16_000, "label": "ab"[i % 2]}
        for i in range(4)
    ]
    found = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 - what must not matter
        task, settings, _ = build(
            "audio-classification", str(folder), train, "full", {"epochs": 1, "seed": 0, "batch": 2}
        )
        tune(task, Splits(train, train), settings, "full")
        found.append(torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()]))
    assert torch.equal(*found)
