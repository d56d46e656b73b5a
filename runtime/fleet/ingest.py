"""Receive the segments of a group, store them, and answer each once its rows are on disk.

Several ingests share the work: the broker passes each segment to one of them. An ingest holds no state that matters: what was
acknowledged is on disk (`learners/fleet_data/parquet_log.py`), and a device repeats what was not. So it may be killed at any moment.

Each agent has one place to wait, and the ingest takes the agents in turn: one that floods delays its own segments, and each of the
others by one. A segment that is on disk is recognised by its header, before its rows are decoded. Knows nothing of Ray; `serve.py`
runs it as an actor.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from learners.fleet_data.parquet_log import ParquetLog, StoredSegment
from learners.fleet_data.row_limits import MAX_REASON
from learners.fleet_data.segment import (
    AHEAD_S,
    MAX_BYTES,
    MAX_REWARD,
    NAME,
    RowLimits,
    SegmentHeader,
    SegmentRefused,
    read_header,
    segment_digest,
    unpack,
)
from runtime.fleet.topics import SHARED, FleetTopics, IngestReport, SegmentAnswer
from runtime.mqtt import Address, Connection, Message, Will
from runtime.mqtt.topics import Refused, encode

log = structlog.get_logger(__name__)

WAITING = 256
"""Agents with a segment that waits for the disk; one of a further agent is dropped and counted, and its device repeats it."""
REPORT_S = 5.0
MOST_RATE = 2.0
"""Times the ticks of an agent, the rows that it may send in the long run, by the ingest's clock."""
BURST_S = 86_400.0
"""Seconds of ticks that it may send at once: those of a time without a network."""
QUIET_S = 10.0
"""Between two lines of the log about one agent; `counts` has all."""
MAX_COUNTED = 100_000
"""Agents with a count of rows."""
T = TypeVar("T")
_AGENT = re.compile(NAME)


