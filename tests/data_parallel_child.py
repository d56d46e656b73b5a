"""Fine-tune tiny models in a process group of torch, and write what became of them: what `test_data_parallel.py` starts as workers.

The function `scenarios` runs the same trainings with any group, so that a test compares workers with one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import tinymodels
import torch
from safetensors.torch import save_file
from torch import distributed

from learners.data_parallel import TorchWorkers, WorkerGroup
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer import Stopped, TrainerSettings
from learners.finetune.trainer_state import State, trained_of
from learners.finetune.training_phases import tune
from learners.tasks.base import Example, Task
from learners.tasks.text_classification import ClassifyText
from learners.tasks.text_generation import Chat
from learners.tasks.token_classification import Tag

ROWS: list[Example] = list(tinymodels.orders(33, 0, {"go": "go", "stop": "stop"}))
"""With batches of 8 the last one has one example, and so one worker of two has none."""
HELD: list[Example] = list(tinymodels.orders(15, 1, {"go": "go", "stop": "stop"}))
TAGGED: list[Example] = [
    {"tokens": ["go", *["now"] * (n % 7), side], "tags": ["O", *["O"] * (n % 7), "B-SIDE"]}
    for n, side in enumerate(("left", "right") * 9)
]
ANSWERED: list[Example] = [
    {"messages": [{"role": "user", "content": "go " * (1 + n % 3)}, {"role": "assistant", "content": "left now " * (1 + n % 5)}]}
    for n in range(13)
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scenario:
    """A training: its task, examples and settings."""

    task: Callable[[Path], Task]
    train: list[Example]
    validation: list[Example]
    settings: TrainerSettings
    mode: Any = "full"


def settings(**others: Any) -> TrainerSettings:
    """Return settings with which a tiny model learns in few steps."""
    return TrainerSettings(**{"epochs": 3, "batch": 8, "learning_rate": 1e-3, "precision": "float32"} | others)


SCENARIOS = {
    "classes": Scenario(lambda f: ClassifyText.open(f / "bert", labels=("go", "stop")), ROWS, HELD, settings()),
    "adapters": Scenario(
        lambda f: ClassifyText.open(f / "bert", labels=("go", "stop")), ROWS, HELD, settings(), "lora"
    ),
    "stops early": Scenario(
        lambda f: ClassifyText.open(f / "bert", labels=("go", "stop")), ROWS, HELD,
        settings(epochs=9, learning_rate=1e-9, patience=2),
    ),
    "words": Scenario(lambda f: Tag.open(f / "bert", labels=("B-SIDE", "O")), TAGGED, TAGGED, settings(batch=5, accumulate=2)),
    "cut answers": Scenario(lambda f: Chat.open(f / "llama", max_length=12), ANSWERED, ANSWERED, settings(batch=4)),
}  # fmt: skip


def scenarios(group: WorkerGroup, models: Path, out: Path) -> None:
    """Train every scenario, and one that is stopped and goes on; the first worker writes weights and histories below `out`."""

    def write(name: str, run: Any, model: torch.nn.Module) -> None:
        if not group.rank:
            save_file(trained_of(model), out / f"{name}.safetensors")
            facts = {key: getattr(run, key) for key in ("losses", "history", "best", "best_epoch", "worse")}
            (out / f"{name}.json").write_bytes(orjson.dumps(facts))

    for name, each in SCENARIOS.items():
        torch.manual_seed(0)
        task = each.task(models)
        tuned = tune(task, Splits(each.train, each.validation), each.settings, each.mode, group=group)
        write(name, tuned.run, tuned.task.model)
    asked = iter([*[False] * 6, *[True] * 99])
    for stop in (lambda: next(asked), None):
        torch.manual_seed(group.rank if stop is None else 0)  # the others' weights are those of the first one
        each = SCENARIOS["classes"]
        task, state = each.task(models), State(out / "state", "x")
        splits = Splits(each.train, each.validation)
        try:
            tuned = tune(task, splits, each.settings, each.mode, state=state, stop=stop, group=group)
            write("resumed", tuned.run, tuned.task.model)
        except Stopped:
            continue


def worker(rank: int, size: int, port: int, models: Path, out: Path) -> None:
    """Run the scenarios as one worker."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=size)
    scenarios(TorchWorkers(), models, out)
    distributed.destroy_process_group()
