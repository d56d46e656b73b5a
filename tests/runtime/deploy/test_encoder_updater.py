"""Encoders that follow a task's fine-tuned version: weights taken over whole, between ticks, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tinymodels
import torch
import watching
from transformers import AutoModel

from actuators.actions import ActionSpace, Choice
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.config.policy import EncoderSettings
from learners.config.tasks import TaskSettings
from learners.ipc.outbox import Outbox
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.encoders.pretrained import load
from learners.model.policy import Policy
from learners.model.policy_graph import example_inputs
from learners.model.spec import PolicySpec, StreamSpec
from learners.reencoding.task_encoder import encoder_tasks, encoders_without_task, state_of
from learners.safeguards.source_consistency import Quarantine
from learners.task_serving.versions import TaskVersion, TaskVersionStore
from learners.tasks.task_classes import open_task
from runtime.config.schema import Config
from runtime.deploy.encoder_updater import EncoderUpdater, EncoderVersionNotFound
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.deploy.learner_events import LearnerEvents
from runtime.deploy.policy_updater import PolicyUpdater
from runtime.inference.build import find_encoder, graph_compiler
from runtime.inference.compiled_policy import compile_policy
from runtime.inference.torch_engine import TorchEngine
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


def engine_of(config: Config) -> TorchEngine:
    torch.manual_seed(0)
    encoder = load(config.encoders["language"], 1, CPU)
    actions = ActionSpace((Choice("head", ("a", "b")),))
    stream = StreamSpec("orders", "text", 1, encoder.width)
    spec = PolicySpec(streams=(stream,), actions=actions, width=32, history=2)
    calibrations = Calibrations(None, BackendSettings("torch", "float32"))
    return TorchEngine(Policy(spec), {"language": encoder}, {"orders": "language"}, calibrations, lambda _: None)  # type: ignore[arg-type,return-value]


def promote(config: Config, number: int) -> Path:
    """A version with another backbone, as after a fine-tune."""
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
    engine, reported = engine_of(config), []
    tuning = EncoderUpdater(config, engine, lambda kind, data: reported.append((kind, data)))
    order = Text("orders", 0.0, 0, "go left")
    before = await engine.decide(seen(0, order))
    assert not await tuning.sync("language"), "no version yet"
    folder = promote(config, 1)
    assert await tuning.sync("language")
    assert not await tuning.sync("language"), "once a version"
    after = await engine.decide(seen(1, order))
    assert after.encoded == ("orders",), "the same reading is encoded again"
    assert after.encoder_versions != before.encoder_versions
    assert reported == [
        (
            "encoder_swapped",
            {
                "encoder": "language", "task": "intents", "task_version": folder.name,
                "before": before.encoder_versions["orders"], "version": after.encoder_versions["orders"],
                "policy": "untrained",
            },
        )
    ]  # fmt: skip
    ids = engine.encoders["language"].prepare([order])
    with torch.inference_mode():
        x_BLW = AutoModel.from_pretrained(folder).eval()(input_ids=ids[0], attention_mask=ids[1]).last_hidden_state
    mean_W = (x_BLW[0] * ids[1][0, :, None]).sum(0) / ids[1].sum()
    assert after.tokens["orders"][0] == pytest.approx((mean_W / mean_W.norm()).numpy(), abs=2e-3)
    fresh = engine_of(config)  # as after a restart: the same version with comparable tokens
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


async def test_a_trained_policy_keeps_its_encoder_over_a_promotion_a_restart_and_a_rollback(tmp_path: Path) -> None:
    """Policy 1 was trained with the pretrained encoder, policy 2 with the task's version: no tick acts on another pair."""
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"))
    checkpoints, order = (
        Checkpoints(tmp_path / "state" / "checkpoints", watching.KEY),
        Text("orders", 0.0, 0, "go left"),
    )
    engine = paired_engine(config, checkpoints)
    pretrained = engine.encoders["language"].version
    folder = promote(config, 1)
    tuned = find_version(config, engine, folder)
    first, second = (save_policy(checkpoints, engine, {"orders": version}) for version in (pretrained, tuned))
    acted: list[tuple[str, str]] = []

    async def live_through(engine: TorchEngine, live: str, reported: list[tuple[str, Any]]) -> None:
        checkpoints.promote(live)
        updater = policy_updater(tmp_path, checkpoints, engine)
        await updater.start()
        encoders = EncoderUpdater(config, engine, lambda kind, data: reported.append((kind, data)))
        await encoders.start()
        for tick in range(3):
            decided = await engine.decide(seen(tick, order))
            acted.append((decided.policy, decided.encoder_versions["orders"]))
            assert not await encoders.sync("language")
        engine.close()

    reported: list[tuple[str, Any]] = []
    await live_through(engine, first, reported)
    assert [kind for kind, _ in reported] == ["encoder_on_trial"], (
        "the task's new version waits for a candidate, reported once"
    )
    reported.clear()
    await live_through(paired_engine(config, checkpoints), second, reported)
    assert not reported, "the new version acts, from the first tick after the restart"
    promote(config, 2)
    again = paired_engine(config, checkpoints)
    checkpoints.rollback()
    await live_through(again, first, [])
    assert acted == [(first, pretrained)] * 3 + [(second, tuned)] * 3 + [(first, pretrained)] * 3


