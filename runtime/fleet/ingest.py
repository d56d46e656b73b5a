"""Receive the segments of a group, store them, and answer each once its rows are on disk.

Several ingests share the work: the broker passes each segment to one of them. An ingest holds no state that matters: what was
acknowledged is on disk (`learners/fleet/parquet_log.py`), and a device repeats what was not. So it may be killed at any moment.
Knows nothing of Ray; `serve.py` runs it as an actor.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field

import structlog

from learners.fleet.parquet_log import ParquetLog
from learners.fleet.segment import MAX_BYTES, NAME, Segment, SegmentRefused, segment_digest, unpack
from runtime.fleet.topics import SHARED, FleetTopics, IngestReport, SegmentAnswer
from runtime.mqtt import Address, Connection, Message, Will
from runtime.mqtt.topics import Refused, encode

log = structlog.get_logger(__name__)

WAITING = 64
"""Segments that wait for the disk; a further one is dropped and counted, and its device repeats it."""
REPORT_S = 5.0
_AGENT = re.compile(NAME)


@dataclass(slots=True)
class Ingest:
    """One ingest of a group.

    Args:
        name: of the ingest, `ingest-0` for instance.
        address: of the fleet's broker.
        store: the log of the group.
        topics: of the group.
    """

    name: str
    address: Address
    store: ParquetLog
    topics: FleetTopics
    counts: Counter[str] = field(default_factory=Counter)
    """Segments by what became of them, `rows` and `bytes` on disk, `received_bytes`, and `dropped` segments."""
    link: Connection = field(init=False)
    _waiting: asyncio.Queue[tuple[str, bytes]] = field(default_factory=lambda: asyncio.Queue(WAITING))

    def __post_init__(self) -> None:
        self.link = Connection(
            self.address,
            f"reflexd-{self.topics.group}-{self.name}",
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
        if self._waiting.full():
            self.counts["dropped"] += 1
            return
        self._waiting.put_nowait((agent, message.payload))

    async def _store(self) -> None:
        while True:
            agent, payload = await self._waiting.get()
            answer = await asyncio.to_thread(self.accept, agent, payload)
            if answer is not None:
                self.link.enqueue(self.topics.ack(agent), encode(answer), qos=1)

    def accept(self, agent: str, payload: bytes) -> SegmentAnswer | None:
        """Store one segment and return the answer; None while the disk refuses, so that the device repeats it."""
        digest = segment_digest(payload)
        self.counts["received_bytes"] += len(payload)
        try:
            stored = self.store.append(self._of(agent, unpack(payload)))
        except SegmentRefused as refusal:
            self.counts["refused"] += 1
            log.info("ingest.refused", agent=agent, reason=str(refusal))
            return SegmentAnswer(segment=digest, refused=str(refusal)[:500])
        except (OSError, ValueError) as error:
            self.counts["not_stored"] += 1
            log.warning("ingest.not_stored", agent=agent, reason=str(error))
            return None
        self.counts[stored.outcome] += 1
        self.counts["rows"] += stored.rows
        self.counts["bytes"] += stored.bytes
        return SegmentAnswer(segment=digest, last=stored.last, apart=stored.reason[:500] or None)

    def _of(self, agent: str, segment: Segment) -> Segment:
        """Return a segment that the agent of its topic wrote.

        Raises:
            SegmentRefused: another one did.
        """
        header = segment.header
        if (header.agent, header.group) != (agent, self.topics.group):
            raise SegmentRefused(f"agent {header.agent} of group {header.group} wrote on the topic of {agent}")
        return segment

    async def _report(self) -> None:
        while True:
            await self.link.up()
            report = IngestReport(name=self.name, state="online", stamp=time.time(), counts=dict(self.counts))
            self.link.enqueue(self.topics.ingest(self.name), encode(report), qos=1, retain=True, keep="latest")
            await asyncio.sleep(REPORT_S)
