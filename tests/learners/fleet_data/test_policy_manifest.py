"""A device accepts a policy of its fleet once, and nothing that was changed, repeated, or made for others."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learning
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.checkpoints.store import Checkpoints
from learners.fleet_data.policy_manifest import (
    DeviceIdentity,
    FleetPolicy,
    FleetPolicyRefused,
    is_in_wave,
    pack_blob,
    sign,
    unpack_blob,
    verify,
)
from learners.fleet_data.received_policies import note_received, received

KEY, OTHER = learning.KEY, Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
NOW_S = 1_800_000_000.0
DEVICE = DeviceIdentity(group="arms", agent="robot", spec="5" * 64, daemon="0.1.0", counter=4, now_s=NOW_S)


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("fleet") / "policies", KEY, clock=lambda: 7.0)
    policy = learning.SmallPolicy(learning.SPEC)
    version = checkpoints.save({"policy": policy.state_dict()}, {"spec": orjson.loads(learning.SPEC.to_json())})
    return pack_blob(checkpoints.folder / version) + version.encode()


def manifest(blob: bytes, **changed: Any) -> FleetPolicy:
    content, version = blob[:-15], blob[-15:].decode()
    fields: dict[str, Any] = {
        "group": "arms", "counter": 5, "version": version, "parent": None, "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content), "spec": "5" * 64, "encoder_versions": {}, "withdrawn": [], "share": 1.0, "min_daemon": "0.1", "expires_s": NOW_S + 60,
    }  # fmt: skip
    return FleetPolicy.model_validate(fields | changed)


def test_a_whole_policy_is_accepted_and_passed_on_once(blob: bytes, tmp_path: Path) -> None:
    message = sign(manifest(blob), KEY)
    policy = verify(message, KEY.public_key(), DEVICE)
    state = tmp_path / "state"
    target = unpack_blob(blob[:-15], policy, KEY.public_key(), state / "uplink" / "policies")
    note_received(state, target, policy.version)
    assert received(state) == target


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"group": "legs"}, "for group legs"),
        ({"counter": 4}, "old or replayed"),
        ({"counter": 1}, "old or replayed"),
        ({"expires_s": NOW_S - 1}, "expired"),
        ({"spec": "6" * 64}, "for spec 666"),
        ({"min_daemon": "0.2"}, "needs reflexd 0.2"),
    ],
)
def test_a_signed_manifest_for_others_is_refused(blob: bytes, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(FleetPolicyRefused, match=reason):
        verify(sign(manifest(blob, **changed), KEY), KEY.public_key(), DEVICE)


def test_another_key_is_refused(blob: bytes) -> None:
    with pytest.raises(FleetPolicyRefused, match="signature"):
        verify(sign(manifest(blob), OTHER), KEY.public_key(), DEVICE)
    with pytest.raises(FleetPolicyRefused, match="not a signed manifest"):
        verify(b"", KEY.public_key(), DEVICE)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 100_000), st.integers(1, 255), st.sampled_from(["flip", "cut", "insert"]))
def test_every_changed_manifest_is_refused(blob: bytes, place: int, value: int, how: str) -> None:
    message = bytearray(sign(manifest(blob), KEY))
    place %= len(message)
    changes: dict[str, Callable[[], object]] = {
        "flip": lambda: message.__setitem__(place, message[place] ^ value),
        "cut": lambda: message.__delitem__(slice(place, None)),
        "insert": lambda: message.insert(place, value),
    }
    changes[how]()
    if bytes(message) == sign(manifest(blob), KEY):
        return
    with pytest.raises(FleetPolicyRefused):
        verify(bytes(message), KEY.public_key(), DEVICE)


def test_every_changed_blob_is_refused(blob: bytes, tmp_path: Path) -> None:
    choose, policy = random.Random(3), manifest(blob)
    for _ in range(100):
        content = bytearray(blob[:-15])
        content[choose.randrange(len(content))] ^= choose.randrange(1, 256)
        with pytest.raises(FleetPolicyRefused, match="not the one of the manifest"):
            unpack_blob(bytes(content), policy, KEY.public_key(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_blob_that_another_key_signed_is_refused(blob: bytes, tmp_path: Path) -> None:
    with pytest.raises(FleetPolicyRefused, match="wrong_signature"):
        unpack_blob(blob[:-15], manifest(blob), OTHER.public_key(), tmp_path)
    junk = b"PK no archive"
    policy = manifest(blob, sha256=hashlib.sha256(junk).hexdigest(), size=len(junk))
    with pytest.raises(FleetPolicyRefused, match="not an archive"):
        unpack_blob(junk, policy, KEY.public_key(), tmp_path)


def test_a_wave_is_a_share_that_only_grows(blob: bytes) -> None:
    agents = [f"arm-{number}" for number in range(1_000)]
    narrow = {agent for agent in agents if is_in_wave(manifest(blob, share=0.1), agent)}
    wide = {agent for agent in agents if is_in_wave(manifest(blob, share=0.5), agent)}
    assert 60 < len(narrow) < 150
    assert narrow < wide
    assert all(is_in_wave(manifest(blob), agent) for agent in agents)


def test_a_blob_with_two_files_of_one_name_or_an_encrypted_one_is_refused(blob: bytes, tmp_path: Path) -> None:
    def signed(content: bytes) -> FleetPolicy:
        return manifest(blob, sha256=hashlib.sha256(content).hexdigest(), size=len(content))

    with zipfile.ZipFile(io.BytesIO(blob[:-15])) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(zipfile.ZipInfo("spec.json"), b"{}")
    twice = sink.getvalue()
    with pytest.raises(FleetPolicyRefused, match="two files of one name"):
        unpack_blob(twice, signed(twice), KEY.public_key(), tmp_path)
    locked = bytearray(blob[:-15])
    locked[6] |= 1
    central = bytes(locked).rindex(b"PK\x01\x02")
    while central >= 0:
        locked[central + 8] |= 1
        central = bytes(locked).rfind(b"PK\x01\x02", 0, central)
    with pytest.raises(FleetPolicyRefused, match="not an archive"):
        unpack_blob(bytes(locked), signed(bytes(locked)), KEY.public_key(), tmp_path)
