"""The head before the rest: the same optimum as logistic regression, and nothing else moves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tinymodels
import torch
from architectures import ARCHITECTURES, rows
from sklearn.linear_model import LogisticRegression

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.candidate_training import CandidateTrainer
from learners.continual.splits import LabelSplits
from learners.finetune import linear_probe
from learners.task_kinds import KINDS
from learners.tasks.classifier import Classifier
from learners.tasks.layers.heads import output_layer
from learners.tasks.task_classes import open_task, task_class, unfit_reason

LABELS = ("a", "b", "c")
WORDS = {
    "a": ("go left", "go right", "go up"),
    "b": ("stop now", "stop please", "stop"),
    "c": ("red", "the blue", "green"),
}
ROWS = [
    {"text": f"{text} {other}", "label": label}
    for label, texts in WORDS.items()
    for text in texts
    for other in ("", "now")
]


def opened(folder: Path, **options: Any) -> Classifier:
    task = open_task("text-classification", tinymodels.bert(folder), labels=LABELS, **options)
    assert isinstance(task, Classifier)
    return task


def read_by(task: Classifier) -> tuple[np.ndarray, np.ndarray]:
    layer: Any = task.model.get_submodule(output_layer(task.model))
    found = linear_probe._inputs(task, layer, [task.features(row) for row in ROWS], 4)
    assert found is not None
    return found[0].numpy(), found[1].numpy()


def test_the_head_is_that_of_logistic_regression(tmp_path: Path) -> None:
    task = opened(tmp_path / "m", label_smoothing=0.0)
    read_NX, targets_N = read_by(task)
    unit_NX = read_NX / np.sqrt(np.square(read_NX).mean())
    peer = LogisticRegression(C=linear_probe.STRENGTH, max_iter=10_000, tol=1e-8).fit(unit_NX, targets_N)
    assert linear_probe.fit_head(task, ROWS)
    layer = task.model.classifier
    with torch.inference_mode():
        own_NL = layer(torch.from_numpy(read_NX)).softmax(-1).numpy()
    assert np.abs(own_NL - peer.predict_proba(unit_NX)).max() < 0.01


def test_nothing_but_the_output_layer_moves(tmp_path: Path) -> None:
    task = opened(tmp_path / "m")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    for parameter in task.model.parameters():
        parameter.requires_grad_(requires_grad=False)
    assert linear_probe.fit_head(task, ROWS)
    moved = {name for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    assert not any(p.requires_grad or p.grad is not None for p in task.model.parameters())


def test_rows_of_labels_without_an_example_stay_as_they_are(tmp_path: Path) -> None:
    task = opened(tmp_path / "m")
    rows = [row for row in ROWS if row["label"] != "b"]
    weight_LX, bias_L = (p.detach().clone() for p in task.model.classifier.parameters())
    assert linear_probe.fit_head(task, rows)
    now = task.model.classifier
    assert torch.equal(now.weight[1], weight_LX[1])
    assert torch.equal(now.bias[1], bias_L[1])
    assert task.metrics(rows, task.predict(rows))["accuracy"] > 0.8


def long_texts(count: int, at: int) -> list[dict[str, str]]:
    """Texts of three windows; only the words around one place decide."""
    rng = random.Random(at)
    rows = []
    for i in range(count):
        words = rng.choices(["the", "a", "now", "please", "is", "in"], k=150)
        words[at : at + 7] = [("go", "stop")[i % 2]] * 7
        rows.append({"text": " ".join(words), "label": "ab"[i % 2]})
    return rows


def test_a_head_is_fitted_to_every_window_of_a_long_text(tmp_path: Path) -> None:
    """By the first window alone, a word near the end says nothing, and a frozen encoder answers at chance."""
    task = opened(tmp_path / "m", max_length=62)
    rows = long_texts(60, 140)
    assert len(task.features(rows[0])) == 3
    assert linear_probe.fit_head(task, rows)
    assert task.metrics(rows, task.predict(rows))["accuracy"] > 0.8, "chance is 0.5"


def test_an_example_of_many_windows_counts_once(tmp_path: Path) -> None:
    """The fit of one long text of equal windows is that of one short text: windows share the weight of their example."""
    found = []
    for length in (50, 400):  # one window, and several of the same words
        task = opened(tmp_path / f"m{length}", max_length=52)
        with torch.no_grad():
            task.model.classifier.weight.zero_()
        rows = [
            {"text": "go " * length, "label": "a"},
            *({"text": "stop " * 50, "label": "b"} for _ in range(4)),
        ]
        assert linear_probe.fit_head(task, rows)
        found.append(task.predict([{"text": "go " * 50}])[0].probabilities["a"])
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_several_labels_are_fitted_to_their_own_criterion(tmp_path: Path) -> None:
    task = opened(tmp_path / "m", multi_label=True)
    rows = [{**row, "label": (row["label"], "c")} for row in ROWS if row["label"] != "c"]
    assert linear_probe.fit_head(task, rows)
    found = task.predict(rows)
    assert all(set(row["label"]) == set(prediction.value) for row, prediction in zip(rows, found, strict=True))


def test_behind_a_decoder_the_head_is_fitted_to_the_token_that_classifies(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.llama(tmp_path / "l"), labels=LABELS)
    assert isinstance(task, Classifier)
    given = [{"text": f"{'the ' * (number % 5)}{word}", "label": label}
             for number in range(20) for word, label in zip(("go", "stop", "left"), LABELS, strict=True)]  # fmt: skip
    assert linear_probe.fit_head(task, given)
    found = task.predict([{"text": row["text"]} for row in given])
    assert [one.value for one in found] == [row["label"] for row in given], "padded in batches of other lengths, too"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_head_can_be_fitted_to_every_architecture_that_classifies(tmp_path: Path, architecture: str) -> None:
    source = ARCHITECTURES[architecture](tmp_path / "m")
    fitting = [kind for kind in KINDS if KINDS[kind].classifies and unfit_reason(kind, source) is None]
    for kind in fitting:
        given = rows(kind, 8, 0)
        labels = task_class(kind).labels_of(given)
        task = open_task(kind, source, labels=labels)
        assert isinstance(task, Classifier)
        assert linear_probe.fit_head(task, given) is not None


def test_labels_of_people_are_learned_head_first_and_as_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step at no rate: what a lesson then knows, its probe knew."""
    settings = TaskSettings(
        kind="text-classification", stream="orders", model=str(tinymodels.bert(tmp_path / "m")), train="lora"
    )
    fits: list[int] = []
    fit = linear_probe.fit_head
    monkeypatch.setattr(
        "learners.finetune.training_phases.fit_head", lambda task, rows: fits.append(len(rows)) or fit(task, rows)
    )
    lesson = CandidateTrainer(settings, FinetuneSettings(batch=32), 0, {"epochs": 1, "learning_rate": 1e-9})
    trained = lesson.train(
        None, LabelSplits(new=ROWS, known=[], tried=[], known_validation=[], uncovered=[]), 0, None, None
    )
    assert fits == [len(ROWS)]
    assert trained.settings.head_rate == 1.0
    assert trained.task.options.label_smoothing == 0.0
    assert trained.tuned.run.best > 0.9, "chance is a third"
    assert orjson.dumps(trained.figures)


def test_a_head_alone_is_fitted_and_trains_no_further(tmp_path: Path) -> None:
    """The fit is the optimum, so steps with a learning rate could only leave it; augmentations that a person names still train."""
    model = str(tinymodels.bert(tmp_path / "m"))
    settings = TaskSettings(kind="text-classification", stream="orders", model=model, train="frozen")
    parts = LabelSplits(new=ROWS, known=[], tried=[], known_validation=[], uncovered=[])
    trained = CandidateTrainer(settings, FinetuneSettings(), 0, {"epochs": 5}).train(None, parts, 0, None, None)
    run = trained.tuned.run
    assert (len(run.history), len(run.losses), run.best_epoch) == (1, 1, 1)
    assert run.history[0]["accuracy"] == run.best > 0.9
    fitted = trained.task.model.classifier.weight.detach().clone()
    assert isinstance(trained.task, Classifier)
    linear_probe.fit_head(trained.task, ROWS)
    assert torch.allclose(fitted, trained.task.model.classifier.weight, atol=0.05)
    augmented = FinetuneSettings(augment=("token_dropout",))
    again = CandidateTrainer(settings, augmented, 0, {"epochs": 2}).train(None, parts, 0, None, None)
    assert len(again.tuned.run.history) == 2
