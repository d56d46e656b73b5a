"""What verbs print of others: topics, names of devices, choices and metrics are text, never markup, and steer no terminal."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from learners.checkpoints.store import Checkpoints
from runtime.cli import agent_verbs, checkpoints, discover
from runtime.cli.main import main
from runtime.cli.options import InvalidInput
from runtime.discovery.proposals import FoundActuator, FoundStream, LeftOut, Proposals
from sensors.drivers import device_list
from sensors.drivers.device_list import CameraDevice, Devices, MicrophoneDevice

ODD = "[/b][red]a\x1b[2J\x07[link=x]"
SHOWN = "[/b][red]a\ufffd[2J\ufffd[link=x]"


def joined(text: str) -> str:
    """The text without line breaks and spaces: a table wraps its cells."""
    assert "\x1b" not in text
    assert "\x07" not in text
    return "".join(text.split())


def test_discovered_topics_are_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    found = Proposals(
        [FoundStream(ODD, ODD, (ODD,), sample=ODD, why=ODD)],
        [FoundActuator(ODD, ODD, (ODD, "b"), state_topic=ODD, why=ODD)],
        [LeftOut(ODD, ODD)],
    )
    discover._show(found)
    assert joined(capsys.readouterr().out).count(SHOWN) == 12


def test_names_of_devices_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices((CameraDevice(0, ODD, ODD, True),), (MicrophoneDevice(1, ODD, 1, 16_000.0),), ())
    monkeypatch.setattr(device_list, "devices", lambda: devices)
    done = CliRunner().invoke(main, ["devices"], env={"COLUMNS": "400"})
    assert (done.exit_code, joined(done.output).count(SHOWN)) == (0, 3)


def test_parents_and_figures_of_versions_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    folder = Checkpoints(tmp_path / "checkpoints", Ed25519PrivateKey.generate())
    folder.save({"policy": {"w": torch.ones(1)}}, {}, parent=ODD, metrics={ODD: 1.0})
    checkpoints.list_versions(folder)
    assert joined(capsys.readouterr().out).count(SHOWN) == 2


def test_choices_and_notes_of_an_explanation_are_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    part = {"action": ODD, "score": 1.0, "baseline": 0.5, "score_kind": "value", "streams": {"joints": 0.5}}
    agent_verbs.picture({
        "decision": "a-1", "policy": "p", "reward": 0.0, "value": 0.0, "parts": {"head": part}, "probabilities": {}, "missing": [],
        "ages_ms": {"joints": 1.0}, "lineage": ["p"], "notes": [ODD], "by": {"head": "policy"}, "actions": {"head": ODD}, "proposed": {},
        "refused": {}, "allowed": {},
    })  # fmt: skip
    assert joined(capsys.readouterr().out).count(SHOWN) == 2


def test_a_refusal_steers_no_terminal() -> None:
    @click.command()
    def verb() -> None:
        raise InvalidInput("a\x1b[2Jb\nsecond\tline\u202e")

    done: Result = CliRunner().invoke(verb)
    assert (done.exit_code, done.output) == (2, "a?[2Jb\nsecond\tline?\n")
