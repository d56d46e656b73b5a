"""Track the state of one actuator inside the gate: its newest command, acknowledgements, possible values, and holder.

The gate keeps one `Actuator` each. Nothing here knows the other actuators or the rules between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, MovingSettings, conditions_of
from actuators.safety import limits
from actuators.safety.decisions import ActuatorDecision, By, Mode, Proposal
from actuators.safety.forbid_rules import domain, safe_is_hold
from actuators.safety.limits import Refusal

REPEAT_S = (0.1, 2.0)
"""A safe action that is not acknowledged is sent again after the first number of seconds, then twice as late, up to the second."""
MAX_PENDING = 8
"""Commands of one actuator that may await the broker's acknowledgement."""
MAX_CHAIN = 2 * MAX_PENDING
"""Commands of one actuator that are remembered; more are repeats of its safe action."""
SAFE_LIFE_S = 60.0
"""A safe action that is not acknowledged may arrive for so long."""
BOX_TOLERANCE = 0.01
"""Part of the range by which a reported value may lie outside the limits: sensors are noisy at the end stops."""


@dataclass(slots=True)
class Hold:
    """A person's action in force."""

    value: Value
    until_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """One command that left."""

    serial: int
    value: Value
    stamp_s: float


@dataclass(slots=True)
class Actuator:
    """One actuator as the gate sees it."""

    name: str
    settings: AnyActuator
    requires: frozenset[str]
    mode: Mode
    value: Value | None = None
    """The newest command or, where it is newer, the newest report; None while neither is known."""
    by: By = "none"
    sent_s: float = -math.inf
    changed_s: float = -math.inf
    """When the newest change of the value arrived; until then, when it was sent."""
    change: int = 0
    """Number of the command that made the newest change; 0 once it has arrived."""
    commanded: bool = False
    """This gate has commanded it, or the run before has and nothing says that it is at rest."""
    moved: bool = False
    """The policy or a person has commanded it, and no safe action has arrived since."""
    in_safe_state: bool = False
    """The newest command is the safe action; it may still have to arrive."""
    reported: bool = False
    hold: Hold | None = None
    overridden: Value | None = None
    """What a person commanded since the last proposal; None while nothing was."""
    rule: str | None = None
    """The rule in force at the last proposal."""
    serial: int = 0
    """Number of the newest command."""
    received: int = 0
    """Number of the newest command that the broker has acknowledged."""
    carried_out: int = 0
    """Number of the newest command that the device has acknowledged."""
    answers: bool = False
    """The device says which command it answers, so that its acknowledgement counts and not the broker's."""
    confirmed: Value | None = None
    """The newest value that was acknowledged or reported."""
    chain: list[Sent] = field(default_factory=list)
    """Commands since the last connect: the newest acknowledged one, then those that await it."""
    earlier: list[Sent] = field(default_factory=list)
    """Commands of sessions before, as `chain`, while neither a report nor an acknowledgement says which of them is in force."""
    inherited: tuple[Value | None, ...] = ()
    """The values that were possible when the connection ended."""
    unanswered: dict[Value, int] = field(default_factory=dict)
    """Of a choice: the value that the device acknowledged last, and those commanded since, each with its newest number."""
    repeat_s: float = REPEAT_S[0]
    due: bool = False
    """The newest safe action is known not to have arrived."""
    lost: int = 0
    """Number of the newest command that left and was not acknowledged in time."""

    def issue(self, value: Value, by: By, now_s: float) -> int:
        """Note a command and return its number."""
        self.serial += 1
        if value != self.value:
            self.changed_s, self.change = now_s, self.serial
        self.value, self.by, self.sent_s = value, by, now_s
        self.commanded, self.in_safe_state, self.due = True, by == "gate", False
        self.moved = self.moved or by != "gate"
        if isinstance(self.settings, ChoiceSettings):
            self.unanswered[value] = self.serial
        self.chain.append(Sent(self.serial, value, now_s))
        if len(self.chain) > MAX_CHAIN:  # the gate repeats one safe value: its first and newest place count
            del self.chain[-2]
        return self.serial

    def command(self, value: Value, by: By, now_s: float) -> ActuatorDecision:
        """Note a command and return the decision to send it."""
        return ActuatorDecision(self.name, value, None, by, serial=self.issue(value, by, now_s))

    def acknowledge(self, serial: int, now_s: float, *, by_device: bool) -> None:
        """Record that the broker or the device has the command with this number; earlier ones are no longer in force."""
        value = next((each.value for each in self.chain if each.serial == serial), None)
        if value is not None:
            self.confirmed, self.inherited, self.earlier = value, (), []
        self.chain = [each for each in self.chain if each.serial >= serial]
        self.received = max(self.received, serial)
        if by_device:
            self.carried_out = max(self.carried_out, serial)
            self.unanswered = {word: number for word, number in self.unanswered.items() if number >= serial}
        if serial >= self.change and (by_device or not self.answers):
            self._note_arrival(now_s)
        if self.in_safe_state and self.has_arrived:
            self.moved = False
        if not self.is_owed:
            self.repeat_s = REPEAT_S[0]

    def _note_arrival(self, now_s: float) -> None:
        """Note that the device has the newest change of the value now."""
        if self.change:
            self.changed_s, self.change = self._arrives_before_s(now_s), 0

    def _arrives_before_s(self, now_s: float) -> float:
        """Return when the newest change has arrived at the latest: until now, and within the life of the newest command with its value."""
        rests = self.in_safe_state and not safe_is_hold(self.settings)
        life_s = SAFE_LIFE_S if rests else math.ceil(self.settings.ttl_ms / 1_000)
        return max(self.changed_s, min(now_s, self.sent_s + life_s))

    def withdraw(self, serial: int) -> None:
        """Remove the command with this number, which was never sent."""
        self.chain = [each for each in self.chain if each.serial != serial]
        if serial == self.serial:
            self.due = self.in_safe_state
        rests = self.in_safe_state and not safe_is_hold(self.settings)  # what holds has its last command that left
        if not rests and not any(each.serial > serial for each in self.chain):
            self.value = self.chain[-1].value if self.chain else self.confirmed

    def report(self, value: object, now_s: float, *, retained: bool) -> Refusal | None:
        """Take a device's report; return why it is not believed, or None.

        A retained report is of unknown age: it counts only until the device reports or is commanded.
        """
        truth = report_of(self.settings, value)
        if isinstance(truth, Refusal):
            return truth
        is_old = retained and (self.reported or bool(self.chain))
        self.reported = True
        if is_old:
            return None
        self.confirmed, self.inherited, self.earlier = truth, (), []
        pending = {each.value: each.serial for each in self.chain if each.serial > self.received}
        self.unanswered = {truth: self.received} | pending if isinstance(self.settings, ChoiceSettings) else {}
        if not self.pending and truth != self.value:
            self.value, self.by, self.changed_s, self.change = truth, "none", now_s, 0
        elif truth == self.value:
            self._note_arrival(now_s)
        return None

    def forget_commands(self) -> None:
        """A new session: the device must report again, and what is owed to it is due."""
        self.inherited = tuple(self.possible)
        is_reported = self.by == "none"  # since the newest command: then the report says more than the commands
        self.earlier = [] if is_reported else [*self.earlier, *self.chain][-MAX_CHAIN:]
        self.reported, self.chain, self.confirmed = False, [], None
        self.repeat_s, self.due = REPEAT_S[0], self.is_owed

    @property
    def is_owed(self) -> bool:
        """Whether a safe action has still to arrive."""
        return self.in_safe_state and not self.has_arrived and not safe_is_hold(self.settings)

    @property
    def has_arrived(self) -> bool:
        """Whether the device, or the broker where the device answers nothing, has the newest command."""
        return (self.carried_out if self.answers else self.received) >= self.serial

    @property
    def repeats_at_s(self) -> float:
        """When the safe action must be sent again unless it arrives; infinity where none is owed."""
        if not self.is_owed:
            return math.inf
        return -math.inf if self.due else self.sent_s + self.repeat_s

    def must_repeat(self, now_s: float) -> bool:
        """Return whether the safe action must be sent again now."""
        return now_s >= self.repeats_at_s

    def has_already(self, value: Value, now_s: float) -> bool:
        """Return whether the policy need not send this value: it did so less than `refresh_s` ago, and it arrived."""
        if not isinstance(self.settings, MovingSettings) or now_s - self.sent_s >= self.settings.refresh_s:
            return False
        is_in_force = value == self.value == self.confirmed and self.by == "policy"
        return is_in_force and self.has_arrived and not self.in_safe_state

    @property
    def pending(self) -> int:
        """Commands that await the broker's acknowledgement."""
        return sum(each.serial > self.received for each in self.chain)

    @property
    def possible(self) -> Sequence[Value | None]:
        """Every value it may have now: as commanded and as reported; all of its domain while nothing is known.

        A choice that says which command it answers may have refused what the broker acknowledged.
        """
        values: dict[Value | None, None] = dict.fromkeys(self.unanswered if self.answers else ())
        values |= dict.fromkeys(each.value for each in self.chain)
        known = (self.confirmed,) if self.confirmed is not None else self.inherited or domain(self.settings)
        return tuple(values | dict.fromkeys(known))

    def last_command(self, now_s: float) -> limits.LastCommand:
        """Return what pace and limits measure the next command against."""
        steps = [(value, now_s - stamp_s) for value, stamp_s in self.steps_from()]
        changed_s = self._arrives_before_s(now_s) if self.change else self.changed_s
        return limits.LastCommand(self.value, now_s - self.sent_s, now_s - changed_s, steps)

    def steps_from(self) -> Sequence[tuple[Value, float]]:
        """Return the values from which the next step is measured, each with when it was sent; none if the state is unknown.

        A report counts only until the first command: whatever is reported later, no step between commands is too large.
        """
        if sent := [*self.earlier, *self.chain]:
            return tuple((each.value, each.stamp_s) for each in sent)
        if self.value is not None:
            return ((self.value, self.sent_s),)
        if safe_is_hold(self.settings):
            return ()
        return ((self.settings.safe, self.sent_s),)


