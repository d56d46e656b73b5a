"""`reflexd checkpoints import` and `promote` say what a daemon will make of a version."""

from __future__ import annotations

from pathlib import Path

import learning
import orjson
import torch
from click.testing import CliRunner, Result

from actuators.actions import ActionSpace, Choice
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.checkpoints.trusted_keys import fingerprint
from learners.ipc.policy_spec import write_policy_spec
from learners.model.spec import PolicySpec, StreamSpec


def spec(*choices: str) -> PolicySpec:
    return PolicySpec(
        (StreamSpec("joints", "telemetry", 1, 1),), ActionSpace((Choice("head", choices),)), width=8, heads=2
    )


def imported(folder: Path, trained: Path) -> Result:
    from runtime.cli.main import main

    settings = folder / "robot.yaml"
    settings.write_text(
        f"""agent: robot
state_dir: {folder / "state"}
mqtt: {{url: "mqtt://127.0.0.1:1"}}
streams: {{joints: {{kind: telemetry, source: topic, fields: [a], max_age_s: 1}}}}
actuators: {{head: {{kind: choice, choices: [left, stay, right], safe: stay}}}}
"""
    )
    key = fingerprint(load_key(trained).public_key())
    verb = ["checkpoints", "--config", str(settings), "import", str(trained), "--key", key]
    return CliRunner().invoke(main, verb)


def train(folder: Path, made: PolicySpec) -> Path:
    weights = {"policy": learning.SmallPolicy(learning.SPEC).state_dict()}
    Checkpoints(folder / "checkpoints", load_key(folder)).save(weights, {"spec": orjson.loads(made.to_json())})
    return folder


def test_a_version_of_other_choices_is_named_when_it_is_imported(tmp_path: Path) -> None:
    """The settings may be on their way, so that it is imported; the daemon refuses it until then."""
    trained = train(tmp_path / "trained", spec("left", "right"))
    write_policy_spec(tmp_path / "state", spec("left", "stay", "right"))
    done = imported(tmp_path, trained)
    assert done.exit_code == 0, done.output
    assert "is refused by a daemon with the settings that this one ran with last" in done.stderr
    assert '"choices":["left","right"]' in done.stderr
    write_policy_spec(tmp_path / "state", spec("left", "right"))
    assert "refused" not in imported(tmp_path, trained).output


def test_a_version_without_a_policy_is_refused(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    Checkpoints(trained / "checkpoints", load_key(trained)).save({"learner": {"w": torch.ones(2)}}, {})
    done = imported(tmp_path, trained)
    assert (done.exit_code, "policy.safetensors with weights is needed" in done.output) == (2, True)
