"""The engine of the settings: what it holds in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels

from learners.checkpoints.store import open_checkpoints
from learners.model.backends.openvino import OpenVinoRun
from runtime.config.schema import Config
from runtime.inference.build import ModelConfigError, build_engine, needs_torch
from sensors.readings import Observation, Text


def config_of(folder: Path, *, follow: bool, backend: str, runtime: str = "auto") -> Config:
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
            "engine": {"runtime": runtime, "backend": backend, "precision": "float32"},
        }
    )


@pytest.mark.parametrize(("follow", "backend", "freed"), [
    (False, "openvino", True), (True, "openvino", False), (False, "torch", False),
])  # fmt: skip
async def test_the_torch_module_of_an_encoder_is_freed_where_a_graph_runs_and_no_task_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follow: bool, backend: str, freed: bool
) -> None:
    monkeypatch.setattr("runtime.inference.build.shared_cache", lambda: tmp_path / "cache")
    config = config_of(tmp_path, follow=follow, backend=backend, runtime="torch")
    engine = build_engine(config, open_checkpoints(config.state_dir, config.promotion))
    encoder = engine.encoders["language"]
    assert isinstance(encoder.run, OpenVinoRun) == (backend == "openvino")
    assert (encoder.module is None) == freed
    decided = await engine.decide(
        Observation(0, 0.0, {"orders": Text("orders", 0.0, 0, "go left")}, {"orders": 0.1}, frozenset())
    )
    assert decided.encoder_versions == {"orders": encoder.version}
    engine.close()


def seen(tick: int, words: str) -> Observation:
    return Observation(tick, float(tick), {"orders": Text("orders", 0.0, tick, words)}, {"orders": 0.1}, frozenset())


async def test_an_engine_on_graphs_decides_as_one_in_torch_and_a_second_start_prepares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.inference.build.shared_cache", lambda: tmp_path / "cache")
    decided: dict[str, list[Any]] = {}
    config = config_of(tmp_path, follow=False, backend="openvino", runtime="compiled")
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    for runtime in ("compiled", "torch"):
        engine = build_engine(config, checkpoints, runtime="compiled" if runtime == "compiled" else "torch")
        assert engine.runtime == runtime
        results = [await engine.decide(seen(tick, "go left " * (1 + tick))) for tick in range(30)]
        decided[runtime] = [(r.actions["head"].value, r.encoder_versions, engine.untrained_digest) for r in results]
        scores = np.array([r.scores["head"] for r in results])
        decided.setdefault("scores", []).append(scores)
        engine.close()
    assert decided["compiled"] == decided["torch"]
    graphs, exact = decided["scores"]
    assert np.abs(graphs - exact).max() <= 1e-4 * np.abs(exact).max()

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a second start prepared something")

    monkeypatch.setattr("runtime.inference.prepared.subprocess.Popen", refuse)
    build_engine(config, checkpoints).close()


@pytest.mark.parametrize(("follow", "backend", "reason"), [
    (True, "auto", "encoder language follows a task"), (False, "torch", "engine.backend is torch"),
])  # fmt: skip
def test_settings_that_need_torch_say_why(tmp_path: Path, follow: bool, backend: str, reason: str) -> None:
    config = config_of(tmp_path, follow=follow, backend=backend, runtime="compiled")
    assert needs_torch(config) == reason
    with pytest.raises(ModelConfigError, match=f"engine.runtime: compiled is not possible: {reason}; write auto"):
        build_engine(config, open_checkpoints(config.state_dir, config.promotion))


def test_a_damaged_description_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("runtime.inference.build.shared_cache", lambda: cache)
    config = config_of(tmp_path, follow=False, backend="openvino", runtime="compiled")
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    build_engine(config, checkpoints).close()
    (record,) = (cache / "prepared").glob("*/encoder.json")
    (weights,) = (cache / "prepared").glob("*.safetensors")
    record.write_bytes(b"{}")
    weights.write_bytes(weights.read_bytes()[:-3])
    build_engine(config, checkpoints).close()
    assert b"version" in record.read_bytes()
    others = sorted(path for path in record.parent.iterdir() if path.is_file() and path != record)
    assert others
    for damaged in others:  # a power cut can leave each of them empty
        damaged.write_bytes(b"")
        build_engine(config, checkpoints).close()
        assert damaged.stat().st_size > 0
