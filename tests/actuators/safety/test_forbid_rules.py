"""The rules under `forbid`: how far a combination is inside a forbidden zone, and which safe values can break one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actuators.config import ChoiceSettings, ContinuousSettings, GateSettings
from actuators.expressions import ExpressionError
from actuators.safety.forbid_rules import MAX_COMBINATIONS, Rule, known_names, unsafe_rests

ACTUATORS: dict[str, Any] = {
    "heater": ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF"),
    "fan": ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF"),
    "a": ContinuousSettings(kind="continuous", low=(0.0,), high=(1.0,), safe=(0.0,)),
    "b": ContinuousSettings(kind="continuous", low=(-1.0, 0.0), high=(1.0, 2.0), safe=(0.0, 0.0)),
}


@pytest.mark.parametrize(
    ("text", "values", "degree"),
    [
        ("a[0] > 0.5", {"a": (0.7,)}, 0.2),
        ("a[0] > 0.5", {"a": (0.5,)}, None),
        ("a[0] >= 0.5", {"a": (0.5,)}, 0.0),
        ("a[0] < 0.5", {"a": (0.2,)}, 0.3),
        ("a[0] <= 0.5", {"a": (0.2,)}, 0.3),
        ("0.1 < a[0] < 0.5", {"a": (0.2,)}, 0.1),
        ("not a[0] > 0.5", {"a": (0.2,)}, 0.3),
        ("heater == 'ON'", {"heater": "ON"}, 1.0),
        ("heater != 'ON'", {"heater": "OFF"}, 1.0),
        ("heater != 'ON'", {"heater": "ON"}, None),
        ("heater == 'ON' and a[0] > 0.5", {"heater": "ON", "a": (0.8,)}, 0.3),
        ("heater == 'ON' and a[0] > 0.5", {"heater": "OFF", "a": (0.8,)}, None),
        ("a[0] > 0.9 or b[1] > 1", {"a": (0.1,), "b": (0.0, 1.5)}, 0.5),
        ("a[0] + b[1] > 1 if heater == 'ON' else fan == 'ON'", {"heater": "ON", "a": (0.8,), "b": (0.0, 0.4)}, 0.2),
        ("a[0] + b[1] > 1 if heater == 'ON' else fan == 'ON'", {"heater": "OFF", "fan": "ON"}, 1.0),
        ("a[0] > 0.9 if b[1] >= 0.5 else fan == 'ON'", {"a": (0.95,), "b": (0.0, 0.5)}, 0.05),
        ("a[0]", {"a": (0.8,)}, 1.0),
        ("a[0]", {"a": (0.0,)}, None),
        ("not a[0]", {"a": (0.0,)}, 1.0),
        ("not a[0] or b[1] > 1", {"a": (0.8,), "b": (0.0, 1.5)}, 0.5),
        ("not heater == 'ON'", {"heater": "OFF"}, 1.0),
        ("a[0] > 0.5", {"a": None}, math.inf),
        ("sqrt(b[0]) > 1", {"b": (-1.0, 0.0)}, math.inf),
    ],
)
def test_how_far_a_combination_is_inside(text: str, values: dict[str, Any], degree: float | None) -> None:
    rule = Rule(text, known_names(ACTUATORS))
    found = rule.broken({name: [values.get(name)] for name in rule.names})
    assert (None if found is None else found.degree) == (degree if degree is None else pytest.approx(degree))


def test_the_worst_of_all_possible_combinations_counts() -> None:
    rule = Rule("heater == 'ON' and a[0] > 0.5", known_names(ACTUATORS))
    assert rule.broken({"heater": ["OFF", "ON"], "a": [(0.1,), (0.2,)]}) is None
    found = rule.broken({"heater": ["OFF", "ON"], "a": [(0.6,), (0.9,)]})
    assert found is not None
    assert found.degree == pytest.approx(0.4)
    many = [(n / MAX_COMBINATIONS,) for n in range(MAX_COMBINATIONS)]
    too_many = rule.broken({"heater": ["OFF", "ON"], "a": many})
    assert too_many is not None
    assert "cannot be ruled out" in too_many.reason
    assert math.isinf(too_many.degree)


@pytest.mark.parametrize(
    ("text", "changes", "wanted"),
    [
        ("heater == 'ON' and fan == 'OFF'", {}, None),
        ("heater == 'ON' and fan == 'OFF'", {"heater": "ON"}, "choose other safe values"),
        ("heater == 'ON' and fan == 'OFF'", {"heater": "hold"}, "give heater a safe value"),
        ("heater == 'ON' and fan == 'OFF'", {"heater": "hold", "fan": "hold"}, None),
        ("a[0] > 0.5 and fan == 'OFF'", {"a": "hold"}, "give a a safe value"),
        ("a[0] > 1 and fan == 'OFF'", {"a": "hold"}, None),
        ("a[0] > 0.99999 and fan == 'OFF'", {"a": "hold"}, "give a a safe value"),
        ("0.3 < a[0] < 0.3000009 and fan == 'OFF'", {"a": "hold"}, "give a a safe value"),
        ("-0.5 < b[0] < -0.4 and fan == 'OFF'", {"b": "hold"}, "give b a safe value"),
        ("heater == 'ON' and a[0] > 2", {"heater": "hold"}, None),
        ("b[1] > 1.5 and fan == 'OFF'", {"b": "hold"}, "give b a safe value"),
        ("a[0] + b[0] > 1.5", {"a": "hold"}, None),
        ("a[0] + b[0] >= 1", {"a": "hold"}, "can hold at rest (b = (0.0, 0.0) while a may hold any value)"),
    ],
)
def test_safe_values_that_a_rule_forbids(text: str, changes: dict[str, str], wanted: str | None) -> None:
    actuators = {
        name: each.model_copy(update={"safe": changes.get(name, each.safe)}) for name, each in ACTUATORS.items()
    }
    found = unsafe_rests(actuators, GateSettings(forbid=("a[0] > 0.9", text)))
    assert list(found) == ([] if wanted is None else [1])
    if wanted is not None:
        assert wanted in found[1]


def test_the_largest_number_of_combinations_is_still_judged() -> None:
    rule = Rule("a[0] > 2", known_names(ACTUATORS))
    assert rule.broken({"a": [(n / MAX_COMBINATIONS,) for n in range(MAX_COMBINATIONS)]}) is None
    assert rule.broken({"a": [(n / MAX_COMBINATIONS,) for n in range(MAX_COMBINATIONS + 1)]}) is not None


def test_an_unknown_value_is_named() -> None:
    found = Rule("a[0] > 0.5", known_names(ACTUATORS)).broken({"a": [None]})
    assert found is not None
    assert found.reason.startswith("it cannot be ruled out: ")
    assert "a" in found.reason.removeprefix("it cannot be ruled out: ")


def test_the_remedy_names_what_rests_and_what_holds() -> None:
    def problem(text: str, **safe: str) -> str:
        actuators = {
            name: each.model_copy(update={"safe": safe.get(name, each.safe)}) for name, each in ACTUATORS.items()
        }
        return unsafe_rests(actuators, GateSettings(forbid=(text,)))[0]

    assert problem("heater == 'OFF' and fan == 'OFF'") == (
        "\"heater == 'OFF' and fan == 'OFF'\" can hold at rest (fan = 'OFF', heater = 'OFF'); choose other safe values"
    )
    assert problem("heater == 'ON' and a[0] > 0.5 and fan == 'OFF'", heater="hold", a="hold") == (
        "\"heater == 'ON' and a[0] > 0.5 and fan == 'OFF'\" can hold at rest (fan = 'OFF' while a and heater may hold any "
        "value); give a a safe value"
    )


def test_only_the_components_that_a_rule_reads_are_sampled() -> None:
    many = ContinuousSettings(kind="continuous", low=(0.0,) * 12, high=(1.0,) * 12, safe="hold")
    actuators = ACTUATORS | {"many": many}
    assert unsafe_rests(actuators, GateSettings(forbid=("many[3] > 1 and fan == 'OFF'",))) == {}
    assert 0 in unsafe_rests(actuators, GateSettings(forbid=("many[3] > 0.9 and fan == 'OFF'",)))


def test_a_rule_about_an_actuator_that_is_not_configured_is_refused() -> None:
    with pytest.raises(ExpressionError, match="nose"):
        unsafe_rests(ACTUATORS, GateSettings(forbid=("nose == 'ON'",)))


@pytest.mark.parametrize(
    ("text", "window", "heater", "degree"),
    [
        ("heater == 'ON' and window.open", {"open": 1.0}, "ON", 1.0),
        ("heater == 'ON' and window.open", {"open": 0.0}, "ON", None),
        ("heater == 'ON' and window.open", {"open": 1.0}, "OFF", None),
        ("heater == 'ON' and window.open", None, "ON", math.inf),
        ("heater == 'ON' and window.open", None, "OFF", None),
        ("window.open and heater == 'ON'", None, "OFF", None),
        ("not (not window.open or heater != 'ON')", None, "OFF", None),
        ("not (not window.open or heater != 'ON')", None, "ON", math.inf),
        ("not (heater == 'ON' or window.open)", None, "ON", None),
        ("window.open and heater == 'ON'", {"open": math.nan}, "ON", math.inf),
        ("window.open + 1 and heater == 'ON'", {"open": math.inf}, "OFF", None),
        ("window.open > 2 and heater == 'ON'", {"open": 5.0}, "ON", 1.0),
    ],
)
def test_a_rule_with_telemetry_that_is_missing_holds_unless_the_actuators_exclude_it(
    text: str, window: dict[str, float] | None, heater: str, degree: float | None
) -> None:
    rule = Rule(text, known_names(ACTUATORS), {"window": ("open",)})
    assert (rule.names, rule.streams) == ({"heater"}, {"window"})
    readings = {} if window is None else {"window": window, "heater": {"open": 7.0}}
    found = rule.broken({"heater": [heater]}, readings)
    assert (None if found is None else found.degree) == degree


@pytest.mark.parametrize(
    ("text", "degree"),
    [
        ("not (heater == 'ON' and window.open < 0.5)", math.inf),
        ("not (heater == 'OFF' or window.open < 0.5)", math.inf),
        ("window.open and (heater == 'OFF' or fan == 'ON')", None),
        ("window.open and (heater == 'ON' or fan == 'ON')", math.inf),
        ("window.open and not (heater == 'ON' and fan == 'OFF')", None),
        ("window.open and not (heater == 'ON' and fan == 'ON')", math.inf),
        ("window.open and not (a[0] * 1e308 * 1e308)", math.inf),
        ("window.open and not (a[0] * 2)", None),
    ],
)
def test_parts_of_a_rule_are_true_false_or_unknown(text: str, degree: float | None) -> None:
    rule = Rule(text, known_names(ACTUATORS), {"window": ("open",)})
    values: dict[str, Any] = {"heater": ["ON"], "fan": ["OFF"], "a": [(1.0,)]}
    found = rule.broken({name: values[name] for name in rule.names})
    assert (None if found is None else found.degree) == degree


def test_an_actuator_that_holds_cannot_obey_a_rule_with_telemetry() -> None:
    holding = ACTUATORS | {"heater": ACTUATORS["heater"].model_copy(update={"safe": "hold"})}
    settings = GateSettings(
        forbid=("heater == 'ON' and window.open", "heater == 'ON' and fan == 'OFF' and window.open")
    )
    problems = unsafe_rests(holding, settings, {"window": ("open",)})
    assert problems[0].endswith("can hold at rest (heater may hold any value); give heater a safe value")
    assert "(fan = 'OFF' while heater may hold any value)" in problems[1]
    assert unsafe_rests(ACTUATORS, settings, {"window": ("open",)}) == {}


def test_a_rule_names_an_actuator() -> None:
    with pytest.raises(ExpressionError, match="names no actuator"):
        Rule("window.open > 0", known_names(ACTUATORS), {"window": ("open",)})
