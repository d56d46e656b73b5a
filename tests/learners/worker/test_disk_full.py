"""A disk that refuses: the learner waits, leaves no draft, and goes on without a restart."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import learning
import pytest
import tinymodels
from disks import SmallDisk, small_disk

from learners.checkpoints import manifest
from learners.continual.acceptance import AcceptanceVerdict
from learners.files import write_synced
from learners.finetune.trainer import TrainingProgress
from learners.ipc.outbox import Outbox
from learners.ipc.progress import ProgressWriter, read_progress
from learners.ipc.settings import LearnerConfig
from learners.task_serving.versions import TaskVersionStore
from learners.tasks.task_classes import open_task
from learners.worker import loop
from learners.worker.finetune_process import ProgressFile, finetune
from learners.worker.finetuning import STORAGE, FinetuneRunner, progress_path
from learners.worker.journal import Journal, JournalEntry
from learners.worker.loop import LearnerLoop, serve


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "size=16m") as one:
        yield one


def inputs(folder: Path) -> LearnerConfig:
    learner = {"enabled": True, "batch": 32, "warmup": 40, "reward_delay_s": 0, "replay_gb": 1e-4, "save_every_s": 1e-6}
    learner |= {"promote_every_s": 3_600, "update_every_s": 0.2}
    return LearnerConfig.model_validate({"state_dir": str(folder), "device": "cpu", "learner": learner})


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("fault", ["full", "inodes", "EROFS", "EDQUOT", "EIO"])
def test_the_learner_waits_for_the_disk_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(loop, "STORAGE_RETRY_S", 0.0)
    options = "size=16m,nr_inodes=200" if fault == "inodes" else "size=16m"
    with small_disk(tmp_path / "disk", options) as disk:
        state = disk.folder / "state"
        learning.fill(state, 0, 300)
        one = LearnerLoop(inputs(state), learning.SPEC, threading.Event(), build=learning.SmallPolicy)
        one.begin()
        one._round()
        one._round()
        assert one.storage is None
        held = [path.name for path in (state / "learner" / "state").iterdir()]
        if fault.startswith("E"):  # a file system with open files cannot be remounted read-only
            code = getattr(errno, fault)

            def refuse(path: Path, content: bytes, **_: Any) -> None:
                path.write_bytes(content[:100])
                raise OSError(code, os.strerror(code), str(path))

            monkeypatch.setattr(manifest, "write_synced", refuse)
        elif fault == "full":
            disk.fill()
        else:
            for n in range(300):
                try:
                    (disk.folder / f"fill-{n}").touch()
                except OSError:
                    break
        one._round()
        one._round()
        assert one.storage is not None
        assert str(state) in one.storage
        assert not drafts(state)
        assert [path.name for path in (state / "learner" / "state").iterdir()] == held
        updates = one.learner.position.update
        monkeypatch.setattr(manifest, "write_synced", write_synced)
        disk.free()
        one._round()
        assert one.storage is None
        learning.fill(state, 300, 500)
        one._round()
        assert one.learner.position.update > updates
        progress = read_progress(state / "learner" / "progress.json")
        one._tell("training", now=True)
        assert progress is not None
        one.reader.close()
        one.reencoder.recoded.close()


def test_a_learner_that_cannot_open_its_files_waits_instead_of_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STORAGE_RETRY_S", 0.0)
    stop, tries = threading.Event(), []

    def refuse(*_: Any) -> LearnerLoop:
        tries.append(1)
        if len(tries) == 3:
            stop.set()
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "learner"))

    monkeypatch.setattr(loop, "LearnerLoop", refuse)
    monkeypatch.setattr(loop, "read_policy_spec", lambda _folder: learning.SPEC)
    serve(inputs(tmp_path), stop)
    assert len(tries) == 3


def test_half_a_line_never_stays_in_the_journal(disk: SmallDisk) -> None:
    journal = Journal(disk.folder / "journal.jsonl")
    for n in range(20):
        journal.note(JournalEntry(n, n))
    before = journal.path.read_bytes()
    disk.fill()
    written = 20
    with suppress(OSError):
        while written < 5_000:
            journal.note(JournalEntry(written, written))
            written += 1
    assert written < 5_000
    assert journal.path.read_bytes().endswith(b"\n")
    assert journal.path.read_bytes().startswith(before)
    disk.free()
    journal.note(JournalEntry(written, 7))
    assert [entry.number for entry in journal.entries()] == list(range(written + 1))


def test_events_and_progress_that_cannot_be_written_are_counted(disk: SmallDisk) -> None:
    outbox, progress = Outbox(disk.folder / "outbox"), ProgressWriter(disk.folder / "progress.json")
    assert outbox.post("a", {})
    disk.fill()
    assert not outbox.post("b", {"long": "x" * 5_000})
    assert not progress.report(1, lambda: {"long": "x" * 5_000}, now=True)
    assert outbox.drops == {"disk": 1}
    assert not drafts(disk.folder)
    disk.free()
    assert outbox.post("c", {})
    assert [event.kind for event in outbox.collect()] == ["a", "c"]


def test_an_event_that_cannot_be_deleted_is_passed_on_once(disk: SmallDisk) -> None:
    outbox = Outbox(disk.folder / "outbox")
    outbox.post("a", {})
    disk.remount("ro")
    for event in outbox.collect():
        event.acknowledge()
    assert not outbox.collect()
    disk.remount("rw")
    assert not outbox.collect()


def test_a_fine_tune_that_the_disk_refuses_leaves_no_draft_and_is_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model, its report and its progress: at each of them the live version stays, and the process ends without a signal."""
    task = open_task("text-classification", str(tinymodels.bert(tmp_path / "model")), labels=("x", "y"))
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        state = disk.folder / "state"
        versions = TaskVersionStore(state / "learner" / "tasks" / "intents")
        live = versions.add(task, 1)
        versions.promote(live)
        outbox = Outbox(state / "learner" / "outbox")
        progress = ProgressFile("intents", progress_path(state), clock=iter(range(0, 100, 2)).__next__)
        progress(TrainingProgress(0, 1, 1, 10, 0.5, None))
        assert progress.unwritten == 0
        disk.fill()

        def run(**_: Any) -> AcceptanceVerdict:
            progress(TrainingProgress(0, 1, 2, 10, 0.4, None))
            versions.promote(versions.add(task, 2))
            raise AssertionError("nothing can be written")

        assert finetune("intents", run, state, threading.Event()) == STORAGE
        assert progress.unwritten == 1
        assert "No space left on device" in capfd.readouterr().err
        assert not drafts(versions.folder)
        assert versions.live() == live
        disk.free()
        runner = FinetuneRunner(inputs(state), {}, outbox)
        runner.task = "intents"
        runner._finish(STORAGE)
        (event,) = outbox.collect()
        assert (event.kind, event.fields["task"]) == ("finetune_skipped", "intents")
        assert "disk" in event.fields["reason"]
        versions.promote(versions.add(task, 2))
        found = versions.live()
        assert found is not None
        assert found.name.startswith("2-")
