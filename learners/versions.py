"""The versions of a task's model under `state_dir/learner/tasks/NAME`: whole folders, and a file that names the live one.

A version is written beside its place and renamed; `current.json` is replaced by a rename: readers in other processes see
the old or the new version, never a part.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import orjson

from learners.files import write_atomically
from learners.tasks.base import Task

KEEP = 3
CURRENT = "current.json"


@dataclass(frozen=True, slots=True)
class Version:
    """One version and its folder."""

    name: str
    path: Path


class Versions:
    """Of one task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def live(self) -> Version | None:
        """The version in use; None before the first."""
        try:
            body = orjson.loads((self.folder / CURRENT).read_bytes())
            version = Version(str(body["version"]), self.folder / str(body["folder"]))
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
            return None
        return version if (version.path / "config.json").is_file() else None

    def add(self, task: Task, number: int) -> Version:
        """Write a version; its name carries a digest of the weights, so equal names are equal models."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".draft-{number}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        task.save(draft)
        with (draft / "model.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        version = Version(f"{number}-{digest[:12]}", self.folder / f"{number}-{digest[:12]}")
        shutil.rmtree(version.path, ignore_errors=True)
        draft.rename(version.path)
        return version

    def promote(self, version: Version) -> None:
        """Make it the live one and remove versions older than the last few."""
        write_atomically(self.folder / CURRENT, orjson.dumps({"version": version.name, "folder": version.path.name}))
        for old in self.all()[:-KEEP]:
            if old.path != version.path:
                self.remove(old)

    def rollback(self) -> Version | None:
        """Make the version before the live one live; None where there is none."""
        live, versions = self.live(), self.all()
        earlier = [v for v in versions if live is not None and number_of(v) < number_of(live)]
        if not earlier:
            return None
        self.promote(earlier[-1])
        return earlier[-1]

    def all(self) -> list[Version]:
        """Those on disk, oldest first."""
        paths = [path for path in self.folder.glob("[0-9]*-*") if path.is_dir()]
        return sorted((Version(path.name, path) for path in paths), key=number_of)

    def remove(self, version: Version) -> None:
        """Delete one."""
        shutil.rmtree(version.path, ignore_errors=True)


def number_of(version: Version) -> int:
    """Its place in the sequence."""
    return int(version.name.partition("-")[0])
