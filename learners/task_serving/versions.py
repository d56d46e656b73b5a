"""Store the versions of a task's model under `state_dir/learner/tasks/NAME`: one folder each, and a file that names the live one.

A version is written under another name and then renamed; `current.json` is also replaced by a rename. Readers in other
processes therefore see the old or the new version, never a part. A version may wait: it is stored, but not live until an
operator promotes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from safetensors import SafetensorError

from learners.files import draft_folder, publish_folder, sync_directory, write_atomically

if TYPE_CHECKING:
    from learners.tasks.base import Task

KEEP = 3
CURRENT = "current.json"
REPORT = "report.json"
LAST_LABEL = "last_label"
"""In a version's report: the number of the last label it was trained with."""
ENCODER_VERSION = "encoder_version"
"""In a version's report: the version of the stream's encoder with these weights, once it was computed."""


@dataclass(frozen=True, slots=True)
class TaskVersion:
    """One version and its folder."""

    name: str
    path: Path

    @property
    def report(self) -> dict[str, Any]:
        """What its report says; empty without one."""
        try:
            return dict(orjson.loads((self.path / REPORT).read_bytes()))
        except (FileNotFoundError, orjson.JSONDecodeError, TypeError, ValueError):
            return {}

    @property
    def last_label(self) -> int:
        """The last label it was trained with; 0 where its report does not say."""
        return int(self.report.get(LAST_LABEL, 0))

    @property
    def encoder_version(self) -> str | None:
        """The version of the stream's encoder with these weights; None where none was recorded yet."""
        found = self.report.get(ENCODER_VERSION)
        return found if isinstance(found, str) else None

    def record_encoder_version(self, encoder_version: str) -> None:
        """Write the encoder's version into the report, so that a later search loads no weights."""
        if self.encoder_version == encoder_version:
            return
        with suppress(OSError):  # the version was removed meanwhile
            write_atomically(self.path / REPORT, orjson.dumps({**self.report, ENCODER_VERSION: encoder_version}))


class TaskVersionStore:
    """Of one task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _current(self) -> dict[str, Any]:
        try:
            return dict(orjson.loads((self.folder / CURRENT).read_bytes()))
        except (FileNotFoundError, orjson.JSONDecodeError, TypeError, ValueError):
            return {}

    def live(self) -> TaskVersion | None:
        """Return the live version; None before the first."""
        body = self._current()
        if "version" not in body or "folder" not in body:
            return None
        version = TaskVersion(str(body["version"]), self.folder / str(body["folder"]))
        return version if (version.path / "config.json").is_file() else None

    def was_live(self) -> list[str]:
        """Return the names of earlier live versions, oldest first."""
        body, live = self._current(), self.live()
        if live is None:
            return []
        # a file that does not say so is from when every version had been live
        earlier = [version.name for version in self.all() if number_of(version) < number_of(live)]
        return [str(name) for name in body.get("was_live", earlier)]

    def add(self, task: Task, number: int, describe: Callable[[Path], None] | None = None) -> TaskVersion:
        """Write a version; its name carries a digest of the weights, so equal names are equal models.

        Args:
            task: with its model.
            number: its place in the sequence.
            describe: writes more into the folder before it gets its name.
        """
        with draft_folder(self.folder, str(number)) as draft:
            _save(task, draft)
            if describe is not None:
                describe(draft)
            with (draft / "model.safetensors").open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            version = TaskVersion(f"{number}-{digest[:12]}", self.folder / f"{number}-{digest[:12]}")
            publish_folder(draft, version.path, replace=True)
        self._tidy()
        return version

    def promote(self, version: TaskVersion) -> None:
        """Make it the live one and remove versions older than the last few."""
        live = self.live()
        earlier = [name for name in self.was_live() if name != version.name]
        if live is not None and live.name != version.name:
            earlier = [*(name for name in earlier if name != live.name), live.name]
        self._point(version, earlier)
        self._tidy()

    def rollback(self) -> TaskVersion | None:
        """Make the version that was live before the live one live again; None where there is none."""
        there = {version.name: version for version in self.all()}
        earlier = [name for name in self.was_live() if name in there]
        if self.live() is None or not earlier:
            return None
        self._point(there[earlier[-1]], earlier[:-1])
        return there[earlier[-1]]

    def withdraw(self) -> None:
        """Make no version live, so that the task returns to its pretrained model; versions stay on disk."""
        (self.folder / CURRENT).unlink(missing_ok=True)
        sync_directory(self.folder)

    def _point(self, version: TaskVersion, earlier: list[str]) -> None:
        body = {"version": version.name, "folder": version.path.name, "was_live": earlier[-KEEP:]}
        write_atomically(self.folder / CURRENT, orjson.dumps(body))

    def _tidy(self) -> None:
        """Delete all but the last few, the live one, the one a rollback would return to, and the encoders of policies.

        While a policy's manifest cannot be read, nothing is deleted.
        """
        live, earlier = self.live(), self.was_live()
        needed = {live.name if live is not None else "", *earlier[-1:]}
        try:
            encoders = (
                encoders_of_policies(self.folder.parents[2] / "checkpoints") if len(self.folder.parents) > 2 else ()
            )
        except OSError:
            return  # the next version tidies
        for old in self.all()[:-KEEP]:
            if old.name not in needed and old.encoder_version not in encoders:
                self.remove(old)

    def all(self) -> list[TaskVersion]:
        """Those on disk, oldest first."""
        paths = [path for path in self.folder.glob("[0-9]*-*") if path.is_dir()]
        return sorted((TaskVersion(path.name, path) for path in paths), key=number_of)

    def by_encoder_version(self, encoder_version: str) -> list[TaskVersion]:
        """List all versions: first those that recorded this encoder version, then the others, newest first.

        One of the others may have it too: it was not recorded before, or under other settings.
        """
        return sorted(self.all(), key=lambda one: (one.encoder_version != encoder_version, -number_of(one)))

    def remove(self, version: TaskVersion) -> None:
        """Delete one."""
        shutil.rmtree(version.path, ignore_errors=True)


def encoders_of_policies(checkpoints: Path) -> frozenset[str]:
    """Return the encoder versions that the policy versions of a folder name: without them these policies cannot act.

    Raises:
        OSError: a manifest cannot be read now, so what it names is unknown.
    """
    found: set[str] = set()
    for path in checkpoints.glob("*/manifest.json"):
        with suppress(FileNotFoundError, orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            found |= {str(version) for version in orjson.loads(path.read_bytes())["encoder_versions"].values()}
    return frozenset(found)


def use_version(versions: dict[str, TaskVersion], task: str, version: TaskVersion | None) -> bool:
    """Note the version of a task that answers, None for the pretrained model; False if it was in use already."""
    if versions.get(task) == version:
        return False
    if version is None:
        del versions[task]
    else:
        versions[task] = version
    return True


def number_of(version: TaskVersion) -> int:
    """Return the number of a version in the sequence."""
    return int(version.name.partition("-")[0])


def _save(task: Task, folder: Path) -> None:
    """Write a model.

    Raises:
        OSError: the disk refused it; safetensors has an error of its own for this.
    """
    try:
        task.save(folder)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
