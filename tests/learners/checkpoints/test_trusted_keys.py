"""Which key may have signed an imported policy: never one that merely lies beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from learners.checkpoints.signing import KeyRefused, load_key
from learners.checkpoints.store import Checkpoints
from learners.checkpoints.trusted_keys import TrustedKeys, fingerprint, read_public
from runtime.cli.main import main

SETTINGS = {
    "agent": "tester",
    "mqtt": {"url": "mqtt://127.0.0.1:1"},
    "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["a"]}},
    "actuators": {"head": {"kind": "choice", "choices": ["left", "stay"], "safe": "stay"}},
}


class World:
    """An installation, and the output of `reflexd train` on another machine."""

    def __init__(self, folder: Path) -> None:
        self.state, self.out = folder / "state", folder / "out"
        self.settings = folder / "tester.yaml"
        self.settings.write_text(yaml.safe_dump(SETTINGS | {"state_dir": str(self.state)}))
        self.theirs = load_key(self.out)
        self.train()

    def train(self) -> None:
        Checkpoints(self.out / "checkpoints", self.theirs).save({"policy": {"w": torch.zeros(2)}}, {})

    def run(self, *arguments: str, answer: str | None = None) -> Result:
        command = ["checkpoints", "--config", str(self.settings), "import", str(self.out), *arguments]
        return CliRunner().invoke(main, command, input=answer)

    @property
    def live(self) -> str | None:
        return Checkpoints(self.state / "checkpoints", load_key(self.state)).live().version


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def pem(key: Ed25519PrivateKey, path: Path) -> str:
    path.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return str(path)


def test_an_unknown_key_is_shown_once_and_remembered(world: World) -> None:
    refused = world.run()  # no answer: as from a script
    assert refused.exit_code == 2
    assert fingerprint(world.theirs.public_key()) in refused.output
    assert "--key" in refused.output
    assert world.run(answer="n\n").exit_code == 2
    assert world.live is None
    assert world.run(answer="y\n").exit_code == 0
    first = world.live
    world.train()
    assert world.run().exit_code == 0, "no question: it is remembered"
    assert world.live != first
    assert TrustedKeys(world.state).path.stat().st_mode & 0o077 == 0


def test_a_swapped_checkpoint_with_a_key_of_its_own_is_refused(world: World) -> None:
    named = fingerprint(world.theirs.public_key())
    shutil.rmtree(world.out)
    world.theirs = load_key(world.out)  # whoever swapped the folder made a key, too
    world.train()
    refused = world.run("--key", named)
    assert refused.exit_code == 2
    assert "another key" in refused.output
    assert world.live is None
    assert world.run("--key", fingerprint(world.theirs.public_key())).exit_code == 0


def test_the_operator_names_a_file(world: World, tmp_path: Path) -> None:
    theirs = pem(world.theirs, tmp_path / "theirs.pem")
    other = pem(Ed25519PrivateKey.generate(), tmp_path / "other.pem")
    shutil.rmtree(world.out / "keys")
    assert "wrong_signature" in world.run("--key", other).output
    assert "name it with --key" in world.run().output
    assert not (world.out / "keys").exists(), "no key is made in a folder that is only read"
    assert world.run("--key", theirs).exit_code == 0
    assert world.live is not None


def test_what_is_no_key_is_refused_with_its_name(world: World, tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 2048)
    path = tmp_path / "rsa.pem"
    path.write_bytes(
        rsa.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert "an Ed25519 key is needed" in world.run("--key", str(path)).output
    private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(rsa.private_bytes(*private))
    assert "an Ed25519 key is needed" in world.run("--key", str(path)).output
    path.write_bytes(world.theirs.private_bytes(*private))
    assert fingerprint(read_public(path)) == fingerprint(world.theirs.public_key())
    for content in (b"", b"-----BEGIN PUBLIC KEY-----\n", b"\xff"):
        path.write_bytes(content)
        assert "no key can be read" in world.run("--key", str(path)).output
    assert str(tmp_path / "gone") in world.run("--key", str(tmp_path / "gone")).output


def test_a_damaged_list_of_keys_is_refused(tmp_path: Path) -> None:
    keys = TrustedKeys(tmp_path)
    assert keys.all() == []
    keys.remember(Ed25519PrivateKey.generate().public_key())
    keys.remember(Ed25519PrivateKey.generate().public_key())
    assert len(keys.all()) == 2
    keys.remember(keys.all()[0])
    assert len(keys.all()) == 2
    keys.path.write_text("abc\n")
    with pytest.raises(KeyRefused, match="confirm the keys again"):
        keys.all()
