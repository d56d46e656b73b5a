"""Receive the policies of a fleet on a device: verify the manifest, collect the blob, and leave the checkpoint for the learner.

The learner examines it as any candidate of its own (`learners/worker/policy_candidates.py`): its promotion steps on its own past, then the
live experiment and its guard. Nothing here makes a version live. The counter of a manifest is on disk as soon as its signature is
verified, so that no older one is accepted afterwards. After a restart the blob of the newest manifest is collected if it is not whole.

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
from learners.fleet_data.policy_manifest import (
    DeviceIdentity,
    FleetPolicy,
    FleetPolicyRefused,
    is_in_wave,
    unpack_blob,
    verify,
)
from learners.fleet_data.received_policies import RECEIVED, examined, note_received, note_withdrawn
from learners.fleet_data.uplink_queue import UplinkIdentity
from learners.ipc.outbox import Outbox
from runtime.fleet.topics import BLOB_PART_BYTES, FleetTopics
from runtime.mqtt import Connection, Message

log = structlog.get_logger(__name__)

RETRY_S = (60.0, 3_600.0)
"""Before a blob that was refused is collected again: at first, doubled each time, and at most."""
MAX_DIGITS = 9
"""Of the number of a part."""


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
    retry_s: tuple[float, float] = RETRY_S
    refused: int = 0
    repeated: int = 0
    """Manifests that were accepted before: the broker repeats the retained one at each connect."""
    accepted: FleetPolicy | None = None
    """The newest manifest that was accepted."""
    wave: str | None = None
    """The stage of the newest manifest; None where this agent is outside of it."""
    _messages: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(4))
    _parts: dict[int, bytes] = field(default_factory=dict)
    _collecting: FleetPolicy | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the blob is whole, or another message waits."""
    _failed: tuple[bytes, float] | None = None
    """The manifest of a blob that was refused, and the seconds before it is collected again."""
    _next: bytes | None = None
    """A verified manifest that ended the wait for a blob."""

    def __post_init__(self) -> None:
        private_folder(self.state_dir / RECEIVED)
        self.link.subscribe(self.topics.policy, self._arrived, retained="send")

    async def run(self) -> None:
        """Receive until cancelled."""
        while True:
            message, self._next = self._next, None
            if message is None:
                message = await self._waited()
            try:
                await self._take(message)
            except FleetPolicyRefused as refusal:
                self._refuse(refusal)
            except OSError as error:
                log.warning("uplink.policy_not_stored", reason=str(error))

    async def _waited(self) -> bytes:
        """Return the next message, or the manifest of a refused blob once its time has come."""
        if self._failed is None:
            return await self._messages.get()
        try:
            async with asyncio.timeout(self._failed[1]):
                return await self._messages.get()
        except TimeoutError:
            return self._failed[0]

    def _refuse(self, refusal: FleetPolicyRefused) -> None:
        self.refused += 1
        self.outbox.post("fleet_policy_refused", {"group": self.topics.group, "reason": str(refusal)})
        log.warning("uplink.policy_refused", reason=str(refusal))

    def counter(self) -> int:
        """Return the highest counter that was accepted.

        Raises:
            FleetPolicyRefused: the file cannot be read; then nothing is accepted.
        """
        return self._accepted()[0]

    def _accepted(self) -> tuple[int, str, bool]:
        """Return counter and digest of the newest manifest that was accepted, and whether nothing of it is still to be done."""
        path = self.state_dir / RECEIVED / "counter.json"
        try:
            counter, digest, *done = orjson.loads(path.read_bytes())
            return int(counter), str(digest), all(done)
        except FileNotFoundError:
            return 0, "", True
        except (ValueError, TypeError) as error:
            raise FleetPolicyRefused(f"{path}: {error}; delete it to accept policies again") from None

    def _accept(self, counter: int, digest: str, *, is_done: bool) -> None:
        path = self.state_dir / RECEIVED / "counter.json"
        write_atomically(path, orjson.dumps([counter, digest, is_done]), mode=0o600)

    async def _take(self, message: bytes) -> None:
        identity = self.identity()
        if identity is None or not message:
            return
        counter, newest, is_done = self._accepted()
        digest = hashlib.sha256(message).hexdigest()
        if digest == newest and is_done:
            self.repeated += 1
            return
        before = counter - 1 if digest == newest else counter
        policy = self._verified(message, identity, before)
        if policy.withdrawn:
            note_withdrawn(self.state_dir, policy.withdrawn)
        # a wider wave is another manifest, with a higher counter
        if self._failed is not None and self._failed[0] != message:
            self._failed = None  # this manifest is newer
        is_known = policy.version in policy.withdrawn or policy.version in examined(self.state_dir)
        is_wanted = is_in_wave(policy, identity.agent) and not is_known
        self.wave = policy.wave if is_in_wave(policy, identity.agent) else None
        self._accept(policy.counter, digest, is_done=not is_wanted)
        if not is_wanted:
            return
        blob = await self._collect(policy, digest, identity)
        try:
            target = await asyncio.to_thread(unpack_blob, blob, policy, self.public, self.state_dir / RECEIVED)
        except FleetPolicyRefused:  # the broker may have the right parts later
            is_again = self._failed is not None and self._failed[0] == message
            pause_s = min(2 * self._failed[1], self.retry_s[1]) if is_again and self._failed else self.retry_s[0]
            self._failed = (message, pause_s)
            raise
        self._failed = None
        note_received(self.state_dir, target, policy.version)
        self._accept(policy.counter, digest, is_done=True)
        self.accepted = policy
        fields = {"group": policy.group, "version": policy.version, "counter": policy.counter, "share": policy.share}
        self.outbox.post("fleet_policy_received", fields)

    def _verified(self, message: bytes, identity: UplinkIdentity, counter: int) -> FleetPolicy:
        """Return the manifest of a message if it is newer than a counter.

        Raises:
            FleetPolicyRefused: with the reason.
        """
        device = DeviceIdentity(identity.group, identity.agent, identity.spec, identity.daemon, counter, self.clock())
        return verify(message, self.public, device)

    async def _collect(self, policy: FleetPolicy, digest: str, identity: UplinkIdentity) -> bytes:
        """Return the bytes of the blob; a newer manifest ends the wait.

        Args:
            policy: the manifest.
            digest: of its message.
            identity: of this agent.

        Raises:
            FleetPolicyRefused: a newer manifest came before the blob was whole.
        """
        count = _count_of_parts(policy)
        self._parts, self._collecting = {}, policy
        self._changed.clear()
        filter_of_parts = self.topics.blob(policy.sha256, "+")
        self.link.subscribe(filter_of_parts, self._part, retained="send")
        try:
            while not self._is_superseded(policy, digest, identity) and len(self._parts) < count:
                await self._changed.wait()
                self._changed.clear()
        finally:
            self.link.unsubscribe(filter_of_parts)
            parts, self._parts, self._collecting = self._parts, {}, None
        if self._next is not None:
            raise FleetPolicyRefused("a newer manifest came before the blob was whole")
        return b"".join(parts[number] for number in range(count))

    def _is_superseded(self, policy: FleetPolicy, digest: str, identity: UplinkIdentity) -> bool:
        """Return whether a waiting message is a newer manifest; refuse those that are not."""
        while not self._messages.empty():
            message = self._messages.get_nowait()
            if not message or hashlib.sha256(message).hexdigest() == digest:
                continue  # the broker repeats the retained one at each connect
            try:
                self._verified(message, identity, policy.counter)
            except FleetPolicyRefused as refusal:
                self._refuse(refusal)
            else:
                self._next = message
                return True
        return False

    def _arrived(self, message: Message) -> None:
        if self._messages.full():
            self._messages.get_nowait()
        self._messages.put_nowait(message.payload)
        self._changed.set()

    def _part(self, message: Message) -> None:
        policy = self._collecting
        digest, _, text = message.topic.rpartition("/blob/")[2].partition("/")
        if policy is None or digest != policy.sha256 or not 0 < len(message.payload) <= BLOB_PART_BYTES:
            return
        number = _part_number(text)
        if number is None or number >= _count_of_parts(policy):
            return
        self._parts[number] = message.payload
        if len(self._parts) == _count_of_parts(policy):
            self._changed.set()


def _count_of_parts(policy: FleetPolicy) -> int:
    return -(-policy.size // BLOB_PART_BYTES)


def _part_number(text: str) -> int | None:
    """Return the number of a part; None for a text that is not how the server writes one."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS and (text == "0" or text[0] != "0")
    return int(text) if is_number else None
