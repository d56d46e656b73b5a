"""Run the models of tasks and of speech to text in their own process: `python -m runtime.models CONFIG`. The supervisor starts it.

It connects to the agent's socket, again whenever the agent is gone, and answers one reading of tasks after the other; another thread transcribes sound. It has no connection
to the broker and writes no state.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
import torch

from learners.config.tasks import TaskSettings
from learners.experience.reader import Reader
from learners.goal_models.answers import GoalAnswer, YesNoAnswer
from learners.goal_models.config import DeliberatorSettings, TaskBackend
from learners.goal_models.remembered_orders import MOST
from learners.goal_models.runner import DeliberationRunner, Labelled
from learners.speech.runner import SpeechRunner
from learners.speech.transcripts import SpeechCallbacks, TranscribedUtterance
from learners.task_serving.results import Callbacks, Question, Result, Speech
from learners.task_serving.runner import TaskRunner
from learners.task_serving.versions import TaskVersion
from runtime.config.loader import load
from runtime.config.schema import Config
from runtime.models.goal_client import question_of, yes_no_question_of
from runtime.models.messages import BadMessage, Header, offered_of, packed, peer, receive, socket_path, sound_of
from runtime.process import child
from runtime.process.log import configure
from sensors.config import TextSettings, transcribed

_LOG = structlog.get_logger(__name__)
BEAT_S, RETRY_S = 1.0, 0.2
HUNG_S, MOST_WORK_S = 60.0, 600.0
"""The process ends itself after `HUNG_S` without a beat. It no longer beats for itself where one reading or utterance takes
longer than `MOST_WORK_S`; a piece of a generated answer begins that time again."""


class ModelsServer:
    """Runs the tasks, transcribes sound, and answers one agent.

    Args:
        tasks: by name.
        streams: the settings of the text streams that have a microphone as their source, by name.
        threads: of torch in the thread that transcribes; None leaves torch's number.
        deliberator: its settings; None without one.
        labelled: returns orders with the goals that people set for them.
        live_on: postpones the end that the process set itself; called at every beat while the models make progress.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSettings],
        live_on: Callable[[], None] = lambda: None,
        *,
        streams: Mapping[str, TextSettings] | None = None,
        threads: int | None = None,
        deliberator: DeliberatorSettings | None = None,
        labelled: Labelled = tuple,
    ) -> None:
        callbacks = Callbacks(
            self._result, self._question, self._speech, self._failed, self._refused, finished=self._finished
        )
        self.runner, self._live_on = TaskRunner(tasks, callbacks), live_on
        speech = SpeechCallbacks(self._send_transcript, self._speech_refused, self._speech_failed)
        self.speech = SpeechRunner(streams or {}, speech, threads=threads)
        self.deliberation = (
            None
            if deliberator is None
            else DeliberationRunner(deliberator, self._goal, self._question_failed, self._yes_no, labelled)
        )
        self._writer: asyncio.StreamWriter | None = None
        self._reported: Counter[str] = Counter()
        self._reported_speech: Counter[str] = Counter()

    async def serve(self, path: Path) -> None:
        """Connect, answer and connect again, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.runner.run())
            if self.speech.streams:
                group.create_task(self.speech.run())
            if self.deliberation is not None:
                group.create_task(self.deliberation.run())
            group.create_task(self._beat())
            while True:
                with suppress(OSError, asyncio.IncompleteReadError):
                    await self._answer(path)
                await asyncio.sleep(RETRY_S)

    async def _answer(self, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        if peer(writer.get_extra_info("socket"))[1] != os.geteuid():
            _LOG.warning("models.foreign_socket", path=str(path))
            writer.close()
            return
        self._writer = writer
        for stream, reason in list(self.speech.failures.items()):  # another agent does not know them
            self._speech_failed(stream, reason)
        try:
            while True:
                header, body = await receive(reader)
                self._take(header, body)
        except BadMessage as error:
            _LOG.warning("models.bad_message", reason=str(error))
        finally:
            self._writer = None
            self.runner.clear()  # the agent counts them as lost
            writer.close()

    def _take(self, header: Header, body: bytes) -> None:
        """Execute one request of the agent.

        Raises:
            BadMessage: it is not a request of ours.
        """
        task, do = header.get("task"), header.get("do")
        if do == "hear":
            self.speech.take(sound_of(header, body))
            return
        if do == "goal" and self.deliberation is not None:
            self.deliberation.ask(question_of(header))
            return
        if do == "yes_no" and self.deliberation is not None:
            self.deliberation.ask(yes_no_question_of(header))
            return
        if not isinstance(task, str) or task not in self.runner.tasks:
            raise BadMessage(f"no task {str(task)[:64]!r}")
        if do == "offer":
            self.runner.submit(task, offered_of(header, body))
        elif do == "version":
            version: Any = header.get("version")
            try:
                live = None if version is None else TaskVersion(str(version["name"]), Path(version["path"]))
            except (LookupError, TypeError) as error:
                raise BadMessage(f"a damaged version ({type(error).__name__})") from None
            self.runner.set_version(task, live)
        else:
            raise BadMessage(f"a request of the kind {str(do)[:64]!r}")

    async def _beat(self) -> None:
        while True:
            self._send({"is": "beat"})
            self._send_speech_counts()
            goal_s = 0.0 if self.deliberation is None else self.deliberation.busy_s()
            if max(self.runner.busy_s(), self.speech.busy_s(), goal_s) < MOST_WORK_S:
                self._live_on()
            await asyncio.sleep(BEAT_S)

    def _send(self, header: Header) -> None:
        """Send an answer; one that no agent waits for is dropped."""
        if self._writer is None:
            return
        try:
            self._writer.write(packed(header))
        except (BadMessage, TypeError) as error:  # a model's output that is too long or no JSON
            _LOG.warning("models.answer_dropped", reason=str(error))

    @property
    def _number(self) -> int:
        """The number of the offer that the runner works on; its callbacks come before the next one."""
        return 0 if self.runner.current is None else self.runner.current.number

    def _finished(self, task: str) -> None:
        counts = {cause: count - self._reported[cause] for cause, count in self.runner.counts.items()}
        self._reported = self.runner.counts.copy()
        self._send({
            "is": "done", "task": task, "number": self._number,
            "counts": {cause: count for cause, count in counts.items() if count},
        })  # fmt: skip

    def _result(self, result: Result) -> None:
        self._send({
            "is": "result", "task": result.task, "stream": result.stream, "stamp_s": result.stamp_s,
            "version": result.version, "took_s": result.took_s, "decision": result.decision,
            "prediction": asdict(result.prediction),
        })  # fmt: skip

    def _question(self, question: Question) -> None:
        self._send({
            "is": "question", "task": question.task, "number": self._number, "id": question.id,
            "confidence": question.confidence, "candidates": dict(question.candidates),
        })  # fmt: skip

    def _speech(self, speech: Speech) -> None:
        self._send({
            "is": "speech", "task": speech.task, "number": self._number, "piece": speech.piece, "final": speech.final,
        })  # fmt: skip

    def _failed(self, task: str, reason: str) -> None:
        self._send({"is": "failed", "task": task, "reason": reason})

    def _refused(self, task: str, reason: str, count: int) -> None:
        self._send({"is": "refused", "task": task, "reason": reason, "count": count})

    def _send_transcript(self, utterance: TranscribedUtterance) -> None:
        self._send({"is": "transcript"} | asdict(utterance))

    def _speech_refused(self, stream: str, reason: str) -> None:
        self._send({"is": "speech_refused", "stream": stream, "reason": reason})

    def _speech_failed(self, stream: str, reason: str) -> None:
        self._send({"is": "speech_failed", "stream": stream, "reason": reason})

    def _goal(self, answer: GoalAnswer) -> None:
        self._send({"is": "goal"} | asdict(answer))

    def _yes_no(self, answer: YesNoAnswer) -> None:
        self._send({"is": "yes_no"} | asdict(answer))

    def _question_failed(self, number: int, reason: str) -> None:
        self._send({"is": "failed_question", "number": number, "reason": reason})

    def _send_speech_counts(self) -> None:
        """Send what was counted since the last time; without an agent it waits for one."""
        counts = self.speech.counts.copy()
        new = {cause: count - self._reported_speech[cause] for cause, count in counts.items()}
        new = {cause: count for cause, count in new.items() if count}
        if new and self._writer is not None:
            self._send({"is": "speech_counts", "counts": new})
            self._reported_speech = counts


def _live_on() -> None:
    """End the process after `HUNG_S`, with the stacks of its threads in the log, unless this is called again."""
    faulthandler.dump_traceback_later(HUNG_S, exit=True)


def _labelled(config: Config) -> Labelled:
    """Return what reads the orders with the goals that people set for them: the labels of the deliberator's task."""
    task = None if config.deliberator is None else config.deliberator.correction_task
    if task is None:
        return tuple
    reader = Reader(config.state_dir / "experience")
    return lambda: [
        (one.text, one.label) for one in reader.labels(task, newest=MOST) if one.text and isinstance(one.label, str)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run until the supervisor ends the process; return its exit code."""
    parser = argparse.ArgumentParser(prog="runtime.models")
    parser.add_argument("config", type=Path)
    given = parser.parse_args(arguments)
    child.set_process_title("models")
    _live_on()
    loaded = load(given.config)
    configure(verbose=False, secrets=loaded.secrets)
    config, threads = loaded.config, loaded.config.engine.threads
    torch.set_num_threads(threads)
    deliberator = config.deliberator
    if deliberator is not None and isinstance(deliberator.backend, TaskBackend):
        deliberator = None  # the agent reads the goal from the results of the task
    server = ModelsServer(
        config.tasks,
        _live_on,
        streams=transcribed(config.streams),
        threads=threads,
        deliberator=deliberator,
        labelled=_labelled(config),
    )
    asyncio.run(server.serve(socket_path(config.state_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
