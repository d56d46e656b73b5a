"""Encoders that follow a task's fine-tuned version: weights taken over whole, between ticks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels
import torch
from transformers import AutoModel

from actuators.actions import ActionSpace, Choice
from learners.config import EncoderSettings, TaskSettings
from learners.continual.versions import TaskVersionStore
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.selection import BackendSettings
from learners.model.encoders.pretrained import load
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.reencoding.task_encoder import encoder_tasks, encoders_without_task
from learners.tasks.registry import open_task
from runtime.config.schema import Config
from runtime.deploy.encoder_updater import EncoderUpdater, EncoderVersionNotFound
from runtime.inference.engine import Engine
from sensors.readings import Observation, Text

CPU = torch.device("cpu")


def config_of(tmp_path: Path, model: Path, **task: Any) -> Config:
    return Config.model_validate(
        {
            "agent": "a",
            "state_dir": tmp_path / "state",
            "streams": {"orders": {"kind": "text", "source": "topic", "encoder": "language"}},
            "encoders": {"language": {"model": str(model), "follow_task": True}},
            "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
            "tasks": {"intents": {"kind": "text-classification", "stream": "orders", "model": str(model), **task}},
        }
    )


def engine_of(config: Config) -> Engine:
    torch.manual_seed(0)
    encoder = load(config.encoders["language"], 1, CPU)
    actions = ActionSpace((Choice("head", ("a", "b")),))
    stream = StreamSpec("orders", "text", 1, encoder.width)
    spec = PolicySpec(streams=(stream,), actions=actions, width=32, history=2)
    calibrations = Calibrations(None, BackendSettings("torch", "float32"))
    return Engine(Policy(spec), {"language": encoder}, {"orders": "language"}, calibrations, lambda _: None)  # type: ignore[arg-type,return-value]


def promote(config: Config, number: int) -> Path:
    """A version whose backbone is another one, as after a fine-tune."""
    task = open_task("text-classification", config.tasks["intents"].model, labels=("x", "y"))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.01 * number * torch.randn_like(parameter))
    versions = TaskVersionStore(config.state_dir / "learner" / "tasks" / "intents")
    version = versions.add(task, number)
    versions.promote(version)
    return version.path


def seen(tick: int, order: Text) -> Observation:
    return Observation(tick, float(tick), {"orders": order}, {"orders": 0.1}, frozenset())


async def test_an_encoder_follows_its_task_between_ticks_and_tokens_are_never_mixed(tmp_path: Path) -> None:
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"))
    engine, said = engine_of(config), []
    tuning = EncoderUpdater(config, engine, lambda kind, data: said.append((kind, data)))
    order = Text("orders", 0.0, 0, "go left")
    before = await engine.decide(seen(0, order))
    assert not await tuning.sync("language"), "no version yet"
    folder = promote(config, 1)
    assert await tuning.sync("language")
    assert not await tuning.sync("language"), "once a version"
    after = await engine.decide(seen(1, order))
    assert after.encoded == ("orders",), "the same reading is encoded anew"
    assert after.encoder_versions != before.encoder_versions
    assert said == [
        (
            "encoder_swapped",
            {
                "encoder": "language", "task": "intents", "task_version": folder.name,
                "before": before.encoder_versions["orders"], "version": after.encoder_versions["orders"],
            },
        )
    ]  # fmt: skip
    ids = engine.encoders["language"].prepare([order])
    with torch.inference_mode():
        x_BLW = AutoModel.from_pretrained(folder).eval()(input_ids=ids[0], attention_mask=ids[1]).last_hidden_state
    mean_W = (x_BLW[0] * ids[1][0, :, None]).sum(0) / ids[1].sum()
    assert after.tokens["orders"][0] == pytest.approx((mean_W / mean_W.norm()).numpy(), abs=2e-3)
    fresh = engine_of(config)  # as after a restart: the same version, whose tokens are still comparable
    wanted = {"language": engine.encoders["language"].version}
    promote(config, 2)
    with pytest.raises(EncoderVersionNotFound, match="no longer here"):
        await EncoderUpdater(config, fresh, lambda *_: None).restore({"language": "0" * 16})
    for one in TaskVersionStore(tuning.folder / "intents").all():
        if one.path != folder:
            (one.path / "model.safetensors").unlink()  # the record in its report says which folder it is
    await EncoderUpdater(config, fresh, lambda *_: None).restore(wanted)
    alone = await fresh.decide(seen(1, order))
    assert alone.encoder_versions == after.encoder_versions
    assert np.array_equal(alone.tokens["orders"], after.tokens["orders"])
    assert alone.scores["head"] == pytest.approx(after.scores["head"], abs=1e-6), "no older state in the history"
    engine.close()
    fresh.close()


async def test_a_version_of_another_architecture_is_refused_and_the_encoder_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"))
    engine, said = engine_of(config), []
    version = engine.encoders["language"].version
    tuning = EncoderUpdater(config, engine, lambda kind, data: said.append((kind, data)))
    other = open_task("text-classification", tinymodels.bert(tmp_path / "wide", width=64), labels=("x", "y"))
    versions = TaskVersionStore(tuning.folder / "intents")
    versions.promote(versions.add(other, 1))
    assert not await tuning.sync("language")
    assert said[0][0] == "encoder_refused"
    assert "the encoder has" in said[0][1]["reason"]
    assert engine.encoders["language"].version == version
    engine.close()


async def test_an_encoder_that_nothing_would_train_is_said(tmp_path: Path) -> None:
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"), kind="token-classification")
    engine, said = engine_of(config), []
    await EncoderUpdater(config, engine, lambda kind, data: said.append((kind, data))).run()
    assert [kind for kind, _ in said] == ["encoder_without_task"]
    assert "no classification task" in said[0][1]["reason"]
    engine.close()


def test_whose_task_teaches_which_encoder() -> None:
    encoders = {
        "language": EncoderSettings(model="m", follow_task=True),
        "other": EncoderSettings(model="m", follow_task=True),
        "vision": EncoderSettings(model="v"),
    }
    tasks = {
        "elsewhere": TaskSettings(kind="text-classification", stream="orders", model="n"),
        "intents": TaskSettings(kind="text-classification", stream="orders", model="m"),
        "looks": TaskSettings(kind="text-classification", stream="front", model="v"),
    }
    taught = encoder_tasks(encoders, tasks, {"orders": "language", "front": "vision", "joints": None})
    assert taught == {"language": "intents"}, "frozen ones are left alone"
    assert list(encoders_without_task(encoders, taught)) == ["other"]
