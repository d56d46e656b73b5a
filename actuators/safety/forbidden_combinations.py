"""Ask the rules under `gate.forbid` about all actuators together: what is forbidden now, and in which order they go to rest.

`forbid_rules.py` evaluates one rule on given values. This module knows which values each actuator may have now, and the telemetry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from actuators.actions import Value
from actuators.expressions import Known
from actuators.safety.actuator_state import Actuator
from actuators.safety.forbid_rules import Readings, Rule, Violation, known_names, safe_is_hold
from actuators.safety.limits import Refusal

MOST_PREFIXES = 64
"""Beginnings of orders that the gate tries: enough for six actuators with coupled rules, and about 50 ms at worst."""


class ForbiddenCombinations:
    """Every rule, with the actuators that it names.

    Args:
        forbid: the expressions; true means forbidden.
        actuators: every actuator by name.
        streams: telemetry fields by stream, for rules that name them.

    Raises:
        ExpressionError: an expression cannot be used.
    """

    def __init__(self, forbid: Sequence[str], actuators: Mapping[str, Actuator], streams: Known | None) -> None:
        self._actuators = actuators
        known = known_names({name: each.settings for name, each in actuators.items()})
        self._rules = [Rule(text, known, streams) for text in forbid]
        self.readings: Readings = {}
        """The telemetry of the newest proposal, where it is fresh."""

    def refusal(self, each: Actuator, value: Value) -> Refusal | None:
        """Refuse a value that a rule forbids, unless it is a step out of the forbidden zone."""
        for rule in self._rules:
            if each.name not in rule.names:
                continue
            would = self._broken(rule, {each.name: (value,)})
            if would is None:
                continue
            now = None if rule.streams else self._broken(rule, {})
            if not _is_step_out(would, now):
                return Refusal("forbidden", would.reason)
        return None

    def evaluations(self, each: Actuator, choices: int) -> int | None:
        """Return how often `passing` evaluates a rule; None where a rule names another actuator of unknown value."""
        rules = [rule for rule in self._rules if each.name in rule.names]
        if any(other.value is None for rule in rules for other in self._named(rule) if other is not each):
            return None
        return (choices + 1) * len(rules)

    def passing(self, each: Actuator, choices: Sequence[str]) -> tuple[str, ...]:
        """Return the choices that no rule forbids when every command so far has arrived, as it will have at the next tick."""
        left = list(choices)
        for rule in self._rules:
            if each.name not in rule.names:
                continue
            others = self._newest(rule)
            now = None if rule.streams else self._broken(rule, others)
            found = {choice: self._broken(rule, others | {each.name: (choice,)}) for choice in left}
            left = [choice for choice, would in found.items() if would is None or _is_step_out(would, now)]
        return tuple(left)

    def broken_by_telemetry(self) -> Iterator[tuple[Violation, list[Actuator]]]:
        """Yield every rule that the telemetry of this tick makes true, or leaves open, with the actuators that it names.

        Each rule is evaluated on request: changes of the caller before that count.
        """
        for rule in self._rules:
            found = self._broken(rule, {}) if rule.streams else None
            if found is not None:
                yield found, self._named(rule)

    def with_coupled(self, chosen: list[Actuator]) -> list[Actuator]:
        """Return these actuators and all that must also be in their safe state."""
        group = list(chosen)
        grew = True
        while grew:
            grew = False
            for rule in self._rules:
                named = self._named(rule)
                missing = [each for each in named if each not in group and not safe_is_hold(each.settings)]
                concerned = any(each in group for each in named)
                if missing and concerned and self._broken(rule, _at_rest(group)) is not None:
                    group.extend(missing)
                    grew = True
        return group

    def in_order(self, group: list[Actuator]) -> list[Actuator]:
        """Return an order of going to rest in which no intermediate combination is forbidden, if there is one."""
        left, order, is_clean = list(group), list[Actuator](), True
        while left:
            each = next((each for each in left if not self._breaks(self._rules, [*order, each])), None)
            is_clean = is_clean and each is not None
            order.append(each or left[0])
            left.remove(order[-1])
        return order if is_clean else self.clean_order(group) or order

    def clean_order(self, group: Sequence[Actuator], most: int = MOST_PREFIXES) -> list[Actuator] | None:
        """Return an order of going to rest in which no rule is broken that is not broken now; None where none is found.

        Args:
            group: what goes to rest.
            most: beginnings of orders that are tried.
        """
        rules = [rule for rule in self._rules if not self._broken(rule, {})]
        dead = set[frozenset[str]]()

        def complete(order: list[Actuator]) -> list[Actuator] | None:
            if len(order) == len(group):
                return order
            beginning = frozenset(each.name for each in order)
            if beginning in dead or len(dead) >= most:
                return None
            for each in group:
                if each.name not in beginning and not self._breaks(rules, [*order, each]):
                    found = complete([*order, each])
                    if found is not None:
                        return found
            dead.add(beginning)
            return None

        return complete([])

    def first_broken(self) -> Rule | None:
        """Return the first rule without telemetry that is broken now."""
        return next((rule for rule in self._rules if not rule.streams and self._broken(rule, {})), None)

    def _breaks(self, rules: Sequence[Rule], order: Sequence[Actuator]) -> bool:
        """Return whether the last one of an order breaks a rule where it goes to rest after the others."""
        after = _at_rest(order)
        return any(order[-1].name in rule.names and self._broken(rule, after) for rule in rules)

    def _named(self, rule: Rule) -> list[Actuator]:
        return [self._actuators[name] for name in sorted(rule.names)]

    def _newest(self, rule: Rule) -> dict[str, Sequence[Value | None]]:
        """Return the newest value of every actuator in a rule, where it is known."""
        return {each.name: (each.value,) for each in self._named(rule) if each.value is not None}

    def _broken(self, rule: Rule, given: Mapping[str, Sequence[Value | None]]) -> Violation | None:
        """Return the worst violation of a rule, with some values given and every possible one of the other actuators."""
        domains = {name: given.get(name) or self._actuators[name].possible for name in rule.names}
        return rule.broken(domains, self.readings)


def _at_rest(group: Sequence[Actuator]) -> dict[str, Sequence[Value | None]]:
    """The safe value of each actuator that has one; what holds keeps what it has."""
    return {each.name: (each.settings.safe,) for each in group if not safe_is_hold(each.settings)}


def _is_step_out(would: Violation, now: Violation | None) -> bool:
    """Return whether a violation is smaller than the present one; from the unknown nothing is a step out."""
    return now is not None and would.degree < now.degree < math.inf
