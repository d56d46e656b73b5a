"""Start and end session recordings that can be replayed.

A recording contains the readings that ticks used and, attached, the observation history of the engine at its start.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from importlib.metadata import version as installed_version

from runtime.config.schema import Config
from runtime.control.tick import ControlLoop
from runtime.monitoring.reporter import Reporter
from runtime.mqtt.rpc import Answer, RequestFailed
from runtime.mqtt.topics import encode
from runtime.recording.recorder import FORMAT, Recorder


@dataclass(slots=True)
class RecordingController:
    """Starts and ends recordings, one at a time."""

    config: Config
    control_loop: ControlLoop
    reporter: Reporter

    async def __call__(self, on: bool) -> Answer:  # noqa: FBT001 - the request's own field
        """Start or end a recording.

        Raises:
            RequestFailed: there is one already, or none.
        """
        return await (self.begin() if on else self.end())

    async def begin(self) -> Answer:
        """Start a new file under `state_dir/recordings`."""
        if self.reporter.recorder is not None:
            raise RequestFailed(f"a recording is under way: {self.reporter.recorder.path}")
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{self.control_loop.session}.mcap"
        recorder = Recorder(
            path=self.config.state_dir / "recordings" / name,
            metadata={
                "format": FORMAT,
                "agent": self.config.agent,
                "session": self.control_loop.session,
                "program": installed_version("reflexd"),
                "spec": self.control_loop.engine.spec.to_json().decode(),
                "seed": str(self.control_loop.engine.seed),
                "encoders": encode(
                    {name: encoder.version for name, encoder in self.control_loop.engine.encoders.items()}
                ).decode(),
            },
            attachments=(await self.control_loop.engine.snapshot()).files,
            max_bytes=int(self.config.record.max_gb * 1e9),
        )
        try:
            recorder.start()
        except OSError as error:
            raise RequestFailed(f"cannot record to {recorder.path}: {error}") from None
        self.reporter.recorder = recorder
        self.reporter.event("recording_started", {"path": str(recorder.path)})
        return {"path": str(recorder.path)}

    async def end(self) -> Answer:
        """Close the file."""
        recorder, self.reporter.recorder = self.reporter.recorder, None
        if recorder is None:
            raise RequestFailed("there is no recording to end")
        await asyncio.to_thread(recorder.close)
        facts = {"path": str(recorder.path), "written": recorder.written, "dropped": recorder.dropped}
        self.reporter.event("recording_ended", facts)
        return facts
