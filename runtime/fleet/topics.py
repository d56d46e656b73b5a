"""Define the topics of a fleet's group and their payloads. Nothing here knows a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from learners.fleet_data.segment import NAME
from runtime.mqtt.topics import Payload

SHARED = "$share/ingest"
"""Every ingest of a group subscribes under this name, and the broker passes each segment to one of them."""
MAX_NAMED = 1_000
"""Agents that a report of the learner names; further ones are counted."""
BLOB_PART_BYTES = 131_072
"""Of each part of a blob, except the last."""


@dataclass(frozen=True, slots=True)
class FleetTopics:
    """Every topic of one group."""

    group: str

    @property
    def base(self) -> str:
        """`reflexd/fleet/<group>`."""
        return f"reflexd/fleet/{self.group}"

    def up(self, agent: str) -> str:
        """Return the topic of an agent's segments, which this agent alone may write."""
        return f"{self.base}/up/{agent}"

    def ack(self, agent: str) -> str:
        """Return the topic of the answers to an agent."""
        return f"{self.base}/ack/{agent}"

    def report(self, agent: str) -> str:
        """Return the retained topic on which an agent says how it is."""
        return f"{self.base}/agents/{agent}"

    def spec(self, agent: str) -> str:
        """Return the retained topic of the policy spec of an agent, as its file is."""
        return f"{self.report(agent)}/spec"

    def verdict(self, agent: str) -> str:
        """Return the retained topic on which an agent says what became of the fleet's newest version there."""
        return f"{self.base}/verdicts/{agent}"

    @property
    def learner(self) -> str:
        """The retained topic on which the group's learner says how it is."""
        return f"{self.base}/learner"

    def ingest(self, name: str) -> str:
        """Return the retained topic on which an ingest says what it stored."""
        return f"{self.base}/ingest/{name}"

    def blob(self, digest: str, number: int | str) -> str:
        """Return the retained topic of a part of a blob; `+` for all parts."""
        return f"{self.policy}/blob/{digest}/{number}"

    @property
    def policy(self) -> str:
        """The retained topic of the signed manifest; parts of the blob are below `policy/blob`."""
        return f"{self.base}/policy"


class SegmentAnswer(Payload):
    """`ack/<agent>`: what became of a segment."""

    segment: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Its digest."""
    last: int | None = Field(None, ge=0)
    """The highest row of its lane up to which everything is on disk; absent if the segment was refused."""
    apart: str | None = Field(None, max_length=500)
    """Why its rows do not train with those of the group."""
    refused: str | None = Field(None, max_length=500)
    """Why it was refused."""


class AgentReport(Payload):
    """`agents/<agent>`: how an agent of the fleet is; retained, and the last will of its uplink."""

    agent: str = Field(pattern=NAME)
    state: Literal["online", "offline"]
    stamp: float | None = None
    daemon: str | None = Field(None, max_length=64)
    daemon_state: Literal["starting", "online", "degraded", "stopped", "offline"] | None = None
    """As the agent's gate publishes it; absent while the uplink does not know it."""
    spec: str | None = Field(None, max_length=64)
    policy: str | None = Field(None, max_length=64)
    """The live version."""
    fleet_version: int | None = None
    """The newest version of the fleet that this agent accepted."""
    verdict: str | None = Field(None, max_length=500)
    """What became of that version."""
    wave: str | None = Field(None, max_length=16)
    """The stage of the newest manifest; absent outside of it."""
    backlog_rows: int | None = None
    sampling_probability: float | None = None
    apart: str | None = Field(None, max_length=500)
    counts: dict[str, int] = Field({}, max_length=32)


class IngestReport(Payload):
    """`ingest/<name>`: what an ingest stored since its start; retained, and its last will."""

    name: str = Field(pattern=NAME)
    state: Literal["online", "offline"]
    stamp: float | None = None
    counts: dict[str, int] = Field({}, max_length=64)


class GroupLearnerReport(Payload):
    """`learner`: how the learner of the group is; retained, and its last will."""

    state: Literal["online", "offline"]
    stamp: float | None = None
    spec: str | None = Field(None, max_length=64)
    """Digest of the spec that it trains; absent while no device has sent it."""
    progress: dict[str, Any] = Field({}, max_length=64)
    """As in `progress.json` of a daemon."""
    wave: dict[str, Any] | None = None
    """The newest wave."""
    paused: bool = False
    verdicts: dict[str, str] = Field({}, max_length=MAX_NAMED)
    """By agent, the state of the version of the wave; of the first agents by name."""
    verdict_counts: dict[str, int] = Field({}, max_length=64)
    """Agents by that state."""
    excluded: dict[str, str] = Field({}, max_length=MAX_NAMED)
    """Agents with rows that do not train, with the reason; the first ones by name."""
    excluded_count: int = 0
    """All of them."""
    uncounted: dict[str, str] = Field({}, max_length=MAX_NAMED)
    """Agents with verdicts that do not count because they alone stopped several waves, with the reason."""
