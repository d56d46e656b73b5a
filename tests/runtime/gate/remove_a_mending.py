"""Take one mending away at a time and count the steps until the model of the gate notices: `python tests/runtime/gate/remove_a_mending.py`.

Prints a table; exits with 1 when the model notices one of them not within `MOST` steps, or finds fault with the gate as it is.
"""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import orjson  # noqa: E402 - after the path
import structlog  # noqa: E402
from hypothesis import HealthCheck, Phase, seed, settings  # noqa: E402
from test_gate_model import GateModel  # noqa: E402

from actuators.safety import gate as gate_module  # noqa: E402
from actuators.safety import judge, limits  # noqa: E402
from actuators.safety.actuator_state import Actuator, freshness_refusal  # noqa: E402
from actuators.safety.forbid_rules import Rule, Violation  # noqa: E402
from actuators.safety.forbidden_combinations import ForbiddenCombinations  # noqa: E402
from actuators.safety.gate import Gate  # noqa: E402
from actuators.safety.limits import Refusal  # noqa: E402
from runtime.dashboard.broker_connections import MqttBridge  # noqa: E402
from runtime.fleet.stop.relay import StopRelay  # noqa: E402
from runtime.gate import operator_commands  # noqa: E402
from runtime.gate.agent_channel import AgentChannel  # noqa: E402
from runtime.gate.host import GateHost  # noqa: E402
from runtime.gate.latches import LatchWriter  # noqa: E402
from runtime.gate.stop.follower import StopListenerFollower  # noqa: E402
from runtime.gate.stop.unacknowledged import Unacknowledged  # noqa: E402
from runtime.mqtt import Connection  # noqa: E402
from runtime.mqtt.publisher import Sender  # noqa: E402
from runtime.mqtt.topics import encode  # noqa: E402

MOST = 100_000
STEPS_A_RUN = 50
Patch = Callable[[], Any]


def common_queue() -> Patch:
    """Commands go into the queue of everything, and count as arrived whatever becomes of them."""

    def send_newest(self: Sender, _key: str, outgoing: Any, done: Any, *, urgent: bool) -> None:
        del urgent
        if self._client is not None:
            self.send(outgoing)
        done("acknowledged")

    return lambda: mock.patch.object(Sender, "send_newest", send_newest)


def no_repetition() -> Patch:
    """A safe action is sent once."""
    return lambda: mock.patch.object(Actuator, "must_repeat", return_value=False)


def any_report() -> Patch:
    """A report that does not fit makes the value unknown, and an unknown value has no largest step."""
    reconciled, rate = Gate.reconciled, limits._rate

    def forgetting(self: Gate, actuator: str, value: object, now_s: float, **more: Any) -> Refusal | None:
        refusal = reconciled(self, actuator, value, now_s, **more)
        if refusal is not None:
            self._actuators[actuator].chain, self._actuators[actuator].value = [], None
        return refusal

    def unlimited(settings: Any, rates: Any, value: Any, last: Any, longest_s: float, *, approach: bool) -> Any:
        return value if last.value is None else rate(settings, rates, value, last, longest_s, approach=approach)

    return lambda: _both(
        mock.patch.object(Gate, "reconciled", forgetting), mock.patch.object(limits, "_rate", unlimited)
    )


def latched_mode() -> Patch:
    """The latch replaces the mode of the settings."""
    restore = Gate.restore

    def restored(self: Gate, content: Any) -> None:
        restore(self, content)
        for name, mode in (content.get("modes") or {}).items():
            self._actuators[name].mode = mode

    return lambda: mock.patch.object(Gate, "restore", restored)


def announced_before_saved() -> Patch:
    """The event comes before the disk."""

    def announced(self: GateHost, kind: str, _data: Any, saved: Any) -> None:
        self.publisher.event(kind, {"modes": self.gate.modes} if kind == "mode_changed" else {})
        self.latches.changed(saved)

    return lambda: mock.patch.object(GateHost, "_after_saving", announced)


def one_write() -> Patch:
    """A failed write of the latches counts as saved and is not tried again."""

    def failed(self: LatchWriter, waiting: list[Any], _error: OSError) -> bool:
        return self._succeeded(dict(self.on_disk), waiting)

    return lambda: mock.patch.object(LatchWriter, "_failed", failed)


def exact_stops() -> Patch:
    """Only an exact message stops."""
    read_stop = operator_commands.read_stop

    def exact(message: Any) -> Any:
        read = read_stop(message)
        return None if read is not None and read[1] else read

    return lambda: mock.patch.object(operator_commands, "read_stop", exact)


def old_releases() -> Patch:
    """A release counts whether or not the broker stored it."""
    read_stop = operator_commands.read_stop

    def old(message: Any) -> Any:
        return (False, "") if message.payload == b'{"engaged": false}' else read_stop(message)

    return lambda: mock.patch.object(operator_commands, "read_stop", old)


def listener_without_a_channel() -> Patch:
    """The gate knows what the stop listener received from its file alone."""
    return lambda: mock.patch.object(StopListenerFollower, "stated", return_value=None)


