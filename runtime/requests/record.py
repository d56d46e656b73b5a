"""Start and end session recordings that can be replayed.

A recording contains the readings that ticks used and, attached, the observation history of the engine at its start.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from runtime.config.schema import Config
from runtime.control.tick import ControlLoop
from runtime.monitoring.reporter import Reporter
from runtime.mqtt.rpc import Answer, RequestFailed
from runtime.mqtt.topics import encode
from runtime.recording.conditions import conditions
from runtime.recording.recorder import FORMAT, Recorder


@dataclass(slots=True)
class RecordingController:
    """Starts and ends recordings, one at a time."""

    config: Config
    control_loop: ControlLoop
    reporter: Reporter

    async def begin(self) -> Answer:
        """Begin a new file under `state_dir/recordings`, at the border of two ticks.

        Every tick that finishes from now on is queued. The recorder leaves out those that are in the engine's snapshot, so
        a tick that was decided and not yet reported is never in both.

        Raises:
            RequestFailed: there is a recording already, or its file cannot be written.
        """
        if self.reporter.recorder is not None:
            raise RequestFailed(f"a recording is under way: {self.reporter.recorder.path}")
        engine = self.control_loop.engine
        metadata = {
            "format": FORMAT,
            "agent": self.config.agent,
            "session": self.control_loop.session,
            "program": installed_version("reflexd"),
            "spec": engine.spec.to_json().decode(),
            "seed": str(engine.seed),
        }
        max_bytes = int(self.config.record.max_gb * 1e9)
        recorder = Recorder(await asyncio.to_thread(self._free_path), metadata, max_bytes, self._emit)
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
                self.reporter.recorder = None
        self.reporter.event("recording_started", {"path": str(recorder.path)})
        return {"path": str(recorder.path)}

    async def end(self) -> Answer:
        """Close the file.

        Raises:
            RequestFailed: there is no recording.
        """
        recorder, self.reporter.recorder = self.reporter.recorder, None
        if recorder is None:
            raise RequestFailed("there is no recording to end")
        await asyncio.to_thread(recorder.close)
        self.control_loop.degraded.pop("recording", None)
        facts = {"path": str(recorder.path), "written": recorder.written, "dropped": recorder.dropped}
        if recorder.ended:
            facts["reason"] = recorder.ended
        self.reporter.event("recording_ended", facts)
        return facts

    def _free_path(self) -> Path:
        """Return a path that does not exist yet: two recordings may begin within one second."""
        folder = self.config.state_dir / "recordings"
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{self.control_loop.session}"
        paths = (folder / f"{name}{end}.mcap" for end in ("", *(f"-{n}" for n in range(2, 1_000))))
        free = next((path for path in paths if not path.exists()), None)
        if free is None:
            raise RequestFailed(f"{folder}: a thousand recordings began within one second")
        return free

    def _emit(self, kind: str, data: dict[str, Any]) -> None:
        """Publish an event of the recorder, from any thread; a recording that ended without a request degrades the agent's status."""
        if kind in ("recording_full", "recording_failed"):
            self.control_loop.degraded["recording"] = data["reason"]
        self.reporter.event(kind, data)
