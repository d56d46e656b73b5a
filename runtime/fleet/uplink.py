"""Send the experience of a device to its fleet, one segment at a time, within a budget of bytes.

`python -m runtime.fleet CONFIG` runs it as a process of its own, beside the agent and without torch. The queue
(`learners/fleet_data/uplink_queue.py`) decides what goes next and remembers what was acknowledged; this module owns the connection,
the budget and the waiting. A segment leaves again until the fleet answers that it is on disk.

Events, through the outbox that the agent publishes: `fleet_rows_apart`, `fleet_rows_too_large`, `fleet_segment_refused`.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from learners.fleet_data.device_verdict import device_verdict
from learners.fleet_data.received_policies import newest_received
from learners.fleet_data.segment import MAX_BYTES
from learners.fleet_data.uplink_queue import PendingSegment, UplinkIdentity, UplinkQueue
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import spec_path
from runtime.fleet.policy_receiver import PolicyReceiver
from runtime.fleet.stop.relay import StopRelay
from runtime.fleet.topics import FleetTopics, SegmentAnswer
from runtime.mqtt import Connection, Message, MqttLost
from runtime.mqtt.topics import decode, encode

log = structlog.get_logger(__name__)

POLL_S = 1.0
"""Between two looks for closed rows."""
ANSWER_S = (5.0, 60.0)
"""For the answer to a segment, at first and at most."""
REFUSED_PAUSE_S = 60.0
REFUSALS = 3
"""A segment that was refused so often is given up; its rows stay in the experience store."""
REPORT_S = 10.0
SPEC_S = 600.0
"""Between two publications of the policy spec, which the broker retains."""
TOO_LARGE_S = 3_600.0
"""Between two events about rows that no segment can carry."""
T = TypeVar("T")


@dataclass(slots=True)
class ByteBudget:
    """A budget of bytes an hour, of which at most `burst` are saved up."""

    per_hour: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _saved: float = 0.0
    _at_s: float | None = None

    def wait_s(self, size: float) -> float:
        """Return the seconds until `size` bytes may leave; 0 where the budget has them."""
        now_s = self.clock()
        since_s = 0.0 if self._at_s is None else now_s - self._at_s
        if self._at_s is None:
            self._saved = self.burst
        self._at_s = now_s
        self._saved = min(self.burst, self._saved + since_s * self.per_hour / 3_600)
        return max(0.0, (size - self._saved) * 3_600 / self.per_hour)

    def spend(self, size: float) -> None:
        """Take bytes out of the budget."""
        self._saved -= size


def identity_of(state_dir: Path, group: str, agent: str, daemon: str) -> UplinkIdentity | None:
    """Return what segments say of their sender; None before the agent wrote its policy spec.

    Raises:
        OSError: the spec cannot be read.
    """
    path = spec_path(state_dir)
    try:
        since_s, content = path.stat().st_mtime, path.read_bytes()
    except FileNotFoundError:
        return None
    return UplinkIdentity(group, agent, hashlib.sha256(content).hexdigest(), daemon, since_s)


@dataclass(slots=True)
class Uplink:
    """The uplink of one device.

    Args:
        queue: decides what goes next.
        link: the connection to the fleet's broker.
        topics: of the group.
        agent: its name.
        identity: returns what segments say of their sender; None before the agent wrote its spec.
        outbox: takes the events.
        budget: of bytes.
        report: called with `False` for the last words of the process, else every `REPORT_S`; returns the payload.
    """

    queue: UplinkQueue
    link: Connection
    topics: FleetTopics
    agent: str
    identity: Callable[[], UplinkIdentity | None]
    outbox: Outbox
    budget: ByteBudget
    report: Callable[[], bytes]
    spec_file: Path | None = None
    """The policy spec of the agent, which the fleet's learner needs; None publishes none."""
    state_dir: Path | None = None
    """Of the daemon: its records say what became of the fleet's versions; None publishes no verdicts."""
    stops: StopRelay | None = None
    """Passes a stop of the fleet on to the agent."""
    policies: PolicyReceiver | None = None
    """Receives the policies of the fleet; None without `fleet.key`."""
    answer_s: tuple[float, float] = ANSWER_S
    poll_s: float = POLL_S
    report_s: float = REPORT_S
    apart: str | None = None
    """Why the fleet sets the rows apart."""
    sent: int = 0
    """Segments that left, repeated ones included."""
    _answers: asyncio.Queue[SegmentAnswer] = field(default_factory=lambda: asyncio.Queue(16))
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "uplink"))
    _refusals: int = 0
    _too_large: int = 0
    """Rows that the last event named."""
    _too_large_s: float = -float("inf")

    def __post_init__(self) -> None:
        self.link.subscribe(self.topics.ack(self.agent), self._answered)

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.link.run(), name="uplink mqtt")
                group.create_task(self._report(), name="uplink report")
                group.create_task(self._send(), name="uplink")
                if self.stops is not None:
                    group.create_task(self.stops.run(), name="uplink stop")
                if self.policies is not None:
                    group.create_task(self.policies.run(), name="uplink policies")
        finally:
            self._thread.submit(self.queue.close).result()
            self._thread.shutdown()

    async def _send(self) -> None:
        patience_s, was_failing = self.answer_s[0], False
        while True:
            await self.link.up()
            await asyncio.sleep(self.budget.wait_s(self.queue.max_bytes))
            try:
                pending = await self._next()
                is_sent = pending is not None and await self._exchange(pending, patience_s)
            except (OSError, sqlite3.Error) as error:  # MqttLost among them: the connection says more
                if not was_failing and not isinstance(error, MqttLost):
                    log.warning("uplink.failed", reason=str(error), effect="rows stay on this device")
                was_failing = not isinstance(error, MqttLost)
                await asyncio.sleep(self.poll_s)
                continue
            was_failing = False
            if pending is None:
                await asyncio.sleep(self.poll_s)
            patience_s = self.answer_s[0] if is_sent or pending is None else min(self.answer_s[1], patience_s * 2)

    async def _next(self) -> PendingSegment | None:
        identity = self.identity()
        pending = None if identity is None else await self._call(partial(self.queue.next, identity))
        self.post_too_large(time.monotonic())
        return pending

    def post_too_large(self, now_s: float) -> None:
        """Post that rows were left out because no segment can carry them, once an hour.

        Args:
            now_s: monotonic seconds.
        """
        rows = self.queue.counts["too_large"]
        if rows > self._too_large and now_s - self._too_large_s >= TOO_LARGE_S:
            fields = {"group": self.topics.group, "rows": rows - self._too_large, "limit_bytes": MAX_BYTES}
            self.outbox.post("fleet_rows_too_large", fields)
            self._too_large, self._too_large_s = rows, now_s

    async def _exchange(self, pending: PendingSegment, patience_s: float) -> bool:
        """Send a segment and wait for its answer; False where there is none in time.

        Raises:
            MqttLost: there is no connection.
            OSError: the position cannot be written.
        """
        while not self._answers.empty():
            self._answers.get_nowait()  # of a segment before
        self.budget.spend(len(pending.payload))
        self.sent += 1
        await self.link.publish(self.topics.up(self.agent), pending.payload, timeout_s=patience_s)
        try:
            async with asyncio.timeout(patience_s):
                answer = await self._answers.get()
                while answer.segment != pending.digest:
                    answer = await self._answers.get()
        except TimeoutError:
            return False
        if answer.last is None:
            await self._refused(pending, answer.refused or "no reason")
            return True
        self._refusals = 0
        if answer.apart != self.apart:
            self.apart = answer.apart
            if answer.apart is not None:
                self.outbox.post("fleet_rows_apart", {"group": self.topics.group, "reason": answer.apart})
        await self._call(partial(self.queue.acknowledge, answer.segment, answer.last))
        return True

    async def _refused(self, pending: PendingSegment, reason: str) -> None:
        self._refusals += 1
        header = pending.header
        fields = {"first": header.first, "last": header.last, "lane": header.lane, "reason": reason}
        self.outbox.post("fleet_segment_refused", {"group": header.group, **fields})
        if self._refusals >= REFUSALS:
            self._refusals = 0
            await self._call(self.queue.discard_pending)
        else:
            await asyncio.sleep(REFUSED_PAUSE_S)

    def _answered(self, message: Message) -> None:
        answer = decode(SegmentAnswer, message.payload)
        if self._answers.full():
            self._answers.get_nowait()
        self._answers.put_nowait(answer)

    async def _report(self) -> None:
        spec, spec_s, verdict = b"", -float("inf"), b""
        while True:
            await self.link.up()
            payload = await self._call(self.report)
            self.link.enqueue(self.topics.report(self.agent), payload, qos=1, retain=True, keep="latest")
            present = await self._call(self._spec)
            if present and (present != spec or time.monotonic() - spec_s > SPEC_S):
                spec, spec_s = present, time.monotonic()
                self.link.enqueue(self.topics.spec(self.agent), spec, qos=1, retain=True, keep="latest")
            newest = await self._call(self.verdict)
            if newest is not None and newest != verdict:
                verdict = newest
                self.link.enqueue(self.topics.verdict(self.agent), verdict, qos=1, retain=True, keep="latest")
            await asyncio.sleep(self.report_s)

    def _spec(self) -> bytes:
        """Return the policy spec of the agent; empty if there is none."""
        try:
            return b"" if self.spec_file is None else self.spec_file.read_bytes()
        except OSError:
            return b""

    def verdict(self) -> bytes | None:
        """Return what became of the newest version of the fleet on this device; None if there is none, or it cannot be read."""
        if self.state_dir is None:
            return None
        try:
            version = newest_received(self.state_dir)
            found = None if version is None else device_verdict(self.state_dir, version)
        except OSError as error:
            log.warning("uplink.verdict_unreadable", reason=str(error))
            return None
        return None if found is None else encode({"agent": self.agent, **asdict(found)})

    async def _call(self, work: Callable[[], T]) -> T:
        """Do something with the queue in its own thread: SQLite and files may block."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def report_payload(uplink: Uplink, identity: UplinkIdentity | None, more: dict[str, Any]) -> bytes:
    """Return the retained report of an agent; call it in the thread of the queue.

    Args:
        uplink: of the agent.
        identity: spec and version of the daemon; None before the agent wrote its spec.
        more: further fields of `AgentReport`.
    """
    queue = uplink.queue
    fields = {
        "agent": uplink.agent,
        "state": "online",
        "stamp": time.time(),
        "daemon": identity and identity.daemon,
        "daemon_state": uplink.stops and uplink.stops.state(),
        "spec": identity and identity.spec,
        "backlog_rows": queue.backlog_rows(),
        "sampling_probability": queue.sampling_probability,
        "apart": uplink.apart,
        "fleet_version": uplink.policies and uplink.policies.accepted and uplink.policies.accepted.counter,
        "wave": uplink.policies and uplink.policies.wave,
        "counts": {**queue.counts, "segments": uplink.sent},
        **more,
    }
    return encode(fields)