@dataclass(slots=True)
class Ingest:
    """One ingest of a group.

    Args:
        name: of the ingest, `ingest-0` for instance.
        address: of the fleet's broker.
        store: the log of the group.
        topics: of the group.
        max_reward: largest magnitude of a reward.
        rate_hz: ticks a second of an agent.
        wall: Unix seconds.
    """

    name: str
    address: Address
    store: ParquetLog
    topics: FleetTopics
    max_reward: float = MAX_REWARD
    rate_hz: float = 1_000.0
    wall: Callable[[], float] = time.time
    counts: Counter[str] = field(default_factory=Counter)
    """Segments by what became of them, `rows` and `bytes` on disk, `received_bytes`, and `dropped` segments.

    Dropped are those of too many agents, and those that the agent replaced before its turn.
    """
    link: Connection = field(init=False)
    _waiting: dict[str, bytes] = field(default_factory=dict)
    """The newest segment of each agent, in the order of their turns."""
    _named_s: dict[str, float] = field(default_factory=dict)
    """When the log last named an agent."""
    _rows_left: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By agent, the rows that it may send at a monotonic time."""
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.link = Connection(
            self.address,
            # random, so that no agent can take the session over; a late will is overwritten by the next report
            f"reflexd-{self.topics.group}-{self.name}-{secrets.token_hex(8)}",
            Will(self.topics.ingest(self.name), encode(IngestReport(name=self.name, state="offline"))),
            max_incoming=WAITING,
            max_payload=MAX_BYTES,
        )
        self.link.subscribe(f"{SHARED}/{self.topics.up('+')}", self._received)

    async def run(self) -> None:
        """Store segments until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.link.run(), name=f"{self.name} mqtt")
            group.create_task(self._report(), name=f"{self.name} report")
            group.create_task(self._store(), name=self.name)

    def _received(self, message: Message) -> None:
        agent = message.topic.rpartition("/")[2]
        if not _AGENT.match(agent):
            raise Refused(f"{agent[:80]!r} is not the name of an agent")
        waits = agent in self._waiting
        if waits or len(self._waiting) >= WAITING:
            self.counts["dropped"] += 1
        if waits or len(self._waiting) < WAITING:
            self._waiting[agent] = message.payload
            self._arrived.set()

    async def _store(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._waiting:
                self._arrived.clear()
                continue
            agent = next(iter(self._waiting))
            payload = self._waiting.pop(agent)
            answer = await asyncio.to_thread(self.accept, agent, payload)
            if answer is not None:
                self.link.enqueue(self.topics.ack(agent), encode(answer), qos=1)

    def accept(self, agent: str, payload: bytes) -> SegmentAnswer | None:
        """Store one segment and return the answer; None while the disk refuses, so that the device repeats it."""
        digest = segment_digest(payload)
        self.counts["received_bytes"] += len(payload)
        try:
            stored = self._stored(agent, payload)
        except SegmentRefused as refusal:
            return self._refusal(agent, digest, refusal)
        except Exception as error:  # noqa: BLE001 - no payload and no disk may end the ingest of the whole group
            self.counts["not_stored"] += 1
            self._name("ingest.not_stored", agent, f"{type(error).__name__}: {error}")
            return None
        self.counts[stored.outcome] += 1
        self.counts["rows"] += stored.rows
        self.counts["bytes"] += stored.bytes
        return SegmentAnswer(segment=digest, last=stored.last, apart=stored.reason[:MAX_REASON] or None)

    def _stored(self, agent: str, payload: bytes) -> StoredSegment:
        """Store a segment unless it is on disk.

        Raises:
            SegmentRefused: it is not accepted.
            OSError, ValueError: it cannot be stored now.
        """
        header = _readable(read_header, payload)
        self._require_author(agent, header)
        limits = RowLimits(self.max_reward, self.wall() + AHEAD_S)
        if (known := self.store.known(header)) is not None:
            return known
        segment = _readable(lambda each: unpack(each, limits), payload)
        self._require_rate(agent, segment.table.num_rows)
        return self.store.append(segment)

    def _require_rate(self, agent: str, rows: int) -> None:
        """Count the rows of an agent by the time of their arrival.

        Raises:
            ValueError: it sent more than its ticks can make; the device repeats the segment later.
        """
        now_s, most = time.monotonic(), BURST_S * self.rate_hz
        left, then_s = self._rows_left.get(agent, (most, now_s))
        left = min(most, left + MOST_RATE * self.rate_hz * (now_s - then_s))
        if rows > left:
            raise ValueError(
                f"{rows} rows arrived, {left:.0f} are left of {MOST_RATE:g} times {self.rate_hz:g} a second"
            )
        if agent not in self._rows_left and len(self._rows_left) >= MAX_COUNTED:
            del self._rows_left[next(iter(self._rows_left))]
        self._rows_left[agent] = left - rows, now_s

    def _refusal(self, agent: str, digest: str, refusal: SegmentRefused) -> SegmentAnswer:
        self.counts["refused"] += 1
        self._name("ingest.refused", agent, str(refusal))
        return SegmentAnswer(segment=digest, refused=str(refusal) or "no reason")

    def _name(self, event: str, agent: str, reason: str) -> None:
        """Log an event of an agent, at most once in `QUIET_S`: an agent that floods must not fill the disk with its log."""
        now_s = time.monotonic()
        if now_s - self._named_s.get(agent, -QUIET_S) < QUIET_S:
            return
        if len(self._named_s) >= WAITING:
            del self._named_s[next(iter(self._named_s))]
        self._named_s[agent] = now_s
        log.warning(event, agent=agent, reason=reason[:MAX_REASON])

    def _require_author(self, agent: str, header: SegmentHeader) -> None:
        """Refuse a segment that another agent than that of its topic wrote.

        Raises:
            SegmentRefused: another one did.
        """
        if (header.agent, header.group) != (agent, self.topics.group):
            raise SegmentRefused(f"agent {header.agent} of group {header.group} wrote on the topic of {agent}")

    async def _report(self) -> None:
        while True:
            await self.link.up()
            report = IngestReport(name=self.name, state="online", stamp=time.time(), counts=dict(self.counts))
            self.link.enqueue(self.topics.ingest(self.name), encode(report), qos=1, retain=True, keep="latest")
            await asyncio.sleep(REPORT_S)


def _readable(decode: Callable[[bytes], T], payload: bytes) -> T:
    """Decode a payload.

    Raises:
        SegmentRefused: it is not accepted, or it raised what no payload should.
    """
    try:
        return decode(payload)
    except SegmentRefused:
        raise
    except Exception as error:  # noqa: BLE001 - the payload is untrusted: whatever it raises is its fault
        raise SegmentRefused(f"{type(error).__name__}: {error}") from None