async def test_without_its_encoder_a_policy_does_not_act_and_the_one_before_does(tmp_path: Path) -> None:
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"))
    checkpoints = Checkpoints(tmp_path / "state" / "checkpoints", watching.KEY)
    engine = paired_engine(config, checkpoints)
    versions = engine.encoders["language"].version, "0" * 16
    first, second = (save_policy(checkpoints, engine, {"orders": version}) for version in versions)
    checkpoints.promote(first)
    checkpoints.promote(second)
    reported: list[tuple[str, Any]] = []
    updater = policy_updater(tmp_path, checkpoints, engine, reported)
    await updater.start()
    assert engine.version == first
    refused = [data for kind, data in reported if kind == "checkpoint_refused"]
    assert [(one["version"], one["reason"]) for one in refused] == [(second, "encoder_missing")]
    assert "encoder language" in refused[0]["detail"]
    engine.close()


async def test_an_untrained_policy_has_its_encoder_before_the_first_tick(tmp_path: Path) -> None:
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"))
    folder = promote(config, 1)
    engine, reported = engine_of(config), []
    await EncoderUpdater(config, engine, lambda kind, data: reported.append((kind, data))).start()
    decided = await engine.decide(seen(0, Text("orders", 0.0, 0, "go left")))
    assert decided.encoder_versions["orders"] == find_version(config, engine, folder)
    assert [kind for kind, _ in reported] == ["encoder_swapped"]
    engine.close()


def test_a_task_version_that_a_policy_acts_with_is_not_deleted(tmp_path: Path) -> None:
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"))
    checkpoints = Checkpoints(tmp_path / "state" / "checkpoints", watching.KEY)
    folders = [promote(config, 1)]
    TaskVersion(folders[0].name, folders[0]).record_encoder_version("e1")
    checkpoints.save({"policy": {"w": torch.zeros(2)}}, {}, encoder_versions={"orders": "e1"})
    folders += [promote(config, number) for number in range(2, 8)]
    assert [folder.is_dir() for folder in folders] == [True, False, False, False, True, True, True]


def paired_engine(config: Config, checkpoints: Checkpoints) -> TorchEngine:
    engine = engine_of(config)
    engine.load_weights, engine.find_encoder = checkpoints.load, partial(find_encoder, config)
    return engine


def find_version(config: Config, engine: TorchEngine, folder: Path) -> str:
    """Return the encoder version that a task version makes."""
    encoder = load(config.encoders["language"], 1, CPU)
    encoder.load_state(state_of(config.encoders["language"], engine.encoders["language"], folder))
    return encoder.version


def save_policy(checkpoints: Checkpoints, engine: TorchEngine, encoders: dict[str, str]) -> str:
    torch.manual_seed(len(checkpoints.list()))
    policy = Policy(engine.spec)
    return checkpoints.save(
        {"policy": policy.state_dict()}, {"spec": orjson.loads(engine.spec.to_json())}, encoder_versions=encoders
    )


def policy_updater(
    folder: Path, checkpoints: Checkpoints, engine: TorchEngine, reported: list[tuple[str, Any]] | None = None
) -> PolicyUpdater:
    def emit(kind: str, data: dict[str, Any]) -> None:
        if reported is not None:
            reported.append((kind, data))

    experiments = ExperimentController(ExperimentRules(), checkpoints, folder, emit, lambda: 1.0, Quarantine())
    return PolicyUpdater(checkpoints, engine, experiments, LearnerEvents(Outbox(folder / "outbox"), emit, {}), emit)


async def test_a_version_of_another_architecture_is_refused_and_the_encoder_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"))
    engine, reported = engine_of(config), []
    version = engine.encoders["language"].version
    tuning = EncoderUpdater(config, engine, lambda kind, data: reported.append((kind, data)))
    other = open_task("text-classification", tinymodels.bert(tmp_path / "wide", width=64), labels=("x", "y"))
    versions = TaskVersionStore(tuning.folder / "intents")
    versions.promote(versions.add(other, 1))
    assert not await tuning.sync("language")
    assert reported[0][0] == "encoder_refused"
    assert "the encoder has" in reported[0][1]["reason"]
    assert engine.encoders["language"].version == version
    engine.close()


async def test_an_encoder_that_nothing_would_train_is_reported(tmp_path: Path) -> None:
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"), kind="token-classification")
    engine, reported = engine_of(config), []
    await EncoderUpdater(config, engine, lambda kind, data: reported.append((kind, data))).run()
    assert [kind for kind, _ in reported] == ["encoder_without_task"]
    assert "no classification task" in reported[0][1]["reason"]
    engine.close()


def test_which_task_trains_which_encoder() -> None:
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
    trained = encoder_tasks(encoders, tasks, {"orders": "language", "front": "vision", "joints": None})
    assert trained == {"language": "intents"}, "frozen ones are left alone"
    assert list(encoders_without_task(encoders, trained)) == ["other"]


async def test_the_encoder_of_a_version_is_compiled_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The agent may neither measure nor convert while it acts."""
    config = config_of(tmp_path, tinymodels.bert(tmp_path / "model"))
    checkpoints = Checkpoints(config.state_dir / "checkpoints", load_key(config.state_dir))
    engine, reported = paired_engine(config, checkpoints), []
    engine.calibrations = Calibrations(config.state_dir, BackendSettings("openvino", "float32"))
    compile_policy(engine.calibrations, engine.policy, example_inputs(engine.spec), first=True)
    engine.calibrations.convert_here = False
    engine.compiler = graph_compiler(config, engine, lambda kind, data: reported.append((kind, data)))
    wanted = find_version(config, engine, promote(config, 1))
    version = save_policy(checkpoints, engine, {"orders": wanted})
    await engine.switch(version)
    decided = await engine.decide(seen(0, Text("orders", 0.0, 0, "go left")))
    assert (decided.policy, decided.encoder_versions["orders"]) == (version, wanted)
    assert [(kind, data.get("encoder"), data["version"]) for kind, data in reported] == [
        ("graph_compiled", "language", wanted),
        ("graph_compiled", None, version),
    ]
    assert engine.choices["language"].backend == "openvino"
    engine.close()
