"""Receive the policies of a fleet on a device: verify the manifest, collect the blob, and leave the checkpoint for the learner.

The learner examines it as any candidate of its own (`learners/worker/candidates.py`): its promotion steps on its own past, then the
live experiment and its guard. Nothing here makes a version live. The highest counter is on disk before the learner can see the
checkpoint, so that a restart accepts no older one.

Events, through the outbox: `fleet_policy_received`, `fleet_policy_refused`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import structlog

from learners.checkpoints.signing import PublicKey
from learners.files import private_folder, write_atomically
from learners.fleet.policy_manifest import (
    DeviceIdentity,
    FleetPolicy,
    FleetPolicyRefused,
    is_in_wave,
    unpack_blob,
    verify,
)
from learners.fleet.received_policies import RECEIVED, note_received, note_withdrawn
from learners.fleet.uplink_queue import UplinkIdentity
from learners.ipc.outbox import Outbox
from runtime.fleet.topics import BLOB_PART_BYTES, FleetTopics
from runtime.mqtt import Connection, Message

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class PolicyReceiver:
    """Receives policies of one group.

    Args:
        state_dir: of the daemon.
        link: the connection to the fleet's broker.
        topics: of the group.
        public: the fleet's key.
        identity: of this agent; None before it wrote its spec.
        outbox: takes the events.
        clock: Unix seconds.
    """

    state_dir: Path
    link: Connection
    topics: FleetTopics
    public: PublicKey
    identity: Callable[[], UplinkIdentity | None]
    outbox: Outbox
    clock: Callable[[], float] = time.time
    refused: int = 0
    repeated: int = 0
    """Manifests that were accepted before: the broker repeats the retained one at each connect."""
    accepted: FleetPolicy | None = None
    """The newest manifest that was accepted."""
    _messages: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(4))
    _parts: dict[int, bytes] = field(default_factory=dict)
    _collecting: FleetPolicy | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the blob is whole, or another manifest waits."""

    def __post_init__(self) -> None:
        private_folder(self.state_dir / RECEIVED)
        self.link.subscribe(self.topics.policy, self._arrived, retained="send")

    async def run(self) -> None:
        """Receive until cancelled."""
        while True:
            message = await self._messages.get()
            try:
                await self._take(message)
            except FleetPolicyRefused as refusal:
                self.refused += 1
                self.outbox.post("fleet_policy_refused", {"group": self.topics.group, "reason": str(refusal)})
                log.warning("uplink.policy_refused", reason=str(refusal))
            except OSError as error:
                log.warning("uplink.policy_not_stored", reason=str(error))

    def counter(self) -> int:
        """Return the highest counter that was accepted.

        Raises:
            FleetPolicyRefused: the file cannot be read; then nothing is accepted.
        """
        return self._accepted()[0]

    def _accepted(self) -> tuple[int, str]:
        """Return counter and digest of the newest manifest that was accepted."""
        path = self.state_dir / RECEIVED / "counter.json"
        try:
            counter, digest = orjson.loads(path.read_bytes())
            return int(counter), str(digest)
        except FileNotFoundError:
            return 0, ""
        except (ValueError, TypeError) as error:
            raise FleetPolicyRefused(f"{path}: {error}; delete it to accept policies again") from None

    async def _take(self, message: bytes) -> None:
        identity = self.identity()
        if identity is None or not message:
            return
        counter, newest = self._accepted()
        digest = hashlib.sha256(message).hexdigest()
        if digest == newest:
            self.repeated += 1
            return
        device = DeviceIdentity(identity.group, identity.agent, identity.spec, identity.daemon, counter, self.clock())
        policy = verify(message, self.public, device)
        if policy.withdrawn:
            note_withdrawn(self.state_dir, policy.withdrawn)
        if not is_in_wave(policy, identity.agent):
            return  # a wider wave is another manifest, with a higher counter
        blob = await self._collect(policy)
        target = await asyncio.to_thread(unpack_blob, blob, policy, self.public, self.state_dir / RECEIVED)
        write_atomically(self.state_dir / RECEIVED / "counter.json", orjson.dumps([policy.counter, digest]), mode=0o600)
        note_received(self.state_dir, target, policy.version)
        self.accepted = policy
        fields = {"group": policy.group, "version": policy.version, "counter": policy.counter, "share": policy.share}
        self.outbox.post("fleet_policy_received", fields)

    async def _collect(self, policy: FleetPolicy) -> bytes:
        """Return the bytes of the blob; a newer manifest ends the wait.

        Raises:
            FleetPolicyRefused: a newer manifest came before the blob was whole.
        """
        count = -(-policy.size // BLOB_PART_BYTES)
        self._parts, self._collecting = {}, policy
        self._changed.clear()
        if not self._messages.empty():
            self._changed.set()
        filter_of_parts = self.topics.blob(policy.sha256, "+")
        self.link.subscribe(filter_of_parts, self._part, retained="send")
        try:
            await self._changed.wait()
        finally:
            self.link.unsubscribe(filter_of_parts)
            parts, self._parts, self._collecting = self._parts, {}, None
        if len(parts) < count:
            raise FleetPolicyRefused("a newer manifest came before the blob was whole")
        return b"".join(parts[number] for number in range(count))

    def _arrived(self, message: Message) -> None:
        if self._messages.full():
            self._messages.get_nowait()
        self._messages.put_nowait(message.payload)
        self._changed.set()

    def _part(self, message: Message) -> None:
        policy = self._collecting
        digest, _, number = message.topic.rpartition("/blob/")[2].partition("/")
        if (
            policy is None
            or digest != policy.sha256
            or not number.isdecimal()
            or len(message.payload) > BLOB_PART_BYTES
        ):
            return
        self._parts[int(number)] = message.payload
        if len(self._parts) == -(-policy.size // BLOB_PART_BYTES):
            self._changed.set()
