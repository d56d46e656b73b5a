"""The table of states in docs/safety.md against the gate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actuators.config import ChoiceSettings, GateSettings
from actuators.safety.decisions import Proposal
from actuators.safety.gate import Gate

PAGE = Path(__file__).parents[3] / "docs" / "safety.md"
ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split("|")]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| (armed|disarmed|stopped) \|", line)
]
HEAD = ChoiceSettings(kind="choice", choices=("left", "stay"), safe="stay")


class Machine:
    """A gate with a device and an agent that can come back."""

    def __init__(self, arm: str) -> None:
        self.arm = arm
        self.now_s = 10.0
        self.gate = self.new()
        self.safe = False
        self.back()

    def new(self) -> Gate:
        return Gate({"head": HEAD}, GateSettings(arm=self.arm, reconcile_s=0.5), period_s=0.1, now_s=self.now_s)  # type: ignore[arg-type]

    def back(self) -> None:
        """Agent, broker and device are there for a second."""
        for _ in range(10):
            self.now_s += 0.1
            self.gate.reconciled("head", "stay", self.now_s)
            self.gate.judge(Proposal(0, "d", "p", self.now_s), self.now_s)

    def happen(self, what: str) -> None:
        gate, decisions = self.gate, []
        if what == "stop":
            decisions = gate.stop(self.now_s, engaged=True)
        elif what == "release":
            decisions = gate.stop(self.now_s, engaged=False)
        elif what == "arm":
            gate.arm(self.now_s)
        elif what == "disarm":
            decisions = gate.disarm(self.now_s)
        elif what == "agent lost and back":
            decisions = gate.lost(self.now_s)
        elif what == "broker lost and back":
            decisions = gate.disconnected(self.now_s)
            gate.connected(self.now_s)
        elif what == "stop not heard and back":
            decisions = gate.hears_stop(self.now_s, heard=False)
            assert not gate.armed
            gate.hears_stop(self.now_s, heard=True)
        elif what == "machine suspended and back":
            decisions = gate.woke(self.now_s, 60.0)
            assert not gate.armed
        elif what == "restart":
            latches = gate.latches
            self.gate = self.new()
            self.gate.restore(latches)
            decisions = self.gate.go_safe(self.now_s)
        else:
            raise ValueError(what)
        self.safe = any(decision.value == "stay" for decision in decisions)
        self.back()

    @property
    def state(self) -> str:
        return "stopped" if self.gate.stopped else "armed" if self.gate.armed else "disarmed"


def begin(arm: str, state: str) -> Machine:
    machine = Machine(arm)
    machine.happen({"armed": "arm", "disarmed": "disarm", "stopped": "stop"}[state])
    assert machine.state == state
    return machine


def test_the_page_has_every_state() -> None:
    assert {row[0] for row in ROWS} == {"armed", "disarmed", "stopped"}
    assert len(ROWS) == 22


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}, {row[1]}" for row in ROWS])
@pytest.mark.parametrize("arm", ["auto", "request"])
def test_each_transition_is_as_the_page_says(row: list[str], arm: str) -> None:
    state, what, auto, request, safe = row
    machine = begin(arm, state)
    machine.happen(what)
    assert machine.state == (auto if arm == "auto" else request)
    assert machine.safe is (safe == "yes")


def test_each_attack_names_a_test_that_exists() -> None:
    attacks = PAGE.read_text().partition("## Attacks and accidents")[2].partition("A machine searches")[0]
    rows = [line for line in attacks.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(test_\w+)` \|$", row) for row in rows]
    assert len(rows) >= 35
    assert all(len(names) == 1 for names in named), [row for row, names in zip(rows, named, strict=True) if not names]
    tests = "\n".join(path.read_text() for path in (PAGE.parents[1] / "tests").rglob("test_*.py"))
    assert [name for (name,) in named if f"def {name}(" not in tests] == []


def test_each_script_of_the_first_attack_has_tests_that_exist() -> None:
    page = (Path(__file__).parent / "test_attacks.py").read_text().split('"""')[1]
    faults = page.split("\n- ")[1:]
    tests = "\n".join(path.read_text() for path in (PAGE.parents[1] / "tests").rglob("test_*.py"))
    assert len(faults) >= 17
    assert all(re.findall(r"`(test_\w+)`", fault) for fault in faults)
    assert [name for name in re.findall(r"`(test_\w+)`", page) if f"def {name}(" not in tests] == []
