"""Find settings with which the way to rest leads through a forbidden combination, in whatever order the actuators go there.

`reflexd check` asks. The gate's own search for an order is tried from every allowed combination of the actuators that rules couple.
Continuous actuators are sampled at their limits, their safe values, the constants of the rules and the middles between these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from actuators.actions import Value
from actuators.config import AnyActuator, ContinuousSettings, GateSettings
from actuators.expressions import Known
from actuators.safety.actuator_state import Actuator
from actuators.safety.forbid_rules import Rule, known_names, safe_is_hold, samples
from actuators.safety.forbidden_combinations import ForbiddenCombinations

MOST_STARTS = 512
"""Combinations from which the way to rest is tried; rules with more are left out."""
MOST_PREFIXES = 1_024
"""Beginnings of orders that are tried, so all of ten actuators."""

Place = tuple[int, ...]
"""For each actuator the place of its value among its samples."""


@dataclass(frozen=True, slots=True)
class Detour:
    """A combination without a clean way to rest."""

    rule: int
    """Place under `forbid` of a rule that holds on the way."""
    problem: str
    is_reachable: bool
    """The policy or a person can come there from rest; else only what the devices are found with leads there."""


def detours(
    actuators: Mapping[str, AnyActuator], settings: GateSettings, streams: Known | None = None
) -> Iterator[Detour]:
    """Yield one combination for each set of coupled actuators that has one; one that can be reached is preferred.

    The rules must be usable, and allow the safe values: `forbid_rules.unsafe_rests` finds none.
    """
    for numbers in _coupled(actuators, settings, streams):
        texts = [settings.forbid[number] for number in numbers]
        names = frozenset[str]().union(*(Rule(text, known_names(actuators), streams).names for text in texts))
        chosen = {name: actuators[name] for name in sorted(names)}
        search = _Search(chosen, texts, streams)
        found = search.run()
        if found is not None:
            place, problem = found
            yield Detour(numbers[place], problem, search.is_reachable)


def _coupled(actuators: Mapping[str, AnyActuator], settings: GateSettings, streams: Known | None) -> list[list[int]]:
    """Return the rules in sets that share no actuator, each as its places under `forbid`."""
    groups: list[tuple[set[str], list[int]]] = []
    for number, text in enumerate(settings.forbid):
        names, numbers = set(Rule(text, known_names(actuators), streams).names), [number]
        for other in [group for group in groups if group[0] & names]:
            groups.remove(other)
            names, numbers = names | other[0], [*other[1], *numbers]
        groups.append((names, numbers))
    return [sorted(numbers) for names, numbers in groups if len(names) > 1]


class _Search:
    """The search among the actuators of one set of coupled rules."""

    def __init__(self, actuators: Mapping[str, AnyActuator], texts: Sequence[str], streams: Known | None) -> None:
        self.is_reachable = False
        self.texts = texts
        self.actuators = [Actuator(name, each, frozenset(), "shadow") for name, each in actuators.items()]
        self.rules = [Rule(text, known_names(actuators), streams) for text in texts]
        self.forbidden = ForbiddenCombinations(texts, {each.name: each for each in self.actuators}, streams)
        self.samples = [self._samples(each) for each in self.actuators]

    def _samples(self, each: Actuator) -> list[Value | None]:
        found = dict[Value | None, None]()
        for rule in self.rules:
            if each.name in rule.names:
                found |= dict.fromkeys(samples(each.name, each.settings, rule))
        if not safe_is_hold(each.settings):
            found[each.settings.safe] = None
        return list(found)

    def run(self) -> tuple[int, str] | None:
        """Return the place of a rule that holds on each way to rest, and what happens; None where nothing is found."""
        if math.prod(map(len, self.samples)) > MOST_STARTS or [None] in self.samples:
            return None
        allowed = [place for place in product(*(range(len(each)) for each in self.samples)) if self._allows(place)]
        reachable = self._reachable(frozenset(allowed))
        for place in sorted(allowed, key=lambda place: place not in reachable):
            self._put(place)
            for group in self._groups():
                if self.forbidden.clean_order(group, MOST_PREFIXES) is None:
                    self.is_reachable = place in reachable
                    return self._described(place, group)
        return None

    def _put(self, place: Place) -> None:
        for each, values, at in zip(self.actuators, self.samples, place, strict=True):
            each.confirmed = values[at]

    def _allows(self, place: Place) -> bool:
        self._put(place)
        return self.forbidden.first_broken() is None

    def _reachable(self, allowed: frozenset[Place]) -> set[Place]:
        """Return what single commands lead to from the combinations at rest."""
        rests = [None if safe_is_hold(each.settings) else each.settings.safe for each in self.actuators]
        found = {
            place
            for place in allowed
            if all(
                rest is None or values[at] == rest for rest, values, at in zip(rests, self.samples, place, strict=True)
            )
        }
        left = list(found)
        while left:
            here = left.pop()
            for index, values in enumerate(self.samples):
                for at in range(len(values)):
                    there = (*here[:index], at, *here[index + 1 :])
                    if there in allowed and there not in found and self._is_step(index, here[index], at):
                        found.add(there)
                        left.append(there)
        return found

    def _is_step(self, index: int, before: int, after: int) -> bool:
        """Return whether one actuator may come from one sample to another with no sample between: `max_rate` allows no jump."""
        settings, values = self.actuators[index].settings, self.samples[index]
        if not isinstance(settings, ContinuousSettings) or settings.max_rate is None:
            return True
        columns = [sorted(set(column)) for column in zip(*map(_numbers, values), strict=True)]
        steps = zip(columns, _numbers(values[before]), _numbers(values[after]), strict=True)
        return all(abs(points.index(a) - points.index(b)) <= 1 for points, a, b in steps)

    def _groups(self) -> Iterator[list[Actuator]]:
        """Yield what goes to rest together: one actuator, those of a rule, or all, each with what is coupled."""
        resting = [each for each in self.actuators if not safe_is_hold(each.settings)]
        of_rules = [[each for each in resting if each.name in rule.names] for rule in self.rules]
        seen = set[frozenset[str]]()
        for chosen in [*([each] for each in resting), *of_rules, resting]:
            group = self.forbidden.with_coupled(chosen)
            names = frozenset(each.name for each in group)
            if names not in seen:
                seen.add(names)
                yield group

    def _described(self, place: Place, group: Sequence[Actuator]) -> tuple[int, str]:
        has = {each.name: values[at] for each, values, at in zip(self.actuators, self.samples, place, strict=True)}
        start = ", ".join(f"{name} = {value!r}" for name, value in has.items())
        rests = ", ".join(f"{each.name} = {each.settings.safe!r}" for each in group)
        problem = f"from {start} every order of going to rest ({rests}) leads through a combination that a rule forbids"
        broken = self._broken(has)
        for each in self.forbidden.in_order(list(group)):
            has[each.name] = each.settings.safe
            if entered := sorted(self._broken(has) - broken):
                return entered[0], problem
        return 0, problem

    def _broken(self, has: Mapping[str, Value | None]) -> set[int]:
        """Return the places of the rules that these values break."""
        rules = enumerate(self.rules)
        return {at for at, rule in rules if rule.broken({name: [has[name]] for name in rule.names}) is not None}


def _numbers(value: Value | None) -> tuple[float, ...]:
    assert isinstance(value, tuple)
    return value
