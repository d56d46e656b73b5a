"""Early stopping, the best epoch restored, and going on after a kill with the same result."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tinymodels
import torch
from safetensors.torch import load_file

from learners.finetune import trainer_state
from learners.finetune.labelled_files.splits import Splits, narrow
from learners.finetune.run import finetune
from learners.finetune.trainable_layers import prepare
from learners.finetune.trainer import Stopped, Trainer, TrainerSettings, TrainingProgress
from learners.finetune.training_phases import Tuned, tune
from learners.tasks.image_classification import ClassifyPictures
from learners.tasks.text_classification import ClassifyText
from learners.tasks.token_classification import Tag

ROWS = tinymodels.orders(40, 0, {"go": "go", "stop": "stop"})


class Scripted(ClassifyText):
    """Validation scores as given, and the weights at each validation."""

    scores = (0.2, 0.6, 0.5, 0.6, 0.4, 0.9)

    def metrics(self, examples: Any, predictions: Any) -> dict[str, float]:
        self.seen = [*getattr(self, "seen", []), self.model.classifier.weight.detach().clone()]
        return {"accuracy": self.scores[len(self.seen) - 1]}


def scripted(folder: Path) -> Scripted:
    return Scripted.open(tinymodels.bert(folder), labels=("go", "stop"))


def test_stops_after_patience_and_restores_the_best_epoch(tmp_path: Path) -> None:
    task = scripted(tmp_path)
    prepare(task.model, "full")
    run = Trainer(
        task, task.model, ROWS, ROWS, TrainerSettings(epochs=6, batch=8, learning_rate=1e-3, patience=3)
    ).run()
    assert len(run.history) == 5, "0.6 is never beaten in three epochs (equal is not better), so the sixth never runs"
    assert (run.best, run.best_epoch) == (0.6, 2)
    assert torch.equal(task.model.classifier.weight, task.seen[1])
    assert not torch.equal(task.model.classifier.weight, task.seen[4])


def test_the_last_of_equally_good_epochs_where_it_is_asked_for(tmp_path: Path) -> None:
    task = scripted(tmp_path)
    prepare(task.model, "full")
    settings = TrainerSettings(epochs=6, batch=8, learning_rate=1e-3, patience=3, ties="last")
    run = Trainer(task, task.model, ROWS, ROWS, settings).run()
    assert len(run.history) == 5, "an equal epoch is no progress: it stops as early"
    assert (run.best, run.best_epoch) == (0.6, 4)
    assert torch.equal(task.model.classifier.weight, task.seen[3])


def test_a_validation_that_measures_every_epoch_alike_ends_no_run(tmp_path: Path) -> None:
    """Without an entity the F1 of every epoch is 0, also of the one that has learned nothing yet."""
    rows = [{"tokens": ["go", side, "now"], "tags": ["O", "B-SIDE", "O"]} for side in ("left", "right")] * 8
    held = [{"tokens": ["go", "now"], "tags": ["O", "O"]}] * 4
    task = Tag.open(tinymodels.bert(tmp_path), labels=Tag.labels_of(rows))
    prepare(task.model, "full")
    settings = TrainerSettings(epochs=5, batch=8, learning_rate=3e-3, patience=2)
    run = Trainer(task, task.model, rows, held, settings).run()
    assert (len(run.history), run.best_epoch, run.best) == (5, 5, 0.0)
    assert narrow(task, Splits(rows, held), "dev.txt") == [
        "dev.txt: no example has an entity: it chooses no epoch, and the last one is used"
    ]
    assert narrow(task, Splits(rows, rows), "dev.txt") == []
    assert task.metrics(rows, task.predict(rows))["entity_f1"] == 1.0


def test_a_validation_of_one_class_is_named(tmp_path: Path) -> None:
    task = ClassifyText.open(tinymodels.bert(tmp_path), labels=("go", "stop"))
    one = [row for row in ROWS if row["label"] == "go"]
    assert narrow(task, Splits(ROWS, one), "dev.csv") == [
        "dev.csv: all examples are of the class 'go': the epoch is chosen by this class alone"
    ]
    assert narrow(task, Splits(ROWS, ROWS), "dev.csv") == []
    assert task.no_choice([{"text": "a", "label": "up"}]) == "no example has a trained class"
    several = ClassifyText.open(tinymodels.bert(tmp_path), labels=("go", "stop"), multi_label=True)
    assert several.no_choice([{"text": "a", "label": []}]) == "no example has a label"
    assert several.no_choice([{"text": "a", "label": []}, {"text": "b", "label": ["go"]}]) == ""


def build(folder: Path, state: Path | None, stop: Callable[[], bool] | None = None) -> Trainer:
    torch.manual_seed(3)
    task = ClassifyText.open(tinymodels.bert(folder, dropout=0.2), labels=("go", "stop"))
    prepare(task.model, "full")
    settings = TrainerSettings(epochs=3, batch=8, accumulate=2, learning_rate=1e-3, save_every_s=0.0, seed=5)
    held = None if state is None else trainer_state.State(state, "run")
    return Trainer(task, task.model, ROWS, ROWS, settings, state=held, stop=stop)


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = build(tmp_path / "m", None)
    received: list[TrainingProgress] = []
    whole._on_progress = received.append
    run = whole.run()
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen == 5  # in the middle of the second epoch, dropout and accumulation included

    with pytest.raises(Stopped):
        build(tmp_path / "m", tmp_path / "s", stop).run()
    again = build(tmp_path / "m", tmp_path / "s")
    resumed = again.run()
    assert resumed.losses == run.losses
    assert resumed.history == run.history
    for (name, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert received[-1].epoch == 3
    assert received[-1].score == run.history[-1]["accuracy"]


def test_an_interrupted_run_on_pictures_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Convolutions are laid out in another order while they train; the optimiser's moments must come back in the same."""
    model, noise = tinymodels.efficientnet(tmp_path / "m"), np.random.default_rng(0)
    shades = {"dark": 0, "light": 150}
    rows = [
        {"picture": noise.integers(low, low + 100, (32, 32, 3), np.uint8), "label": name}
        for name, low in shades.items()
        for _ in range(12)
    ]
    splits, settings = (
        Splits(rows, rows),
        TrainerSettings(epochs=3, batch=8, learning_rate=1e-3, save_every_s=0.0, seed=5),
    )

    def tuned(state: trainer_state.State | None, stop: Callable[[], bool] | None = None) -> Tuned:
        torch.manual_seed(3)
        return tune(
            ClassifyPictures.open(model, labels=("dark", "light")), splits, settings, "full", state=state, stop=stop
        )

    calls = itertools.count(1)
    with pytest.raises(Stopped):
        tuned(trainer_state.State(tmp_path / "s", "run"), lambda: next(calls) == 5)
    whole, resumed = tuned(None), tuned(trainer_state.State(tmp_path / "s", "run"))
    assert resumed.run.losses == whole.run.losses
    own = dict(resumed.task.model.named_parameters())
    for name, parameter in whole.task.model.named_parameters():
        assert torch.equal(parameter, own[name]), name


