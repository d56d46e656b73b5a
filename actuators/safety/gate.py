"""The gate: what may reach an actuator, judged one proposal at a time. Pure and synchronous: no I/O, the clock is an argument.

Whoever hosts it carries every `ActuatorDecision` with a value to the device, in order, and tells it what happens: a proposal
(`judge`), time (`tick`, at least every 10 ms), a lost agent (`lost`), a device's report (`reconciled`), a person (`override`,
`stop`, `arm`, `disarm`, `set_mode`). It knows neither topics nor sequence numbers nor why the policy wants what it wants.

Rules, each counted: `unknown_actuator stopped disarmed mode overridden not_ready expired stale wrong_type not_finite
out_of_range unknown_choice too_long too_soon min_hold too_fast forbidden lost`.

A device keeps doing what it was told last, so silence is not safe. Whenever the policy cannot be trusted (not ready, expired,
a required stream stale, a value that is no value) the gate sends the actuator's safe action, once, and `hold` sends nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from actuators.actions import Value
from actuators.config import AnyActuator, ContinuousSettings, GateSettings
from actuators.expressions import Expression, ExpressionError
from actuators.safety import limits
from actuators.safety.actuator_state import Actuator, Hold, freshness_refusal, no_op, report_of, safe_is_hold
from actuators.safety.decisions import ActuatorDecision, By, Mode, Proposal
from actuators.safety.limits import Refusal

MAX_HOLD_S = 3_600.0
INVALID_ACTION_RULES = frozenset({"wrong_type", "not_finite", "unknown_choice"})
"""EventThrottle after which the policy's last action is not left standing either."""
TRANSIENT_RULES = frozenset({"too_soon", "min_hold"})
"""EventThrottle that pass by themselves: a person's hold starts nevertheless, and acts as soon as it may."""


