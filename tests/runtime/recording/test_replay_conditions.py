"""Conditions of a recording that differ here are named, also those that an older program did not state."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recording_world import config_of

from actuators.actions import ActionSpace, Choice
from learners.model.spec import PolicySpec, StreamSpec
from runtime.recording.replay_conditions import conditions, differences

ACTIONS = ActionSpace((Choice("head", ("left", "right")),))


def stated(folder: Path, *widths: int) -> dict[str, str]:
    """Return the conditions of an engine with telemetry streams of these widths."""
    streams = tuple(StreamSpec(f"s{n}", "telemetry", 1, width) for n, width in enumerate(widths))
    engine: Any = SimpleNamespace(
        spec=PolicySpec(streams=streams, actions=ACTIONS),
        runtime="compiled",
        device_name="cpu",
        calibrations=SimpleNamespace(settings=SimpleNamespace(threads=1)),
        version="000001-aaaaaaaa",
        choices={},
    )
    return conditions(config_of(folder), engine)


def test_a_recording_of_before_telemetry_was_one_array_is_named(tmp_path: Path) -> None:
    here = stated(tmp_path, 3, 3)
    former = {name: value for name, value in here.items() if name != "graph"}
    assert differences(former, here) == [
        (
            "graphs that this program converts round in another way, so that last bits of decisions may differ"
            " (recorded each telemetry stream alone, here telemetry streams of one width together)"
        )
    ]
    assert differences(here, here) == []


def test_a_recording_of_before_telemetry_of_any_unit_counted_alike_is_named(tmp_path: Path) -> None:
    here = stated(tmp_path, 3)
    former = {name: value for name, value in here.items() if name != "telemetry"}
    assert ["recorded spreads below .001" in one for one in differences(former, here)] == [True]


@pytest.mark.parametrize("widths", [(3,), (3, 4)])
def test_the_form_of_a_graph_is_no_difference_where_no_streams_share_a_width(
    tmp_path: Path, widths: tuple[int, ...]
) -> None:
    here = stated(tmp_path, *widths)
    assert "graph" not in here
    assert differences(here, here) == []


def test_a_recording_that_states_no_conditions_has_no_differences(tmp_path: Path) -> None:
    assert differences({}, stated(tmp_path, 3, 3)) == []
