"""Fine-tuning on a GPU: all ways of training, a folder that reads the same on the CPU, a run that resumes. Skipped without CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinymodels
import torch

from learners.finetune import trainer_state
from learners.finetune.evaluate import evaluate
from learners.finetune.run import finetune
from learners.finetune.trainable_layers import prepare
from learners.finetune.trainer import Stopped, Trainer, TrainerSettings
from learners.tasks.text_classification import ClassifyText

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
INTENTS = {"go": "move", "stop": "halt", "left": "turn"}
ROWS = [{"text": text, "label": text} for text in ("go", "stop") for _ in range(12)]


@pytest.mark.parametrize("mode", ["full", "top", "lora"])
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_it_trains_on_the_gpu_and_reads_the_same_on_the_cpu(mode: str, precision: str, tmp_path: Path) -> None:
    counts = {"train": 90, "validation": 30, "test": 30}
    files: dict[str, Any] = {}
    for name, n in counts.items():
        rows = tinymodels.orders(n, n + len(name), INTENTS)
        files[name] = tmp_path / f"{name}.csv"
        files[name].write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    report = finetune(
        task="text-classification", model=str(tinymodels.bert(tmp_path / "model")), out=tmp_path / "out", mode=mode,
        device="cuda", precision=precision, epochs=12, batch=16, learning_rate=1e-2, patience=12, seed=1, **files,
    )  # fmt: skip
    found = report["metrics"]["test"]["accuracy"]
    assert found >= (0.5 if mode == "top" else 0.9)
    again = evaluate(
        task="text-classification", model=str(tmp_path / "out"), test=files["test"], out=tmp_path / "again"
    )
    assert again["metrics"]["test"]["accuracy"] == pytest.approx(found, abs=1 / 30 + 1e-6)


def build(folder: Path, state: Path | None, stop: Callable[[], bool] | None = None) -> Trainer:
    torch.manual_seed(3)
    task = ClassifyText.open(tinymodels.bert(folder, dropout=0.2), labels=("go", "stop"))
    prepare(task.model, "full")
    task.model.to("cuda")
    settings = TrainerSettings(epochs=3, batch=8, accumulate=2, learning_rate=1e-3, save_every_s=0.0, seed=5)
    held = None if state is None else trainer_state.State(state, "run")
    return Trainer(task, task.model, ROWS, ROWS, settings, state=held, stop=stop)


def test_an_interrupted_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    whole = build(tmp_path / "m", None).run()
    calls = iter(range(100))
    with pytest.raises(Stopped):
        build(tmp_path / "m", tmp_path / "s", lambda: next(calls) == 4).run()
    resumed = build(tmp_path / "m", tmp_path / "s").run()
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-3)
    assert len(resumed.history) == len(whole.history)
