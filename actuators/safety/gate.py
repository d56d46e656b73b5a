"""Decide what may reach an actuator, one proposal at a time. Pure and synchronous: no I/O, the clock is an argument.

The host sends every `ActuatorDecision` with a value to the device, in order. It calls one method for each occurrence:

- the agent: a proposal (`judge`), the loss of the agent (`lost`);
- the clock: `tick`, when `due_s` says so, or more often;
- the device: an acknowledgement (`acknowledged`), a command that could not be sent (`unsent`), a reported state (`reconciled`);
- an operator: `override`, `stop`, `arm`, `disarm`, `set_mode`;
- the broker: `connected`, `disconnected`, `hears_stop`;
- the machine: `woke` after it was suspended.

The gate knows neither topics nor payloads. Its parts: whether anything may move (`arming.py`), one actuator for one proposal
(`judge.py`), one value against its actuator (`limits.py`), all actuators against `forbid` (`forbidden_combinations.py`), safe actions
(`safe_actions.py`). `allowed_choices.py` informs the policy of what it may propose next.

Rules, each counted: `unknown_actuator stopped disarmed mode overridden not_ready expired stale wrong_type not_finite
out_of_range unknown_choice too_long too_soon min_hold too_fast unknown_state unacknowledged forbidden lost`.

A device continues with its last command, so silence is not safe. When the gate cannot trust the policy, it sends the safe
action and repeats it until it is acknowledged; `safe: hold` sends nothing. A command counts as one of the values that the
device may have until a later one is acknowledged; the rules must hold for every combination of these.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from actuators.actions import Value
from actuators.config import AnyActuator, GateSettings, requirements
from actuators.expressions import Known
from actuators.safety import limits
from actuators.safety.actuator_state import Actuator, Hold
from actuators.safety.allowed_choices import allowed_choices
from actuators.safety.arming import Arming
from actuators.safety.decisions import MODES, ActuatorDecision, By, Mode, Proposal
from actuators.safety.forbid_rules import safe_is_hold
from actuators.safety.forbidden_combinations import ForbiddenCombinations
from actuators.safety.judge import INVALID_ACTION_RULES, Judge
from actuators.safety.limits import Refusal
from actuators.safety.refusal_counts import RefusalCounts
from actuators.safety.safe_actions import SafeActions

MAX_HOLD_S = 3_600.0
MAX_READINGS_AGE_S = 1.0
"""Age of a proposal above which its readings count as unknown, in seconds."""
MAX_SUSPENSIONS = 16
"""Suspensions of the machine that are remembered; a proposal that waited through more is older than any `ttl_ms` all the same."""
TRANSIENT_RULES = frozenset({"too_soon", "min_hold", "unacknowledged"})
"""Refusals that pass with time: an override starts nevertheless, and acts as soon as it may."""


class Gate:
    """Every actuator behind one set of checks.

    Args:
        actuators: settings by name, in the order in which they are judged.
        settings: of the gate.
        required: streams that must be fresh for an actuator that names none.
        period_s: the tick period.
        now_s: the clock at construction; devices have `reconcile_s` from here to report.
        mode: the configured mode of every actuator.
        streams: telemetry fields by stream, for rules that name them.

    Raises:
        ExpressionError: an expression under `forbid` cannot be used.
    """

    def __init__(
        self,
        actuators: Mapping[str, AnyActuator],
        settings: GateSettings,
        required: Iterable[str] = (),
        *,
        period_s: float = 0.1,
        now_s: float = 0.0,
        mode: Mode = "autonomous",
        streams: Known | None = None,
    ) -> None:
        needed = frozenset(required)
        self._actuators = {
            name: Actuator(name, each, requirements(each.requires, needed), mode) for name, each in actuators.items()
        }
        self._settings = settings
        self._forbidden = ForbiddenCombinations(settings.forbid, self._actuators, streams)
        self._safe_actions = SafeActions(self._forbidden)
        self._arming = Arming(wanted=settings.arm == "auto")
        self._refusals = RefusalCounts(self._actuators)
        self._judge = Judge(self._arming, self._forbidden, self._safe_actions, self._refusals, period_s)
        self._period_s = period_s
        self._since_s = now_s
        self._configured = mode
        self._alive_s: float | None = None
        self._suspensions: deque[tuple[float, float]] = deque(maxlen=MAX_SUSPENSIONS)
        """When the machine woke, and how long it had been suspended: the newest ones."""
        self._settled = False  # a tick has seen that every device is reconciled
        self._short_overrides: dict[str, Value] = {}

    # What can be read.

    @property
    def armed(self) -> bool:
        """Whether anything may move."""
        return self._arming.armed

    @property
    def stopped(self) -> bool:
        """Whether the software stop is engaged."""
        return self._arming.stopped

    @property
    def counters(self) -> Counter[str]:
        """Refusals by rule."""
        return self._refusals.by_rule

    @property
    def refused(self) -> Counter[tuple[str, str]]:
        """Refusals by actuator and rule."""
        return self._refusals.by_actuator

    @property
    def modes(self) -> dict[str, Mode]:
        """Mode of each actuator."""
        return {name: each.mode for name, each in self._actuators.items()}

    @property
    def restricted(self) -> dict[str, Mode]:
        """Actuators with a mode that an operator requested and that is more restrictive than the settings."""
        return {n: m for n, m in self.modes.items() if MODES.index(m) < MODES.index(self._configured)}

    @property
    def deadline_s(self) -> float:
        """When the dead-man acts unless a proposal comes; infinite while there is no agent."""
        if self._alive_s is None:
            return math.inf
        return self._alive_s + self._period_s + self._settings.deadman_ms / 1_000

    @property
    def latches(self) -> dict[str, object]:
        """What must survive a restart, as JSON: the stop, an operator's disarming, the modes and those of the settings, and `moved`."""
        return {
            "stopped": self.stopped,
            "wanted": self._arming.wanted,
            "modes": dict(self.modes),
            "configured": self._configured,
            "moved": self.moved,
        }

    @property
    def moved(self) -> list[str]:
        """Actuators with a safe value that the policy or a person has commanded and that may not be at rest again, sorted."""
        return sorted(n for n, each in self._actuators.items() if each.moved and not safe_is_hold(each.settings))

    @property
    def repeats(self) -> int:
        """Safe actions sent again because they were not acknowledged."""
        return self._safe_actions.repeats

    def last_command(self, actuator: str) -> tuple[Value | None, By]:
        """Return the actuator's value by its newest command or report, and who commands it now.

        An operator commands an actuator only during the hold. After the hold the value may still be in force: then `by` is `none`.
        """
        each = self._actuators[actuator]
        is_over = each.by == "override" and each.hold is None
        return each.value, "none" if is_over else each.by

    @property
    def holds(self) -> dict[str, Hold | None]:
        """The override in force of each actuator, or None."""
        return {name: each.hold for name, each in self._actuators.items()}

    @property
    def short_overrides(self) -> dict[str, Value]:
        """What a person commanded between the last two proposals, by actuator, where the hold was over by the newer one."""
        return dict(self._short_overrides)

    def allowed_choices(self, now_s: float) -> dict[str, tuple[str, ...]]:
        """Return the choices that a policy may propose at `now_s`, by choice actuator; absent where all are, or where it does not act.

        The gate assumes that every command so far has arrived, and takes the telemetry of the last proposal. What it refuses may still
        be proposed: this only informs the policy in time. An actuator is left out where a rule names another one of unknown value. It
        is also left out where its rules need more evaluations than are left of `MOST_EVALUATIONS`: the gate must not be late.
        """
        if self._arming.refusal() is not None:
            return {}
        return allowed_choices(self._actuators.values(), self._forbidden, now_s)

    def held_until_s(self, actuator: str) -> float | None:
        """Return when an operator's hold ends, or None."""
        hold = self._actuators[actuator].hold
        return None if hold is None else hold.until_s

    def owed(self) -> list[str]:
        """Actuators with a safe action that the device has not acknowledged yet."""
        return [name for name, each in self._actuators.items() if each.is_owed]

    def is_reconciled(self, now_s: float) -> bool:
        """Return whether every device has reported, or had `reconcile_s` to do so."""
        return now_s - self._since_s >= self._settings.reconcile_s or all(e.reported for e in self._actuators.values())

    # What happens.

    def is_sound(self, proposal: Proposal) -> bool:
        """Return whether the proposal may count as a heartbeat."""
        if not math.isfinite(proposal.stamp_s) or not self._actuators.keys() >= proposal.actions.keys():
            return False
        checked = (limits.check(self._actuators[name].settings, value) for name, value in proposal.actions.items())
        return not any(isinstance(each, Refusal) and each.rule in INVALID_ACTION_RULES for each in checked)

    def judge(self, proposal: Proposal, now_s: float) -> list[ActuatorDecision]:
        """Decide on one proposal: a decision for each actuator, after what `tick` decides.

        A proposal with an unknown name, or a value that is no value of its actuator, is no heartbeat: an agent that sends
        nothing else is lost after `deadman_ms`. `now_s` must be read after the proposal was received.
        """
        if slept_s := sum(slept_s for woke_s, slept_s in self._suspensions if proposal.stamp_s <= woke_s):
            proposal = replace(proposal, stamp_s=proposal.stamp_s - slept_s)
        if self.is_sound(proposal):
            self._alive_s, self._arming.ready = now_s, proposal.ready
        else:
            self._arming.ready = self._arming.ready and proposal.ready
        decisions = self.tick(now_s)
        self._forbidden.readings = proposal.readings if 0 <= now_s - proposal.stamp_s <= MAX_READINGS_AGE_S else {}
        self._short_overrides = self._take_short_overrides()
        decisions.extend(self._refusals.unknown(name) for name in proposal.actions if name not in self._actuators)
        decisions.extend(self._end_forbidden(now_s))
        for each in self._actuators.values():
            decisions.extend(self._judge.judge(each, proposal, now_s))
        return decisions

    def tick(self, now_s: float) -> list[ActuatorDecision]:
        """Decide what time brings: the dead-man, the end of a hold, the repetition of a safe action, arming."""
        if now_s >= self.deadline_s:
            return self.lost(now_s)
        decisions = []
        for each in self._actuators.values():
            if each.hold is not None and now_s >= each.hold.until_s:
                each.hold = None
                if each.mode != "autonomous":  # no one else commands it, and a device continues with its last command
                    decisions.extend(self._safe_actions.send([each], None, "the override has ended", now_s))
        decisions.extend(self.repeat(now_s))
        self._settled = self.is_reconciled(now_s)
        self._arming.settle(reconciled=self._settled)
        return decisions

    def due_s(self) -> float:
        """Return when `tick` next has something to decide, unless something happens before; infinity where nothing is due."""
        times = [self.deadline_s]
        times.extend(each.hold.until_s for each in self._actuators.values() if each.hold is not None)
        if self._arming.online:
            times.extend(each.repeats_at_s for each in self._actuators.values())
        if not self._settled:
            times.append(self._since_s + self._settings.reconcile_s)
        return min(times)

    def override(self, actuator: str, value: object, hold_s: float, now_s: float) -> ActuatorDecision:
        """Act for an operator, within the same limits; the policy yields for `hold_s` seconds (0: this once)."""
        each = self._actuators.get(actuator)
        if each is None:
            return self._refusals.unknown(actuator)
        checked = self._arming.refusal() or limits.check(each.settings, value)
        if isinstance(checked, Refusal):
            return self._refusals.refuse(each, checked)
        if not 0 <= hold_s <= MAX_HOLD_S:
            return self._refusals.refuse(each, Refusal("wrong_type", f"hold_s must be between 0 and {MAX_HOLD_S:g}"))
        decision = self._judge.command(each, checked, "override", now_s)
        each.overridden = decision.value if decision.sent else each.overridden
        if decision.sent or decision.rule in TRANSIENT_RULES:
            each.hold = Hold(checked, now_s + hold_s)
        return decision

    def end_hold(self, actuator: str, now_s: float) -> list[ActuatorDecision]:
        """End a person's override now, as if its time were over."""
        each = self._actuators.get(actuator)
        if each is None:
            return [self._refusals.unknown(actuator)]
        if each.hold is not None:
            each.hold.until_s = min(each.hold.until_s, now_s)
        return self.tick(now_s)

    def stop(self, now_s: float, *, engaged: bool) -> list[ActuatorDecision]:
        """Engage or release the software stop. Engaging sends every safe action; releasing moves nothing: that takes `arm`."""
        self._arming.wanted = self._arming.wanted and not self.stopped  # releasing what was not engaged changes nothing
        self._arming.stopped = engaged
        if not engaged:
            return []
        self.end_request(now_s)
        return self._disarm(Refusal("stopped", "the software stop is engaged"), now_s)

    def arm(self, now_s: float, asked_s: float = math.inf) -> Refusal | None:
        """Allow movement: at once, or as soon as the devices have reported and the agent is ready.

        Args:
            now_s: the clock.
            asked_s: when the request was received, where it had to wait. A stop or a disarming since then has ended it.
        """
        refusal = self._arming.request(asked_s)
        if refusal is not None:
            return refusal
        self._arming.settle(reconciled=self.is_reconciled(now_s))
        return None

    def disarm(self, now_s: float) -> list[ActuatorDecision]:
        """Send the safe actions and allow no movement until an operator arms."""
        self.end_request(now_s)
        return self._disarm(Refusal("disarmed", "disarmed by an operator"), now_s)

    def end_request(self, now_s: float) -> None:
        """End the operator's request to arm, and every one that was received before now."""
        self._arming.end_request(now_s)

    def lost(self, now_s: float) -> list[ActuatorDecision]:
        """Send the safe actions, because the agent has ended or is too late. `arm: auto` arms again when it is back."""
        self.counters["lost"] += 1
        self._alive_s = None
        self._arming.ready = False
        self._forbidden.readings = {}
        return self._disarm(Refusal("lost", "agent heartbeat lost"), now_s)

    def go_safe(self, now_s: float, reason: str = "start or end of the daemon") -> list[ActuatorDecision]:
        """Send the safe actions at the host's own start and end; disarms until `tick` arms again."""
        return self._disarm(Refusal("disarmed", reason), now_s)

    def end(self, now_s: float, reason: str) -> list[ActuatorDecision]:
        """Send the safe actions at the end of the daemon; after it nothing arms, and no override acts."""
        self._arming.ended = True
        return self.go_safe(now_s, reason)

    def start_offline(self) -> None:
        """Start without a broker: nothing arms before `connected`."""
        self._arming.online = False

    def disconnected(self, now_s: float) -> list[ActuatorDecision]:
        """Disarm, because the broker is lost; every device must be reconciled again after `connected`."""
        self._arming.online = False
        return self._disarm(Refusal("disarmed", "no connection to the broker"), now_s)

    def connected(self, now_s: float) -> None:
        """The broker is (back) there: the devices must report again, and safe actions that did not arrive are due."""
        self._arming.online = True
        self._since_s, self._settled = now_s, False
        for each in self._actuators.values():
            each.forget_commands()

    def hears_stop(self, now_s: float, *, heard: bool) -> list[ActuatorDecision]:
        """Note whether the broker lets a stop reach the gate; while it does not, nothing is armed."""
        self._arming.deaf = not heard
        if heard or not self.armed:
            return []
        return self._disarm(Refusal("disarmed", "the gate cannot hear a stop"), now_s)

    def woke(self, now_s: float, slept_s: float) -> list[ActuatorDecision]:
        """Send the safe actions, because the machine was suspended: no clock here counted that time.

        Args:
            now_s: the clock, soon after the end of the suspension.
            slept_s: how long the machine was suspended. What was proposed before is older by so much.
        """
        self._suspensions.append((now_s, slept_s))
        self._forbidden.readings = {}
        return self._disarm(Refusal("disarmed", "the machine was suspended"), now_s)

    def repeat(self, now_s: float) -> list[ActuatorDecision]:
        """Send the safe actions again that have not arrived."""
        if not self._arming.online:
            return []
        return self._safe_actions.repeat(self._actuators.values(), now_s)

    def acknowledged(self, actuator: str, serial: int, now_s: float, *, by_device: bool = False) -> None:
        """The broker, or the device, has this command: the gate's idea of the device follows it."""
        self._actuators[actuator].acknowledge(serial, now_s, by_device=by_device)

    def device_answers(self, actuator: str) -> bool:
        """The device says which command it answers: a safe action is owed until it does. Returns whether that is new."""
        each = self._actuators[actuator]
        known, each.answers = each.answers, True
        return not known

    def unsent(self, actuator: str, serial: int) -> None:
        """This command never left, because a newer one replaced it or there was no connection, or the broker refused it."""
        self._actuators[actuator].withdraw(serial)

    def undelivered(self, actuator: str, serial: int) -> None:
        """This command left and was not acknowledged: it may have arrived. A safe action is due again."""
        each = self._actuators[actuator]
        each.lost = max(each.lost, serial)
        each.due = each.due or (serial == each.serial and each.in_safe_state)

    def reconciled(self, actuator: str, value: object, now_s: float, *, retained: bool = False) -> Refusal | None:
        """Take a device's report; the caller leaves out answers to older commands than the last.

        A report that does not fit the actuator is not believed and does not count as reconciled. A retained one is of
        unknown age: it counts only until the device reports or is commanded.

        Args:
            actuator: its name.
            value: as reported.
            now_s: the clock.
            retained: the broker stored it.
        """
        each = self._actuators.get(actuator)
        if each is None:
            return Refusal("unknown_actuator", f"{actuator[:64]!r} is not configured")
        return each.report(value, now_s, retained=retained)

    def set_mode(self, mode: Mode, now_s: float, actuator: str | None = None) -> list[ActuatorDecision]:
        """Change the mode of one actuator, or of all. No action of the policy, and none of a hold that is over, stays in force."""
        if actuator is not None and actuator not in self._actuators:
            return [self._refusals.unknown(actuator)]
        resting = []
        for each in self._actuators.values():
            if actuator in (None, each.name) and mode != each.mode:
                each.mode = mode
                # outside `autonomous` what is commanded is held or at rest, so a change to it finds nothing here
                if each.hold is None and each.commanded and not each.in_safe_state:
                    resting.append(each)
        return self._safe_actions.send(resting, "mode", f"the mode is now {mode}", now_s)

    def configure(self, mode: Mode, now_s: float) -> list[ActuatorDecision]:
        """Take a new configured mode; an actuator for which an operator requested a more careful one keeps that."""
        restricted, self._configured = self.restricted, mode
        decisions = []
        for name in self._actuators:
            new = min(mode, restricted.get(name, mode), key=MODES.index)
            decisions.extend(self.set_mode(new, now_s, name))
        return decisions

    def restore(self, latches: Mapping[str, object]) -> None:
        """Take the latches of the run before. Anything unreadable counts as stopped.

        A mode that an operator asked for counts only where it is more careful than the configured one. What the run before moved and
        did not bring to rest gets its safe action with the next ones, in any mode.
        """
        modes = latches.get("modes")
        arming = self._arming
        arming.stopped = latches.get("stopped") is not False or not isinstance(modes, Mapping)
        arming.armed = False
        arming.wanted = arming.wanted and latches.get("wanted") is True and not arming.stopped
        for name, mode in modes.items() if isinstance(modes, Mapping) else ():
            asked_for = mode != latches.get("configured")
            if name in self._actuators and mode in MODES and asked_for:
                self._actuators[name].mode = min(self._configured, MODES[MODES.index(mode)], key=MODES.index)
        moved = latches.get("moved", ())
        for name, each in self._actuators.items():
            if not isinstance(moved, list | tuple) or name in moved:
                each.commanded = each.moved = True

    # How it is decided.

    def _take_short_overrides(self) -> dict[str, Value]:
        """Return `short_overrides` at a new proposal, and forget what was commanded before it."""
        found = {
            name: each.overridden
            for name, each in self._actuators.items()
            if each.overridden is not None and each.hold is None
        }
        for each in self._actuators.values():
            each.overridden = None
        return found

    def _end_forbidden(self, now_s: float) -> list[ActuatorDecision]:
        """Bring to their safe state the actuators of every rule that the telemetry of this tick makes true, or leaves open."""
        if self._arming.refusal() is not None:
            return []
        decisions = list[ActuatorDecision]()
        for found, named in self._forbidden.broken_by_telemetry():
            chosen = [each for each in named if each.commanded and not each.in_safe_state]
            changed = {
                e.name: self._refusals.refuse(e, Refusal("forbidden", found.reason)).rule_changed for e in chosen
            }
            for each in chosen:
                each.hold = None
            rested = self._safe_actions.send(chosen, "forbidden", found.reason, now_s)
            decisions.extend(replace(d, rule_changed=changed.get(d.actuator, d.rule_changed)) for d in rested)
        return decisions

    def _disarm(self, refusal: Refusal, now_s: float) -> list[ActuatorDecision]:
        """Disarm and send every safe action; in shadow only where this gate, or the run before, has acted, unless the stop is engaged.

        The stop may be from the run before: its safe actions may not have arrived.

        With `arm: request`, an operator's request to arm ends with every disarming.
        """
        self._arming.armed = False
        if self._settings.arm != "auto":
            self.end_request(now_s)
        for each in self._actuators.values():
            each.hold = None
        chosen = [e for e in self._actuators.values() if self.stopped or e.commanded or e.mode != "shadow"]
        return self._safe_actions.send(chosen, refusal.rule, refusal.reason, now_s)
