"""The assembled agent without a broker: real ticks, a gate that answers, rewards as they come, and a version that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import soundfile
from agent_world import SETTINGS, Wall, agent

from fakes import eventually
from learners.experience.reader import Reader
from learners.model.spec import fields_version
from runtime.agent.components import Components
from runtime.agent.jobs import _run_sensor, jobs, unready
from runtime.agent.subscriptions import routes
from runtime.control.inbox import Inbox
from runtime.inference.torch_engine import untrained
from runtime.mqtt.topics import Topics
from runtime.recording.reader import Recording
from sensors.config import MicrophoneSettings
from sensors.streams.microphone import MicrophoneSensor


def version(parts: Components, shift: float) -> str:
    weights = untrained(parts.engine.spec, 0).state_dict()
    state = {name: x + shift if x.is_floating_point() else x for name, x in weights.items()}
    return parts.checkpoints.save({"policy": state}, {"spec": orjson.loads(parts.engine.spec.to_json())})


async def live(parts: Components, wall: Wall, seconds: float, gains: dict[str, float], start: int) -> int:
    """Ticks with a reward each, by the version that decided; returns the number of the next one."""
    rng = np.random.default_rng(start)
    for index in range(start, start + round(seconds * 10)):
        wall.now_s += 0.1
        ticked = await parts.control_loop.tick(index)
        gain = gains[ticked.decided.policy] + float(rng.normal(0.0, 0.2))
        parts.feedback.reward(orjson.dumps({"value": gain, "decision": ticked.decision, "source": "world"}))
    return start + round(seconds * 10)


def received(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Every event the reporter publishes from now on."""
    events: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        "runtime.monitoring.reporter.Reporter._event", lambda _self, kind, data: events.append((kind, data))
    )
    return events


async def test_a_worse_version_comes_back_out_of_the_assembled_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, events = Wall(), received(monkeypatch)
    async with agent(tmp_path, wall) as parts:
        good, bad = version(parts, 0.0), version(parts, 0.5)
        gains = {"untrained": 0.0, good: 1.0, bad: 0.2}
        parts.checkpoints.promote(good)
        assert await parts.policy_updater.sync()
        n = await live(parts, wall, 30.0, gains, 0)
        parts.checkpoints.promote(bad)
        assert await parts.policy_updater.sync()
        assert parts.engine.version == bad
        running = (await asyncio.to_thread(parts.health.payload))["experiments"]["experiment"]
        assert (running["challenger"], running["champion"]) == (bad, good)
        begun_s = wall.now_s
        while parts.engine.version == bad and wall.now_s - begun_s < 20.0:
            n = await live(parts, wall, 0.2, gains, n)
        assert parts.engine.version == good
        assert wall.now_s - begun_s <= 10.0
        await eventually(lambda: parts.checkpoints.live().failed == (bad,), "LIVE follows what acts")
        await live(parts, wall, 2.0, gains, n)
        assert parts.store.flush()
    kinds = [kind for kind, _ in events if kind.startswith("policy")]
    assert kinds == [
        *("policy_untrained", "policy_swapped"),
        *("policy_swapped", "policy_rolled_back", "policy_swapped"),
    ]
    figures = next(data for kind, data in events if kind == "policy_rolled_back")
    assert (figures["version"], figures["to"]) == (bad, good)
    assert "fell at once" in figures["why"]
    async with agent(tmp_path, wall) as again:  # the next agent knows what is trusted
        assert again.engine.version == good
        assert again.experiments.state.trust.anchor == good
        assert again.experiments.state.phase is None


async def test_rewards_of_the_tick_judge_sources_and_a_release_reaches_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, events = Wall(), received(monkeypatch)
    own = {"name": "turns", "kind": "expression", "value": "(head == 'left') - (head == 'right')"}
    topic = SETTINGS["rewards"][0] | {"sources": {"liar": {"rates": "tick", "authority": "sensor"}}}
    async with agent(tmp_path, wall, rewards=[topic, own]) as parts:
        for index in range(3_000):
            wall.now_s += 0.1
            ticked = await parts.control_loop.tick(index)
            turn = ticked.decided.actions["head"].value
            value = {"left": -1.0, "stay": 0.0, "right": 1.0}[str(turn)]
            parts.feedback.reward(orjson.dumps({"value": value, "decision": ticked.decision, "source": "liar"}))
            if parts.sources.names():
                break
        assert parts.sources.names() == {"liar"}
        assert parts.store.flush()
        health = await asyncio.to_thread(parts.health.payload)
        assert health["sources"]["quarantined"] == ["liar"]
        assert parts.sources.release("liar")
    assert [kind for kind, _ in events if kind.startswith("source")] == ["source_quarantined", "source_released"]


async def test_a_signed_policy_is_never_read_with_reordered_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, events = Wall(), received(monkeypatch)
    async with agent(tmp_path, wall) as parts:
        good = version(parts, 0.0)
        parts.checkpoints.promote(good)
    head = SETTINGS["actuators"]["head"]
    turned = SETTINGS["actuators"] | {"head": head | {"choices": head["choices"][::-1]}}
    async with agent(tmp_path, wall, actuators=turned) as parts:
        assert parts.engine.version == "untrained"
        assert parts.checkpoints.live().version == good, "it acts again when the order is restored"
        await asyncio.sleep(0)  # events are published by the loop
        refused = [data for kind, data in events if kind == "checkpoint_refused"]
        assert {(data["version"], data["reason"]) for data in refused} == {(good, "other_meaning")}
        assert [data["reason"] for kind, data in events if kind == "policy_unusable"] == ["other_meaning"]
        assert parts.policy_updater.is_untried, "nothing moves until a person sets the mode"
    async with agent(tmp_path, wall) as parts:
        assert parts.engine.version == good