def unjudged_rest() -> Patch:
    """An actuator rests alone."""
    return lambda: mock.patch.object(ForbiddenCombinations, "with_coupled", lambda _self, chosen: list(chosen))


def telemetry_stops_nothing() -> Patch:
    """Telemetry decides about new commands only."""
    return lambda: mock.patch.object(Gate, "_end_forbidden", return_value=[])


def old_telemetry() -> Patch:
    """Telemetry of any age counts."""
    return lambda: mock.patch.object(gate_module, "MAX_READINGS_AGE_S", float("inf"))


def missing_telemetry_is_harmless() -> Patch:
    """A rule without its telemetry does not hold."""
    broken = ForbiddenCombinations._broken

    def known(self: ForbiddenCombinations, rule: Rule, given: Any) -> Violation | None:
        found = broken(self, rule, given)
        return None if rule.streams and found is not None and found.degree == float("inf") else found

    return lambda: mock.patch.object(ForbiddenCombinations, "_broken", known)


def stale_streams_are_harmless() -> Patch:
    """A required stream or condition may be missing."""

    def fresh(each: Actuator, proposal: Any, now_s: float) -> Refusal | None:
        return freshness_refusal(each, replace(proposal, stale=()), now_s)

    return lambda: mock.patch.object(judge, "freshness_refusal", fresh)


def dying_last_will() -> Patch:
    """A lost broker leaves the request to arm."""
    disconnected, go_safe = Gate.disconnected, Gate.go_safe

    def keep(method: Any) -> Any:
        def stored(self: Gate, *args: Any) -> Any:
            wanted = self._arming.wanted
            decisions = method(self, *args)
            self._arming.wanted = wanted
            return decisions

        return stored

    return lambda: _both(
        mock.patch.object(Gate, "disconnected", keep(disconnected)), mock.patch.object(Gate, "go_safe", keep(go_safe))
    )


def undying_requests() -> Patch:
    """A request to arm that waited counts whatever came after it."""
    arm = Gate.arm
    return lambda: mock.patch.object(Gate, "arm", lambda self, now_s, _asked_s=0.0: arm(self, now_s))


