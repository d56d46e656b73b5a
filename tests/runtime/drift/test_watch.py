"""The watch over streams: real readings, one second after the other; what a person hears of a drift, and what it does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drifting import Senses

from learners.checkpoints.manifest import CheckpointRefused
from runtime.config.schema import DriftSettings
from runtime.drift.descriptors import describe
from runtime.drift.watch import FILE, DriftWatch
from sensors.readings import Frame

LEARNED_S = 900
FOUND_S = 60


class Checkpoints:
    """Goes back to version `first` once."""

    def __init__(self) -> None:
        self.requested: list[tuple[str | None, str]] = []

    def rollback(self, *, failing: str | None = None, by: str = "request") -> SimpleNamespace:
        self.requested.append((failing, by))
        if len(self.requested) > 1:
            raise CheckpointRefused("none", "missing", "there is nothing to go back to")
        return SimpleNamespace(version="first")


class World:
    """A watch, its senses and its clock."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.returned = asyncio.Event()
        self.senses, self.second, self.live, self.checkpoints = Senses(), 0, "second", Checkpoints()
        self.folder, self.settings = folder, DriftSettings(**settings)
        self.watch = self.started()

    def emit(self, kind: str, data: dict[str, Any]) -> None:
        self.events.append((kind, data))
        if kind == "policy_rolled_back":
            self.returned.set()

    def started(self) -> DriftWatch:
        return DriftWatch(
            self.settings,
            ("front", "room", "meter", "orders"),
            lambda: self.live,
            self.folder,
            self.emit,
            lambda: 1_000_000.0 + self.second,
            self.checkpoints,  # type: ignore[arg-type]
        )

    def run(self, seconds: int, *, until: str | None = None) -> int:
        """Let time pass; returns the seconds until an event of that kind."""
        start = self.second
        while self.second < start + seconds and until not in [kind for kind, _ in self.events]:
            self.second += 1
            readings = self.senses.at(self.second)
            decided = SimpleNamespace(
                tokens=self.senses.tokens(readings),
                encoder_versions={"front": "e1", "room": "e2"},
                policy=self.live,
                value=float(self.senses.rng.normal()),
                choices={"head": {"left": 0.7, "right": 0.3}},
            )
            observation = SimpleNamespace(stamp_s=float(self.second), readings=readings)
            self.watch.ticked(SimpleNamespace(observation=observation, decided=decided))  # type: ignore[arg-type]
        return self.second - start

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        taken, self.events[:] = list(self.events), []
        return taken


@pytest.mark.parametrize(
    ("change", "value", "stream", "words"),
    [
        ("light", 0.7, "front", "darker"),
        ("light", 1.15, "front", "brighter"),
        ("turned", 9, "front", None),
        ("gain", 0.25, "room", "quieter"),
        ("gain", 2.0, "room", "louder"),
        ("offset", 1.0, "meter", "temperature higher"),
    ],
)
def test_a_changed_sense_is_found_within_a_minute_and_named_in_words(
    tmp_path: Path, change: str, value: float, stream: str, words: str | None
) -> None:
    world = World(tmp_path)
    world.run(LEARNED_S)
    assert world.take() == []
    setattr(world.senses, change, value)
    assert world.run(FOUND_S, until="drift_noticed") < FOUND_S
    ((kind, data),) = world.take()
    assert (kind, data["stream"], data["react"]) == ("drift_noticed", stream, "event")
    if words is not None:
        assert words in data["words"].split(", ")
    assert world.watch.figures()[stream]["words"] == data["words"]
    setattr(world.senses, change, {"turned": 0, "offset": 0.0}.get(change, 1.0))
    world.run(300, until="drift_ended")
    assert world.take()[-1][0] == "drift_ended"
    assert world.watch.figures() == {}


def test_a_person_or_time_accepts_what_is_usual_now(tmp_path: Path) -> None:
    world = World(tmp_path, accept_after_s=120)
    world.run(LEARNED_S)
    assert not world.watch.accept("meter")
    world.senses.offset = 5.0
    world.run(FOUND_S, until="drift_noticed")
    assert world.watch.accept("meter")
    assert world.take()[-1] == ("drift_accepted", {"stream": "meter", "by": "person"})
    world.run(LEARNED_S)
    assert world.take() == [], "five degrees more are usual"
    world.senses.offset = 0.0
    world.run(FOUND_S, until="drift_noticed")
    world.run(200, until="drift_accepted")
    assert world.take()[-1] == ("drift_accepted", {"stream": "meter", "by": "time"})


def test_with_ask_only_a_person_accepts(tmp_path: Path) -> None:
    world = World(tmp_path, react="ask", accept_after_s=60)
    world.run(LEARNED_S)
    world.senses.offset = 5.0
    world.run(400)
    assert [kind for kind, _ in world.take()] == ["drift_noticed"]


def test_with_shadow_nothing_acts_while_it_lasts(tmp_path: Path) -> None:
    world = World(tmp_path, react="shadow")
    careful = []
    for light, until in ((1.0, None), (0.5, "drift_noticed"), (1.0, "drift_ended")):
        world.senses.light = light
        world.run(LEARNED_S, until=until)
        careful.append(world.watch.is_careful)
    assert careful == [False, True, False]


async def test_with_version_before_the_live_version_is_taken_back_once(tmp_path: Path) -> None:
    world = World(tmp_path, react="version_before")
    running = asyncio.create_task(world.watch.run())
    world.run(LEARNED_S)
    world.senses.light, world.senses.offset = 0.5, 9.0
    world.run(FOUND_S)
    assert {data["stream"] for kind, data in world.events if kind == "drift_noticed"} == {"meter", "front"}
    async with asyncio.timeout(60):
        await world.returned.wait()
    assert world.checkpoints.requested == [("second", "drift")]
    back = next(data for kind, data in world.events if kind == "policy_rolled_back")
    assert (back["version"], back["to"], back["by"]) == ("second", "first", "drift")
    running.cancel()
    await asyncio.wait([running])


def test_another_live_version_starts_new_references(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(LEARNED_S)
    world.live, world.senses.light, world.senses.gain = "third", 0.5, 0.2
    world.run(LEARNED_S)
    assert world.take() == []


def test_references_survive_a_restart_and_a_broken_file_is_named(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(LEARNED_S)
    world.watch.file.write()
    world.watch = world.started()
    world.senses.offset = 2.0
    assert world.run(FOUND_S, until="drift_noticed") < FOUND_S
    world.live = "third"
    world.watch = world.started()
    world.take()
    world.run(FOUND_S)
    assert world.take() == [], "the file is of another version"
    (tmp_path / FILE).write_bytes(b'{"version": 1}')
    world.started()
    assert [kind for kind, _ in world.take()] == ["drift_state_unreadable"]
    for reference in (b"{}", b'{"encoder": "", "reference": {"names": ["temperature"], "scales": []}}', b"3"):
        (tmp_path / FILE).write_bytes(b'{"version": "third", "sources": {"meter": ' + reference + b"}}")
        world.watch = world.started()
        world.run(2)
        assert [kind for kind, _ in world.take()] == ["drift_state_unreadable"]


def test_a_reading_that_is_not_finite_is_counted_and_left_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.senses.offset = 1e200
    world.run(5)
    assert world.watch.skipped >= 4
    assert "meter" not in world.watch.figures()
    one = np.zeros((1, 8, 3), np.uint8)
    assert np.isfinite(describe(Frame("f", 0.0, 0, one), None).values_D).all()


def test_switched_off_it_watches_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, enabled=False)
    world.run(50)
    assert world.watch.figures() == {}
    assert world.watch._sources == {}
