"""Only whole, signed, finite versions load; a killed writer leaves the last good one."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from learners.checkpoints import store as module
from learners.checkpoints.experiment_records import versions_of_experiments, versions_that_passed
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.safetensors_torch import WeightsRefused, pack, shapes_of, unpack
from learners.checkpoints.signing import KeyRefused, load_key
from learners.checkpoints.store import Checkpoints, Live, open_checkpoints
from learners.config.learner import PromotionSettings

BROKEN_POINTERS = (b"", b"{}", b'{"version":"../x","promoted":[],"failed":[],"changed_s":0}', b"[]")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    policy = {"w": torch.randn(8, 4, generator=generator), "n": torch.tensor(3)}
    return {"policy": policy, "learner": {"exp_avg": torch.randn(8, 4, generator=generator).to(torch.bfloat16)}}


DOCUMENTS = {"spec": {"width": 8}, "position": {"updates": 12, "row": 99}}


@pytest.fixture
def folder(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", KEY, clock=lambda: 7.0)


def save(folder: Checkpoints, seed: int = 0, **fields: Any) -> str:
    return folder.save(tensors(seed), DOCUMENTS, **fields)


def refusal(folder: Checkpoints, version: str, **fields: Any) -> str:
    with pytest.raises(CheckpointRefused) as caught:
        folder.load(version, **fields)
    assert version in str(caught.value)
    return caught.value.reason


def test_a_version_comes_back_as_it_was_saved(folder: Checkpoints) -> None:
    version = save(
        folder, parent=None, encoder_versions={"vision": "v1"}, data={"first": 1, "last": 9}, metrics={"score": 0.5}
    )
    loaded = folder.load(version, {"policy": shapes_of(tensors()["policy"])})
    for stem, group in tensors().items():
        for name, tensor in group.items():
            assert torch.equal(loaded.tensors[stem][name], tensor)
            assert loaded.tensors[stem][name].dtype == tensor.dtype
    assert loaded.documents == DOCUMENTS
    assert loaded.manifest.encoder_versions == {"vision": "v1"}
    assert loaded.manifest.data == {"first": 1, "last": 9}
    assert (loaded.manifest.version, loaded.manifest.created_s) == (version, 7.0)
    assert folder.list() == [loaded.manifest]


def test_wrong_shapes_are_refused(folder: Checkpoints) -> None:
    version = save(folder)
    assert refusal(folder, version, shapes={"policy": {"w": (8, 5), "n": ()}}) == "wrong_shapes"
    assert refusal(folder, version, shapes={"policy": {"w": (8, 4)}}) == "wrong_shapes"
    assert refusal(folder, version, shapes={"other": {}}) == "missing_file"


def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(folder: Checkpoints, monkeypatch: Any) -> None:
    bad = {"policy": {"w": torch.tensor([1.0, float("nan")])}}
    with pytest.raises(WeightsRefused, match="1 of 2 numbers"):
        folder.save(bad, {})
    monkeypatch.setattr(
        "learners.checkpoints.safetensors_torch.check_finite", lambda _: None
    )  # a signer that does not look
    version = folder.save(bad, {})
    monkeypatch.undo()
    assert refusal(folder, version) == "not_finite"


def resign(folder: Checkpoints, version: str, change: Callable[[dict[str, Any]], None], key: Any = KEY) -> None:
    """Change the manifest as somebody could who has `key`."""
    directory = folder.folder / version
    body = orjson.loads((directory / "manifest.json").read_bytes())
    change(body)
    content = orjson.dumps(body)
    (directory / "manifest.json").write_bytes(content)
    (directory / "manifest.sig").write_bytes(key.sign(content))


def replace(folder: Checkpoints, version: str, name: str, content: bytes) -> None:
    """Swap a file and sign the manifest again."""
    import hashlib

    (folder.folder / version / name).write_bytes(content)
    resign(folder, version, lambda body: body["files"].__setitem__(name, hashlib.sha256(content).hexdigest()))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "torch"])
def test_a_pickle_is_refused_even_when_signed(folder: Checkpoints, tmp_path: Path, protocol: Any) -> None:
    version = save(folder)
    path = tmp_path / "x"
    if protocol == "torch":
        torch.save({"w": torch.zeros(1)}, path)
    else:
        path.write_bytes(pickle.dumps({"w": [1.0]}, protocol=protocol))
    (folder.folder / version / "policy.safetensors").write_bytes(path.read_bytes())
    assert refusal(folder, version) == "wrong_hash"
    replace(folder, version, "policy.safetensors", path.read_bytes())
    assert refusal(folder, version) == "pickle"


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "C64"])
def test_numbers_of_a_type_that_no_policy_has_are_refused_by_both_readers(folder: Checkpoints, kind: str) -> None:
    """torch cannot say whether they are finite; with them NaN would pass, or the reader fail."""
    version = save(folder)
    data = b"\x7f\xff\xff\xff" * 2
    header = orjson.dumps({"w": {"dtype": kind, "shape": [1 if kind == "C64" else 8], "data_offsets": [0, 8]}})
    replace(folder, version, "policy.safetensors", len(header).to_bytes(8, "little") + header + data)
    for read in (folder.load, folder.load_arrays):
        with pytest.raises(CheckpointRefused, match=r"w: numbers of the type .*, which no policy has"):
            read(version)


def test_signed_nonsense_is_refused_by_name(folder: Checkpoints) -> None:
    version = save(folder)
    replace(folder, version, "policy.safetensors", b"\x08\0\0\0\0\0\0\0{}xxxxxx")
    assert refusal(folder, version) == "not_safetensors"
    version = save(folder)
    replace(folder, version, "spec.json", b"{")
    assert refusal(folder, version) == "not_json"
    for change, reason in (
        (lambda body: body.update(format=2), "unknown_format"),
        (lambda body: body.pop("format"), "bad_manifest"),
        (lambda body: body.update(surprise=1), "bad_manifest"),
        (lambda body: body.update(files=[]), "bad_manifest"),
        (lambda body: body.update(files={}), "bad_manifest"),
        (lambda body: body.update(files={"../../etc/passwd": "0"}), "bad_manifest"),
        (lambda body: body.update(files={"policy.pkl": "0"}), "bad_manifest"),
        (lambda body: body.update(files={"policy.json\n": "0"}), "bad_manifest"),
        (lambda body: body.update(files={"policy.json": 0}), "bad_manifest"),
        (lambda body: body.update(metrics=[1]), "bad_manifest"),
        (lambda body: body.update(metrics=None), "bad_manifest"),
        (lambda body: body.update(data=[]), "bad_manifest"),
        (lambda body: body.update(encoder_versions=["x"]), "bad_manifest"),
        (lambda body: body.update(encoder_versions={"front": 5}), "bad_manifest"),
        (lambda body: body.update(parent=5), "bad_manifest"),
        (lambda body: body.update(created_s="today"), "bad_manifest"),
        (lambda body: body.update(created_s=None), "bad_manifest"),
        (lambda body: body.update(created_s=1e300), "bad_manifest"),
        (lambda body: body.update(created_s=True), "bad_manifest"),
        (lambda body: body.update(format=True), "bad_manifest"),
        (lambda body: body.update(version="000009-00000000"), "wrong_version"),
    ):
        version = save(folder)
        resign(folder, version, change)
        assert refusal(folder, version) == reason


def test_unsigned_foreign_missing_and_extra(folder: Checkpoints) -> None:
    version = save(folder)
    resign(folder, version, lambda _: None, key=Ed25519PrivateKey.generate())
    assert refusal(folder, version) == "wrong_signature"
    cases = {
        "manifest.sig": "unsigned",
        "manifest.json": "no_manifest",
        "policy.safetensors": "missing_file",
        "position.json": "missing_file",
    }
    for name, reason in cases.items():
        version = save(folder)
        (folder.folder / version / name).unlink()
        assert refusal(folder, version) == reason
    version = save(folder)
    (folder.folder / version / "hook.py").write_text("import os")
    assert refusal(folder, version) == "extra_file"


def test_links_and_path_tricks_are_refused(folder: Checkpoints, tmp_path: Path) -> None:
    version = save(folder)
    real = folder.folder / version
    target = tmp_path / "elsewhere"
    (real / "policy.safetensors").rename(target)
    (real / "policy.safetensors").symlink_to(target)
    assert refusal(folder, version) == "not_a_file"
    (real / "policy.safetensors").unlink()
    os.mkfifo(real / "policy.safetensors")
    assert refusal(folder, version) == "not_a_file"
    whole = save(folder)
    other = "000099-00000000"
    (folder.folder / other).symlink_to(folder.folder / whole)
    assert refusal(folder, other) == "not_a_directory"
    (folder.folder / other).unlink()
    (folder.folder / whole).rename(folder.folder / other)
    assert refusal(folder, other) == "wrong_version"
    assert refusal(folder, "000098-00000000") == "missing"
    for name in ("..", "../checkpoints", "x", ""):
        with pytest.raises(CheckpointRefused, match="bad_name"):
            folder.load(name)


@pytest.mark.parametrize("name", ["policy.safetensors", "learner.safetensors", "spec.json", "position.json", "manifest.json", "manifest.sig"])  # fmt: skip
def test_any_flipped_bit_and_any_cut_is_refused(folder: Checkpoints, name: str) -> None:
    version = save(folder)
    path = folder.folder / version / name
    content = path.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert refusal(folder, version) in ("wrong_hash", "wrong_signature")
    for length in {0, 1, len(content) // 2, len(content) - 1}:
        path.write_bytes(content[:length])
        assert refusal(folder, version) in ("wrong_hash", "wrong_signature")
    path.write_bytes(content)
    folder.load(version)


def test_the_only_version_that_acted_is_taken_back_to_none(folder: Checkpoints) -> None:
    one = save(folder)
    folder.promote(one)
    with pytest.raises(CheckpointRefused, match="no earlier version"):
        folder.rollback(failing=one)
    live = folder.rollback(failing=one, or_none=True)
    assert (live.version, live.promoted, live.failed) == (None, (), (one,))
    assert folder.load_live(lambda _refused: None) is None
    assert not folder.is_pointer_damaged
    two, three = save(folder), save(folder)
    folder.promote(two)
    folder.promote(three)
    assert folder.rollback(failing=three, or_none=True).version == two  # one that loads comes first


def test_promotion_and_rollback(folder: Checkpoints) -> None:
    assert folder.live() == Live()
    with pytest.raises(CheckpointRefused, match="no version is live"):
        folder.rollback()
    one, two, three = (save(folder, seed) for seed in range(3))
    for version in (one, two, three):
        folder.promote(version)
    assert folder.live().promoted == (one, two, three)
    folder.rollback()
    assert (folder.live().version, folder.live().failed) == (two, (three,))
    with pytest.raises(CheckpointRefused, match="failed_before"):
        folder.promote(three)
    with pytest.raises(CheckpointRefused, match="failed_before"):
        folder.rollback(to=three)
    (folder.folder / one / "policy.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointRefused, match="wrong_hash"):
        folder.rollback(to=one)
    with pytest.raises(CheckpointRefused, match="no earlier version"):
        folder.rollback()
    assert folder.live().version == two
    four = save(folder, 4)
    folder.promote(four)
    assert folder.rollback(to=two).version == two
    with pytest.raises(CheckpointRefused, match="wrong_hash"):
        folder.promote(one)


def test_the_last_good_one_is_loaded_when_the_live_one_is_broken(folder: Checkpoints) -> None:
    refused: list[CheckpointRefused] = []
    one, two, candidate = (save(folder, seed) for seed in range(3))
    assert folder.load_live(refused.append) is None  # nothing was promoted yet: a mere candidate never acts
    folder.promote(one)
    folder.promote(two)
    (folder.folder / two / "policy.safetensors").write_bytes(b"")
    loaded = folder.load_live(refused.append)
    assert loaded is not None
    assert loaded.manifest.version == one
    assert [(r.version, r.reason) for r in refused] == [(two, "wrong_hash")]
    for broken in BROKEN_POINTERS:
        (folder.folder / "LIVE").write_bytes(broken)
        assert folder.live() == Live()
        assert folder.is_pointer_damaged
        loaded = folder.load_live(refused.append)  # of the learner's own state: every saved one may be used
        assert loaded is not None
        assert loaded.manifest.version == candidate


@pytest.mark.parametrize("broken", BROKEN_POINTERS)
def test_with_a_damaged_pointer_only_a_version_that_passed_its_probation_acts(tmp_path: Path, broken: bytes) -> None:
    folder = open_checkpoints(tmp_path, PromotionSettings())
    good, rolled_back, untried = (save(folder, seed) for seed in range(3))
    folder.promote(good)
    folder.promote(rolled_back)
    folder.rollback()
    (folder.folder / "LIVE").write_bytes(broken)
    assert folder.load_live(lambda refusal: pytest.fail(str(refusal))) is None, "nothing says which one passed"
    record = {"good": good, "confirmed": [good, rolled_back], "trial": {"version": untried, "before": good}}
    (tmp_path / "probation.json").write_text(json.dumps(record))
    loaded = folder.load_live(lambda refusal: pytest.fail(str(refusal)))
    assert loaded is not None
    assert loaded.manifest.version == good
    folder.repair_pointer(good)
    assert not folder.is_pointer_damaged
    assert (folder.live().version, folder.live().promoted) == (good, (good,))
    folder.repair_pointer(untried)
    assert folder.live().version == good, "a whole pointer is not replaced"


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"good": null, "confirmed": []}', '{"good": "../x", "confirmed": []}', '{"good": "000001-00000000", "confirmed": [1]}']
)  # fmt: skip
def test_a_record_that_cannot_be_read_names_no_version(tmp_path: Path, record: str) -> None:
    (tmp_path / "probation.json").write_text(record)
    assert versions_that_passed(tmp_path) == ()


def test_earlier_versions_that_passed_come_before_the_good_one(tmp_path: Path) -> None:
    names = [f"{number:06d}-00000000" for number in (3, 1, 2, 4)]
    (tmp_path / "probation.json").write_text(json.dumps({"good": names[0], "confirmed": names}))
    assert versions_that_passed(tmp_path) == (names[1], names[2], names[0])


def test_retention_keeps_the_last_the_best_and_every_promoted_one(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, KEY, keep_last=2, keep_best=1)
    first = save(folder, 0, metrics={"score": 0.1})
    folder.promote(first)
    best = save(folder, 1, metrics={"score": 0.9})
    others = [save(folder, seed, metrics={"score": 0.2}) for seed in range(2, 8)]
    assert [m.version for m in folder.list()] == [first, best, *others[-2:]]
    assert not list(tmp_path.glob(".gone-*"))


def test_versions_are_numbered_on_even_when_names_are_odd(folder: Checkpoints) -> None:
    (folder.folder / ".draft-123").mkdir()
    (folder.folder / ".draft-LIVE.0f").touch()
    assert save(folder).startswith("000001-")
    assert not list(folder.folder.glob(".draft-*"))
    with pytest.raises(ValueError, match="lower-case"):
        folder.save({"../policy": {}}, {})
    version = save(folder, 3)
    (folder.folder / version / "manifest.sig").unlink()
    assert len(folder.list()) == 1
    assert save(folder).startswith("000003-")


def test_a_foreign_version_is_imported_under_our_key(folder: Checkpoints, tmp_path: Path) -> None:
    theirs = Checkpoints(tmp_path / "train", Ed25519PrivateKey.generate())
    version = save(theirs)
    with pytest.raises(CheckpointRefused, match="wrong_signature"):
        folder.import_version(theirs.folder / version, folder.public)
    ours = folder.import_version(theirs.folder / version, theirs.public)
    assert folder.load(ours).manifest.metrics == {"adopted_from": version}
    calm = folder.import_version(
        theirs.folder / version, theirs.public, lambda weights: dict.fromkeys(weights, torch.zeros(2))
    )
    assert all(torch.equal(x, torch.zeros(2)) for x in folder.load(calm).tensors["policy"].values())


def test_the_key_is_made_once_readable_by_its_owner_alone(tmp_path: Path) -> None:
    key = load_key(tmp_path)
    path = tmp_path / "keys" / "checkpoint-key.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    assert load_key(tmp_path).public_key().public_bytes(*raw) == key.public_key().public_bytes(*raw)
    path.chmod(0o640)
    with pytest.raises(KeyRefused, match="chmod 600"):
        load_key(tmp_path)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        with pytest.raises(KeyRefused, match="belongs to user 65534"):
            load_key(tmp_path)
        os.chown(path, 0, 0)
    path.write_bytes(b"nonsense")
    with pytest.raises(KeyRefused, match="not an unencrypted PEM"):
        load_key(tmp_path)


def test_a_credential_of_systemd_comes_first_and_must_be_ed25519(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (credentials / "checkpoint-key").write_bytes(KEY.private_bytes(*pem))
    given = load_key(tmp_path, credentials)
    assert given.sign(b"x") == KEY.sign(b"x")
    assert not (tmp_path / "keys").exists()
    (credentials / "checkpoint-key").write_bytes(generate_private_key(65_537, 2_048).private_bytes(*pem))
    with pytest.raises(KeyRefused, match="Ed25519"):
        load_key(tmp_path, credentials)
    assert load_key(tmp_path, tmp_path / "none").sign(b"x") != KEY.sign(b"x")


@pytest.mark.parametrize("opening", [2, 3, 4, 5])
def test_a_header_that_looks_like_a_pickle_is_none(opening: int) -> None:
    """The header's length is the file's first bytes: 896 reads as protocol 3."""
    for length in range(1, 1_500):
        data = pack({"x" * length: torch.zeros(1)})
        if data.startswith(bytes((0x80, opening))):
            assert len(unpack(data)) == 1
            return
    raise AssertionError("no such header was made")


def test_unpack_refuses_an_empty_file() -> None:
    with pytest.raises(WeightsRefused, match="not a whole"):
        unpack(b"")


WRITER = """
import sys, torch
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from learners.checkpoints.store import Checkpoints
torch.set_num_threads(1)
folder = Checkpoints(Path(sys.argv[1]), Ed25519PrivateKey.from_private_bytes(bytes(range(32))), keep_last=2, keep_best=0)
print("ready", flush=True)
sys.stdin.readline()
for n in range(10**9):
    tensor = torch.full((64, 1024), float(n))
    folder.promote(folder.save({"policy": {"w": tensor}}, {"n": n}))
    if n % 3 == 2:
        folder.rollback()
