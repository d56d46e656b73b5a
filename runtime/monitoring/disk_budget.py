"""Enforce `storage.max_gb` over the whole state folder, and report its use, the forecast and what cannot be written.

Files are deleted in this order (docs/operating.md):

1. leftovers of crashed writers, and corrupt databases that were moved aside;
2. versions that never acted;
3. the oldest experience, down to a quarter of the budget;
4. finished recordings;
5. versions that acted.

Never deleted are the live version, the one before it, those of the live experiment, keys, latches, labels of tasks and the learner's saved
state.

A probe file in each folder that a process writes detects a full or read-only disk, and its recovery, without a restart.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learners.checkpoints.store import Checkpoints
from learners.experience.store import Store
from learners.files import is_in_use
from learners.ipc.progress import read_progress
from runtime.process.emit import Emit
from runtime.recording.oldest_files import oldest_first

EVERY_S = 10.0
AIM = 0.9
"""Share of the budget at which the deletion ends; the rest is for what is written until the next check."""
EXPERIENCE_SHARE = 0.25
"""Share of the budget that experience has in any case."""
LEFTOVER_S = 3_600.0
"""A draft of this age belongs to a writer that crashed."""
PROBE_BYTES = 65_536
WINDOW = 360
"""Measurements for the forecast, the newest."""
FORECAST_AFTER_S = 600.0
"""What the start writes says nothing about the hours that follow."""
REPEAT_S = 3_600.0
"""Seconds between two events about one state that lasts."""
PARTS: Mapping[str, str] = {
    "checkpoints": "checkpoints",
    "experience": "experience",
    "recordings": "recordings",
    "learner": "learner",
    "openvino": "graphs",
    "onnxruntime": "graphs",
    "prepared": "graphs",
    "engine.json": "graphs",
    "log": "logs",
    "logs": "logs",
}
"""Entry of the state folder -> the part under which its bytes are reported; everything else is `other`."""
WRITTEN = ("", "checkpoints", "experience", "learner", "learner/outbox")
"""Folders in which the daemon must be able to write while it runs."""


@dataclass(slots=True)
class StorageMonitor:
    """Measures the state folder, deletes what the budget does not allow, and probes whether it can be written.

    Args:
        state_dir: the folder.
        max_bytes: its budget.
        experience_bytes: the limit of experience in the settings; the budget may lower it.
        checkpoints: the policy versions.
        store: of experience.
        emit: publishes an event, from any thread.
        degraded: the agent's reasons for a degraded status; the key `storage` belongs to this component.
        recording: returns the file that is being recorded, or None.
        clock: monotonic seconds.
        wall: Unix seconds.
    """

    state_dir: Path
    max_bytes: int
    experience_bytes: int
    checkpoints: Checkpoints
    store: Store
    emit: Emit
    degraded: dict[str, str]
    recording: Callable[[], Path | None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes on disk by part at the last check."""
    problem: str | None = None
    """`PATH: REASON` of what cannot be written; None while everything can."""
    _history: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _over_event_s: float = float("-inf")

    async def run(self) -> None:
        """Check every `EVERY_S` until cancelled, the first time at once."""
        while True:
            self.publish(await asyncio.to_thread(self.check))
            await asyncio.sleep(EVERY_S)

    def check(self) -> str | None:
        """Measure, delete what is too much, and probe; return what cannot be written. Call it off the event loop."""
        self.parts = measure(self.state_dir)
        try:
            self._shrink()
        except OSError as error:
            return text_of(error, self.state_dir)
        finally:
            self._history.append((self.clock(), self.used))
        return self._learner_problem() or probe(self.state_dir)

    def publish(self, problem: str | None) -> None:
        """Set the status, and publish an event when the state changed. Call it in the event loop."""
        if problem is not None:
            self.degraded["storage"] = problem
            if self.problem is None:
                self.emit("storage_degraded", {"reason": problem})
        elif self.problem is not None:
            self.degraded.pop("storage", None)
            self.emit("storage_recovered", {"reason": self.problem})
        self.problem = problem

    @property
    def used(self) -> int:
        """Bytes on disk at the last check."""
        return sum(self.parts.values())

    def figures(self) -> dict[str, Any]:
        """Return use, budget, free space and forecast for `health`."""
        free = self._free()
        return {
            "used_bytes": self.used,
            "max_bytes": self.max_bytes,
            "free_bytes": free,
            "parts": dict(self.parts),
            "days_until_full": self._days_until_full(free),
            "problem": self.problem,
        }

    def _free(self) -> int | None:
        try:
            return shutil.disk_usage(self.state_dir).free
        except OSError:
            return None

    def _days_until_full(self, free: int | None) -> float | None:
        """Return when the budget or the disk is full at the growth so far; None while nothing grows."""
        if len(self._history) < 2:
            return None
        (first_s, first), (last_s, last) = self._history[0], self._history[-1]
        if last <= first or last_s - first_s < FORECAST_AFTER_S:
            return None
        room = self.max_bytes - last if free is None else min(self.max_bytes - last, free)
        return round(max(0.0, room / (last - first) * (last_s - first_s) / 86_400), 2)

    def _learner_problem(self) -> str | None:
        """Return what the learner could not write, which its own process reports."""
        progress = read_progress(self.state_dir / "learner" / "progress.json") or {}
        reason = progress.get("storage")
        return reason if isinstance(reason, str) else None

    # --- the budget

    def _shrink(self) -> None:
        """Delete in the order of the module's docstring until the folder fits."""
        aim = int(AIM * self.max_bytes)
        gone: dict[str, int] = {}
        if self.used > aim:
            gone |= self._delete_leftovers()
            self._delete_versions(self._excess(aim), gone, acted=False)
        others = self.used - self.parts.get("experience", 0)
        least = int(EXPERIENCE_SHARE * self.max_bytes)
        self.store.limit(min(self.experience_bytes, max(least, aim - others)))
        if self._excess(aim) > 0:
            gone |= self._delete_recordings(self._excess(aim))
            self._delete_versions(self._excess(aim), gone, acted=True)
        if gone:
            self.emit("storage_trimmed", {"deleted": gone, "used_bytes": self.used, "max_bytes": self.max_bytes})
        if self.used > self.max_bytes and self.clock() - self._over_event_s >= REPEAT_S:
            self._over_event_s = self.clock()
            largest = max(self.parts, key=self.parts.__getitem__)
            fields = {"used_bytes": self.used, "max_bytes": self.max_bytes, "largest": largest}
            self.emit("storage_over_budget", fields)

    def _excess(self, aim: int) -> int:
        """Return the bytes above the aim if experience had its smallest share."""
        held = self.parts.get("experience", 0)
        return self.used - held + min(held, int(EXPERIENCE_SHARE * self.max_bytes)) - aim

    def _delete_leftovers(self) -> dict[str, int]:
        """Delete drafts of crashed writers, and databases that were set aside as broken."""
        before_s, count = self.wall() - LEFTOVER_S, 0
        for path in (*self.state_dir.rglob(".*"), *(self.state_dir / "experience").glob("*.broken-*")):
            with suppress(OSError):
                if (
                    path.name != ".lock"
                    and path.lstat().st_mtime < before_s
                    and (path.is_symlink() or not is_in_use(path))
                ):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                    count += 1
        if count:
            self.parts = measure(self.state_dir)
        return {"leftovers": count} if count else {}

    def _delete_versions(self, excess: int, gone: dict[str, int], *, acted: bool) -> None:
        if excess <= 0:
            return
        names = self.checkpoints.shrink(excess, acted=acted)
        if names:
            gone["checkpoints"] = gone.get("checkpoints", 0) + len(names)
            self.parts = measure(self.state_dir)

    def _delete_recordings(self, excess: int) -> dict[str, int]:
        """Delete finished recordings, the oldest first."""
        count = 0
        for path, _ in oldest_first(self.state_dir / "recordings", self.wall(), self.recording()):
            if excess <= 0:
                break
            excess -= _size(path, set())
            path.unlink(missing_ok=True)
            count += 1
        if count:
            self.parts = measure(self.state_dir)
        return {"recordings": count} if count else {}


