"""One actuator as the gate sees it: what it does, who holds it, and what can be said of a proposal without looking at the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings
from actuators.safety import limits
from actuators.safety.decisions import ActuatorDecision, By, Mode, Proposal
from actuators.safety.limits import Refusal


@dataclass(slots=True)
class Hold:
    """A person's action in force."""

    value: Value
    until_s: float


@dataclass(slots=True)
class Actuator:
    """One actuator as the gate sees it."""

    name: str
    settings: AnyActuator
    requires: frozenset[str]
    mode: Mode
    value: Value | None = None
    """What it does, by the newest command or report; None when not known."""
    by: By = "nobody"
    sent_s: float = -math.inf
    changed_s: float = -math.inf
    commanded: bool = False
    """This gate has sent it something."""
    in_safe_state: bool = False
    """The safe action is the last that was sent."""
    reported: bool = False
    hold: Hold | None = None
    rule: str | None = None
    """The rule in force at the last proposal."""


def freshness_refusal(each: Actuator, offer: Proposal, now_s: float) -> Refusal | None:
    """Why this proposal cannot be trusted for this actuator."""
    if not offer.ready:
        return Refusal("not_ready", "the agent is starting or draining")
    age_s = now_s - offer.stamp_s
    if not 0 <= age_s <= each.settings.ttl_ms / 1_000:
        return Refusal("expired", f"observed {age_s * 1_000:.0f} ms ago; at most {each.settings.ttl_ms}")
    stale = each.requires.intersection(offer.stale)
    if stale:
        return Refusal("stale", f"{sorted(stale)} gives nothing fresh")
    return None


def report_of(settings: AnyActuator, value: object) -> Value | Refusal:
    """A device's report: any finite vector of the right size, else what `check` takes."""
    if isinstance(settings, ContinuousSettings):
        return limits.vector(value, len(settings.low))
    return limits.check(settings, value)


def safe_is_hold(settings: AnyActuator) -> bool:
    """Whether being safe means to send nothing."""
    return settings.safe == "hold" and not (isinstance(settings, ChoiceSettings) and "hold" in settings.choices)


def no_op(each: Actuator) -> ActuatorDecision:
    """Nothing to send and nothing to say."""
    return ActuatorDecision(each.name, None, None, "nobody")
