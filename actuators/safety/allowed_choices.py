"""Which choices a policy may propose now: those that the pace and the rules of `forbid` let pass. It informs, and decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

from actuators.config import ChoiceSettings
from actuators.safety import limits
from actuators.safety.actuator_state import Actuator
from actuators.safety.forbidden_combinations import ForbiddenCombinations
from actuators.safety.limits import Refusal

MOST_EVALUATIONS = 200
"""Of rules, in one search for the allowed choices: about 2 ms."""


def allowed_choices(
    actuators: Iterable[Actuator], forbidden: ForbiddenCombinations, now_s: float
) -> dict[str, tuple[str, ...]]:
    """Return the choices that pass at `now_s`, by choice actuator; absent where all pass, or where the policy does not act."""
    found: dict[str, tuple[str, ...]] = {}
    left = MOST_EVALUATIONS
    for each in actuators:
        settings = each.settings
        if not isinstance(settings, ChoiceSettings) or each.mode != "autonomous" or each.hold is not None:
            continue
        choices = _in_pace(each, settings, now_s)
        needed = forbidden.evaluations(each, len(choices))
        if needed is None or needed > left:
            continue
        left -= needed
        passing = forbidden.passing(each, choices)
        if 0 < len(passing) < len(settings.choices):
            found[each.name] = passing
    return found


def _in_pace(each: Actuator, settings: ChoiceSettings, now_s: float) -> list[str]:
    """Return the choices that the pace lets pass at `now_s`; a short interval holds back every choice alike."""
    last = limits.LastCommand(each.value, math.inf, now_s - each.changed_s)
    paces = ((choice, limits.pace(settings, choice, last, 0.0, approach=False)) for choice in settings.choices)
    return [choice for choice, pace in paces if not isinstance(pace, Refusal)]
