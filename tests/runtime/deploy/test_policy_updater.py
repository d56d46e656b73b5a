"""The engine follows LIVE, and the events of an activation come in one order."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from learning import SPEC
from watching import KEY

from fakes import eventually
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints, Live
from learners.ipc.outbox import Outbox
from learners.model.spec import PolicySpec
from learners.safeguards.source_consistency import Quarantine
from runtime.deploy import policy_updater
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.deploy.learner_events import LearnerEvents
from runtime.deploy.pointer_follower import NoVersionLeft
from runtime.deploy.policy_updater import PolicyUpdater, unnamed_fields


@dataclass
class FakeEngine:
    """Loads a version, or refuses the ones in `bad`."""

    version: str = "untrained"
    bad: set[str] = field(default_factory=set)
    spec: PolicySpec = SPEC
    loaded: set[str] = field(default_factory=lambda: {"untrained"})

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {"policy": {"w": (2,)}}

    async def load(self, version: str) -> None:
        if version in self.bad:
            raise CheckpointRefused(version, "wrong_hash", "policy.safetensors")
        self.loaded.add(version)

    async def activate(self, version: str) -> None:
        assert version in self.loaded
        self.version = version

    async def release(self, version: str) -> None:
        assert version != self.version
        self.loaded.discard(version)


class Bench:
    """A learner that promotes, and the agent's side that follows."""

    def __init__(self, folder: Path, count: int = 2, bad: tuple[int, ...] = (), passed: int | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.checkpoints = Checkpoints(
            folder / "checkpoints", KEY, passed=lambda: () if passed is None else (self.versions[passed],)
        )
        self.versions = [self.checkpoints.save({"policy": {"w": torch.full((2,), float(n))}}, {}) for n in range(count)]
        self.engine = FakeEngine(bad={self.versions[n] for n in bad})
        self.outbox = Outbox(folder / "outbox")
        self.reported: list[dict[str, Any]] = []
        self.experiments = ExperimentController(
            ExperimentRules(), self.checkpoints, folder, self.emit, lambda: 1.0, Quarantine()
        )
        events = LearnerEvents(self.outbox, self.emit, {"source_quarantined": self.reported.append})
        self.updater = PolicyUpdater(self.checkpoints, self.engine, self.experiments, events, self.emit)  # type: ignore[arg-type]

    def emit(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append((kind, data))

    def propose(self, version: str) -> None:
        """As the learner does it."""
        self.outbox.post("policy_proposed", {"version": version})
        self.checkpoints.propose(version)

    def promote(self, version: str) -> None:
        """As a person does it."""
        self.checkpoints.promote(version)

    def event(self, kind: str) -> dict[str, Any]:
        """The fields of the only event of this type."""
        (found,) = (data for each, data in self.events if each == kind)
        return found

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


async def test_proposed_comes_before_promoted_and_promoted_before_the_swap(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.updater.start()
    assert bench.kinds() == ["policy_untrained"]
    for version in bench.versions:
        bench.events.clear()
        bench.propose(version)
        assert await bench.updater.sync()
        assert bench.kinds() == ["policy_proposed", "policy_promoted", "policy_swapped"]
        assert {data["version"] for _, data in bench.events} == {version}
    assert bench.outbox.collect() == []


def test_pointers_are_announced_before_any_reader_sees_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, second = bench.versions
    seen: list[tuple[Live, str | None]] = []

    def announce(live: Live) -> None:
        seen.append((live, bench.checkpoints.live().version))

    bench.checkpoints.promote(first, announce=announce)
    bench.checkpoints.promote(second, announce=announce)
    bench.checkpoints.rollback(announce=announce)
    assert [(live.version, before) for live, before in seen] == [(first, None), (second, first), (first, second)]
    with pytest.raises(CheckpointRefused, match="not tried again"):
        bench.checkpoints.promote(second, announce=announce)
    assert len(seen) == 3, "what is refused is not announced"


async def test_the_live_version_is_loaded_at_the_start_and_only_new_ones_later(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.promote(bench.versions[0])
    await bench.updater.start()
    assert bench.engine.version == bench.versions[0]
    assert not await bench.updater.sync()
    assert bench.kinds() == [], "without a state file the live version is trusted"
    bench.promote(bench.versions[1])
    assert await bench.updater.sync()
    assert not await bench.updater.sync()
    assert bench.engine.version == bench.versions[1]


async def test_a_version_that_cannot_be_loaded_is_refused_once_and_the_acting_one_stays(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bad=(1,))
    first, second = bench.versions
    bench.promote(first)
    assert await bench.updater.sync()
    bench.events.clear()
    bench.promote(second)
    assert not await bench.updater.sync()
    assert not await bench.updater.sync()
    assert bench.engine.version == first
    assert bench.kinds() == ["checkpoint_refused"]
    assert bench.events[-1][1] == {
        "version": second, "reason": "wrong_hash", "detail": "policy.safetensors", "live": first,
    }  # fmt: skip
    assert bench.experiments.live == first


async def test_a_damaged_pointer_brings_the_version_that_passed_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=3, passed=0)
    for version in bench.versions[:2]:
        bench.promote(version)
    pointer = tmp_path / "checkpoints" / "LIVE"
    pointer.write_bytes(b"{")
    await bench.updater.start()
    assert bench.engine.version == bench.versions[0]
    assert not bench.updater.is_untried
    assert bench.event("live_pointer_damaged")["version"] == bench.versions[0]
    assert bench.checkpoints.live().version == bench.versions[0], "LIVE names it again"


async def test_without_a_version_that_passed_a_damaged_pointer_means_shadow(tmp_path: Path) -> None:
    bench = Bench(tmp_path, passed=None)
    bench.promote(bench.versions[0])
    (tmp_path / "checkpoints" / "LIVE").unlink()
    await bench.updater.start()
    assert bench.engine.version == "untrained"
    assert bench.updater.is_untried
    assert bench.event("live_pointer_damaged")["version"] is None
    assert "policy_untrained" in bench.kinds()
    bench.promote(bench.versions[1])
    assert await bench.updater.sync()
    assert not bench.updater.is_untried


async def test_without_the_signing_key_nothing_untrained_acts(tmp_path: Path) -> None:
    """Another key was made at the start, because the file was lost."""
    bench = Bench(tmp_path)
    for version in bench.versions:
        bench.promote(version)
    bench.updater.checkpoints = bench.experiments.checkpoints = bench.experiments.moves.checkpoints = Checkpoints(
        tmp_path / "checkpoints", Ed25519PrivateKey.generate()
    )
    await bench.updater.start()
    assert bench.engine.version == "untrained"
    assert bench.updater.is_untried
    received = bench.event("policy_unusable")
    assert (received["reason"], received["refused"], received["version"]) == ("wrong_signature", 2, bench.versions[1])
    assert "checkpoint-key.pem" in received["remedy"]
    assert [kind for kind in bench.kinds() if kind != "checkpoint_refused"] == ["policy_unusable", "policy_untrained"]


async def test_a_first_start_may_act_untrained(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=0)
    await bench.updater.start()
    assert not bench.updater.is_untried
    assert bench.kinds() == ["policy_untrained"]


async def test_a_disk_that_refuses_the_repair_does_not_stop_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, passed=0)
    bench.promote(bench.versions[0])
    (tmp_path / "checkpoints" / "LIVE").write_bytes(b"")

    def full(_version: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.checkpoints, "repair_pointer", full)
    await bench.updater.start()
    assert bench.engine.version == bench.versions[0]
    assert "No space left" in bench.event("live_pointer_damaged")["remedy"]


async def test_an_event_with_a_handler_is_handled_and_not_published(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.outbox.post("source_quarantined", {"source": "label:paul"})
    bench.outbox.post("policy_rejected", {"version": "v"})
    await bench.updater.learner_events.forward()
    assert bench.reported == [{"source": "label:paul"}]
    assert bench.events == [("policy_rejected", {"version": "v"})]
    assert bench.outbox.collect() == []


async def test_all_arms_of_an_experiment_are_in_memory_and_the_rest_is_released(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=3)
    first, second, third = bench.versions
    bench.promote(first)
    await bench.updater.start()
    bench.experiments.acting = True
    bench.propose(second)
    await bench.updater.sync()
    await bench.updater.sync()
    assert bench.event("experiment_started")["challenger"] == second
    assert bench.engine.loaded == {first, second}
    assert bench.engine.version == first, "the control loop activates an arm, tick by tick"
    bench.propose(third)
    await bench.updater.sync()
    assert bench.experiments.state.waiting == third
    assert bench.engine.loaded == {first, second}, "a challenger that waits is not loaded"
    bench.checkpoints.rollback(failing=second)
    bench.experiments.unloadable(second, "wrong_hash")
    await bench.updater.sync()
    await bench.updater.sync()
    assert bench.engine.loaded == {first, third}


@pytest.mark.parametrize(
    ("spec", "unnamed"),
    [
        (None, []),
        (
            {
                "streams": [
                    {"name": "arm", "modality": "telemetry", "fields": ["a"]},
                    {"name": "eye", "modality": "image"},
                ]
            },
            [],
        ),
        (
            {
                "streams": [
                    {"name": "arm", "modality": "telemetry", "fields": []},
                    {"name": "b", "modality": "telemetry"},
                ]
            },
            ["arm", "b"],
        ),
    ],
)
def test_streams_without_the_names_of_their_fields_are_found(spec: Any, unnamed: list[str]) -> None:
    assert unnamed_fields(spec) == unnamed


async def test_a_policy_that_names_no_fields_is_reported_at_the_start(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 0)
    document = orjson.loads(SPEC.to_json())
    for stream in document["streams"]:
        stream.pop("fields", None)
    bench.checkpoints.promote(bench.checkpoints.save({"policy": {"w": torch.zeros(2)}}, {"spec": document}))
    with structlog.testing.capture_logs() as logs:
        await bench.updater.start()
    expected = [one["name"] for one in document["streams"] if one["modality"] == "telemetry"]
    assert expected
    assert [each["streams"] for each in logs if each["event"] == "policy.fields_unnamed"] == [expected]


async def test_an_agent_ends_when_the_only_version_that_ever_acted_is_withdrawn_and_begins_untrained(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, count=1)
    bench.checkpoints.promote(bench.versions[0], by="untrusted")
    await bench.updater.start()
    assert bench.engine.version == bench.versions[0]
    bench.outbox.post("policy_rolled_back", {"version": bench.versions[0], "to": None, "by": "fleet", "why": "test"})
    bench.checkpoints.rollback(failing=bench.versions[0], by="fleet", or_none=True)
    with pytest.raises(NoVersionLeft, match=bench.versions[0]):
        await bench.updater.sync()
    assert [kind for kind, _ in bench.events][-1] == "policy_rolled_back"
    again = Bench(tmp_path / "again", count=0)
    again.updater.checkpoints = again.experiments.checkpoints = again.checkpoints = bench.checkpoints
    await again.updater.start()
    assert again.engine.version == "untrained"
    assert not await again.updater.sync()


async def test_a_disk_that_cannot_be_read_for_a_moment_ends_no_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two such ends counted as two crashes of the version that acted, which was taken back then."""
    bench = Bench(tmp_path)
    bench.promote(bench.versions[0])
    await bench.updater.start()
    await bench.updater.sync()
    read, failing = Path.read_bytes, True

    def broken(path: Path) -> bytes:
        if failing and path.name in {"LIVE", "CHALLENGER"}:
            raise OSError(errno.EMFILE, "Too many open files")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    monkeypatch.setattr(policy_updater, "POLL_S", 0.001)
    monkeypatch.setattr(policy_updater, "READ_S", 0.0)
    bench.events.clear()
    running = asyncio.create_task(bench.updater.run())
    await eventually(lambda: bench.kinds() == ["state_read_failed"], "the event")
    failing = False
    bench.promote(bench.versions[1])
    await eventually(lambda: bench.engine.version == bench.versions[1], "the version that was promoted meanwhile")
    running.cancel()
    await asyncio.wait([running])
    assert bench.event("state_read_failed")["what"] == "which version is live"


async def test_a_version_that_the_disk_did_not_return_is_loaded_at_the_next_look(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.promote(bench.versions[0])
    await bench.updater.start()
    load, failing = bench.engine.load, True

    async def broken(version: str) -> None:
        if failing:
            raise OSError(errno.EIO, "Input/output error")
        await load(version)

    bench.engine.load = broken  # type: ignore[method-assign]
    bench.promote(bench.versions[1])
    with pytest.raises(OSError, match="Input/output"):
        await bench.updater.sync()
    failing = False
    assert await bench.updater.sync()
    assert bench.engine.version == bench.versions[1]
