"""`reflexd finetune --engine ray`: what is refused, and a real Ray with two workers, of which one is killed."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import tinymodels
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from learners.finetune.run import finetune
from runtime.cli.main import main
from runtime.cli.on_ray import finetuning
from runtime.cli.on_ray.finetuning import WorkerRefusal, finetune_on_ray

INTENTS = {"go": "move", "stop": "halt"}


def table(path: Path, count: int, seed: int) -> Path:
    with path.open("w", newline="") as file:
        made = csv.DictWriter(file, ("text", "label"))
        made.writeheader()
        made.writerows(tinymodels.orders(count, seed, INTENTS))
    return path


def call(folder: Path, out: str) -> dict[str, Any]:
    model = folder / "model"
    if not model.exists():
        tinymodels.bert(model)
    files = {name: str(table(folder / f"{name}.csv", 33, n)) for n, name in enumerate(("train", "validation", "test"))}
    options = {"epochs": 3, "batch": 8, "learning_rate": 1e-3, "seed": 1, "mode": "full", "precision": "float32"}
    return {"task": "text-classification", "model": str(model), "out": str(folder / out), **files, **options}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--workers", "2"], "belong to --engine ray"),
        (["--ray-address", "a:1"], "belong to --engine ray"),
        (["--engine", "ray", "--augment", "auto"], "use --engine process"),
        (["--engine", "ray", "--workers", "1000"], "give at most as many"),
    ],
)
def test_what_several_workers_do_not_do_is_refused(tmp_path: Path, given: list[str], problem: str) -> None:
    one = call(tmp_path, "out")
    words = [f"--{name}={one[name]}" for name in ("task", "model", "train", "validation", "out")]
    done = CliRunner().invoke(main, ["finetune", *words, *given])
    assert (done.exit_code, problem in done.output) == (2, True), done.output
    assert not (tmp_path / "out").exists()


def test_the_worker_that_refuses_its_input_is_named() -> None:
    failed = RuntimeError("training failed")
    failed.worker_failures = {0: RuntimeError("Connection closed by peer"), 1: WorkerRefusal("worker 1 on b: no rows")}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^worker 1 on b: no rows$"):
        finetuning._died(None, failed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
@pytest.mark.timeout(500)
def test_a_real_ray_gives_the_model_of_one_process_also_after_a_worker_was_killed(tmp_path: Path) -> None:
    """Both workers save as fast as they train, so that the killed run goes on from its middle."""
    here = finetune(**call(tmp_path, "here"))
    notes: list[str] = []
    killed = threading.Event()

    def kill() -> None:
        """Kill a worker once the state of the run is saved."""
        while not killed.is_set():
            time.sleep(0.05)
            if not (tmp_path / "there" / "state" / "state.json").exists():
                continue
            for each in psutil.Process().children(recursive=True):
                try:
                    if "RayTrainWorker" in each.name() + " ".join(each.cmdline()):
                        each.kill()
                        killed.set()
                        return
                except psutil.Error:
                    continue

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    shown: list[dict[str, Any]] = []
    given = call(tmp_path, "there") | {"save_every_s": 0.0}
    there = finetune_on_ray(given, workers=2, address=None, on_progress=shown.append, note=notes.append)
    killer.join()
    assert len(notes) == 1, notes
    assert there["workers"] == 2
    for name in ("best_epoch", "epochs", "metrics"):
        assert there[name] == here[name], name
    for mine, theirs in zip(here["history"], there["history"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    weights, others = (load_file(tmp_path / out / "model.safetensors") for out in ("here", "there"))
    for key, weight in weights.items():
        torch.testing.assert_close(others[key], weight, rtol=1e-3, atol=2e-5)
    assert shown
    assert not list((tmp_path / "there").glob(".ray-*"))
