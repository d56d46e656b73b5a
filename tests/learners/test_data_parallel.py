"""Two workers train as one process does: the same updates, validation and best epoch, with a last batch that one of them has no part of."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import tinymodels
import torch
from data_parallel_child import SCENARIOS, scenarios, worker
from free_ports import free_port
from safetensors.torch import load_file
from torch import multiprocessing

from learners.data_parallel import WorkerGroup


@pytest.mark.timeout(120)
def test_two_workers_train_as_one_process_does(tmp_path: Path) -> None:
    models, here, there = tmp_path / "models", tmp_path / "here", tmp_path / "there"
    tinymodels.bert(models / "bert")
    tinymodels.llama(models / "llama")
    for folder in (here, there):
        folder.mkdir()
    workers = multiprocessing.spawn(worker, (2, free_port(), models, there), nprocs=2, join=False)
    scenarios(WorkerGroup(), models, here)
    while not workers.join():
        pass
    for name in (*SCENARIOS, "resumed"):
        one, two = (orjson.loads((folder / f"{name}.json").read_bytes()) for folder in (here, there))
        assert (one["best_epoch"], one["worse"], len(one["history"])) == (
            two["best_epoch"], two["worse"], len(two["history"])
        ), name  # fmt: skip
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-5), name
        for mine, theirs in zip(one["history"], two["history"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-5), name
        weights, others = (load_file(folder / f"{name}.safetensors") for folder in (here, there))
        for key, weight in weights.items():
            torch.testing.assert_close(others[key], weight, rtol=1e-4, atol=2e-5)
    early = orjson.loads((there / "stops early.json").read_bytes())
    assert len(early["history"]) < 9
    whole, resumed = (load_file(there / f"{name}.safetensors") for name in ("classes", "resumed"))
    assert all(torch.equal(resumed[key], weight) for key, weight in whole.items())
