"""`evaluate` reports slices, and shows which words, areas and seconds decided a wrong answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import pytest
import tinymodels

from learners.data_error import DataError
from learners.finetune.error_analysis.occlusion import explain_errors
from learners.finetune.evaluate import evaluate
from learners.finetune.labelled_files.text_files import LocatedExample
from learners.finetune.run import finetune
from learners.tasks.base import Example, Options, Prediction, Task

INTENTS = {"go": "move", "stop": "halt"}


def written(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return str(path)


def test_a_report_has_slices_and_the_words_that_misled(tmp_path: Path) -> None:
    rows = [row | {"mic": "a"} for row in tinymodels.orders(40, 1, INTENTS)]
    wrong = [row | {"mic": "b", "label": "halt"} for row in tinymodels.orders(24, 2, INTENTS) if row["label"] == "move"]
    train, test = written(tmp_path / "train.jsonl", rows), written(tmp_path / "test.jsonl", rows[:20] + wrong)
    common: dict[str, Any] = {"task": "text-classification", "slices": ("mic",)}
    report = finetune(
        model=str(tinymodels.bert(tmp_path / "model")), train=train, validation=train, test=test, out=tmp_path / "out",
        mode="full", epochs=15, learning_rate=2e-3, batch=8, **common,
    )  # fmt: skip
    by_name = {one["value"]: one for one in report["slices"]["test"]}
    assert by_name["a"]["metric"] == 1.0
    assert by_name["b"]["metric"] == 0.0
    assert "| test | mic=b | 12 | 0.0000 |" in (tmp_path / "out" / "README.md").read_text()
    again = evaluate(model=str(tmp_path / "out"), test=test, explain=3, **common)
    assert again["slices"] == report["slices"]
    assert len(again["errors"]) == 3
    for error in again["errors"]:
        assert (error["is"], error["predicted"]) == ("halt", "move")
        assert error["where"].startswith(test)
        assert error["decided"][0]["part"] == "go", "the one word that means move"
        assert error["decided"][0]["fall"] > 0
    with pytest.raises(DataError, match="no held-out example has 'camera'"):
        evaluate(task="text-classification", model=str(tmp_path / "out"), test=test, slices=("camera",))


class Bright:
    """Answers `day` with the brightness of the lower right quarter, and `loud` with the level of the last third."""

    kind = "image-classification"
    options = Options()

    def predict(self, examples: list[Example]) -> list[Prediction]:
        return [self._one(example) for example in examples]

    def _one(self, example: Example) -> Prediction:
        assert "label" not in example
        if "picture" in example:
            probability = float(np.asarray(example["picture"])[12:, 12:].mean() / 255)
        else:
            probability = float(np.abs(np.asarray(example["sound"])[-400:]).mean())
        return Prediction("wrong", probability, {"wrong": probability, "right": 1 - probability})


def explained(example: dict[str, Any]) -> dict[str, Any]:
    task = Bright()
    rows = [LocatedExample(example | {"label": "right"}, "held")]
    found = [Prediction("wrong", 0.9, task._one(example).probabilities)]
    return explain_errors(cast("Task", task), rows, found, 5)[0]


def test_areas_of_a_picture_and_seconds_of_a_sound_decide() -> None:
    picture = np.zeros((24, 24, 3), np.uint8)
    picture[18:, 18:] = 255
    areas = [part["part"] for part in explained({"picture": picture})["decided"]]
    assert areas
    assert all(left >= 0.6 and top >= 0.6 for left, top, _, _ in areas)
    sound = np.zeros(1_200, np.float32)
    sound[-100:] = 1.0
    decided = explained({"sound": sound, "rate_hz": 100})["decided"]
    assert decided == [{"part": [11.0, 12.0], "fall": pytest.approx(0.25)}]


def test_kinds_without_one_label_are_not_explained() -> None:
    task = Bright()
    task.kind = "translation"
    with pytest.raises(ValueError, match="translation does not answer with one label"):
        explain_errors(cast("Task", task), [], [], 1)