def measure(state_dir: Path) -> dict[str, int]:
    """Return the bytes on disk of each part of the state folder; a file that vanishes meanwhile counts nothing."""
    sizes: dict[str, int] = {}
    linked: set[tuple[int, int]] = set()
    for entry in sorted(
        _entries(state_dir), key=lambda entry: entry.name.startswith(".")
    ):  # the links of a backup last
        part = PARTS.get(entry.name, "other")
        sizes[part] = sizes.get(part, 0) + _size(Path(entry.path), linked)
    return sizes


def _size(path: Path, linked: set[tuple[int, int]]) -> int:
    """Return the allocated bytes of a file, or of everything in a folder; symbolic links are not followed.

    A file with several names counts once: `linked` has the device and inode of those that were counted.
    """
    try:
        status = path.lstat()
    except OSError:
        return 0
    if stat.S_ISDIR(status.st_mode):
        return status.st_blocks * 512 + sum(_size(Path(entry.path), linked) for entry in _entries(path))
    if status.st_nlink > 1:
        if (status.st_dev, status.st_ino) in linked:
            return 0
        linked.add((status.st_dev, status.st_ino))
    return status.st_blocks * 512


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def probe(state_dir: Path) -> str | None:
    """Write and delete a file of `PROBE_BYTES` in each folder of `WRITTEN` that exists; return `PATH: REASON` of a failure."""
    for name in WRITTEN:
        folder = state_dir / name
        if not folder.is_dir():
            continue
        path = folder / f".probe-{secrets.token_hex(6)}"
        try:
            path.write_bytes(bytes(PROBE_BYTES))
        except OSError as error:
            return text_of(error, folder)
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return None


def text_of(error: OSError, folder: Path) -> str:
    """Return `PATH: REASON` for a person."""
    return f"{error.filename if error.filename and '.probe-' not in str(error.filename) else folder}: {error.strerror or error}"