async def test_a_row_says_what_its_numbers_mean(tmp_path: Path) -> None:
    """So the learner never reads a stored number as another field."""
    wall = Wall()
    named: list[str] = []
    for fields in (["angle"], ["torque"]):
        async with agent(
            tmp_path, wall, streams={"joints": SETTINGS["streams"]["joints"] | {"fields": fields}}
        ) as parts:
            await parts.control_loop.tick(0)
            folder = parts.config.state_dir / "experience"
        (row,) = Reader(folder).newest(1)
        assert row.transition.encoder_versions == {"joints": fields_version(fields)}
        named.append(fields_version(fields))
    assert named[0] != named[1]


async def test_the_settings_and_the_mode_decide_how_much_the_policy_explores(tmp_path: Path) -> None:
    policy = {**SETTINGS.get("policy", {}), "exploration": {"initial": 0.3, "final": 0.1, "over": "1 min"}}
    async with agent(tmp_path, Wall(), policy=policy) as parts:
        assert parts.health.payload()["exploration"] == pytest.approx(0.3)
        assert parts.engine.spec.exploration.updates == 60 * parts.config.tick.rate_hz
        ticked = await parts.control_loop.tick(0)
        assert ticked.explore
        parts.control_loop.mode = "assist"
        assert parts.health.payload()["exploration"] == 0
        ticked = await parts.control_loop.tick(1)
        assert not ticked.explore, "in assist the policy takes its best action"


async def test_one_list_of_jobs_and_one_table_of_topics(tmp_path: Path) -> None:
    async with agent(tmp_path, Wall()) as parts:
        running = jobs(parts)
        for job in running.values():
            job.close()
        assert set(running) == {
            *("control mqtt", "media mqtt", "gate", "decoder", "tick", "policy", "experiments", "sources", "encoders"),
            *(
                "drift",
                "drift references",
                "learner events",
                "requests",
                "recording",
                "explanations",
                "health",
                "storage",
                "policy spec",
            ),
        }
        table = list(routes(parts, Topics("small")))
        verbs = (
            *("promote", "rollback", "checkpoints", "explain", "record", "finetune", "release", "accept_drift"),
            *("readings", "label_readings", "labels", "correct_labels"),
        )
        below = ("in/joints", "reward", "label", "preview/subscribe", *(f"request/{verb}" for verb in verbs))
        assert sorted(route.topic for route in table) == sorted(f"reflexd/small/{topic}" for topic in below)
        assert all(route.connection is parts.control for route in table), "media is for what may be large"
        assert unready(parts) == [
            "no connection to the broker",
            "the gate has not answered any tick yet",
        ]


async def _only(running: dict[str, Coroutine[Any, Any, None]], name: str) -> None:
    """Run one job of the agent."""
    wanted = running.pop(name)
    for job in running.values():
        job.close()
    await wanted


async def test_a_recording_starts_with_the_agent_where_the_settings_ask_for_it(tmp_path: Path) -> None:
    async with agent(tmp_path, Wall(), record=True) as parts:
        running = asyncio.create_task(_only(jobs(parts), "recording"))
        await eventually(lambda: parts.reporter.recorder is not None and parts.reporter.recorder.started)
        for index in range(3):
            await parts.control_loop.tick(index)
        facts = await parts.requests.recording.end()
        running.cancel()
    recording = Recording(Path(facts["path"]))
    assert recording.metadata()["agent"] == "small"
    assert len(list(recording.ticks())) == 3


async def test_a_recording_that_cannot_start_does_not_end_the_agent(tmp_path: Path) -> None:
    async with agent(tmp_path, Wall(), record=True) as parts:
        recordings = tmp_path / "state" / "recordings"
        recordings.write_text("a file where the folder should be")
        running = asyncio.create_task(_only(jobs(parts), "recording"))
        await eventually(lambda: "recording" in parts.control_loop.degraded)
        assert parts.reporter.recorder is None
        assert "cannot record to" in parts.control_loop.degraded["recording"]
        await parts.control_loop.tick(0)
        assert not running.done(), "it is tried again"
        running.cancel()


async def test_what_a_microphone_refuses_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound with a few samples that are not finite loses a window now and then, and the stream is never lost."""
    events = received(monkeypatch)
    samples = np.zeros(8_000, np.float32)
    samples[4_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    async with agent(tmp_path, Wall()) as parts:
        settings = MicrophoneSettings(
            kind="microphone", encoder="ear", source=str(tmp_path / "nan.wav"), window_s=0.3, hop_s=0.1, loop=True
        )
        room = MicrophoneSensor("room", settings)
        running = asyncio.create_task(_run_sensor(replace(parts, inbox=Inbox({"room": settings})), room))
        await eventually(lambda: any(kind == "payload_refused" for kind, _ in events), 30.0)
        running.cancel()
    data = next(data for kind, data in events if kind == "payload_refused")
    assert (data["stream"], data["cause"]) == ("room", "not_finite")
    assert parts.decoder.drops.get("room") is None, "the sensor counts it, once"
