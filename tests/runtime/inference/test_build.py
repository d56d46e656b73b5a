"""The engine of the settings: what it holds in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tinymodels

from learners.checkpoints.store import open_checkpoints
from learners.model.backends.openvino import OpenVinoRun
from runtime.config.schema import Config
from runtime.inference.build import build_engine
from sensors.readings import Observation, Text


def config_of(folder: Path, *, follow: bool, backend: str) -> Config:
    model = str(tinymodels.bert(folder / "model"))
    tasks: dict[str, Any] = {"intents": {"kind": "text-classification", "stream": "orders", "model": model}}
    return Config.model_validate(
        {
            "agent": "a",
            "state_dir": folder / "state",
            "streams": {"orders": {"kind": "text", "source": "topic", "encoder": "language"}},
            "encoders": {"language": {"model": model, "follow_task": follow}},
            "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
            "tasks": tasks if follow else {},
            "policy": {"width": 16, "heads": 2, "latents": 2, "layers": 1, "hidden": [16]},
            "engine": {"backend": backend, "precision": "float32"},
        }
    )


@pytest.mark.parametrize(("follow", "backend", "freed"), [
    (False, "openvino", True), (True, "openvino", False), (False, "torch", False),
])  # fmt: skip
async def test_the_torch_module_of_an_encoder_is_freed_where_a_graph_runs_and_no_task_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follow: bool, backend: str, freed: bool
) -> None:
    monkeypatch.setattr("runtime.inference.build.shared_cache", lambda: tmp_path / "cache")
    config = config_of(tmp_path, follow=follow, backend=backend)
    engine = build_engine(config, open_checkpoints(config.state_dir, config.promotion))
    encoder = engine.encoders["language"]
    assert isinstance(encoder.run, OpenVinoRun) == (backend == "openvino")
    assert (encoder.module is None) == freed
    decided = await engine.decide(
        Observation(0, 0.0, {"orders": Text("orders", 0.0, 0, "go left")}, {"orders": 0.1}, frozenset())
    )
    assert decided.encoder_versions == {"orders": encoder.version}
    engine.close()
