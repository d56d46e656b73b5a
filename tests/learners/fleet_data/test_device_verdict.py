"""A device reads what became of a fleet's version from its own records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import learning
import orjson
import pytest

from learners.checkpoints.store import Checkpoints
from learners.experiment_statistics.experiment_test import ExperimentTest
from learners.experiment_statistics.paired_outcomes import PairDifference
from learners.experiment_statistics.plan import ExperimentPlan
from learners.fleet_data.device_verdict import device_verdict


@pytest.fixture
def adopted(tmp_path: Path) -> tuple[str, str]:
    """The fleet's name of a version and this device's."""
    made = Checkpoints(tmp_path / "elsewhere", learning.KEY)
    weights = learning.SmallPolicy(learning.SPEC).state_dict()
    fleet = made.save({"policy": weights}, {"spec": orjson.loads(learning.SPEC.to_json())})
    own = Checkpoints(tmp_path / "state" / "checkpoints", learning.KEY)
    own.save({"policy": weights}, {})
    return fleet, own.import_version(made.folder / fleet, learning.KEY.public_key())


def note(state: Path, kind: str, **fields: Any) -> None:
    with (state / "promotions.jsonl").open("ab") as file:
        file.write(orjson.dumps({"type": kind, "stamp": 1.0, "data": fields}) + b"\n")


def test_the_last_verdict_on_the_adopted_version_counts(tmp_path: Path, adopted: tuple[str, str]) -> None:
    (fleet, own), state = adopted, tmp_path / "state"
    assert device_verdict(state, "000009-00000000").state == "examining"
    assert device_verdict(state, fleet).state == "examining"
    (state / "promotions.jsonl").write_bytes(b'{"cut": \n')
    note(state, "policy_promoted", version="000001-00000000", why="another")
    assert device_verdict(state, fleet).state == "examining"
    for kind, fields, expected in (
        ("policy_rejected", {"reason": "ope failed"}, "rejected"),
        ("experiment_ended", {"outcome": "cap", "reason": "no proof"}, "undecided"),
        ("experiment_ended", {"outcome": "out", "reason": "worse"}, "worse"),
        ("policy_promoted", {"why": "better"}, "live"),
        ("policy_rolled_back", {"by": "guard", "why": "falls"}, "rolled_back"),
        ("policy_rolled_back", {"by": "fleet", "why": "withdrawn"}, "withdrawn"),
    ):
        note(state, kind, version=own, **fields)
        found = device_verdict(state, fleet)
        assert found.state == expected
        assert found.reason == (fields.get("reason") or fields.get("why"))


def test_a_running_experiment_reports_its_evidence(tmp_path: Path, adopted: tuple[str, str]) -> None:
    (fleet, own), state = adopted, tmp_path / "state"
    plan = ExperimentPlan("000001-00000000", own, None, "reward", 10, 1, 0.5, 0.1, 0.05, 100, 0)
    test = ExperimentTest(plan)
    for pair in range(12):
        test.update(PairDifference(pair, "challenge", "champion", -1.0 - 0.1 * (pair % 3), {}))
    (state / "experiments.json").write_bytes(orjson.dumps({"phase": {"test": test.dump()}}))
    found = device_verdict(state, fleet)
    assert found.state == "on_trial"
    assert found.pairs == test.pairs
    assert found.worse == pytest.approx(test.rewards["champion"].below[0.0].evidence)
    assert found.worse > 4
    (state / "experiments.json").write_bytes(b'{"phase": null}')
    assert device_verdict(state, fleet).state == "examining"
