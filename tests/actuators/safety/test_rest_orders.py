"""The order in which actuators go to rest, and settings that have no harmless one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import pytest

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, GateSettings
from actuators.safety.actuator_state import Actuator
from actuators.safety.forbidden_combinations import ForbiddenCombinations
from actuators.safety.rest_orders import Detour, detours

SWITCH = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF")
HOLD = SWITCH.model_copy(update={"safe": "hold"})
ARM = ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), safe=(0.0,))
SLOW = ARM.model_copy(update={"max_rate": (1.0,)})
ASIDE = ContinuousSettings(kind="continuous", low=(0.0,), high=(1.0,), safe=(0.15,))
ASIDE_SLOW = ASIDE.model_copy(update={"max_rate": (1.0,)})
ARM_BYPASS = ["x[0] > 0.6 and v == 'OFF' and b == 'OFF'", "x[0] <= 0.6 and v == 'ON' and b == 'OFF'"]
STREAMS = {"room": {"window"}}


def found(forbid: Sequence[str], actuators: Mapping[str, AnyActuator]) -> list[Detour]:
    return list(detours(actuators, GateSettings(forbid=tuple(forbid)), STREAMS))


def bypass(number: int = 0) -> list[str]:
    """Pump and valve must be equal, unless the bypass is on."""
    p, v, b = (f"{name}{number}" for name in ("p", "v", "b"))
    return [f"{p} == 'ON' and {v} == 'OFF' and {b} == 'OFF'", f"{p} == 'OFF' and {v} == 'ON' and {b} == 'OFF'"]


@pytest.mark.parametrize(
    ("forbid", "actuators", "wanted"),
    [
        (["a == 'ON' and b == 'OFF'"], {"a": SWITCH, "b": SWITCH}, []),
        (bypass(), {"p0": SWITCH, "v0": SWITCH, "b0": SWITCH}, [(1, True)]),
        (["c == 'ON'", *bypass()], {"p0": SWITCH, "v0": SWITCH, "b0": SWITCH, "c": SWITCH}, [(2, True)]),
        (bypass(), {"p0": SWITCH, "v0": SWITCH, "b0": HOLD}, [(1, True)]),
        (["a == 'ON' and b == 'OFF'", "a == 'OFF' and b == 'ON'"], {"a": SWITCH, "b": SWITCH}, [(1, False)]),
        ([*bypass(0), *bypass(1)], dict.fromkeys(("p0", "v0", "b0", "p1", "v1", "b1"), SWITCH), [(1, True), (3, True)]),
        (["abs(x[0] - y[0]) > 0.6"], {"x": ARM, "y": ARM}, [(0, True)]),
        # without a limit of its rate the arm jumps over what is forbidden for it alone
        (["0.2 < x[0] <= 0.6", *ARM_BYPASS], {"x": ARM, "v": SWITCH, "b": SWITCH}, [(1, True)]),
        (["0.2 < x[0] <= 0.6", *ARM_BYPASS], {"x": SLOW, "v": SWITCH, "b": SWITCH}, [(1, False)]),
        # its safe value is no limit and in no rule
        (ARM_BYPASS, {"x": ASIDE, "v": SWITCH, "b": SWITCH}, [(0, True)]),
        (ARM_BYPASS, {"x": ASIDE_SLOW, "v": SWITCH, "b": SWITCH}, [(0, True)]),
        (["x[0] > 0.5 and y[0] <= 0.5", "x[0] <= 0.5 and y[0] > 0.5"], {"x": SLOW, "y": SLOW}, [(1, False)]),
        (["a == 'ON' and b == 'OFF' and room.window > 0.5"], {"a": SWITCH, "b": SWITCH}, []),
        (["a == 'ON' and b == 'ON'"], {"a": SWITCH, "b": SWITCH}, []),
        (["a == 'ON'"], {"a": SWITCH}, []),
        ([], {"a": SWITCH}, []),
    ],
)
def test_settings_without_a_harmless_way_to_rest(
    forbid: list[str], actuators: dict[str, AnyActuator], wanted: list[tuple[int, bool]]
) -> None:
    assert [(each.rule, each.is_reachable) for each in found(forbid, actuators)] == wanted


def test_the_problem_names_a_combination_and_where_it_leads() -> None:
    (detour,) = found(bypass(), {"p0": SWITCH, "v0": SWITCH, "b0": SWITCH})
    assert detour.problem == (
        "from b0 = 'OFF', p0 = 'ON', v0 = 'ON' every order of going to rest (p0 = 'OFF', b0 = 'OFF', v0 = 'OFF') "
        "leads through a combination that a rule forbids"
    )


def test_rules_with_too_many_combinations_are_left_out() -> None:
    names = [f"n{number}" for number in range(10)]
    chain = [f"{a} == 'ON' and {b} == 'OFF'" for a, b in itertools.pairwise(names)]
    chain.append("n8 == 'OFF' and n9 == 'ON'")
    assert found(chain, dict.fromkeys(names, SWITCH)) == []
    assert found(chain[1:], dict.fromkeys(names[1:], SWITCH)) != []


@pytest.mark.parametrize("seed", range(60))
def test_the_gate_finds_an_order_wherever_there_is_one(seed: int) -> None:
    """Any rules over five switches: as many as forbid every greedy order, too."""
    draw = random.Random(seed)
    names = "abcde"
    states = [dict(zip(names, values, strict=True)) for values in itertools.product(("OFF", "ON"), repeat=5)]
    bad = [
        each
        for each in states
        if draw.random() < 0.3 and set(each.values()) != {"OFF"} and set(each.values()) != {"ON"}
    ]
    forbid = [" and ".join(f"{name} == '{word}'" for name, word in each.items()) for each in bad]
    group = {name: Actuator(name, SWITCH, frozenset(), "autonomous", confirmed="ON") for name in names}
    forbidden = ForbiddenCombinations(forbid, group, None)

    def is_clean(order: Sequence[str]) -> bool:
        now = dict.fromkeys(names, "ON")
        return all((now := now | {name: "OFF"}) not in bad for name in order)

    clean = [order for order in itertools.permutations(names) if is_clean(order)]
    chosen = [each.name for each in forbidden.in_order(list(group.values()))]
    assert sorted(chosen) == list(names)
    assert is_clean(chosen) == bool(clean)


@pytest.mark.parametrize("names", list(itertools.permutations(("fan", "heater", "lamp"))))
def test_before_any_report_what_could_be_forbidden_goes_to_rest_first(names: Sequence[str]) -> None:
    group = {name: Actuator(name, SWITCH, frozenset(), "autonomous") for name in names}
    forbidden = ForbiddenCombinations(["heater == 'ON' and fan == 'OFF'"], group, None)
    order = [each.name for each in forbidden.in_order(list(group.values()))]
    assert sorted(order) == ["fan", "heater", "lamp"]
    assert order.index("heater") < order.index("fan")
