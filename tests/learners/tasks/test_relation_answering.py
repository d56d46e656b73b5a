"""Relations at marked spans, and answers as spans of a context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels
import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from learners.data_error import DataError
from learners.finetune.build import build
from learners.tasks.base import Prediction
from learners.tasks.question_answering import exact_match, normalise, word_f1
from learners.tasks.relation_extraction import mark, official_f1
from learners.tasks.task_classes import open_task

TEXT = "the <e1>cup</e1> is in <e2>Paris</e2> now"


def test_marks_are_where_they_are_stated() -> None:
    text, (first, second) = mark(TEXT)
    assert (text[first], text[second]) == ("$", "#")
    for wrong in (
        "no marks",
        "<e1>a</e1> only",
        "<e1>a</e1><e1>b</e1>",
        "</e1>a<e1> <e2>b</e2>",
        "<e1>a<e1> <e2>b<e2>",
    ):
        with pytest.raises(DataError, match="exactly one"):
            mark(wrong)


def test_official_f1_by_hand() -> None:
    wanted = ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other"]
    found = ["A(e1,e2)", "A(e1,e2)", "Other", "B(e1,e2)"]
    # A: one hit of two wanted and two found: 0.5; B: none; Other is left out
    assert official_f1(wanted, found) == pytest.approx(0.25)
    assert official_f1(["Other"], ["Other"]) == 0.0


def test_logits_are_the_sum_of_the_three_places(tmp_path: Path) -> None:
    task = open_task("relation-extraction", tinymodels.bert(tmp_path), labels=("A(e1,e2)", "Other"))
    feature = task.features({"text": TEXT, "label": "Other"})[0]
    batch = task.collate([feature])
    tokens = task.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0]
    want = tokens[0, :2] + tokens[feature["places"][1], 2:4] + tokens[feature["places"][2], 4:]
    assert torch.allclose(task.logits(task.model, batch)[0], want, atol=1e-6)  # type: ignore[attr-defined]
    assert task.model.config.id2label[3] == "e1:Other"
    assert task.predict([{"text": TEXT}])[0].value in task.labels
    task.save(tmp_path / "o")
    again = open_task("relation-extraction", tmp_path / "o")
    assert again.labels == ("A(e1,e2)", "Other")
    with pytest.raises(DataError, match="not among"):
        task.features({"text": TEXT, "label": "New"})
    (short,) = open_task("relation-extraction", tmp_path, labels=("Other",), max_length=4).features({"text": TEXT})
    assert short["places"] == [0, 1, 2], "each mark is in a part of its own"


def test_answer_scores_are_squads() -> None:
    assert normalise("The  cup!") == "cup"
    assert exact_match("a cup", "Cup.") == 1.0
    assert word_f1("red cup", "red box") == pytest.approx(0.5)
    assert word_f1("", "") == 1.0


def test_targets_windows_and_best_span(tmp_path: Path) -> None:
    context = "anna works in paris . the red stop is left ."
    row = {
        "question": "what is red ?",
        "context": context,
        "answers": [{"text": "stop", "start": context.index("stop")}],
    }
    task = open_task("question-answering", tinymodels.bert(tmp_path), max_length=12)
    features = task.features(row)
    assert len(features) > 1, "the context does not fit one window"
    holding = [f for f in features if f["labels"] != [0, 0]]
    for feature in holding:
        first, last = feature["labels"]
        assert context[feature["offsets"][first][0] : feature["offsets"][last][1]] == "stop"
    assert holding
    assert task.features(row, rng=np.random.default_rng(0)) == features, (
        "all windows train, those without the answer too"
    )
    prediction = task.predict([row])[0]
    assert context[prediction.details["start"] : prediction.details["end"]] == prediction.value
    assert task.metrics([row], [Prediction("stop")]) == {"exact_match": 1.0, "f1": 1.0}
    with pytest.raises(DataError, match="is not at"):
        task.features({**row, "answers": [{"text": "cup", "start": 3}]})


def test_an_answer_as_long_as_those_that_train_is_found_whole(tmp_path: Path) -> None:
    """Answers of 40 words in contexts of several windows: each is whole in one, and no shorter span is the best."""
    model = tinymodels.bert(tmp_path / "m", length=160)
    words = [tinymodels.WORDS[i % 15] for i in range(300)]
    start = len(" ".join([*words[:110], ""]))
    row = {
        "question": "what is",
        "context": " ".join(words),
        "answers": [{"text": " ".join(words[110:150]), "start": start}],
    }
    task, _, _ = build("question-answering", str(model), [row], "full", {"max_length": 150})
    assert task.options.longest_answer >= 40
    features = task.features(row)
    holding = [feature for feature in features if feature["labels"] != [0, 0]]
    assert holding
    assert task.unread(row) == 0.0
    task.model = Certain(holding[0], len(features))
    assert task.predict([row])[0].value == row["answers"][0]["text"]


class Certain(torch.nn.Module):
    """Answers with the target of a window, and knows nothing of the others."""

    def __init__(self, feature: dict[str, Any], count: int) -> None:
        super().__init__()
        self.feature, self.count = feature, count
        self.config = type("Config", (), {"is_encoder_decoder": False})()
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        starts, ends = torch.zeros(2, *input_ids.shape)
        starts[:, 0] = ends[:, 0] = 5.0
        first, last = self.feature["labels"]
        for row, ids in enumerate(input_ids.tolist()):
            if ids[: len(self.feature["input_ids"])] == self.feature["input_ids"]:
                starts[row, first] = ends[row, last] = 50.0
        return QuestionAnsweringModelOutput(start_logits=starts, end_logits=ends)


def test_an_answer_that_no_window_holds_is_reported_as_cut(tmp_path: Path) -> None:
    task = open_task("question-answering", tinymodels.bert(tmp_path), max_length=40)
    words = [tinymodels.WORDS[i % 15] for i in range(100)]
    row = {"question": "what is", "context": " ".join(words), "answers": [{"text": " ".join(words[20:70])}]}
    assert task.unread(row) == 1.0
    short = {**row, "answers": [{"text": words[20]}]}
    assert task.unread(short) == 0.0