class Gate:
    """Every actuator behind one set of checks.

    Args:
        actuators: settings by name, in the order they are judged in.
        settings: of the gate.
        required: streams that must be fresh for an actuator that names none itself.
        period_s: the tick period.
        now_s: the clock at construction; reconciliation is waited for from here.
        mode: of every actuator at first.

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
    ) -> None:
        streams = frozenset(required)
        self._actuators = {
            name: Actuator(name, each, streams if each.requires is None else frozenset(each.requires), mode)
            for name, each in actuators.items()
        }
        self._settings = settings
        self._forbidden = [Expression(text, known_names(actuators)) for text in settings.forbid]
        self._period_s = period_s
        self._since_s = now_s
        self._alive_s: float | None = None
        self._ready = False
        self._online = True
        self._wanted = settings.arm == "auto"
        self.armed = False
        self.stopped = False
        self.counters: Counter[str] = Counter()
        """EventThrottle by rule."""
        self.refused: Counter[tuple[str, str]] = Counter()
        """EventThrottle by actuator and rule."""

    # What can be read.

    @property
    def modes(self) -> dict[str, str]:
        """Mode of each actuator."""
        return {name: each.mode for name, each in self._actuators.items()}

    @property
    def deadline_s(self) -> float:
        """When the dead-man acts unless a proposal comes; infinite while there is no agent."""
        if self._alive_s is None:
            return math.inf
        return self._alive_s + self._period_s + self._settings.deadman_ms / 1_000

    @property
    def latches(self) -> dict[str, bool | dict[str, str]]:
        """What must survive a restart, as JSON: the stop, a person's disarming, the modes."""
        return {"stopped": self.stopped, "wanted": self._wanted, "modes": self.modes}

    def last_command(self, actuator: str) -> tuple[Value | None, By]:
        """What the actuator does by the newest command or report, and who said so."""
        each = self._actuators[actuator]
        return each.value, each.by

    @property
    def holds(self) -> dict[str, Hold | None]:
        """The override in force of each actuator, or None."""
        return {name: each.hold for name, each in self._actuators.items()}

    def held_until_s(self, actuator: str) -> float | None:
        """When a person's hold ends, or None."""
        hold = self._actuators[actuator].hold
        return None if hold is None else hold.until_s

    def is_reconciled(self, now_s: float) -> bool:
        """Whether every device has reported, or was waited for long enough."""
        return now_s - self._since_s >= self._settings.reconcile_s or all(e.reported for e in self._actuators.values())

    # What happens.

    def judge(self, offer: Proposal, now_s: float) -> list[ActuatorDecision]:
        """One proposal, which is also the agent's sign of life: a ruling for each actuator, after what `tick` brings.

        `now_s` must be read after the proposal was received.
        """
        self._alive_s = now_s
        self._ready = offer.ready
        rulings = self.tick(now_s)
        for name in offer.actions:
            if name not in self._actuators:
                rulings.append(self._unknown(name))
        rulings.extend(self._judge(each, offer, now_s) for each in self._actuators.values())
        return rulings

    def tick(self, now_s: float) -> list[ActuatorDecision]:
        """What time brings: the dead-man, the end of a person's hold, arming once everything is there."""
        if now_s >= self.deadline_s:
            return self.lost(now_s)
        rulings = []
        for each in self._actuators.values():
            if each.hold is not None and now_s >= each.hold.until_s:
                each.hold = None
                if each.mode != "autonomous":  # nobody takes over, and a device keeps doing what it was told
                    rulings.append(self._rest(each, None, "the override has ended", now_s))
        self._settle(now_s)
        return rulings

    def override(self, actuator: str, value: object, hold_s: float, now_s: float) -> ActuatorDecision:
        """A person acts, within the same limits; the policy yields for `hold_s` (0: this once)."""
        each = self._actuators.get(actuator)
        if each is None:
            return self._unknown(actuator)
        checked = self._barred() or limits.check(each.settings, value)
        if isinstance(checked, Refusal):
            return self._refuse(each, checked)
        if not 0 <= hold_s <= MAX_HOLD_S:
            return self._refuse(each, Refusal("wrong_type", f"hold_s must be between 0 and {MAX_HOLD_S:g}"))
        ruling = self._apply(each, checked, "override", now_s)
        if ruling.sent or ruling.rule in TRANSIENT_RULES:
            each.hold = Hold(checked, now_s + hold_s)
        return ruling

    def end_hold(self, actuator: str, now_s: float) -> list[ActuatorDecision]:
        """End a person's override now, as if its time were over."""
        each = self._actuators.get(actuator)
        if each is None:
            return [self._unknown(actuator)]
        if each.hold is not None:
            each.hold.until_s = min(each.hold.until_s, now_s)
        return self.tick(now_s)

    def stop(self, now_s: float, *, engaged: bool) -> list[ActuatorDecision]:
        """The software stop. Engaging sends every safe action; releasing moves nothing: that takes `arm`."""
        self._wanted = self._wanted and not (
            engaged or self.stopped
        )  # releasing what was never engaged changes nothing
        self.stopped = engaged
        if not engaged:
            return []
        return self._rest_all(Refusal("stopped", "the software stop is engaged"), now_s, everyone=True)

    def arm(self, now_s: float) -> Refusal | None:
        """A person wants movement: at once, or as soon as devices have reported and the agent is there."""
        if self.stopped:
            return Refusal("stopped", "release the stop first, then arm")
        self._wanted = True
        self._settle(now_s)
        return None

    def disarm(self, now_s: float) -> list[ActuatorDecision]:
        """A person wants no movement: safe actions, and no arming until asked."""
        self._wanted = False
        return self._rest_all(Refusal("disarmed", "disarmed by a person"), now_s)

    def lost(self, now_s: float) -> list[ActuatorDecision]:
        """The agent is gone or too late: safe actions. `arm: auto` arms again when it is back."""
        self.counters["lost"] += 1
        self._alive_s = None
        self._ready = False
        self._wanted = self._wanted and self._settings.arm == "auto"
        return self._rest_all(Refusal("lost", "no sign of life from the agent"), now_s)

    def go_safe(self, now_s: float, reason: str = "start or end of the daemon") -> list[ActuatorDecision]:
        """Safe actions without blame, for the host's own start and end; disarms until `tick` arms again."""
        return self._rest_all(Refusal("disarmed", reason), now_s)

    def disconnected(self, now_s: float) -> list[ActuatorDecision]:
        """The broker is gone: disarmed, and everything must be reconciled again after `connected`."""
        self._online = False
        return self._rest_all(Refusal("disarmed", "no connection to the broker"), now_s)

    def connected(self, now_s: float) -> None:
        """The broker is (back) there: the devices are asked anew what they do."""
        self._online = True
        self._since_s = now_s
        for each in self._actuators.values():
            each.reported = False

    def reconciled(self, actuator: str, value: object, now_s: float) -> Refusal | None:
        """A device's report of what it does; the caller leaves out answers to older commands than the last.

        A report that is no value of this actuator makes what it does unknown, and does not count as reconciled.
        """
        each = self._actuators.get(actuator)
        if each is None:
            return Refusal("unknown_actuator", f"{actuator[:64]!r} is not configured")
        truth = report_of(each.settings, value)
        if isinstance(truth, Refusal):
            each.value, each.by = None, "nobody"
            return truth
        each.reported = True
        if truth != each.value:
            each.value, each.by, each.changed_s = truth, "nobody", now_s
        return None

    def set_mode(self, mode: Mode, now_s: float, actuator: str | None = None) -> list[ActuatorDecision]:
        """Change the mode of one actuator, or of all. What the policy had in force does not stay behind."""
        if actuator is not None and actuator not in self._actuators:
            return [self._unknown(actuator)]
        rulings = []
        for each in self._actuators.values():
            if actuator in (None, each.name) and mode != each.mode:
                each.mode = mode
                if mode != "autonomous" and each.hold is None and each.by == "policy":
                    rulings.append(self._rest(each, "mode", f"the mode is now {mode}", now_s))
        return rulings

    def restore(self, latches: Mapping[str, object]) -> None:
        """What `latches` gave before the restart. Anything unreadable counts as stopped."""
        modes = latches.get("modes")
        self.stopped = latches.get("stopped") is not False or not isinstance(modes, Mapping)
        self.armed = False
        self._wanted = self._wanted and latches.get("wanted") is True and not self.stopped
        for name, mode in modes.items() if isinstance(modes, Mapping) else ():
            if name in self._actuators and mode in ("shadow", "assist", "autonomous"):
                self._actuators[name].mode = mode

    # How it is decided.

    def _judge(self, each: Actuator, offer: Proposal, now_s: float) -> ActuatorDecision:
        offered = each.name in offer.actions
        barred = self._barred()
        if barred is not None:
            return self._refuse(each, barred)
        if each.hold is not None:
            return self._continue(each, each.hold, now_s, offered=offered)
        if each.mode != "autonomous":
            return self._refuse(each, Refusal("mode", f"the mode is {each.mode}")) if offered else no_op(each)
        return self._from_policy(each, offer, now_s)

    def _from_policy(self, each: Actuator, offer: Proposal, now_s: float) -> ActuatorDecision:
        doubted = freshness_refusal(each, offer, now_s)
        if doubted is not None:
            return self._distrust(each, doubted, now_s)
        if each.name not in offer.actions:
            return no_op(each)
        checked = limits.check(each.settings, offer.actions[each.name])
        if isinstance(checked, Refusal):
            return (
                self._distrust(each, checked, now_s)
                if checked.rule in INVALID_ACTION_RULES
                else self._refuse(each, checked)
            )
        return self._apply(each, checked, "policy", now_s)

    def _barred(self) -> Refusal | None:
        if self.stopped:
            return Refusal("stopped", "the software stop is engaged")
        if not self.armed:
            return Refusal("disarmed", "not armed")
        return None

    def _continue(self, each: Actuator, hold: Hold, now_s: float, *, offered: bool) -> ActuatorDecision:
        """A person's hold goes on: what could not be reached at once is approached."""
        ruling = no_op(each) if each.value == hold.value else self._apply(each, hold.value, "override", now_s)
        if not offered:
            return ruling
        refused = self._refuse(each, Refusal("overridden", "a person acts"))
        return replace(refused, value=ruling.value, by=ruling.by)

    def _apply(self, each: Actuator, value: Value, by: By, now_s: float) -> ActuatorDecision:
        past = limits.LastCommand(each.value, now_s - each.sent_s, now_s - each.changed_s)
        paced = limits.pace(each.settings, value, past, 2 * self._period_s, approach=by == "override")
        if not isinstance(paced, Refusal):
            paced = self._forbid(each.name, paced) or paced
        if isinstance(paced, Refusal):
            return self._refuse(each, paced)
        each.rule = None
        return self._send(each, paced, by, now_s)

    def _forbid(self, name: str, value: Value) -> Refusal | None:
        would = {each.name: each.value for each in self._actuators.values()} | {name: value}
        for expression in self._forbidden:
            if name not in expression.names:
                continue
            try:
                forbidden, reason = expression.evaluate(would) != 0, f"{expression.text} would hold"
            except ExpressionError as error:
                forbidden, reason = True, f"it cannot be ruled out: {error}"
            if forbidden:
                return Refusal("forbidden", reason)
        return None

    def _send(self, each: Actuator, value: Value, by: By, now_s: float) -> ActuatorDecision:
        if value != each.value:
            each.changed_s = now_s
        each.value, each.by, each.sent_s = value, by, now_s
        each.commanded = True
        each.in_safe_state = by == "gate"
        return ActuatorDecision(each.name, value, None, by)

    def _distrust(self, each: Actuator, refusal: Refusal, now_s: float) -> ActuatorDecision:
        """Refuse, and put the actuator at rest if it is not yet."""
        ruling = self._refuse(each, refusal)
        if each.in_safe_state:
            return ruling
        rested = self._rest(each, refusal.rule, refusal.reason, now_s)
        return replace(rested, rule_changed=ruling.rule_changed)

    def _rest_all(self, refusal: Refusal, now_s: float, *, everyone: bool = False) -> list[ActuatorDecision]:
        """Disarm and send every safe action; in shadow only where this gate has acted, unless `everyone`."""
        self.armed = False
        rulings = []
        for each in self._actuators.values():
            each.hold = None
            if everyone or each.commanded or each.mode != "shadow":
                rulings.append(self._rest(each, refusal.rule, refusal.reason, now_s))
        return rulings

    def _rest(self, each: Actuator, rule: str | None, reason: str, now_s: float) -> ActuatorDecision:
        each.in_safe_state = True
        if safe_is_hold(each.settings):
            return ActuatorDecision(each.name, None, rule, "nobody", reason)
        return replace(self._send(each, each.settings.safe, "gate", now_s), rule=rule, reason=reason)

    def _refuse(self, each: Actuator, refusal: Refusal) -> ActuatorDecision:
        news = each.rule != refusal.rule
        each.rule = refusal.rule
        return self._count(
            ActuatorDecision(each.name, None, refusal.rule, "nobody", refusal.reason, news), refusal.rule
        )

    def _unknown(self, name: str) -> ActuatorDecision:
        reason = f"{name[:64]!r} is not configured; there are {sorted(self._actuators)}"
        return self._count(
            ActuatorDecision(name, None, "unknown_actuator", "nobody", reason, rule_changed=True), "unknown_actuator"
        )

    def _count(self, ruling: ActuatorDecision, rule: str) -> ActuatorDecision:
        self.counters[rule] += 1
        if ruling.actuator in self._actuators:  # unknown names come from outside and would grow without bound
            self.refused[ruling.actuator, rule] += 1
        return ruling

    def _settle(self, now_s: float) -> None:
        """Arm once it is wanted and possible."""
        possible = self._ready and self._online and not self.stopped and self.is_reconciled(now_s)
        self.armed = self.armed or (self._wanted and possible)


def known_names(actuators: Mapping[str, AnyActuator]) -> dict[str, int | None]:
    """What an expression may name: each actuator, a continuous one by its components."""
    return {name: len(each.low) if isinstance(each, ContinuousSettings) else None for name, each in actuators.items()}
