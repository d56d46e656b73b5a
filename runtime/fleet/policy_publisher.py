"""Publish a version to a group: the blob in retained parts, then the signed manifest.

`<data>/<group>/policies` has every version that was published, under the fleet's own key, and says which one is in force. A
rollback publishes an earlier one again, with a higher counter. `passed.json` names the versions that passed all of their waves, and
`by-hand.json` those that a person published to all agents. A withdrawal returns to the newest of both. A rollback by hand returns to one
that passed its waves, and to another one only where the person insists. A rollback takes a version out only while the broker answers, and notes
it, so that a rollback that was interrupted publishes the same version when it is repeated. The verbs `reflexd fleet publish` and
`rollback` use it.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import orjson

from learners.checkpoints.manifest import CheckpointRefused, LoadedCheckpoint
from learners.checkpoints.signing import load_key, public_pem
from learners.checkpoints.store import Checkpoints
from learners.checkpoints.trusted_keys import TrustedKeys, signer
from learners.files import locked, private_folder, write_atomically
from learners.fleet_data.policy_manifest import FleetPolicy, Stage, pack_blob, sign
from learners.fleet_data.retained_blobs import RetainedBlob, RetainedBlobs
from learners.ipc.policy_spec import spec_of_version
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.topics import BLOB_PART_BYTES, FleetTopics
from runtime.mqtt import Address, Connection, MqttLost

CONNECT_S = 5.0
PART_S = 10.0
MAX_NAMES = 64
"""Of versions that were withdrawn, or that passed: the newest."""
VALID_S = 30 * 86_400.0


@dataclass(slots=True)
class PolicyPublisher:
    """Publishes versions of one group.

    Args:
        settings: of the server.
        clock: Unix seconds.
    """

    settings: FleetServerSettings
    clock: Callable[[], float] = time.time
    skipped: list[str] = field(default_factory=list)
    """Versions that the last rollback passed by because they never passed their waves, the newest first."""

    @property
    def folder(self) -> Path:
        """Where the group's state is."""
        return self.settings.data / self.settings.group

    def key_file(self) -> Path:
        """Return the file of the fleet's public key, which devices name as `fleet.key`; it is made when it is missing.

        Raises:
            KeyRefused, OSError: the key cannot be used or written.
        """
        path = self.settings.data / "fleet-key.pem"
        content = public_pem(load_key(self.settings.data).public_key())
        if not path.exists() or path.read_bytes() != content:
            private_folder(path.parent)
            write_atomically(path, content)
        return path

    def add(
        self, directory: Path, key: str | None, ask: Callable[[str], bool], *, by: Literal["person", "wave"] = "person"
    ) -> str:
        """Store a checkpoint that was made elsewhere under the fleet's key, as the version in force; return its name.

        One for a wave that was stored before is not stored again.

        Args:
            directory: of the version.
            key: fingerprint or PEM file of the key that signed it; None to look among known ones and to ask.
            ask: whether to trust an unknown fingerprint.
            by: who publishes it; what a wave publishes has to pass before an agent returns to it.

        Raises:
            KeyRefused, CheckpointRefused: it is not whole, or not of a trusted key.
        """
        checkpoints = self._checkpoints()
        public = signer(directory, checkpoints.public, TrustedKeys(self.settings.data), key, ask)
        version = _imported(checkpoints, directory.name) if by == "wave" else None
        if version is None:
            version = checkpoints.import_version(directory, public)
        checkpoints.promote(version, by="publish")
        self._pending.unlink(missing_ok=True)
        return version

    def passed(self) -> list[str]:
        """Return the versions that passed all of their waves, the newest last."""
        return self._names("passed.json")

    def trusted(self) -> list[str]:
        """Return the versions that passed all of their waves, and those that a person published to all agents."""
        return [*self.passed(), *self._names("by-hand.json")]

    def note_passed(self, version: str) -> None:
        """Note that a version passed all of its waves.

        Raises:
            OSError: the disk refuses.
        """
        self._note_name("passed.json", version)

    def note_by_hand(self, version: str) -> None:
        """Note that a person published a version to all agents.

        Raises:
            OSError: the disk refuses.
        """
        self._note_name("by-hand.json", version)

    def in_force(self) -> str | None:
        """Return the version in force; None if there is none."""
        return self._checkpoints().live().version

    @property
    def _pending(self) -> Path:
        """Names the version that a rollback takes out, until the one before it is published."""
        return self.folder / "rollback-pending.json"

    def go_back(self, *, force: bool = False) -> str:
        """Take the version in force out for good; return the version in force then: the newest one before it that passed its waves.

        Without one, the version in force stays so and is only withdrawn: no agent tries any. A repeated call takes out no further
        version before the broker has that one.

        Args:
            force: return to the newest one before it, also where it never passed its waves.

        Raises:
            CheckpointRefused: no version was published yet.
        """
        version = self._checkpoints().live().version
        if version is None:
            raise CheckpointRefused("none", "missing", "no version was published, so there is nothing to roll back")
        if self._pending.exists():
            failing = str(orjson.loads(self._pending.read_bytes()))
        else:
            failing = version
            write_atomically(self._pending, orjson.dumps(failing), mode=0o600)
        return self._take_out(failing, None if force else self.passed())

    def _take_out(self, version: str, allowed: Collection[str] | None) -> str:
        """Withdraw a version, and return the version in force then: where it was in force, the newest one before it that is allowed.

        Args:
            version: as the fleet calls it.
            allowed: versions that agents may return to; None for any that was not taken out.
        """
        self._note_name("withdrawn.json", version)
        self.skipped.clear()
        checkpoints = self._checkpoints()
        for earlier in dict.fromkeys(reversed(checkpoints.live().promoted)):
            live = checkpoints.live()
            if live.version != version:
                break
            if earlier in {version, *live.failed, *self.withdrawn()}:
                continue
            if allowed is not None and earlier not in allowed:
                self.skipped.append(earlier)
                continue
            with suppress(CheckpointRefused):  # it cannot be loaded any more
                checkpoints.rollback(failing=version, to=earlier)
        return str(checkpoints.live().version)

    async def roll_back(self, share: float, *, force: bool = False) -> FleetPolicy:
        """Take the version in force out for good, once the broker answers, and publish the newest one before it that passed its waves.

        Without one, the manifest only withdraws. `skipped` names newer ones that never passed.

        Args:
            share: of the agents that try it.
            force: publish the newest one before it, also where it never passed its waves.

        Raises:
            MqttLost: the broker does not answer; where it had answered before, a repetition publishes the same version.
            CheckpointRefused: no version was published yet, or it cannot be read.
            ValueError: it names no spec.
        """
        return await self.publish(share, before=partial(self.go_back, force=force))

    async def withdraw(self, version: str) -> FleetPolicy:
        """Take a version out on every agent, and publish the newest one before it that is `trusted`; without one, no agent tries any.

        Args:
            version: as the fleet calls it.

        Raises:
            MqttLost: the broker does not answer; a repetition publishes the same.
            CheckpointRefused: the version in force cannot be read.
        """
        return await self.publish(1.0, before=lambda: self._take_out(version, self.trusted()), wave="all")

    def _note_name(self, file: str, version: str) -> None:
        private_folder(self.folder)
        with locked(self.folder):
            names = self._names(file)
            if version not in names:
                write_atomically(self.folder / file, orjson.dumps([*names, version][-MAX_NAMES:]), mode=0o600)

    def _names(self, file: str) -> list[str]:
        path = self.folder / file
        return [str(name) for name in orjson.loads(path.read_bytes())] if path.exists() else []

    def withdrawn(self) -> list[str]:
        """Return the versions that a wave or a person took out, the newest last."""
        return self._names("withdrawn.json")

    async def publish(
        self,
        share: float,
        *,
        before: Callable[[], object] = lambda: None,
        wave: Stage | Literal["manual"] = "manual",
    ) -> FleetPolicy:
        """Publish the version in force, and return its manifest once the broker has it.

        Args:
            share: of the agents that try it.
            wave: the stage, for the manifest.
            before: called once the broker answers; may put another version in force.

        Raises:
            MqttLost: the broker does not answer.
            CheckpointRefused: the version cannot be read.
            ValueError: no version is in force, or it names no spec.
        """
        topics = FleetTopics(self.settings.group)
        link = Connection(Address.of(self.settings.mqtt, "agent"), f"reflexd-fleet-publish-{secrets.token_hex(4)}")
        running = asyncio.create_task(link.run(), name="fleet publish")
        try:
            async with asyncio.timeout(CONNECT_S):
                await link.up()
            await asyncio.to_thread(before)
            policy, blob = await asyncio.to_thread(self._prepare, share, wave)
            parts, blobs = -(-len(blob) // BLOB_PART_BYTES), RetainedBlobs(self.folder, self.clock)
            await asyncio.to_thread(blobs.begin, policy.sha256, parts, policy.counter)
            for number, start in enumerate(range(0, len(blob), BLOB_PART_BYTES)):
                part = blob[start : start + BLOB_PART_BYTES]
                await link.publish(topics.blob(policy.sha256, number), part, retain=True, timeout_s=PART_S)
            message = sign(policy, load_key(self.settings.data))
            await link.publish(topics.policy, message, retain=True, timeout_s=PART_S)
            self._pending.unlink(missing_ok=True)
            earlier = await asyncio.to_thread(blobs.finish, policy.sha256, parts, policy.counter)
            with suppress(MqttLost, TimeoutError):  # the version is published; the next publication clears the rest
                await self._clear(link, earlier, blobs)
            if wave == "manual" and share == 1 and policy.version not in policy.withdrawn:
                self.note_by_hand(policy.version)
        except TimeoutError:
            reason = link.trouble or "no answer"
            raise MqttLost(f"{self.settings.mqtt.host}:{self.settings.mqtt.port}: {reason}") from None
        finally:
            running.cancel()
            await asyncio.wait([running])
        return policy

    async def _clear(self, link: Connection, earlier: list[RetainedBlob], blobs: RetainedBlobs) -> None:
        """Clear the retained parts of blobs that no manifest names any more.

        Raises:
            MqttLost: the broker does not answer, or refuses it.
            OSError: the disk refuses.
        """
        topics = FleetTopics(self.settings.group)
        for each in earlier:
            for number in range(each.parts):
                await link.publish(topics.blob(each.sha256, number), b"", retain=True, timeout_s=PART_S)
            await asyncio.to_thread(blobs.forget, each)

    def _prepare(self, share: float, wave: Stage | Literal["manual"]) -> tuple[FleetPolicy, bytes]:
        checkpoints = self._checkpoints()
        version = checkpoints.live().version
        if version is None:
            raise ValueError("no version was published yet; run `reflexd fleet publish FLEET.yaml DIRECTORY`")
        loaded = checkpoints.load_arrays(version)
        blob = pack_blob(checkpoints.folder / version)
        policy = FleetPolicy(
            group=self.settings.group,
            counter=self._next_counter(),
            version=version,
            parent=_parent(checkpoints, version),
            sha256=hashlib.sha256(blob).hexdigest(),
            size=len(blob),
            spec=spec_digest_of(loaded),
            encoder_versions=dict(loaded.manifest.encoder_versions),
            withdrawn=list(dict.fromkeys([*checkpoints.live().failed, *self.withdrawn()]))[-MAX_NAMES:],
            share=share,
            wave=wave,
            min_daemon=self.settings.min_daemon,
            expires_s=self.clock() + VALID_S,
        )
        return policy, blob

    def _next_counter(self) -> int:
        """Return a counter above all before, which is on disk when it is returned."""
        path = self.folder / "policy-counter.json"
        with locked(self.folder):
            counter = 1 + (int(orjson.loads(path.read_bytes())) if path.exists() else 0)
            write_atomically(path, orjson.dumps(counter))
        return counter

    def _checkpoints(self) -> Checkpoints:
        private_folder(self.folder)
        return Checkpoints(self.folder / "policies", load_key(self.settings.data))


def rollback_in_words(publisher: PolicyPublisher, policy: FleetPolicy) -> str:
    """Return what a rollback did, and which versions it passed by because they never passed their waves.

    Args:
        publisher: that rolled back.
        policy: the manifest that it published.
    """
    skipped = f"{', '.join(publisher.skipped)} never passed all waves" if publisher.skipped else ""
    if policy.version in policy.withdrawn:
        way = f". {skipped}: `reflexd fleet rollback --force` returns to {publisher.skipped[0]}" if skipped else ""
        return f"{policy.version} is withdrawn from {policy.group}; no earlier version passed its waves{way}"
    unproven = "" if policy.version in publisher.passed() else ", which NEVER PASSED all waves"
    text = f"{policy.version}{unproven} is published to {policy.share:.0%} of {policy.group} as number {policy.counter}"
    return f"{text}; {skipped}, and the rollback passed by" if skipped else text


def spec_digest_of(loaded: LoadedCheckpoint) -> str:
    """Return the digest of a version's policy spec, as agents compute theirs.

    Raises:
        ValueError: the version names no spec.
    """
    spec = spec_of_version(loaded)
    if spec is None:
        raise ValueError(
            f"{loaded.manifest.version} names no policy spec; publish one that a daemon or `reflexd train` wrote"
        )
    return hashlib.sha256(spec.to_json()).hexdigest()


def _parent(checkpoints: Checkpoints, version: str) -> str | None:
    """Return the version that was in force before."""
    before = [name for name in checkpoints.live().promoted if name != version]
    return before[-1] if before else None


def _imported(checkpoints: Checkpoints, source: str) -> str | None:
    """Return the version that was imported from one of the learner, and was not taken out; None if there is none."""
    failed = checkpoints.live().failed
    names = (each.version for each in checkpoints.list() if each.metrics.get("adopted_from") == source)
    return next((name for name in names if name not in failed), None)
