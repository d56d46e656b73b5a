"""Two texts are classified together: both are read, the folder is a plain one, and files with other names of the columns are read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tinymodels
from transformers import pipeline

from learners.data_error import DataError
from learners.finetune.evaluate import evaluate
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.equal_content import normalized_text
from learners.finetune.run import finetune
from learners.task_serving.reading_inputs import inputs_of_text
from learners.tasks.task_classes import open_task, task_class

KIND = "text-pair-classification"
WORDS = ("red", "green", "blue")


def write_pairs(path: Path, count: int, seed: int, header: str = "sentence1,sentence2,label") -> Path:
    """Write pairs of which the word of both texts together decides: the colour of the second text, unless the first denies it."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        first, word = generator.choice(("go", "stop")), generator.choice(WORDS)
        rows.append(f"{first} now,the {word} please,{word if first == 'go' else 'none'}")
    path.write_text("\n".join([header, *rows]))
    return path


def test_both_texts_decide_from_files(tmp_path: Path) -> None:
    files = {name: write_pairs(tmp_path / f"{name}.csv", n, n) for name, n in (("train", 96), ("validation", 40))}
    model, out = tinymodels.bert(tmp_path / "model"), tmp_path / "out"
    report = finetune(
        task=KIND, model=str(model), **files, out=out, mode="full", epochs=20, learning_rate=5e-3, batch=16, patience=20
    )
    assert report["metrics"]["validation"]["accuracy"] >= 0.95
    test = write_pairs(tmp_path / "test.csv", 40, 7, "premise,hypothesis,label")
    assert evaluate(task=KIND, model=str(out), test=test)["metrics"]["test"]["accuracy"] >= 0.95
    plain = pipeline("text-classification", model=str(out))
    pairs = [("go now", "the red please"), ("stop now", "the red please")]
    received = [plain({"text": first, "text_pair": second})["label"] for first, second in pairs]
    own = open_task(KIND, out).predict([{"text": first, "text_pair": second} for first, second in pairs])
    assert received == [one.value for one in own] == ["red", "none"]


def test_a_pair_without_its_second_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("text,label\na,b\nc,d\n")
    with pytest.raises(DataError, match=r"pairs.csv:1: no column `text_pair`, only `text`, `label`; add it"):
        datasets.read(path, task_class(KIND))
    task = open_task(KIND, tinymodels.bert(tmp_path / "model"), labels=("a", "b"))
    with pytest.raises(DataError, match="without `text_pair`"):
        task.features({"text": "go"})


def test_a_reading_is_a_pair_or_the_first_text_beside_a_context() -> None:
    pair = {"text": "go", "text_pair": "stop"}
    assert inputs_of_text(KIND, '{"text": "go", "text_pair": "stop"}') == pair
    assert inputs_of_text(KIND, "go", "stop") == pair
    with pytest.raises(DataError, match=r"takes \{\"text\": \"...\", \"text_pair\": \"...\"\}"):
        inputs_of_text(KIND, "go")
    assert normalized_text(pair) != normalized_text({**pair, "text_pair": "left"}), "one text may be in many pairs"