def page_without_answers() -> Patch:
    """The page shows a press as done once it has left."""

    async def request(
        self: MqttBridge, parts: tuple[str, ...], body: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        del timeout_s
        self.control.enqueue(self.topics(*parts), encode(body), qos=1)
        return {"stopped": body.get("engaged", False), "armed": True, "sent": True, "modes": {"arm": body.get("mode")}}

    return lambda: mock.patch.object(MqttBridge, "request", request)


def holds_sent_once() -> Patch:
    """A hold that a full queue dropped counts as published."""
    enqueue = Connection.enqueue

    def dropped(self: Connection, topic: str, payload: bytes, **more: Any) -> bool:
        enqueue(self, topic, payload, **more)
        return True

    return lambda: mock.patch.object(Connection, "enqueue", dropped)


def named_actions_only() -> Patch:
    """A change of the mode ends only what bears the name of the policy."""
    set_mode = Gate.set_mode

    def by_name(self: Gate, mode: Any, now_s: float, actuator: str | None = None) -> Any:
        others = [each for each in self._actuators.values() if each.by != "policy" and not each.in_safe_state]
        for each in others:
            each.in_safe_state = True
        decisions = set_mode(self, mode, now_s, actuator)
        for each in others:
            each.in_safe_state = False
        return decisions

    return lambda: mock.patch.object(Gate, "set_mode", by_name)


def eager_acknowledgement() -> Patch:
    """The relay acknowledges a stop of the fleet as it arrives."""
    ordered = StopRelay._ordered

    def eager(self: StopRelay, message: Any) -> None:
        ordered(self, message)
        message.acknowledge()

    return lambda: mock.patch.object(StopRelay, "_ordered", eager)


def file_without_a_reader() -> Patch:
    """The relay starts without what the one before it had written."""
    start = StopRelay.__post_init__

    def forgetting(self: StopRelay) -> None:
        start(self)
        self._waiting.clear()
        self._arrived.clear()

    return lambda: mock.patch.object(StopRelay, "__post_init__", forgetting)


def one_attempt() -> Patch:
    """The relay tries once."""
    engage = StopRelay._engage

    async def once(self: StopRelay) -> Any:
        outcome, reason, _ = await engage(self)
        return outcome, reason, True

    return lambda: mock.patch.object(StopRelay, "_engage", once)


def no_hold() -> Patch:
    """A value may change at once."""
    pace = limits.pace

    def free(each: Any, *args: Any, **more: Any) -> Any:
        changed = {"min_hold_s": 0.0} if hasattr(each, "min_hold_s") else {}
        return pace(each.model_copy(update=changed), *args, **more)

    return lambda: mock.patch.object(limits, "pace", free)


def movement_unsaved() -> Patch:
    """The disk does not learn what moves."""
    return lambda: mock.patch.object(GateHost, "_save_moved", return_value=None)


def left_moving() -> Patch:
    """A new run of the gate does not look at what the one before has moved."""
    restore = Gate.restore

    def forgetful(self: Gate, found: dict[str, object]) -> None:
        restore(self, {**found, "moved": []})

    return lambda: mock.patch.object(Gate, "restore", forgetful)


def deaf_gate() -> Patch:
    """A refused subscription to the stop is only logged."""
    return lambda: mock.patch.object(Gate, "hears_stop", return_value=[])


def confident_listener() -> Patch:
    """The stop listener does not say that the broker refuses its subscription."""
    return lambda: mock.patch.object(StopListenerFollower, "received", return_value=None)


def acknowledged_on_arrival() -> Patch:
    """A stop is acknowledged before it is on the disk."""
    add = Unacknowledged.add

    def at_once(self: Unacknowledged, message: Any) -> int:
        number = add(self, message)
        self.acknowledge(number)
        return number

    return lambda: mock.patch.object(Unacknowledged, "add", at_once)


def unnoticed_suspension() -> Patch:
    """The gate does not learn that the machine was suspended."""
    return lambda: mock.patch.object(Gate, "woke", return_value=[])


def any_agreement() -> Patch:
    """A proposal without an agreement agrees."""
    receive = AgentChannel.receive

    def lenient(self: AgentChannel, data: bytes) -> None:
        body = orjson.loads(data) if data.startswith(b'{"') else None
        if isinstance(body, dict) and body.get("agreement") == "":
            data = orjson.dumps(body | {"agreement": self.agreement})
        receive(self, data)

    return lambda: mock.patch.object(AgentChannel, "receive", lenient)


MENDINGS: dict[str, Callable[[], Patch]] = {
    "none": lambda: ExitStack,
    "H1 a place of their own in the queue": common_queue,
    "H1 repeated until acknowledged": no_repetition,
    "H2 a report must fit": any_report,
    "H3 the more careful mode": latched_mode,
    "H4 saved before it is announced": announced_before_saved,
    "H4 a failed write is tried again": one_write,
    "H4 what may mean stop is a stop": exact_stops,
    "H4 no release from the broker's store": old_releases,
    "H4 the stop listener needs no disk": listener_without_a_channel,
    "H5 rest is judged": unjudged_rest,
    "telemetry ends what it forbids": telemetry_stops_nothing,
    "old telemetry counts as missing": old_telemetry,
    "missing telemetry forbids": missing_telemetry_is_harmless,
    "a required stream or condition is there": stale_streams_are_harmless,
    "a mode that is left leaves nothing in force": named_actions_only,
    "H7 a request to arm dies": dying_last_will,
    "a request to arm that waits ends with a stop or a disarming": undying_requests,
    "a stop of the fleet is written before it is acknowledged": eager_acknowledgement,
    "the relay reads what was written": file_without_a_reader,
    "the relay tries again": one_attempt,
    "a value is held for min_hold_s": no_hold,
    "what moves is on the disk": movement_unsaved,
    "what was left moving rests": left_moving,
    "a gate that hears no stop arms nothing": deaf_gate,
    "a stop listener that hears no stop says so": confident_listener,
    "a stop is acknowledged once it is on the disk": acknowledged_on_arrival,
    "a suspension of the machine is noticed": unnoticed_suspension,
    "an empty agreement is refused": any_agreement,
    "H8 the page shows what the gate answered": page_without_answers,
    "H8 a hold is published until the queue has room": holds_sent_once,
}


@contextmanager
def _both(*patches: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def steps_until_noticed(patch: Patch, most: int) -> tuple[int | None, str]:
    """Steps until the model fails, and its message; None when it does not."""
    taken = 0
    step = GateModel.check_invariants

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        nonlocal taken
        taken += 1
        return step(self, *args, **more)

    case: Any = seed(1)(type("Case", (GateModel,), {}))
    test = case.TestCase
    test.settings = settings(
        max_examples=max(1, most // STEPS_A_RUN),
        stateful_step_count=STEPS_A_RUN,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    with patch(), mock.patch.object(GateModel, "check_invariants", counted):
        found = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(test).run(found)
    problems = [text for _, text in (*found.failures, *found.errors)]
    if not problems:
        return None, ""
    lines = problems[0].splitlines()
    reported = [line.split("Error: ", 1)[1] for line in lines if "BrokenPromiseError: " in line]
    return taken, reported[0][:90] if reported else lines[-1][:90]


def main() -> int:
    """Print the table."""
    structlog.configure(processors=[_drop])
    most = int(sys.argv[1]) if len(sys.argv) > 1 else MOST
    chosen = sys.argv[2:] or list(MENDINGS)
    wrong = 0
    print("| mending taken away | steps until noticed | what was noticed |\n|---|---:|---|", flush=True)
    for name in (name for name in MENDINGS if any(name.startswith(each) for each in chosen)):
        taken, reported = steps_until_noticed(MENDINGS[name](), most)
        wrong += (taken is None) != (name == "none")
        print(f"| {name} | {taken if taken is not None else f'not in {most:,}'} | {reported} |", flush=True)
    return int(wrong > 0)


def _drop(*_: object) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
