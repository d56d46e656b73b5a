"""Sign the manifest of a fleet's policy, and decide on a device whether one is accepted.

The signed message is 64 bytes of Ed25519 signature and then JSON. A device accepts a manifest that
the fleet's key signed for its group, its spec and its version of reflexd. It has not expired, and its counter is above all before,
so that an old manifest cannot be replayed. A rollback of the fleet is a new manifest for an old version. The blob is a zip archive of
one checkpoint, which this module checks against the manifest before it reads it.

Uses no torch. Knows neither MQTT nor which version acts.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learners.checkpoints.manifest import MANIFEST, SIGNATURE, CheckpointRefused, load
from learners.checkpoints.signing import PrivateKey, PublicKey, verified
from learners.files import new_folder, write_synced
from learners.fleet_data.segment import NAME

SIGNATURE_BYTES = 64
MAX_MANIFEST_BYTES = 65_536
MAX_BLOB_BYTES = 67_108_864
MAX_FILES = 64
Stage = Literal["canary", "tenth", "all"]
"""How far a wave has come: a few agents, a tenth, or all."""
_ENTRY = r"^[a-z0-9][a-z0-9_-]{0,63}\.(safetensors|json|xml|bin|onnx|sig)\Z"


class FleetPolicyRefused(Exception):  # noqa: N818 - reads as what happened
    """A manifest or blob that is not accepted; `str` is the reason."""


class FleetPolicy(BaseModel):
    """The manifest of a policy of a fleet."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    group: str = Field(pattern=NAME)
    counter: int = Field(ge=1, le=1 << 53)
    """Grows with every manifest of the group."""
    version: str = Field(pattern=r"^\d{6,12}-[0-9a-f]{8}$")
    parent: str | None = Field(pattern=r"^\d{6,12}-[0-9a-f]{8}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the blob."""
    size: int = Field(ge=1, le=MAX_BLOB_BYTES)
    spec: str = Field(pattern=r"^[0-9a-f]{64}$")
    encoder_versions: dict[str, str] = Field(max_length=512)
    withdrawn: list[str] = Field(max_length=64)
    """Versions that the fleet took out for good; every agent takes them back, whatever its wave."""
    share: float = Field(gt=0, le=1)
    """Of the agents that try it: the wave."""
    wave: Stage | Literal["manual"] = "manual"
    """The stage of the wave; `manual` where a person chose the share."""
    min_daemon: str = Field(pattern=r"^[0-9.]{1,32}$")
    expires_s: float = Field(gt=0, le=4_102_444_800)
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What a device compares a manifest with."""

    group: str
    agent: str
    spec: str
    daemon: str
    counter: int
    """The highest counter that it accepted."""
    now_s: float


def sign(policy: FleetPolicy, key: PrivateKey) -> bytes:
    """Return the signed message of a manifest."""
    body = orjson.dumps(policy.model_dump(), option=orjson.OPT_SORT_KEYS)
    return key.sign(body) + body


def verify(message: bytes, public: PublicKey, device: DeviceIdentity) -> FleetPolicy:
    """Return the manifest of a message that this device accepts.

    Raises:
        FleetPolicyRefused: with the reason.
    """
    if not SIGNATURE_BYTES < len(message) <= MAX_MANIFEST_BYTES:
        raise FleetPolicyRefused(f"{len(message)} bytes are not a signed manifest")
    body = message[SIGNATURE_BYTES:]
    if not verified(public, message[:SIGNATURE_BYTES], body):
        raise FleetPolicyRefused("the signature is not of the fleet's key (fleet.key)")
    try:
        policy = FleetPolicy.model_validate(orjson.loads(body))
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise FleetPolicyRefused(f"the manifest cannot be read: {str(error)[:200]}") from None
    checks = (
        (policy.group == device.group, f"it is for group {policy.group}"),
        (
            policy.counter > device.counter,
            f"counter {policy.counter} is not above {device.counter}: it is old or replayed",
        ),
        (policy.expires_s > device.now_s, "it has expired"),
        (policy.spec == device.spec, f"it is for spec {policy.spec[:12]}, this agent has {device.spec[:12]}"),
        (
            version_numbers(device.daemon) >= version_numbers(policy.min_daemon),
            f"it needs reflexd {policy.min_daemon}, here is {device.daemon}",
        ),
    )
    problem = next((reason for holds, reason in checks if not holds), None)
    if problem is not None:
        raise FleetPolicyRefused(problem)
    return policy


def is_in_wave(policy: FleetPolicy, agent: str) -> bool:
    """Return whether an agent is among the share of the agents that try a policy; it is the same for every share of a version."""
    return wave_position(policy.group, policy.version, agent) < policy.share


def wave_position(group: str, version: str, agent: str) -> float:
    """Return the share, in [0, 1), above which an agent is in the wave of a version."""
    digest = hashlib.sha256(f"{group}/{version}/{agent}".encode()).digest()
    return int.from_bytes(digest[:7]) / (1 << 56)


def version_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, as far as it has such."""
    numbers = []
    for part in text.split("+", maxsplit=1)[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def pack_blob(directory: Path) -> bytes:
    """Return the blob of a version's directory: its files, sorted, without compression and without dates.

    Raises:
        OSError: a file cannot be read.
    """
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(directory.iterdir()):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    return sink.getvalue()


def unpack_blob(blob: bytes, policy: FleetPolicy, public: PublicKey, folder: Path) -> Path:
    """Check a blob against its manifest, write its files into a folder named after the version, and load them once.

    Args:
        blob: the archive.
        policy: the accepted manifest.
        public: the key that signed the checkpoint.
        folder: the parent of the version's directory.

    Raises:
        FleetPolicyRefused: it is another blob, or no whole checkpoint of that key.
        OSError: the files cannot be written.
    """
    if len(blob) != policy.size or hashlib.sha256(blob).hexdigest() != policy.sha256:
        raise FleetPolicyRefused("the blob is not the one of the manifest")
    files = _files(blob)
    target = folder / policy.version
    if not target.exists():
        with new_folder(target, mode=0o700) as draft:
            for name, content in files.items():
                write_synced(draft / name, content)
    try:
        loaded = load(target, public, as_arrays=True)
    except CheckpointRefused as refusal:
        raise FleetPolicyRefused(str(refusal)) from None
    if dict(loaded.manifest.encoder_versions) != policy.encoder_versions:
        raise FleetPolicyRefused("the encoder versions of manifest and checkpoint differ")
    return target


def _files(blob: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_FILES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise FleetPolicyRefused("the blob has too many files, or compressed ones")
            files = {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:  # RuntimeError: an encrypted entry
        raise FleetPolicyRefused(f"the blob is not an archive: {error}") from None
    if len(files) != len(entries):
        raise FleetPolicyRefused("the blob has two files of one name")
    bad = [name for name in files if not re.match(_ENTRY, name)]
    if bad or not {MANIFEST, SIGNATURE} <= files.keys():
        raise FleetPolicyRefused("the blob is not a checkpoint")
    return files