def freshness_refusal(each: Actuator, proposal: Proposal, now_s: float) -> Refusal | None:
    """Return why this proposal cannot be trusted for this actuator; None if it can."""
    if not proposal.ready:
        return Refusal("not_ready", "the agent is starting or draining")
    age_s = now_s - proposal.stamp_s
    if not 0 <= age_s <= each.settings.ttl_ms / 1_000:
        return Refusal("expired", f"observed {age_s * 1_000:.0f} ms ago; at most {each.settings.ttl_ms}")
    missing = each.requires.intersection(proposal.stale)
    unmet = frozenset(conditions_of(tuple(missing)))
    stale = sorted(missing - unmet)
    if stale:
        return Refusal("stale", f"required stream{'s' if len(stale) > 1 else ''} {', '.join(stale)} stale")
    if unmet:
        return Refusal("stale", f"{', '.join(sorted(unmet))} does not hold")
    return None


def report_of(settings: AnyActuator, value: object) -> Value | Refusal:
    """Convert a device's report to a value of the actuator's width, limits and choices."""
    if not isinstance(settings, ContinuousSettings):
        return limits.check(settings, value)
    numbers = limits.vector(value, len(settings.low))
    if isinstance(numbers, Refusal):
        return numbers
    if not all(map(_is_near, settings.low, numbers, settings.high)):
        return Refusal("out_of_range", f"{list(numbers)} is not between {list(settings.low)} and {list(settings.high)}")
    return limits.clamped(settings, numbers)


def _is_near(low: float, number: float, high: float) -> bool:
    slack = BOX_TOLERANCE * (high - low)
    return low - slack <= number <= high + slack


def no_op(each: Actuator) -> ActuatorDecision:
    """Nothing to send and nothing to report."""
    return ActuatorDecision(each.name, None, None, "none")
