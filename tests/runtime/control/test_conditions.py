"""Conditions on telemetry: met, not met, and in doubt not met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.config import loader
from runtime.control.conditions import Conditions
from sensors.readings import Observation, Telemetry

CLOSED, WARM = "window.open == 0", "room.t / room.n > 5"
SETTINGS = """agent: a
state_dir: x
streams:
  window: {{kind: telemetry, fields: [open]}}
actuators:
  heater: {{kind: choice, choices: [OFF, ON], safe: OFF, requires: [{requires}]}}
gate: {{forbid: [{forbid}]}}
"""


def seen(**streams: dict[str, float]) -> Observation:
    readings = {
        name: Telemetry(name, 0.0, 0, tuple(values), np.array([*values.values()])) for name, values in streams.items()
    }
    return Observation(0, 0.0, readings, dict.fromkeys(readings, 0.0))


def test_what_does_not_hold_or_cannot_be_known_is_unmet() -> None:
    conditions = Conditions((CLOSED, WARM), {"window": ("open",), "room": ("t", "n")})
    assert conditions.unmet(seen(window={"open": 0.0}, room={"t": 20.0, "n": 1.0})) == []
    assert conditions.unmet(seen(window={"open": 1.0}, room={"t": 20.0, "n": 1.0})) == [CLOSED]
    assert conditions.unmet(seen(window={"open": 0.0}, room={"t": 20.0, "n": 0.0})) == [WARM], "no value is no yes"
    assert conditions.unmet(seen(room={"t": 1.0, "n": 1.0})) == [CLOSED, WARM], "a stream is missing"
    assert Conditions((), {}).unmet(seen()) == []


@pytest.mark.parametrize(
    ("requires", "forbid", "path", "word"),
    [
        ("window, window.open == 0", "", None, ""),
        ("window.shut == 0", "", "actuators.heater.requires.0", "shut"),
        ("door.open == 0", "", "actuators.heater.requires.0", "door"),
        ("window.open ==", "", "actuators.heater.requires.0", ""),
        ("window", "heater == 'ON' and window.open", "gate.forbid.0", "requires: ['window.open == 0']"),
    ],
)
def test_settings(tmp_path: Path, requires: str, forbid: str, path: str | None, word: str) -> None:
    file = tmp_path / "home.yaml"
    file.write_text(SETTINGS.format(requires=requires, forbid=f'"{forbid}"' if forbid else ""))
    if path is None:
        assert loader.load(file).config.actuators["heater"].requires == ("window", CLOSED)
        return
    with pytest.raises(loader.ConfigError) as caught:
        loader.load(file)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert word in str(caught.value)
