"""Let another process run the models of tasks, of speech to text and of the deliberator: the agent's end of the socket. It imports no torch.

The agent listens; the process connects, again after each restart of either. At most one reading of each task is on its way, and
the newest reading waits. A slow, hung or dead process costs memory of two readings a task, and no tick waits for it. A process that
is silent makes the daemon `degraded: models`. After `HUNG_S` it is killed, and the supervisor starts another one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from learners.config.tasks import TaskSettings
from learners.files import private_folder
from learners.task_kinds import KINDS, PredictionOfExample
from learners.task_serving.results import Callbacks, Offered, Question, Result, Speech
from learners.task_serving.versions import TaskVersion, use_version
from runtime.models.goal_client import GoalClient
from runtime.models.messages import BadMessage, Header, offered_message, packed, peer, receive
from runtime.models.speech_client import SpeechClient
from sensors.readings import Frame, Reading, Sound, Text

_LOG = structlog.get_logger(__name__)
START_S = 60.0
"""From the agent's start to the first connection, before the daemon is degraded: the process may have to import torch."""
SILENT_S, HUNG_S = 15.0, 60.0
"""Without a message: until the daemon is degraded, and until the process is killed. It sends one every second."""
CHECK_S = 0.5
STUCK_S = 60.0
"""Without an answer to a reading on its way, until the daemon is degraded; a piece of speech is an answer."""
WARN_EVERY_S = 10.0
"""Between two log lines about answers that cannot be read."""
MOST_TEXT = 500
CAUSES = frozenset({"done", "waiting", "unusable", "failed", "unloadable", "unasked", "dropped"})


