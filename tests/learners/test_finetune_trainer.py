"""Early stopping, the best epoch restored, and going on after a kill with the same result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinymodels
import torch

from learners import resume
from learners.finetune import finetune
from learners.tasks.classify import ClassifyText
from learners.trainable import prepare
from learners.trainer import Progress, Settings, Stopped, Trainer

ROWS = tinymodels.orders(40, 0, {"go": "go", "stop": "stop"})


class Scripted(ClassifyText):
    """Validation scores as told, and the weights at each validation."""

    scores = (0.2, 0.6, 0.5, 0.6, 0.4, 0.9)

    def metrics(self, examples: Any, predictions: Any) -> dict[str, float]:
        self.seen = [*getattr(self, "seen", []), self.model.classifier.weight.detach().clone()]
        return {"accuracy": self.scores[len(self.seen) - 1]}


def scripted(folder: Path) -> Scripted:
    return Scripted.open(tinymodels.bert(folder), labels=("go", "stop"))


def test_stops_after_patience_and_restores_the_best_epoch(tmp_path: Path) -> None:
    task = scripted(tmp_path)
    prepare(task.model, "full")
    run = Trainer(task, task.model, ROWS, ROWS, Settings(epochs=6, batch=8, learning_rate=1e-3, patience=3)).run()
    assert len(run.history) == 5, "0.6 is never beaten in three epochs (equal is not better), so the sixth never runs"
    assert (run.best, run.best_epoch) == (0.6, 2)
    assert torch.equal(task.model.classifier.weight, task.seen[1])
    assert not torch.equal(task.model.classifier.weight, task.seen[4])


def build(folder: Path, state: Path | None, stop: Callable[[], bool] | None = None) -> Trainer:
    torch.manual_seed(3)
    task = ClassifyText.open(tinymodels.bert(folder, dropout=0.2), labels=("go", "stop"))
    prepare(task.model, "full")
    settings = Settings(epochs=3, batch=8, accumulate=2, learning_rate=1e-3, save_every_s=0.0, seed=5)
    held = None if state is None else resume.State(state, "run")
    return Trainer(task, task.model, ROWS, ROWS, settings, state=held, stop=stop)


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = build(tmp_path / "m", None)
    told: list[Progress] = []
    whole._tell = told.append
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
    assert told[-1].epoch == 3
    assert told[-1].score == run.history[-1]["accuracy"]


def test_states_of_other_runs_and_broken_ones_are_not_used(tmp_path: Path) -> None:
    state = resume.State(tmp_path / "s", "one")
    state.save({"epoch": 1}, {"w": torch.ones(2)}, {"w": torch.zeros(2)})
    assert resume.State(tmp_path / "s", "other").load() is None
    loaded = resume.State(tmp_path / "s", "one").load()
    assert loaded is not None
    assert loaded.facts == {"epoch": 1}
    assert torch.equal(loaded.best["w"], torch.zeros(2))
    next((tmp_path / "s").glob("now-*.safetensors")).write_bytes(b"broken")
    assert resume.State(tmp_path / "s", "one").load() is None
    state.clear()
    assert not (tmp_path / "s").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    trainer = build(tmp_path, None)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1"):
        trainer.run()


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from learners.finetune import finetune
finetune(task="classify", model=sys.argv[1], train=sys.argv[2], validation=sys.argv[2], test=sys.argv[2], out=sys.argv[3],
         mode="full", epochs=400, patience=400, batch=4, learning_rate=1e-5, save_every_s=0.0)
"""


def test_a_killed_process_leaves_a_state_that_goes_on(tmp_path: Path) -> None:
    model, data, out = tinymodels.bert(tmp_path / "m"), tmp_path / "d.csv", tmp_path / "o"
    data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS))
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(model), str(data), str(out)], cwd=Path(__file__).parents[2]
    )
    try:
        deadline = time.monotonic() + 60
        while not (out / "state" / "state.json").is_file() and time.monotonic() < deadline and child.poll() is None:
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    facts = resume.orjson.loads((out / "state" / "state.json").read_bytes())
    before = facts["facts"]["epoch"] * 10 + facts["facts"]["at"]
    assert before > 0
    assert resume.State(out / "state", facts["fingerprint"]).load() is not None
    # the same arguments but for the length, so another run: it must start anew and end
    report = finetune(
        task="classify", model=str(model), train=data, validation=data, test=data, out=out, mode="full", epochs=1, batch=4,
    )  # fmt: skip
    assert report["epochs"] == 1
    assert not (out / "state").exists()
