"""The engine of the settings: what it holds in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tinymodels
import torch

from actuators.actions import ActionSpace, Choice
from learners.checkpoints.store import open_checkpoints
from learners.config.policy import EncoderSettings
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.definitions import BackendSettings
from learners.model.backends.openvino import OpenVinoRun
from learners.model.encoders.pretrained import load as load_encoder
from learners.model.spec import PolicySpec, StreamSpec
from runtime.config.schema import Config
from runtime.inference import graph_store
from runtime.inference.build import ModelConfigError, build_acting_engine, build_engine, needs_torch
from runtime.inference.graph_store import NotPrepared, Preparation
from runtime.inference.torch_engine import TorchEngine
from sensors.readings import Observation, Text

CPU = torch.device("cpu")


def config_of(folder: Path, *, follow: bool, backend: str, runtime: str = "auto") -> Config:
    model = str(folder / "model" if (folder / "model").exists() else tinymodels.bert(folder / "model"))
    tasks: dict[str, Any] = {"intents": {"kind": "text-classification", "stream": "orders", "model": model}}
    return Config.model_validate(
        {
            "agent": "a",
            "device": "cpu",
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


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a cache, in which the encoder is prepared once."""
    return tmp_path_factory.mktemp("world")


def seen(tick: int, words: str) -> Observation:
    return Observation(tick, float(tick), {"orders": Text("orders", 0.0, tick, words)}, {"orders": 0.1}, frozenset())


async def test_an_engine_on_graphs_decides_as_one_in_torch_and_a_second_start_prepares_nothing(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.inference.build.shared_cache", lambda: world / "cache")
    decided: dict[str, list[Any]] = {}
    config = config_of(world, follow=False, backend="openvino", runtime="compiled")
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

    monkeypatch.setattr("runtime.inference.graph_store.subprocess.Popen", refuse)
    build_engine(config, checkpoints).close()


@pytest.mark.parametrize(("follow", "backend", "reason"), [
    (True, "auto", "encoder language follows a task"), (False, "torch", "engine.backend is torch"),
])  # fmt: skip
def test_settings_that_need_torch_say_why(tmp_path: Path, follow: bool, backend: str, reason: str) -> None:
    config = config_of(tmp_path, follow=follow, backend=backend, runtime="compiled")
    assert needs_torch(config) == reason
    with pytest.raises(ModelConfigError, match=f"engine.runtime: compiled is not possible: {reason}; write auto"):
        build_engine(config, open_checkpoints(config.state_dir, config.promotion))


def test_a_damaged_description_is_made_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = world / "cache"
    monkeypatch.setattr("runtime.inference.build.shared_cache", lambda: cache)
    config = config_of(world, follow=False, backend="openvino", runtime="compiled")
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    build_engine(config, checkpoints).close()
    (record,) = (cache / "prepared").glob("*/encoder.json")
    (weights,) = (cache / "prepared").glob("*/weights.safetensors")
    tokenizer = record.with_name("tokenizer.json")
    for damaged in ({record: b"{}", weights: weights.read_bytes()[:-3]}, {tokenizer: b""}):  # as after a power cut
        for file, content in damaged.items():
            file.write_bytes(content)
        events: list[tuple[str, str]] = []
        build_engine(config, checkpoints, emit=partial(_reason, events)).close()
        assert events == [("graph_refused", f"{file.name} is not the file that was sealed") for file in damaged]
        assert all(file.read_bytes() != content for file, content in damaged.items())


def _reason(events: list[tuple[str, str]], kind: str, fields: Mapping[str, Any]) -> None:
    events.append((kind, fields["reason"]))


def test_a_compiler_that_is_late_or_cannot_be_started_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PolicySpec(
        (StreamSpec("joints", "telemetry", 1, 2),), ActionSpace((Choice("head", ("a", "b")),)), width=16, heads=2
    )
    calibrations = Calibrations(tmp_path / "state", BackendSettings("openvino", "float32"), tmp_path / "cache")
    late = Preparation(tmp_path / "state", tmp_path / "cache", calibrations, limit_s=0.01)
    with pytest.raises(NotPrepared, match=r"did not answer within 0\.01 s"):
        late.untrained(spec, 0)
    late.close()
    monkeypatch.setattr("runtime.inference.graph_store.sys.executable", str(tmp_path / "absent"))
    absent = Preparation(tmp_path / "state", tmp_path / "cache", calibrations)
    with pytest.raises(NotPrepared, match="cannot be started: No such file"):
        absent.untrained(spec, 0)
    absent.close()


async def test_an_agent_that_cannot_run_graphs_acts_in_torch_and_says_why(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First no compiler process starts; then graphs run, but the live version brings weights of an encoder."""
    monkeypatch.setattr("runtime.inference.build.shared_cache", lambda: tmp_path / "absent")
    config = config_of(world, follow=False, backend="openvino")
    checkpoints = open_checkpoints(config.state_dir, config.promotion)
    events: list[tuple[str, dict[str, Any]]] = []

    def emit(kind: str, fields: Mapping[str, Any]) -> None:
        events.append((kind, dict(fields)))

    with monkeypatch.context() as patched:
        patched.setattr("runtime.inference.graph_store.sys.executable", str(tmp_path / "absent"))
        engine = await build_acting_engine(config, checkpoints, emit)
    assert [(kind, fields["reason"]) for kind, fields in events] == [
        ("engine_in_torch", "the compiler process cannot be started: No such file or directory")
    ]
    assert isinstance(engine, TorchEngine)
    weights, encoder = engine.policy.state_dict(), load_encoder(config.encoders["language"], config.policy.tokens, CPU)
    engine.close()
    events.clear()
    monkeypatch.setattr("runtime.inference.build.shared_cache", lambda: world / "cache")
    assert encoder.module is not None
    state = {name: x + 0.125 for name, x in encoder.module.state_dict().items() if x.is_floating_point()}
    files = {"policy": weights, "encoder-language": encoder.module.state_dict() | state}
    version = checkpoints.save(files, {"spec": orjson.loads(engine.spec.to_json())})
    checkpoints.promote(version)
    engine = await build_acting_engine(config, checkpoints, emit)
    (kind, fields) = events[-1]
    assert (kind, len(events)) == ("engine_in_torch", 1)
    assert fields["reason"].startswith(f"{version}: it contains weights of encoder language")
    await engine.switch(version)
    assert (await engine.decide(seen(0, "go left"))).policy == version
    assert engine.encoders["language"].version != encoder.version
    engine.close()


def test_a_model_that_was_downloaded_to_prepare_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[Any] = [["files"], None]
    monkeypatch.setattr(graph_store, "_source", lambda _model: sources.pop())
    calibrations = Calibrations(tmp_path, BackendSettings("openvino", "float32"))
    made: list[str] = []
    found: Any = object()
    monkeypatch.setattr(graph_store.Preparation, "_run", lambda _self, _work, key: made.append(key))
    monkeypatch.setattr(
        graph_store.Preparation, "_sealed", lambda _self, _place, key, _read: found if key in made else None
    )
    preparation = graph_store.Preparation(tmp_path, tmp_path / "cache", calibrations)
    assert preparation.encoder("language", EncoderSettings(model="someone/model"), 1, 2.0) is found
