"""Start and end session recordings that can be replayed, and continue in another file where one cannot go on.

A recording contains the readings that ticks used and, attached, the observation history of the engine at its start. It goes on
in another file, with a snapshot of its own, after a failed write, after a gap, and at its size limit where the settings say so.
It also goes on when the supervisor has restarted the agent, for new settings or after a crash: a note on the disk says that a
recording is under way.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from learners.files import write_atomically
from runtime.config.schema import Config
from runtime.control.tick import ControlLoop
from runtime.monitoring.reporter import Reporter
from runtime.mqtt.rpc import Answer, RequestFailed
from runtime.mqtt.topics import Refused, encode, parse
from runtime.process.machine_boot import BOOT
from runtime.recording.oldest_files import oldest_first
from runtime.recording.recorder import FORMAT, Recorder
from runtime.recording.replay_conditions import conditions

CHECK_S = 0.5
"""Seconds between two looks at the recording."""
RETRY_S = 5.0
"""Seconds between two attempts to continue after a failed write."""
GAP_S = 60.0
"""Least seconds of a file before a gap starts another: a slow disk must not be given many small files."""
EVENT_S = 60.0
"""Seconds between two events about the same refusing disk."""
OPEN_S = 5.0
"""Seconds that a file may take to open."""
NOTE = "under-way.json"
"""Beside the recordings while there is one: its path, and which daemon began it."""
FILES = 8
"""Files that `record.max_gb` holds where the oldest is deleted."""


def daemon_identity() -> list[str]:
    """Return what no other daemon has: the process of the supervisor, when it started, and the boot of the machine.

    The process alone is not enough: in a container it is 1 after each restart.

    Raises:
        OSError: `/proc` cannot be read.
    """
    process = str(os.getppid())
    started = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[19]
    return [process, started, BOOT.read_text().strip()]


@dataclass(slots=True)
class _Total:
    """What the files of one recording hold that were closed."""

    files: int = 0
    written: int = 0
    dropped: int = 0
    path: str = ""
    """The newest file that has records."""

    def add(self, recorder: Recorder) -> None:
        if recorder.written:
            self.files, self.path = self.files + 1, str(recorder.path)
        self.written += recorder.written
        self.dropped += recorder.dropped


@dataclass(slots=True)
class RecordingController:
    """Starts, continues and ends recordings, one at a time."""

    config: Config
    control_loop: ControlLoop
    reporter: Reporter
    clock: Callable[[], float] = time.monotonic
    _total: _Total = field(default_factory=_Total)
    _began_s: float = 0.0
    """When the file was opened, or the last attempt failed."""
    _event_s: float = -EVENT_S
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Continue the recording where needed, until cancelled.

        It is started first where `record.enabled` is true, or where the agent before was recording in the same daemon.
        """
        before, same_daemon = await asyncio.to_thread(self._interrupted)
        wanted = self.config.record.enabled or same_daemon
        if before and not wanted:
            await asyncio.to_thread(self._note, None)
            self.reporter.event("recording_ended", {"path": before, "reason": "the daemon was restarted"})
        while True:
            if wanted and self.reporter.recorder is None:
                wanted = not await self._begun(before)
            await self.check()
            await asyncio.sleep(RETRY_S if wanted else CHECK_S)

    async def begin(self, before: str = "") -> Answer:
        """Begin a new file under `state_dir/recordings`, at the border of two ticks.

        Args:
            before: the file of the agent before this one, which was restarted while it recorded.

        Every tick that finishes from now on is queued. The recorder leaves out those that are in the engine's snapshot, so
        a tick that was decided and not yet reported is never in both.

        Raises:
            RequestFailed: there is a recording already, or its file cannot be written.
        """
        async with self._changing:
            if self.reporter.recorder is not None:
                raise RequestFailed(f"a recording is under way: {self.reporter.recorder.path}")
            self._total = _Total()
            recorder = await self._start(None)
        if before:
            data = {"path": str(recorder.path), "before": before, "reason": "the agent was restarted", "dropped": 0}
            self.reporter.event("recording_continued", data)
        else:
            self.reporter.event("recording_started", {"path": str(recorder.path)})
        return {"path": str(recorder.path)}

    async def end(self) -> Answer:
        """Close the file.

        Raises:
            RequestFailed: there is no recording.
        """
        async with self._changing:
            recorder, self.reporter.recorder = self.reporter.recorder, None
            if recorder is None:
                raise RequestFailed("there is no recording to end")
            await asyncio.to_thread(recorder.close)
            await asyncio.to_thread(self._note, None)
            self.control_loop.degraded.pop("recording", None)
        self._total.add(recorder)
        total = self._total
        facts = {"path": str(recorder.path), "written": total.written, "dropped": total.dropped, "files": total.files}
        if recorder.ended:
            facts["reason"] = recorder.ended
        self.reporter.event("recording_ended", facts)
        return facts

    async def check(self) -> None:
        """Continue in another file if this one ended, has a gap, or is large enough; delete old files if the settings say so."""
        async with self._changing:
            recorder = self.reporter.recorder
            reason = "" if recorder is None else self._reason_to_continue(recorder)
            if recorder is None or not reason:
                return
            if self._deletes_oldest:
                await asyncio.to_thread(self._delete_oldest, recorder)
            self._began_s = self.clock()
            try:
                following = await self._start(recorder)
            except RequestFailed as failed:
                self._event("recording_failed", {"path": str(recorder.path), "reason": str(failed)})
                return
            await asyncio.to_thread(following.opened.wait, OPEN_S)
            following.before = None
            await asyncio.to_thread(recorder.close)
            self._total.add(recorder)
            if not following.ended:
                self.control_loop.degraded.pop("recording", None)
                self._event_s = -EVENT_S
                data = {"path": str(following.path), "before": self._total.path, "reason": reason}
                self.reporter.event("recording_continued", data | {"dropped": self._total.dropped})

    async def _begun(self, before: str) -> bool:
        try:
            await self.begin(before)
        except RequestFailed as failed:
            self.control_loop.degraded["recording"] = str(failed)
            self._event("recording_failed", {"path": str(self._folder), "reason": str(failed)})
            return False
        self.control_loop.degraded.pop("recording", None)
        return True

    async def _start(self, before: Recorder | None) -> Recorder:
        """Start a recorder at a tick border; `before` records too until its file is open."""
        engine = self.control_loop.engine
        metadata = {
            "format": FORMAT,
            "agent": self.config.agent,
            "session": self.control_loop.session,
            "program": installed_version("reflexd"),
            "spec": engine.spec.to_json().decode(),
            "seed": str(engine.seed),
        }
        limit = 2 * self._file_bytes if self._deletes_oldest else self._max_bytes
        recorder = Recorder(await self._free_path(), metadata, limit, self._emit, before)
        self.reporter.recorder = recorder
        try:
            snapshot = await engine.snapshot()
            recorder.metadata["encoders"] = encode(snapshot.encoders).decode()
            recorder.metadata["conditions"] = encode(dict(conditions(self.config, engine))).decode()
            recorder.start(snapshot.files, snapshot.tick)
        except OSError as error:
            raise RequestFailed(f"cannot record to {recorder.path}: {error}") from None
        finally:
            if not recorder.started:
                self.reporter.recorder = before
        await asyncio.to_thread(self._note, recorder.path)
        self._began_s = self.clock()
        return recorder

    def _note(self, path: Path | None) -> None:
        """Note the recording that is under way, or that there is none; a disk that refuses the note ends no recording."""
        note = self._folder / NOTE
        with suppress(OSError):
            if path is None:
                note.unlink(missing_ok=True)
            else:
                write_atomically(note, encode({"path": str(path), "daemon": daemon_identity()}), mode=0o600)

    def _interrupted(self) -> tuple[str, bool]:
        """Return the recording that the agent before did not end, and whether it was an agent of this daemon."""
        try:
            note = parse((self._folder / NOTE).read_bytes())
        except (OSError, Refused):
            return "", False
        if not isinstance(note, dict) or not isinstance(note.get("path"), str):
            return "", False
        try:
            return note["path"], note.get("daemon") == daemon_identity()
        except OSError:
            return note["path"], False

    def _reason_to_continue(self, recorder: Recorder) -> str:
        """Return why another file is due, or nothing."""
        waited_s = self.clock() - self._began_s
        if recorder.kind == "recording_failed":
            return recorder.ended if waited_s >= RETRY_S else ""
        if self._deletes_oldest and (recorder.ended or recorder.size_bytes >= self._file_bytes):
            return f"a file of {self._file_bytes / 1e9:g} GB is complete"
        if recorder.gap and not recorder.ended and waited_s >= GAP_S:
            return "records were missing"
        return ""

    @property
    def _folder(self) -> Path:
        return self.config.state_dir / "recordings"

    @property
    def _max_bytes(self) -> int:
        return self.config.recording_bytes

    @property
    def _deletes_oldest(self) -> bool:
        return self.config.record.when_full == "delete_oldest"

    @property
    def _file_bytes(self) -> int:
        """Size at which the next file begins, where the oldest is deleted."""
        return self._max_bytes // FILES

    def _delete_oldest(self, current: Recorder) -> None:
        """Delete the oldest recordings until there is space for another file within `record.max_gb`; on a full disk one at least."""
        found = oldest_first(self._folder, time.time())
        used, deleted = sum(stat.st_size for _, stat in found), 0
        for path, stat in found:
            if path == current.path:
                continue
            if used <= self._max_bytes - self._file_bytes and (deleted or not current.disk_full):
                break
            with suppress(OSError):
                path.unlink()
                used, deleted = used - stat.st_size, deleted + 1
        if deleted:
            self.reporter.event("recordings_deleted", {"deleted": deleted, "used_bytes": used})

    async def _free_path(self) -> Path:
        """Return a path that does not exist yet: two recordings may begin within one second. Names sort by time."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{self.control_loop.session}"
        paths = (self._folder / f"{name}{end}.mcap" for end in ("", *(f"_{n}" for n in range(2, 1_000))))
        try:
            free = await asyncio.to_thread(lambda: next((path for path in paths if not path.exists()), None))
        except OSError as error:
            raise RequestFailed(f"cannot record to {self._folder}: {error}") from None
        if free is None:
            raise RequestFailed(f"{self._folder}: a thousand recordings began within one second")
        return free

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        """Publish an event of the recorder, from any thread; a recording that ended without a request degrades the agent's status."""
        if kind == "recording_full" and self._deletes_oldest:
            return  # it continues
        if kind == "recording_full":
            self._note(None)  # a restarted agent does not begin it again
        if kind in ("recording_full", "recording_failed"):
            self.control_loop.degraded["recording"] = data["reason"]
        self._event(kind, data)

    def _event(self, kind: str, data: dict[str, Any]) -> None:
        """Publish; a disk that goes on refusing is an event a minute."""
        if kind == "recording_failed":
            if self.clock() - self._event_s < EVENT_S:
                return
            self._event_s = self.clock()
        self.reporter.event(kind, data)