class Runner(Protocol):
    """What runs tasks: `ModelsClient`, or `TaskRunner` in this process."""

    tasks: dict[str, TaskSettings]
    counts: Counter[str]

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
        speech: sends the sound of microphones over the same socket; None where no stream is transcribed.
        goals: sends the deliberator's questions over the same socket; None without a deliberator.
        max_age_s: by stream, the age at which a reading that waited for a connection is dropped.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSettings],
        callbacks: Callbacks,
        path: Path,
        degraded: MutableMapping[str, str],
        *,
        speech: SpeechClient | None = None,
        goals: GoalClient | None = None,
        max_age_s: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tasks, self.callbacks, self.degraded = dict(tasks), callbacks, degraded
        self.speech, self.goals = speech, goals
        self._others = [part for part in (speech, goals) if part is not None]
        """What uses the same connection."""
        self.counts: Counter[str] = Counter()
        """As those of `TaskRunner`. `lost` counts readings on their way to a process that ended, and `expired` those that waited too
        long for one. `stale` counts answers to readings of a former connection, `garbage` answers that cannot be read."""
        self._path, self._max_age_s, self._clock = path, dict(max_age_s or {}), clock
        self._numbers = itertools.count(time.monotonic_ns())
        """Of offers; a process that answers an agent before this one has other numbers."""
        self._versions: dict[str, TaskVersion] = {}
        self._waiting: dict[str, Offered] = {}
        self._away: dict[str, Offered] = {}
        """By task, the reading that the process works on."""
        self._writer: asyncio.StreamWriter | None = None
        self._process: int | None = None
        """A pidfd of the connected process."""
        self._last_message_s = clock() + START_S - SILENT_S
        self._answered_s = clock()
        """When a reading was sent while none was on its way, or an answer arrived."""
        self._warned_s = float("-inf")

    @property
    def connected(self) -> bool:
        """Whether a process is connected."""
        return self._writer is not None

    def set_version(self, task: str, version: TaskVersion | None) -> bool:
        """Use this version from the next reading on, None for the pretrained model; False if it was in use already."""
        if not use_version(self._versions, task, version):
            return False
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
            try:
                listener.bind(str(self._path))
                self._path.chmod(0o600)  # before it listens; a umask would change files that other threads make
                return await asyncio.start_unix_server(self._connected, sock=listener)
            except OSError:
                listener.close()
                raise
        except OSError as error:
            self.degraded["models"] = f"the socket {self._path} cannot be created: {error.strerror}"
            return None

    def _watch(self) -> None:
        """Say that the process is silent, and kill one that hangs."""
        if not self._others and all(settings.stream is None for settings in self.tasks.values()):
            return  # the supervisor starts none
        silent_s = self._clock() - self._last_message_s
        if self._writer is not None and silent_s > HUNG_S and self._process is not None:
            _LOG.error("models.hangs", silent_s=round(silent_s))
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            self._drop()
        if silent_s >= SILENT_S:
            state = "is not connected" if self._writer is None else f"is silent for more than {SILENT_S:.0f} s"
            missing = [*(["tasks"] if self.tasks else []), *(part.title for part in self._others)]
            self.degraded["models"] = f"the models process {state}; {' and '.join(missing)} have no results"
        elif self._away and self._clock() - self._answered_s >= STUCK_S:
            names = ", ".join(sorted(self._away))
            self.degraded["models"] = f"the models process has not answered for more than {STUCK_S:.0f} s ({names})"
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
        self._writer, self._last_message_s = writer, self._clock()
        with suppress(OSError):
            self._process = os.pidfd_open(pid)
        for part in self._others:
            part.connect(writer)
        self._expire()
        for task in self.tasks:
            self._send_version(task)
            self._send(task)
        try:
            while self._writer is writer:
                header, _ = await receive(reader)
                self._last_message_s = self._clock()
                try:
                    self._take(header)
                except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                    self._count_garbage(error)  # one odd answer costs itself, no other task
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except BadMessage as error:
            self._count_garbage(error)
        finally:
            writer.close()
            if self._writer is writer:
                self._drop()
                self._last_message_s = min(self._last_message_s, self._clock() - SILENT_S)  # degraded at once

    def _count_garbage(self, error: Exception) -> None:
        self.counts["garbage"] += 1
        if self._clock() - self._warned_s >= WARN_EVERY_S:
            self._warned_s = self._clock()
            _LOG.warning("models.bad_message", reason=f"{type(error).__name__}: {error}"[:MOST_TEXT])

    def _expire(self) -> None:
        """Drop the readings that waited for a connection longer than their stream permits."""
        now_s = self._clock()
        for task, offered in list(self._waiting.items()):
            if now_s - offered.reading.stamp_s > self._max_age_s.get(offered.reading.stream, float("inf")):
                del self._waiting[task]
                self.counts["expired"] += 1

    def _drop(self) -> None:
        """Forget the connection; readings on their way are lost, and so are halves of answers."""
        if self._writer is not None:
            self._writer.close()
        for part in self._others:
            part.disconnect()
        if self._process is not None:
            os.close(self._process)
        self._writer, self._process = None, None
        self.counts["lost"] += len(self._away)
        lost = list(self._away)
        self._away.clear()
        for task in lost:
            if KINDS[self.tasks[task].kind].output == "turn":
                self.callbacks.speech(Speech(task, "", final=True, lost=True))

    def _send_version(self, task: str) -> None:
        if self._writer is not None:
            live = self._versions.get(task)
            body = None if live is None else {"name": live.name, "path": str(live.path)}
            self._writer.write(packed({"do": "version", "task": task, "version": body}))

    def _send(self, task: str) -> None:
        """Send the reading that waits, if none of this task is on its way."""
        if self._writer is None or task in self._away or task not in self._waiting:
            return
        if not self._away:
            self._answered_s = self._clock()
        offered = self._away[task] = replace(self._waiting.pop(task), number=next(self._numbers))
        try:
            self._writer.write(offered_message(task, offered))
        except (BadMessage, TypeError, ValueError, OverflowError) as error:  # a plug-in's reading with odd fields
            del self._away[task]
            self.counts["unusable"] += 1
            self.callbacks.refused(task, str(error), 1)

    def _take(self, header: Header) -> None:
        """Pass on one answer.

        Raises:
            LookupError, TypeError, ValueError, AttributeError, OverflowError: it is not one of ours.
        """
        kind = header["is"]
        if kind == "beat":
            return
        if (part := next((one for one in self._others if kind in one.answers), None)) is not None:
            part.receive(header)
            return
        self._answered_s = self._clock()
        task = str(header["task"])
        if task not in self.tasks:
            raise BadMessage(f"no task {task[:64]!r}")
        if kind in {"done", "question", "speech"}:
            offered = self._away.get(task)
            if offered is None or header["number"] != offered.number:
                self.counts["stale"] += 1
            else:
                self._take_of(task, offered, kind, header)
        elif kind == "result":
            self.callbacks.result(_result(task, header))
        elif kind == "failed":
            self.callbacks.failed(task, str(header["reason"])[:MOST_TEXT])
        elif kind == "refused":
            self.callbacks.refused(task, str(header["reason"])[:MOST_TEXT], int(header["count"]))
        else:
            raise BadMessage(f"an answer of the kind {str(kind)[:64]!r}")

    def _take_of(self, task: str, offered: Offered, kind: str, header: Header) -> None:
        """Pass on one answer to the reading that is on its way.

        Raises:
            LookupError, TypeError, ValueError, OverflowError: it is not one of ours.
        """
        if kind == "done":
            del self._away[task]
            self._send(task)
            for cause, count in dict(header["counts"]).items():
                self.counts[str(cause) if cause in CAUSES else "garbage"] += int(count)
        elif kind == "question":
            candidates = {str(label): float(chance) for label, chance in dict(header["candidates"]).items()}
            question = Question(str(header["id"]), task, offered.reading, float(header["confidence"]), candidates)
            self.callbacks.question(question)
        else:
            self.callbacks.speech(Speech(task, str(header["piece"]), final=bool(header["final"])))


def _result(task: str, header: Header) -> Result:
    fields: dict[str, Any] = dict(header["prediction"])
    confidence = None if fields["confidence"] is None else float(fields["confidence"])
    chances = {str(label): float(chance) for label, chance in dict(fields["probabilities"]).items()}
    prediction = PredictionOfExample(fields["value"], confidence, chances, dict(fields["details"]))
    decision = None if header["decision"] is None else str(header["decision"])
    return Result(
        task, str(header["stream"]), float(header["stamp_s"]), str(header["version"]), prediction,
        float(header["took_s"]), decision,
    )  # fmt: skip
