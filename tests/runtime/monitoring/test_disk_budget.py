"""The disk budget: a long run of promotions stays below it, and what is needed for a rollback stays."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from learning import made

from learners.checkpoints.experiment_records import EXPERIMENTS_FILE
from learners.checkpoints.store import Checkpoints, open_checkpoints
from learners.config.learner import ExperienceSettings, PromotionSettings
from learners.experience.store import Store
from runtime.monitoring.disk_budget import StorageMonitor, measure, probe

MB = 1_000_000


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Setup:
    """A state folder with a monitor; `events` holds what it published."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.clock = folder, Clock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.checkpoints = open_checkpoints(folder, PromotionSettings.model_validate({}))
        self.store = Store(folder / "experience", ExperienceSettings.model_validate({}))
        self.degraded: dict[str, str] = {}
        self.recording: Path | None = None
        self.monitor = StorageMonitor(
            folder,
            max_bytes,
            4_000 * MB,
            self.checkpoints,
            self.store,
            lambda kind, data: self.events.append((kind, data)),
            self.degraded,
            recording=lambda: self.recording,
            clock=self.clock,
        )

    def check(self) -> None:
        self.monitor.publish(self.monitor.check())


@pytest.fixture
def make(tmp_path: Path) -> Any:
    made_here: list[Setup] = []

    def build(max_bytes: int) -> Setup:
        made_here.append(Setup(tmp_path / "state", max_bytes))
        return made_here[-1]

    yield build
    for setup in made_here:
        setup.store.close()


def save(checkpoints: Checkpoints, seed: int, kilobytes: int = 100) -> str:
    torch.manual_seed(seed)
    return checkpoints.save({"policy": {"w": torch.randn(kilobytes * 256)}}, {"spec": {"n": seed}})


def test_a_long_run_of_promotions_stays_below_the_budget(make: Any) -> None:
    setup = make(4 * MB)
    good = save(setup.checkpoints, -1)
    setup.checkpoints.promote(good)
    (setup.folder / EXPERIMENTS_FILE).write_bytes(orjson.dumps({"trust": {"anchor": good}}))
    before = None
    for n in range(150):
        live = setup.checkpoints.live().version
        version = save(setup.checkpoints, n)
        if n % 3:  # some are rejected
            before = live
            setup.checkpoints.promote(version)
        if n % 10 == 0:
            setup.check()
            assert setup.monitor.used < 4 * MB, setup.monitor.parts
    assert setup.monitor.problem is None
    setup.checkpoints.load(good)
    live = setup.checkpoints.live().version
    assert live is not None
    setup.checkpoints.load(live)
    assert setup.checkpoints.rollback().version == before


def test_old_versions_of_a_large_folder_go_and_those_that_are_needed_stay(make: Any) -> None:
    setup = make(1 * MB)
    names = []
    for n in range(5):
        names.append(save(setup.checkpoints, n, kilobytes=300))
        setup.checkpoints.promote(names[-1])
    setup.check()
    assert [path.name for path in sorted((setup.folder / "checkpoints").glob("0*"))] == names[-2:]
    assert setup.checkpoints.live().promoted == tuple(names[-2:])
    assert [kind for kind, _ in setup.events] == ["storage_trimmed"]
    assert setup.events[0][1]["deleted"] == {"checkpoints": 3}


def test_recordings_go_oldest_first_and_never_the_running_one(make: Any) -> None:
    setup = make(2 * MB)
    folder = setup.folder / "recordings"
    folder.mkdir()
    files = [folder / f"{n}.mcap" for n in range(4)]
    for n, file in enumerate(files):
        file.write_bytes(bytes(600_000))
        os.utime(file, (n, n))
    setup.recording = files[0]
    setup.check()
    assert files[0].exists()
    assert not files[1].exists()
    assert files[3].exists()
    assert setup.monitor.used <= 2 * MB


