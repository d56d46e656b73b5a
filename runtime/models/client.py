"""Let another process run the models of tasks: the agent's end of the socket. It imports no torch.

The agent listens; the process connects, again after each restart of either. At most one reading of each task is on its way, and
the newest reading waits: a slow, hung or dead process costs memory of two readings a task, and no tick waits for it. A process that
is silent makes the daemon `degraded: models`. After `HUNG_S` it is killed, and the supervisor starts another one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import structlog

from learners.config import TaskSettings
from learners.continual.results import Callbacks, Offered, Question, Result, Speech
from learners.continual.versions import TaskVersion
from learners.files import private_folder
from learners.task_kinds import PredictionOfExample
from runtime.models.messages import BadMessage, Header, offered_message, packed, peer, receive
from sensors.readings import Frame, Reading, Sound, Text

_LOG = structlog.get_logger(__name__)
START_S = 60.0
"""From the agent's start to the first connection, before the daemon is degraded: the process may have to import torch."""
SILENT_S, HUNG_S = 15.0, 60.0
"""Without a message: until the daemon is degraded, and until the process is killed. It sends one every second."""
CHECK_S = 0.5
MOST_TEXT = 500
CAUSES = frozenset({"done", "waiting", "unusable", "failed", "unasked", "dropped"})


class Runner(Protocol):
    """What runs tasks: `ModelsClient`, or `TaskRunner` in this process."""

    tasks: dict[str, TaskSettings]

    def set_version(self, task: str, version: TaskVersion | None) -> bool:
        """Use this version from the next reading on; False if it was in use already."""

    def offer(self, readings: Mapping[str, Reading], fresh: frozenset[str], decision: str | None) -> None:
        """Store the fresh readings that tasks read."""

    async def run(self) -> None:
        """Work until cancelled."""


