"""What the uplink leaves for the learner, what the learner takes, and what no version of the fleet survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from learners.fleet_data.received_policies import (
    MAX_NAMES,
    RECEIVED,
    examined,
    forget_received,
    note_received,
    note_withdrawn,
    received,
    withdrawn,
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with two received versions."""
    for name in ("one", "two"):
        (tmp_path / RECEIVED / name).mkdir(parents=True)
    return tmp_path


def test_a_note_stays_until_the_version_is_stored(state: Path) -> None:
    note_received(state, state / RECEIVED / "one", "one")
    first = received(state)
    assert first == received(state) == state / RECEIVED / "one"
    assert not (state / RECEIVED / "two").exists()  # a device without room for many keeps the newest
    forget_received(state, first, is_examined=True)
    assert received(state) is None
    assert not first.exists()
    first.mkdir()
    note_received(state, first, "one")
    assert received(state) is None  # it was examined
    assert examined(state) == {"one"}


def test_a_version_that_came_meanwhile_stays_noted(state: Path) -> None:
    one, two = state / RECEIVED / "one", state / RECEIVED / "two"
    note_received(state, one, "one")
    two.mkdir()
    note_received(state, two, "two")
    forget_received(state, one, is_examined=False)
    assert received(state) == two
    assert not examined(state)


def test_withdrawn_versions_are_remembered_and_never_offered(state: Path) -> None:
    note_received(state, state / RECEIVED / "one", "one")
    note_withdrawn(state, ["one"])
    note_withdrawn(state, ["three"])
    assert received(state) is None
    assert withdrawn(state) == {"one", "three"} == withdrawn(state)
    note_withdrawn(state, [str(number) for number in range(MAX_NAMES)])
    assert len(withdrawn(state)) == MAX_NAMES


@pytest.mark.parametrize("name", ["..", ".", "", "../uplink", "/etc", ".draft-1"])
def test_a_note_names_a_folder_of_the_received_policies_alone(state: Path, name: str) -> None:
    """What a note names is deleted once it was examined."""
    (state / RECEIVED / ".draft-1").mkdir()
    (state / RECEIVED / "received.json").write_text(f'{{"directory": "{name}", "version": "one"}}')
    assert received(state) is None
