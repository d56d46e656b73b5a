"""Tags: alignment to word pieces, windows, capitals, decoding and the field's counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tinymodels
import torch
from transformers import AutoModelForTokenClassification

from learners.data_error import DataError
from learners.finetune.build import build
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer import TrainerSettings
from learners.finetune.training_phases import tune
from learners.tasks.base import IGNORED
from learners.tasks.task_classes import open_task
from learners.tasks.token_classification import CASES, Tag, case_of, viterbi

LABELS = ("O", "B-person", "I-person", "B-place", "I-place")
ROW = {"tokens": ["Anna", "works", "in", "PARIS"], "tags": ["B-person", "O", "O", "B-place"]}


@pytest.fixture
def task(tmp_path: Path) -> Tag:
    return open_task("token-classification", tinymodels.bert(tmp_path), labels=LABELS)


def test_labels_are_pairs_of_every_type_seen() -> None:
    assert Tag.labels_of([{"tags": ["O", "I-b"]}, {"tags": ["B-a"]}]) == ("O", "B-a", "I-a", "B-b", "I-b")


def test_only_first_pieces_have_targets_and_types_say_the_case(task: Tag) -> None:
    feature = task.features(ROW)[0]
    assert feature["labels"] == [IGNORED, 1, 0, 0, 3, IGNORED]
    assert feature["first"] == [1, 2, 3, 4]
    assert feature["token_type_ids"] == [0, 1, 0, 0, 2, 0]
    types = task.model.bert.embeddings.token_type_embeddings.weight
    assert types.shape[0] == CASES
    assert torch.equal(types[3], types[0]), "new types begin as the first, so nothing changes before training"


def test_a_new_head_begins_at_the_frequencies_and_a_saved_one_stays(task: Tag, tmp_path: Path) -> None:
    rows = [ROW, {"tokens": ["it"] * 4, "tags": ["O"] * 4}]
    # 6, 1, 0, 1 and 0 of 8 tags, each counted once more
    shares = [7 / 13, 2 / 13, 1 / 13, 2 / 13, 1 / 13]
    assert task.prior(rows).exp().tolist() == pytest.approx(shares)
    assert task.new_head
    tuned = tune(task, Splits(rows, rows), TrainerSettings(epochs=1, learning_rate=0.0), "frozen").task
    assert tuned.model.classifier.bias.exp().tolist() == pytest.approx(shares)
    tuned.save(tmp_path / "saved")
    again = open_task("token-classification", tmp_path / "saved", labels=LABELS)
    assert not again.new_head
    tune(again, Splits(rows[1:], rows), TrainerSettings(epochs=1, learning_rate=0.0), "frozen")
    assert again.model.classifier.bias.exp().tolist() == pytest.approx(shares)


def test_adapters_keep_tokens_apart_where_nearly_all_tags_are_o(tmp_path: Path) -> None:
    names = [f"name{i}" for i in range(8)]
    fill = [f"word{i}" for i in range(30)]
    folder = tinymodels.bert(tmp_path, [*names, *fill])
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(120):
        words = [str(word) for word in generator.choice(fill, 12)]
        at = int(generator.integers(12))
        words[at] = str(generator.choice(names))
        rows.append({"tokens": words, "tags": ["B-person" if i == at else "O" for i in range(12)]})
    task, settings, _ = build("token-classification", str(folder), rows, "lora", {"epochs": 10, "learning_rate": 3e-3})
    tuned = tune(task, Splits(rows[:100], rows[100:]), settings, "lora")
    assert tuned.run.best > 0.95


def test_case_of() -> None:
    assert [case_of(w) for w in ("it", "42", "Anna", "A", "USA", "iPhone", "McX", "@Bob")] == [0, 0, 1, 1, 2, 3, 3, 1]


def test_long_sentences_are_read_in_windows_that_cover_every_word_once(tmp_path: Path) -> None:
    task = open_task("token-classification", tinymodels.bert(tmp_path), labels=LABELS, max_length=7)
    words = ["anna", "works"] * 9
    features = task.features({"tokens": words, "tags": ["B-person", "O"] * 9})
    assert len(features) > 1
    assert [i for feature in features for i in feature["words"]] == list(range(18))
    assert all(len(feature["input_ids"]) <= 7 for feature in features)
    assert len(task.predict([{"tokens": words}])[0].value) == 18


def test_viterbi_makes_only_allowed_steps(task: Tag) -> None:
    logs = np.log(np.array([[0.4, 0.05, 0.45, 0.05, 0.05], [0.1, 0.1, 0.1, 0.1, 0.6]], np.float32))
    assert list(logs.argmax(1)) == [2, 4]
    path = viterbi(logs, task._allowed())
    # I-person cannot begin, I-place only follows B-place: O then O .4*.1, B-place then I-place .05*.6, O then B .4*.1
    assert [LABELS[i] for i in path] in (["O", "O"], ["O", "B-person"], ["O", "B-place"])
    assert viterbi(logs[:0], task._allowed()) == []


def test_entities_count_whole_spans(task: Tag) -> None:
    from learners.tasks.base import Prediction

    wanted = [{"tags": ["B-person", "I-person", "O", "B-place"]}]
    found = [Prediction(["B-person", "O", "O", "B-place"])]
    metrics = task.metrics(wanted, found)
    assert metrics["entity_f1"] == pytest.approx(0.5), "one of two found, one of two wanted"
    assert metrics["accuracy"] == 0.75


def test_spans_text_and_empty_input(task: Tag) -> None:
    prediction = task.predict([{"text": "Anna works in Paris"}])[0]
    assert len(prediction.value) == 4
    assert all({"type", "start", "end", "text"} == set(span) for span in prediction.details["spans"])
    assert task.predict([{"tokens": []}])[0].value == []
    with pytest.raises(DataError, match="not among"):
        task.features({"tokens": ["a"], "tags": ["B-colour"]})
    with pytest.raises(DataError, match="2 tags"):
        task.features({"tokens": ["a"], "tags": ["O", "O"]})
    with pytest.raises(DataError, match="without `tokens`"):
        task.features({})


def test_the_saved_folder_loads_by_name_and_says_the_same(tmp_path: Path, task: Tag) -> None:
    task.save(tmp_path / "out")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert model.config.type_vocab_size == CASES
    assert model.config.id2label[1] == "B-person"
    again = open_task("token-classification", tmp_path / "out")
    assert again.cased  # type: ignore[attr-defined]
    assert again.predict([ROW])[0].value == task.predict([ROW])[0].value
