"""A recording with a swap of an encoder in its middle is decided again bit for bit, each side with its own version."""

from __future__ import annotations

import asyncio
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels
from prometheus_client import CollectorRegistry
from task_versions import promote_version

from learners.checkpoints.store import open_checkpoints
from runtime.config.schema import Config
from runtime.control.tick import TickResult
from runtime.deploy.encoder_updater import EncoderUpdater
from runtime.inference.build import build_engine
from runtime.inference.engine import Engine
from runtime.monitoring.metrics import Metrics
from runtime.monitoring.reporter import Reporter
from runtime.mqtt.topics import Topics, encode
from runtime.recording.reader import Recording, RecordingError
from runtime.recording.recorder import Recorder
from runtime.recording.replay import replay_file
from sensors.readings import Observation, Reading, Telemetry, Text

ORDERS = ("go left", "stop now", "please go", "is the red")


def config_of(tmp_path: Path) -> Config:
    model = str(tinymodels.bert(tmp_path / "model"))
    return Config.model_validate(
        {
            "agent": "a",
            "state_dir": tmp_path / "state",
            "streams": {
                "orders": {"kind": "text", "source": "topic", "encoder": "language"},
                "joints": {"kind": "telemetry", "source": "topic", "fields": ["q"]},
            },
            "encoders": {"language": {"model": model, "follow_task": True}},
            "actuators": {"head": {"kind": "choice", "choices": ["a", "b", "c"], "safe": "a"}},
            "policy": {"width": 16, "heads": 2, "latents": 2, "layers": 1, "history": 3},
            "tasks": {"intents": {"kind": "text-classification", "stream": "orders", "model": model}},
            "engine": {"backend": "torch", "precision": "float32"},
        }
    )


class Silent:
    """A connection that carries nothing."""

    connected, connects = False, 0

    def enqueue(self, *_: object, **__: object) -> None: ...


def promote(config: Config, number: int) -> Path:
    return promote_version(config.state_dir, "intents", config.tasks["intents"].model, number, 0.2).path


def seen(tick: int) -> Observation:
    """A new order every fifth tick; between ticks 8 and 11 there is none in force."""
    readings: dict[str, Reading] = {
        "joints": Telemetry("joints", float(tick), tick, ("q",), np.array([tick / 10], np.float32))
    }
    fresh = {"joints"}
    if not 8 <= tick <= 11:
        readings["orders"] = Text("orders", float(tick // 5), tick // 5, ORDERS[tick // 5 % 4])
        fresh |= {"orders"} if tick % 5 == 0 or tick == 12 else set()
    missing = frozenset({"orders", "joints"} - readings.keys())
    return Observation(tick, float(tick), readings, dict.fromkeys(readings, 0.125), missing, frozenset(fresh))


async def record(config: Config, path: Path, swaps: tuple[int, ...]) -> list[str]:
    """Twenty ticks, recorded as the agent does it; the encoder is swapped before some. Returns the encoder's versions."""
    engine: Engine = await asyncio.to_thread(build_engine, config, open_checkpoints(config.state_dir, config.promotion))
    tuning = EncoderUpdater(config, engine, lambda *_: None)
    metrics = Metrics(CollectorRegistry(), agent="a", version=version("reflexd"))
    reporter = Reporter(Silent(), Topics("a"), metrics)  # type: ignore[arg-type]
    encoders = encode({name: one.version for name, one in engine.encoders.items()}).decode()
    metadata = {"session": "s", "spec": engine.spec.to_json().decode(), "seed": str(engine.seed), "encoders": encoders}
    recorder = Recorder(path, metadata, 1 << 30)
    recorder.start((await engine.snapshot()).files)
    reporter.recorder = recorder
    found = []
    for tick in range(20):
        if tick in swaps:
            promote(config, tick)
            assert await tuning.sync("language")
        decided = await engine.decide(seen(tick), explore=True)
        found.append(decided.encoders["language"])
        reporter.ticked(
            TickResult(
                observation=seen(tick), decided=decided, verdict=None, decision=f"s-{tick}", executed={}, by={},
                stamp_unix_s=float(tick), latency_s=0.0, stored=True, mode="autonomous", explore=True, answered_s=0.0,
            )
        )  # fmt: skip
    await asyncio.to_thread(recorder.close)
    engine.close()
    return found


def decisions(path: Path) -> list[dict[str, Any]]:
    return [recorded for _, recorded in Recording(path).ticks()]


async def test_each_side_of_a_swap_is_replayed_with_its_own_encoder(tmp_path: Path) -> None:
    config, path = config_of(tmp_path), tmp_path / "swap.mcap"
    versions = await record(config, path, (9, 14))  # the first while the stream is missing
    assert [one["encoders"]["language"] for one in decisions(path)] == versions
    assert len(set(versions)) == 3
    report = await asyncio.to_thread(replay_file, path, config)
    assert report.decisions == 20
    assert report.same, report.text()


async def test_without_the_swap_the_decisions_after_it_differ(tmp_path: Path) -> None:
    """So that the equality above is worth something."""
    config, path, other = config_of(tmp_path), tmp_path / "swap.mcap", tmp_path / "plain.mcap"
    await record(config, path, (9,))
    shutil.rmtree(config.state_dir)
    await record(config, other, ())
    swapped, plain = ([one["value"] for one in decisions(file)] for file in (path, other))
    assert swapped[:9] == plain[:9]
    assert swapped[12:] != plain[12:]


async def test_a_version_that_is_gone_is_named_with_the_decision_that_needs_it(tmp_path: Path) -> None:
    config, path = config_of(tmp_path), tmp_path / "swap.mcap"
    versions = await record(config, path, (9,))
    shutil.rmtree(config.state_dir / "learner" / "tasks")
    with pytest.raises(RecordingError, match=rf"s-9: encoder language: its version {versions[-1]} is no longer here"):
        await asyncio.to_thread(replay_file, path, config)