class ModelsClient:
    """Sends readings to the models process and passes on what it answers.

    Args:
        tasks: by name; those without a stream get no readings.
        callbacks: receive results, questions, speech and failures.
        path: of the socket.
        degraded: the agent's reasons for a degraded status; the key `models` belongs to this component.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSettings],
        callbacks: Callbacks,
        path: Path,
        degraded: MutableMapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tasks, self.callbacks, self.degraded = dict(tasks), callbacks, degraded
        self.counts: Counter[str] = Counter()
        """As those of `TaskRunner`; `lost` are readings on their way to a process that ended."""
        self._path, self._clock = path, clock
        self._versions: dict[str, TaskVersion] = {}
        self._waiting: dict[str, Offered] = {}
        self._away: dict[str, Offered] = {}
        """By task, the reading that the process works on."""
        self._writer: asyncio.StreamWriter | None = None
        self._process: int | None = None
        """A pidfd of the connected process."""
        self._heard_s = clock() + START_S - SILENT_S

    @property
    def connected(self) -> bool:
        """Whether a process is connected."""
        return self._writer is not None

    def set_version(self, task: str, version: TaskVersion | None) -> bool:
        """Use this version from the next reading on, None for the pretrained model; False if it was in use already."""
        if self._versions.get(task) == version:
            return False
        if version is None:
            del self._versions[task]
        else:
            self._versions[task] = version
        self._send_version(task)
        return True

    def offer(self, readings: Mapping[str, Reading], fresh: frozenset[str], decision: str | None) -> None:
        """Store the fresh readings that tasks read; called on the loop at every tick."""
        for name, settings in self.tasks.items():
            reading = readings.get(settings.stream or "")
            if settings.stream in fresh and isinstance(reading, Frame | Sound | Text):
                context = readings.get(settings.context or "")
                self.counts["dropped"] += name in self._waiting
                self._waiting[name] = Offered(reading, context if isinstance(context, Text) else None, decision)
                self._send(name)

    async def run(self) -> None:
        """Listen, and watch the process, until cancelled; try again where the socket cannot be made."""
        server: asyncio.Server | None = None
        try:
            while True:
                if server is None:
                    server = await self._listen()
                self._watch()
                await asyncio.sleep(CHECK_S)
        finally:
            if server is not None:
                server.close()
            self._drop()
            with suppress(OSError):
                self._path.unlink()

    async def _listen(self) -> asyncio.Server | None:
        try:
            private_folder(self._path.parent)
            self._path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            before = os.umask(0o177)
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            return await asyncio.start_unix_server(self._connected, sock=listener)
        except OSError as error:
            self.degraded["models"] = f"the socket {self._path} cannot be made: {error.strerror}"
            return None

    def _watch(self) -> None:
        """Say that the process is silent, and kill one that hangs."""
        if all(settings.stream is None for settings in self.tasks.values()):
            return  # the supervisor starts none
        silent_s = self._clock() - self._heard_s
        if self._writer is not None and silent_s > HUNG_S and self._process is not None:
            _LOG.error("models.hangs", silent_s=round(silent_s))
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            self._drop()
        if silent_s >= SILENT_S:
            state = "is not connected" if self._writer is None else f"is silent for more than {SILENT_S:.0f} s"
            self.degraded["models"] = f"the models process {state}; tasks have no results"
        else:
            self.degraded.pop("models", None)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; a second one replaces the first."""
        pid, user = peer(writer.get_extra_info("socket"))
        if user != os.geteuid():
            _LOG.warning("models.foreign_connection", user=user)
            writer.close()
            return
        self._drop()
        self._writer, self._heard_s = writer, self._clock()
        with suppress(OSError):
            self._process = os.pidfd_open(pid)
        for task in self.tasks:
            self._send_version(task)
            self._send(task)
        try:
            while self._writer is writer:
                header, _ = await receive(reader)
                self._heard_s = self._clock()
                self._take(header)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (BadMessage, LookupError, TypeError, ValueError, AttributeError) as error:
            self.counts["garbage"] += 1
            _LOG.warning("models.bad_message", reason=f"{type(error).__name__}: {error}"[:MOST_TEXT])
        finally:
            writer.close()
            if self._writer is writer:
                self._drop()
                self._heard_s = min(self._heard_s, self._clock() - SILENT_S)  # degraded at once

    def _drop(self) -> None:
        """Forget the connection; readings on their way are lost."""
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            os.close(self._process)
        self._writer, self._process = None, None
        self.counts["lost"] += len(self._away)
        self._away.clear()

    def _send_version(self, task: str) -> None:
        if self._writer is not None:
            live = self._versions.get(task)
            body = None if live is None else {"name": live.name, "path": str(live.path)}
            self._writer.write(packed({"do": "version", "task": task, "version": body}))

    def _send(self, task: str) -> None:
        """Send the reading that waits, if none of this task is on its way."""
        if self._writer is None or task in self._away or task not in self._waiting:
            return
        offered = self._away[task] = self._waiting.pop(task)
        try:
            self._writer.write(offered_message(task, offered))
        except BadMessage as error:
            del self._away[task]
            self.counts["unusable"] += 1
            self.callbacks.refused(task, str(error), 1)

    def _take(self, header: Header) -> None:
        """Pass on one answer.

        Raises:
            LookupError, TypeError, ValueError: it is not one of ours.
        """
        kind = header["is"]
        if kind == "beat":
            return
        task = str(header["task"])
        if task not in self.tasks:
            raise BadMessage(f"no task {task[:64]!r}")
        if kind == "done":
            for cause, count in dict(header["counts"]).items():
                self.counts[str(cause) if cause in CAUSES else "garbage"] += int(count)
            self._away.pop(task, None)
            self._send(task)
        elif kind == "result":
            self.callbacks.result(_result(task, header))
        elif kind == "question" and task in self._away:
            candidates = {str(label): float(chance) for label, chance in dict(header["candidates"]).items()}
            asked = Question(str(header["id"]), task, self._away[task].reading, float(header["confidence"]), candidates)
            self.callbacks.question(asked)
        elif kind == "speech":
            self.callbacks.speech(Speech(task, str(header["piece"]), final=bool(header["final"])))
        elif kind == "failed":
            self.callbacks.failed(task, str(header["reason"])[:MOST_TEXT])
        elif kind == "refused":
            self.callbacks.refused(task, str(header["reason"])[:MOST_TEXT], int(header["count"]))
        else:
            raise BadMessage(f"an answer of the kind {str(kind)[:64]!r}")


def _result(task: str, header: Header) -> Result:
    told: dict[str, Any] = dict(header["prediction"])
    confidence = None if told["confidence"] is None else float(told["confidence"])
    chances = {str(label): float(chance) for label, chance in dict(told["probabilities"]).items()}
    prediction = PredictionOfExample(told["value"], confidence, chances, dict(told["details"]))
    decision = None if header["decision"] is None else str(header["decision"])
    return Result(
        task, str(header["stream"]), float(header["stamp_s"]), str(header["version"]), prediction,
        float(header["took_s"]), decision,
    )  # fmt: skip
