"""Conditions on telemetry: met, not met, and in doubt not met."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from runtime.config import loader
from runtime.control.actuator_conditions import Conditions
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


def test_a_reading_of_unknown_age_meets_no_condition() -> None:
    conditions = Conditions((CLOSED,), {"window": ("open",)}, [("window", "open")])
    old = dataclasses.replace(seen(window={"open": 0.0}), unknown_age=frozenset({"window"}))
    assert conditions.unmet(old) == [CLOSED]
    assert conditions.named(old) == {}


def test_the_gate_gets_the_finite_numbers_that_its_rules_name() -> None:
    conditions = Conditions((), {}, [("room", "t"), ("room", "n"), ("window", "open"), ("door", "open")])
    read = seen(window={"open": 1.0, "mains": 5.0}, other={"x": 2.0}, room={"t": np.nan, "n": 1.0})
    assert conditions.named(read) == {"window": {"open": 1.0}, "room": {"n": 1.0}}


@pytest.mark.parametrize(
    ("requires", "forbid", "path", "word"),
    [
        ("window, window.open == 0", "", None, ""),
        ("window.shut == 0", "", "actuators.heater.requires.0", "shut"),
        ("door.open == 0", "", "actuators.heater.requires.0", "door"),
        ("window.open ==", "", "actuators.heater.requires.0", ""),
        ("window, window.open == 0", "heater == 'ON' and window.open", None, ""),
        ("window", "heater == 'ON' and window.shut", "gate.forbid.0", "window has ['open']"),
        ("window", "heater == 'ON' and door.open", "gate.forbid.0", "unknown name 'door'"),
        ("window", "window.open > 0", "gate.forbid.0", "names no actuator"),
        ("window", "heater == 'OFF' and window.open", "gate.forbid.0", "can hold at rest (heater = 'OFF')"),
        ("window", "heater == 'ON' or window.open", "gate.forbid.0", "can hold at rest"),
        ("window", "heater == 'On' and window.open", "gate.forbid.0", "never 'On'"),
        ("window", "heater == 'ON' and 2 < window.open < 1", "gate.forbid.0", "can never hold"),
        ("window", "heater == 'ON' and (window.open > 1 or window.open <= 1)", None, ""),
    ],
)
def test_settings(tmp_path: Path, requires: str, forbid: str, path: str | None, word: str) -> None:
    file = tmp_path / "home.yaml"
    file.write_text(SETTINGS.format(requires=requires, forbid=f'"{forbid}"' if forbid else ""))
    if path is None:
        config = loader.load(file).config
        assert config.gate.forbid == ((forbid,) if forbid else ())
        return
    with pytest.raises(loader.ConfigError) as caught:
        loader.load(file)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert word in str(caught.value)