"""


def test_a_writer_killed_at_random_moments_always_leaves_a_loadable_version(tmp_path: Path) -> None:
    assert kill_writer(tmp_path, kills=6, seed=0) == 0


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_writer_killed_a_hundred_times_always_leaves_a_loadable_version(tmp_path: Path) -> None:
    assert kill_writer(tmp_path, kills=100, seed=1) == 0


def kill_writer(folder: Path, kills: int, seed: int) -> int:
    """Kill a writer `kills` times; returns the unloadable starts, which the caller expects to be 0."""
    rng = random.Random(seed)
    root = Path(module.__file__).parents[2]
    unloadable = 0
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        if not (folder / "LIVE").exists() or Checkpoints(folder, KEY).live().version is None:
            while Checkpoints(folder, KEY).live().version is None:
                pass
        try:
            writer.wait(timeout=rng.uniform(0.0, 0.15))
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        writer.communicate()
        refused: list[CheckpointRefused] = []
        loaded = Checkpoints(folder, KEY).load_live(refused.append)
        unloadable += loaded is None or bool(refused)
        if loaded is not None:
            n = loaded.documents["n"]
            assert torch.equal(loaded.tensors["policy"]["w"], torch.full((64, 1024), float(n)))
    assert unloadable == 0
    return unloadable


@pytest.mark.parametrize("anchor", [None, "000009-aaaaaaaa"])
def test_until_a_version_is_trusted_the_best_so_far_is_needed(tmp_path: Path, anchor: str | None) -> None:
    proof = {"best": "000002-bbbbbbbb", "leader": "000003-cccccccc"}
    (tmp_path / "experiments.json").write_bytes(orjson.dumps({"trust": {"anchor": anchor}, "proof": proof}))
    assert versions_of_experiments(tmp_path) == (frozenset(proof.values()) if anchor is None else {anchor})
