"""State holds pictures, sound and keys: every folder that a process makes for it is for its owner alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from learning import KEY, SPEC

from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.checkpoints.trusted_keys import TrustedKeys
from learners.config.learner import ExperienceSettings
from learners.experience.store import Store
from learners.files import exclusive_lock, private_folder
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import write_policy_spec
from learners.ipc.progress import ProgressWriter
from learners.ipc.settings import write_learner_config
from runtime.gate import latches
from runtime.gate.stop.latch import StopLatch
from runtime.process.state_file import StateFile
from runtime.recording.recorder import Recorder

ROOT = Path(__file__).resolve().parents[1]
FOR_USERS = {
    "learners/export/lerobot_writer.py", "learners/finetune/evaluate.py", "learners/finetune/run.py", "learners/gym/results_file.py", "learners/gym/seeds.py",
    "learners/gym/train.py", "runtime/recording/export.py",
    "runtime/cli/on_ray/finetuning.py", "runtime/cli/on_ray/seeds.py", "runtime/cli/reference.py", "runtime/cli/service.py",
    "learners/model/backends/calibration_cache.py", "learners/model/encoders/bundled_weights.py",
}  # fmt: skip
"""They write what a person requested, to the place that the person named, or public models into the cache."""


def locked(folder: Path) -> None:
    with exclusive_lock(folder):
        pass


def experience(folder: Path) -> None:
    store = Store(folder / "experience", ExperienceSettings(), on_event=lambda _kind, _data: None)
    store.close()


def recording(folder: Path) -> None:
    recorder = Recorder(folder / "recordings" / "one.mcap", {}, 1_000_000)
    recorder.start({})
    recorder.close()


def state_file(folder: Path) -> None:
    StateFile(folder / "quarantine.json", dict, lambda _body: None, 1.0, lambda _kind, _data: None).write()


WRITERS: list[Callable[[Path], object]] = [
    locked,
    experience,
    recording,
    state_file,
    load_key,
    lambda folder: Checkpoints(folder / "checkpoints", KEY),
    lambda folder: TrustedKeys(folder).remember(KEY.public_key()),
    lambda folder: latches.save(folder / "latches.json", {}),
    lambda folder: StopLatch.of(folder).write("stop"),
    lambda folder: Outbox(folder / "learner" / "outbox"),
    lambda folder: write_policy_spec(folder, SPEC),
    lambda folder: ProgressWriter(folder / "learner" / "progress.json"),
]


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_of_the_state_is_for_its_owner_alone(
    tmp_path: Path, write: Callable[[Path], object], open_umask: None
) -> None:
    state = tmp_path / "made" / "on" / "demand"
    write(state)
    folders = [tmp_path / "made", *(path for path in (tmp_path / "made").rglob("*") if path.is_dir())]
    assert state in folders
    assert {path: oct(path.stat().st_mode & 0o777) for path in folders} == dict.fromkeys(folders, "0o700")


def test_files_of_the_state_are_for_their_owner_alone(tmp_path: Path, open_umask: None) -> None:
    latches.save(tmp_path / "latches.json", {})
    StopLatch.of(tmp_path).write("stop")
    write_learner_config({"state_dir": str(tmp_path)})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}


def test_an_existing_folder_stays_as_its_owner_made_it(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o750)
    private_folder(tmp_path / "shared" / "state")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "shared" / "state").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        private_folder(tmp_path / "file")


def test_no_writer_makes_its_folders_in_another_way() -> None:
    open_ones = re.compile(r"\.mkdir\((?!.*mode=0o700)|os\.makedirs\(")
    found = {
        str(path.relative_to(ROOT))
        for package in ("runtime", "learners", "sensors", "actuators")
        for path in (ROOT / package).rglob("*.py")
        if open_ones.search(path.read_text())
    }
    assert found - {"learners/files.py"} <= FOR_USERS
