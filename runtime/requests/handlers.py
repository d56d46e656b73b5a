"""Handle the agent's part of `request/<verb>`: `rpc.AGENT_VERBS`.

A request is untrusted. The agent answers it once, with the data or with the reason why not; the work runs off the loop. Any
error of a handler is an answer. Rollbacks, explanations and all other requests wait in lanes of their own, and askers take
turns. Retained requests are ignored: they are an earlier request. (The gate answers arm, disarm, mode and reload.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from pydantic import Field

from learners.checkpoints.manifest import CheckpointRefused, Manifest
from learners.checkpoints.store import Checkpoints, Live
from runtime.deploy.promotion_history import PromotionHistory
from runtime.deploy.task_updater import TaskUpdater
from runtime.deploy.task_versions import TaskRefused, TaskVersions
from runtime.drift.watch import DriftWatch
from runtime.feedback.source_quarantine import SourceQuarantine
from runtime.mqtt import Connection, Message, rpc
from runtime.mqtt.rpc import Answer, RequestFailed
from runtime.mqtt.topics import Payload, Refused, Topics, decode
from runtime.process.emit import Emit
from runtime.requests.explain import Explainer
from runtime.requests.finetune import FinetuneQueue
from runtime.requests.labelling import (
    CorrectLabelsRequest,
    Gallery,
    LabelReadingsRequest,
    LabelsRequest,
    ReadingsRequest,
)
from runtime.requests.record import RecordingController
from runtime.requests.request_queue import Handler, RequestQueue

T = TypeVar("T")

MAX_WAITING = 16
"""Requests that may wait in each lane."""
NEWEST = 4
"""Explanations that may wait for one asker, as the page that several browsers share; a newer one replaces the oldest."""
REFUSALS = (Refused, RequestFailed, CheckpointRefused, TaskRefused, OSError)
URGENT_S, USUAL_S, EXPLAIN_S = 20.0, 30.0, 60.0
"""Time limits of a rollback, of any other request, and of an explanation, which may have to start a process first."""


MAX_LISTED = 50
"""Versions and verdicts in one response."""


class VersionName(Payload):
    """Payload of promote, rollback and checkpoints: of the policy, or of a task."""

    version: str | None = Field(None, max_length=128)
    task: str | None = Field(None, max_length=64)


class DecisionName(Payload):
    """Payload of explain."""

    decision: str = Field(max_length=128)


class RecordSwitch(Payload):
    """Payload of record."""

    on: bool = True


class TaskName(Payload):
    """Payload of finetune."""

    task: str | None = Field(None, max_length=64)


class SourceName(Payload):
    """Payload of release."""

    source: str = Field(max_length=128)


class StreamName(Payload):
    """Payload of accept_drift."""

    stream: str = Field(max_length=64)


@dataclass(slots=True)
class Requests:
    """Takes requests from the connection and answers those of one lane one after the other. Create it in the running loop."""

    connection: Connection
    topics: Topics
    checkpoints: Checkpoints
    tasks: TaskVersions
    sources: SourceQuarantine
    drift: DriftWatch
    emit: Emit
    explainer: Explainer
    recording: RecordingController
    finetuning: FinetuneQueue
    gallery: Gallery
    history: PromotionHistory
    task_updater: TaskUpdater | None = None
    """Without tasks there is none."""
    _lanes: dict[str, RequestQueue] = field(init=False)
    """By verb."""
    _urgent: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._urgent = ThreadPoolExecutor(1, "rollback")
        usual: dict[str, Handler] = {
            "promote": self._promote,
            "checkpoints": self._list,
            "record": self._record,
            "finetune": self._finetune,
            "release": self._release,
            "accept_drift": self._accept_drift,
        }
        lanes = (
            RequestQueue({"rollback": self._rollback}, REFUSALS, URGENT_S, MAX_WAITING),
            RequestQueue(usual, REFUSALS, USUAL_S, MAX_WAITING),
            RequestQueue({"explain": self._explain}, REFUSALS, EXPLAIN_S, MAX_WAITING, newest=NEWEST),
            RequestQueue(
                {
                    "readings": self._readings,
                    "label_readings": self._label_readings,
                    "labels": self._labels,
                    "correct_labels": self._correct_labels,
                },
                REFUSALS,
                USUAL_S,
                MAX_WAITING,
            ),
        )
        self._lanes = {verb: lane for lane in lanes for verb in lane.handlers}

    @property
    def verbs(self) -> Collection[str]:
        """The verbs that the agent answers."""
        return self._lanes.keys()

    def take(self, message: Message) -> None:
        """Queue one request; a full queue is answered at once."""
        if message.retain:
            raise Refused("a retained request is ignored: publish it without the retain flag")
        verb = message.topic.rsplit("/", 1)[-1]
        if (dropped := self._lanes[verb].put(verb, message)) is not None:
            (of_verb, not_served), reason = dropped
            self._reply(of_verb, not_served, rpc.error(reason))

    async def run(self) -> None:
        """Answer until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in {id(lane): lane for lane in self._lanes.values()}.values():
                group.create_task(lane.run(self._reply), name=f"requests {next(iter(lane.handlers))}")

    def _reply(self, _verb: str, message: Message, answer: Answer) -> None:
        rpc.respond(self.connection, self.topics, message, answer)

    async def _urgently(self, work: Callable[[], T]) -> T:
        """Run in a thread that only rollbacks use."""
        return await asyncio.get_running_loop().run_in_executor(self._urgent, work)

    async def _promote(self, payload: bytes) -> Answer:
        request = decode(VersionName, payload or b"{}")
        version = request.version
        if request.task is not None:
            return await self._promote_task(request.task, version)
        if version is None:
            raise RequestFailed('name the version: {"version": "000042-1f3a9c0e"}; request/checkpoints lists them')
        if version == "newest":  # a button elsewhere cannot know names
            known = await asyncio.to_thread(self.checkpoints.list)
            version = known[-1].version if known else version
        before = (await asyncio.to_thread(self.checkpoints.live)).version
        done = {"version": version, "before": before}

        def announce(_live: Live) -> None:
            self.emit("policy_promoted", {**done, "by": "request"})

        await asyncio.to_thread(self.checkpoints.promote, version, announce=announce)
        return done

    async def _promote_task(self, task: str, version: str | None) -> Answer:
        if version is None:
            raise RequestFailed(
                f'name the version: {{"task": "{task}", "version": "newest"}}; request/checkpoints lists them'
            )
        done = await asyncio.to_thread(self.tasks.promote, task, version)
        await self._follow_tasks()
        self.emit("task_promoted", {**done, "by": "request"})
        return done

    async def _rollback(self, payload: bytes) -> Answer:
        request = decode(VersionName, payload or b"{}")
        if request.task is not None:
            done = await self._urgently(partial(self.tasks.rollback, request.task))
            await self._follow_tasks()
            self.emit("task_rolled_back", {**done, "by": "request"})
            return done
        before = (await self._urgently(self.checkpoints.live)).version

        def announce(live: Live) -> None:
            self.emit("policy_rolled_back", {"version": before, "to": live.version, "by": "request"})

        live = await self._urgently(partial(self.checkpoints.rollback, to=request.version, announce=announce))
        return {"version": live.version, "before": before}

    async def _follow_tasks(self) -> None:
        """Let the next reading be answered by the version that is live now."""
        if self.task_updater is not None:
            await self.task_updater.sync()

    async def _list(self, payload: bytes) -> Answer:
        task = decode(VersionName, payload or b"{}").task
        if task is not None:
            return await asyncio.to_thread(self.tasks.rows, task)
        live, manifests = await asyncio.gather(
            asyncio.to_thread(self.checkpoints.live), asyncio.to_thread(self.checkpoints.list)
        )
        rows = [_row(m) for m in manifests[-MAX_LISTED:]]
        failed = list(live.failed)[-MAX_LISTED:]
        return {"live": live.version, "failed": failed, "checkpoints": rows, "history": self.history.newest(MAX_LISTED)}

    async def _explain(self, payload: bytes) -> Answer:
        return await self.explainer.explain(decode(DecisionName, payload).decision)

    async def _record(self, payload: bytes) -> Answer:
        on = decode(RecordSwitch, payload or b"{}").on
        return await (self.recording.begin() if on else self.recording.end())

    async def _finetune(self, payload: bytes) -> Answer:
        return await self.finetuning.add(decode(TaskName, payload or b"{}").task)

    async def _release(self, payload: bytes) -> Answer:
        source = decode(SourceName, payload).source
        if not self.sources.release(source):
            raise RequestFailed(f"{source!r} is not quarantined; health names those that are")
        return {"source": source, "state": "released"}

    async def _accept_drift(self, payload: bytes) -> Answer:
        stream = decode(StreamName, payload).stream
        if not self.drift.accept(stream):
            raise RequestFailed(f"{stream!r} does not drift; health names those that do")
        return {"stream": stream, "state": "accepted"}

    async def _readings(self, payload: bytes) -> Answer:
        return await self.gallery.readings(decode(ReadingsRequest, payload))

    async def _label_readings(self, payload: bytes) -> Answer:
        return await self.gallery.label_readings(decode(LabelReadingsRequest, payload))

    async def _labels(self, payload: bytes) -> Answer:
        return await self.gallery.labels(decode(LabelsRequest, payload))

    async def _correct_labels(self, payload: bytes) -> Answer:
        return await self.gallery.correct_labels(decode(CorrectLabelsRequest, payload))


def _row(manifest: Manifest) -> Answer:
    return {
        "version": manifest.version,
        "parent": manifest.parent,
        "created": manifest.created_s,
        "metrics": manifest.metrics,
        "data": manifest.data,
    }