def test_what_a_crashed_writer_left_goes_first(make: Any) -> None:
    setup = make(1 * MB)
    left, fresh = setup.folder / "learner" / ".state.abc", setup.folder / "learner" / ".state.new"
    left.parent.mkdir()
    for path in (left, fresh):
        path.write_bytes(bytes(600_000))
    os.utime(left, (0, 0))
    setup.check()
    assert not left.exists()
    assert fresh.exists()


def test_what_a_process_still_writes_stays_however_long_it_takes(make: Any) -> None:
    """A backup to a slow disk, and a long draft: their writers hold the locks."""
    setup = make(1 * MB)
    (setup.folder / "big").write_bytes(bytes(2 * MB))
    links, draft = setup.folder / ".backup", setup.folder / ".draft-export.1"
    links.mkdir()
    draft.write_bytes(b"x")
    handles = [os.open(path, os.O_RDONLY) for path in (links, draft)]
    for path, handle in zip((links, draft), handles, strict=True):
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.utime(path, (0, 0))
    setup.check()
    assert links.exists()
    assert draft.exists()
    for handle in handles:
        os.close(handle)
    setup.check()
    assert not links.exists()
    assert not draft.exists()


def test_the_oldest_experience_gives_way(make: Any) -> None:
    setup = make(2 * MB)
    (setup.folder / "recordings").mkdir()
    (setup.folder / "recordings" / "a.mcap").write_bytes(bytes(1_000_000))
    for n in range(3_000):
        setup.store.append(made(n))
        if n % 500 == 499:
            assert setup.store.flush()
    setup.check()
    assert setup.store._writer.max_bytes < 2 * MB
    assert setup.store._writer.max_bytes >= 0.25 * 2 * MB


def test_a_folder_that_cannot_shrink_is_reported_once_an_hour(make: Any) -> None:
    setup = make(1 * MB)
    (setup.folder / "keep.bin").write_bytes(bytes(2 * MB))
    setup.check()
    setup.check()
    assert [kind for kind, _ in setup.events] == ["storage_over_budget"]
    assert setup.events[0][1]["largest"] == "other"
    setup.clock.now_s = 3_601
    setup.check()
    assert len(setup.events) == 2


def test_the_forecast_follows_the_growth(make: Any) -> None:
    setup = make(100 * MB)
    setup.check()
    assert setup.monitor.figures()["days_until_full"] is None
    (setup.folder / "grown.bin").write_bytes(bytes(10 * MB))
    setup.clock.now_s = 86_400
    setup.check()
    figures = setup.monitor.figures()
    assert 8.5 < figures["days_until_full"] < 9.1
    written_meanwhile = sum(measure(setup.folder).values()) - figures["used_bytes"]  # the store is open
    assert 0 <= written_meanwhile < 256 * 1024


def test_a_folder_that_cannot_be_written_degrades_the_status_until_it_can(make: Any) -> None:
    setup = make(100 * MB)
    learner = setup.folder / "learner"
    (learner / "outbox").mkdir(parents=True)
    (learner / "progress.json").write_bytes(orjson.dumps({"storage": f"{learner}/state: No space left on device"}))
    setup.check()
    setup.check()
    assert setup.degraded == {"storage": f"{learner}/state: No space left on device"}
    assert [kind for kind, _ in setup.events] == ["storage_degraded"]
    (learner / "progress.json").write_bytes(orjson.dumps({"storage": None}))
    setup.check()
    assert setup.degraded == {}
    assert [kind for kind, _ in setup.events] == ["storage_degraded", "storage_recovered"]


def test_the_probe_names_the_folder_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    real = Path.write_bytes

    def refuse(path: Path, data: bytes) -> int:
        if path.parent.name == "checkpoints":
            real(path, data[:10])
            raise OSError(28, "No space left on device", str(path))
        return real(path, data)

    assert probe(tmp_path) is None
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert probe(tmp_path) == f"{tmp_path}/checkpoints: No space left on device"
    monkeypatch.undo()
    assert probe(tmp_path) is None
    assert not list(tmp_path.rglob(".probe-*"))