def test_states_of_other_runs_and_broken_ones_are_not_used(tmp_path: Path) -> None:
    state = trainer_state.State(tmp_path / "s", "one")
    state.save({"epoch": 1}, {"w": torch.ones(2)}, {"w": torch.zeros(2)})
    assert trainer_state.State(tmp_path / "s", "other").load() is None
    loaded = trainer_state.State(tmp_path / "s", "one").load()
    assert loaded is not None
    assert loaded.facts == {"epoch": 1}
    assert torch.equal(loaded.best["w"], torch.zeros(2))
    next((tmp_path / "s").glob("now-*.safetensors")).write_bytes(b"broken")
    assert trainer_state.State(tmp_path / "s", "one").load() is None
    state.clear()
    assert not (tmp_path / "s").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    trainer = build(tmp_path, None)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1"):
        trainer.run()


ARGUMENTS = {
    "task": "text-classification",
    "mode": "full",
    "epochs": 4,
    "patience": 4,
    "batch": 4,
    "learning_rate": 1e-3,
    "save_every_s": 0.0,
}
UPDATES, KILLED_AT = 40, 23
"""Ten updates an epoch."""
SCRIPT = f"""
import os, signal, sys, torch
torch.set_num_threads(1)
from learners.finetune.run import finetune
from learners.finetune.trainer import Trainer

step, done = Trainer._step, []

def killed(self, *given):
    if len(done) == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(None)
    return step(self, *given)

Trainer._step = killed
finetune(model=sys.argv[1], train=sys.argv[2], validation=sys.argv[2], test=sys.argv[2], out=sys.argv[3], **{ARGUMENTS})
"""


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 somewhere in the middle: what was trained is not lost, and what comes out is what would have come out."""
    model, data, out = tinymodels.bert(tmp_path / "m", dropout=0.2), tmp_path / "d.csv", tmp_path / "o"
    data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS))
    files = {"model": str(model), "train": data, "validation": data, "test": data}
    whole = finetune(**files, out=tmp_path / "whole", **ARGUMENTS)
    command = [sys.executable, "-c", SCRIPT, str(model), str(data), str(out)]
    assert subprocess.run(command, cwd=Path(__file__).parents[3], check=False).returncode == -signal.SIGKILL
    done = _done(out)
    assert 0 < done <= KILLED_AT
    steps, step = [], Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, *given: steps.append(given) or step(self, *given))
    resumed = finetune(**files, out=out, **ARGUMENTS)
    assert len(steps) == UPDATES - done, "it went on from where it was"
    assert resumed["history"] == whole["history"]
    assert resumed["metrics"] == whole["metrics"]
    weights = [load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not (out / "state").exists()


def _done(out: Path) -> int:
    """Updates that a run's state knows."""
    facts = orjson.loads((out / "state" / "state.json").read_bytes())["facts"]
    return int(facts["epoch"]) * 10 + int(facts["at"])


def test_a_run_that_was_broken_off_is_not_gone_on_with_by_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version of this program may train other groups of parameters: their moments do not fit."""
    model, data = tinymodels.bert(tmp_path / "m"), tmp_path / "d.csv"
    data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS))
    files = {"model": str(model), "train": data, "validation": data, "out": tmp_path / "o"}
    steps, step = itertools.count(1), Trainer._step
    taken: list[int] = []

    def counted(self: Trainer, *given: Any) -> float:
        taken.append(next(steps))
        if taken[-1] == 15:
            raise InterruptedError
        return step(self, *given)

    monkeypatch.setattr(Trainer, "_step", counted)
    with pytest.raises(InterruptedError):
        finetune(**files, **ARGUMENTS)
    assert (tmp_path / "o" / "state").exists()
    monkeypatch.setattr(ClassifyText, "recipe", replace(ClassifyText.recipe, layer_decay=0.5))
    taken.clear()
    assert finetune(**files, **ARGUMENTS)["epochs"] == 4
    assert len(taken) == UPDATES, "from the first on"
