"""Attacks that use the moment, the number or the order of messages instead of their contents, in the world of `gate_model.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from gate_model import SETTINGS, TOPICS, World

from actuators.config import AnyActuator, ChoiceSettings
from actuators.wire import CommandWriter
from fakes import eventually
from runtime.config.schema import Config
from runtime.gate import ipc
from runtime.gate.info import InfoBuilder
from runtime.mqtt import Limit, Message, rpc
from runtime.mqtt.connection_types import Subscription
from runtime.mqtt.subscriber import MAX_SENDERS, Receiver

STOP, RELEASE = b'{"engaged": true}', b'{"engaged": false}'
ON = {"arm": (0.4,), "heater": "ON", "fan": "ON"}


@pytest.fixture
def world() -> Iterator[World]:
    """An armed gate with heater and fan on and the arm at 0.4."""
    made = World()
    for name, value in {"arm": [0.4], "wheel": [0.0], "heater": "OFF", "fan": "OFF", "lamp": "OFF"}.items():
        made.report(name, value)
    act(made, 10)
    assert made.host.gate.armed
    yield made
    made.close()


def act(world: World, times: int = 1, actions: dict[str, object] = ON) -> None:
    for _ in range(times):
        world.propose(actions)
        world.wait(0.05)


def reasons(world: World) -> str:
    return " ".join(world.host.publisher.status()[1])


def test_a_process_that_fails_again_and_again_is_in_the_status(world: World) -> None:
    assert world.host.publisher.status()[0] == "online"
    world.host.publisher.failing = lambda: ["learner"]
    assert world.host.publisher.status() == ("degraded", ("the process learner fails repeatedly",))


# --- the end of the daemon


def test_no_request_moves_anything_after_the_last_safe_actions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = list[dict[str, Any]]()
    monkeypatch.setattr(rpc, "respond", lambda _connection, _topics, _message, answer: answers.append(answer))
    host = world.host
    host.channel.ending = True
    host.devices.apply(host.gate.end(host.now(), "SIGTERM received"))
    world.wait(0.05)
    world.request("end_override", b'{"actuator": "heater"}')
    world.request("arm", b"")
    world.arrive(
        world.requests,
        TOPICS("override", "heater"),
        b'{"value": "ON", "hold_s": 9}',
        properties=SimpleNamespace(ResponseTopic=TOPICS("response", "other"), CorrelationData=b"c"),
    )
    act(world, 5)
    assert [("the daemon is ending" in str(answer)) for answer in answers] == [True] * 3
    assert not host.gate.armed
    assert world.devices["heater"] == "OFF"


# --- a process that did not run


def test_an_arm_that_waited_for_a_frozen_gate_is_refused(world: World) -> None:
    world.request("disarm", b"")
    world.freeze(2.0)
    world.arrive(world.requests, TOPICS("request", "arm"), b"")
    world.wait(0.6)
    act(world, 5)
    assert not world.host.gate.armed
    world.request("arm", b"")
    act(world, 3)
    assert world.host.gate.armed, "sent again it counts"


def test_an_override_and_a_mode_that_waited_for_a_frozen_gate_move_nothing(world: World) -> None:
    world.request("mode", b'{"mode": "assist", "actuator": "arm"}')
    world.freeze(2.0)
    world.arrive(world.requests, TOPICS("override", "lamp"), b'{"value": "ON", "hold_s": 9}')
    world.request("mode", b'{"mode": "autonomous", "actuator": "arm"}')
    assert world.host.gate.holds["lamp"] is None
    assert world.host.gate.modes["arm"] == "assist"
    world.request("mode", b'{"mode": "shadow"}')
    assert set(world.host.gate.modes.values()) == {"shadow"}, "what is more careful counts whenever it comes"


def test_a_stop_that_waited_for_a_frozen_gate_counts_and_a_release_does_not(world: World) -> None:
    world.freeze(2.0)
    world.stop(STOP)
    assert world.host.gate.stopped
    world.freeze(2.0)
    world.arrive(world.safety, TOPICS("stop"), RELEASE)
    assert world.host.gate.stopped
    world.wait(0.6)
    world.stop(RELEASE)
    assert not world.host.gate.stopped


# --- more messages than anything holds


def test_messages_that_were_dropped_before_anything_read_them_may_have_been_a_stop(world: World) -> None:
    for _ in range(world.safety.connection.max_incoming + 1):
        world.safety.connection._queue.put_nowait(SimpleNamespace())  # type: ignore[arg-type]
    world.stop_in_force = True
    world.wait(0.02)
    assert world.host.gate.stopped
    assert "one that was dropped may have been a stop" in reasons(world)


def test_a_hundred_stored_releases_may_hide_a_stop(world: World) -> None:
    world.lose(world.safety)
    for _ in range(100):
        world.stop(RELEASE)
    world.stop_in_force = True
    world.connect(world.safety)
    world.wait(0.02)
    assert world.host.gate.stopped
    assert "it may have dropped a stop" in reasons(world)


async def test_invented_senders_take_no_others_rate_away() -> None:
    """64 response topics that nothing uses any more leave room; under a flood of them a request is pushed out by its like only."""
    got: list[tuple[str, bytes]] = []
    receiver = receiver_of(got)

    def send(verb: str, sender: str, payload: bytes = b"") -> None:
        properties = SimpleNamespace(ResponseTopic=sender)
        receiver.dispatch(
            SimpleNamespace(topic=Topic(verb), payload=payload, qos=1, retain=False, properties=properties)
        )  # type: ignore[arg-type]

    for k in range(10 * MAX_SENDERS):
        send("warm", f"invented {k}")
        send("cold", f"invented {k}")
    send("disarm", "page", b"1")
    send("arm", "thief", b"2")
    send("warm", "invented again")
    await asyncio.sleep(0.2)  # a token of the limit comes after 0.1 s, and senders without a message are forgotten
    await eventually(lambda: sum(name in {"disarm", "arm"} for name, _ in got) == 2, "both requests")
    assert [payload for name, payload in got if name in {"disarm", "arm"}] == [b"1", b"2"]
    assert len(receiver._buckets["request/+"]) <= 2 * MAX_SENDERS + 1
    send("disarm", "another page", b"3")
    assert got[-1] == ("disarm", b"3"), "idle senders were forgotten"


class Topic:
    """An aiomqtt topic, without the checks."""

    def __init__(self, verb: str) -> None:
        self.value = f"request/{verb}"

    def __str__(self) -> str:
        return self.value

    def matches(self, name: str) -> bool:
        return name == "request/+"


def receiver_of(got: list[tuple[str, bytes]]) -> Receiver:
    from collections import Counter

    receiver = Receiver("gate", Counter(), Counter())
    take = lambda message: got.append((message.topic.rsplit("/", 1)[-1], message.payload))  # noqa: E731 - one line
    receiver.subscriptions["request/+"] = Subscription("request/+", take, limit=Limit(10.0, 1))
    return receiver


# --- an agent that lies about time


@pytest.mark.parametrize("age_s", [-1_000.0, -0.001, 1_000.0])
def test_the_same_old_or_future_frame_again_and_again_brings_every_device_to_rest(world: World, age_s: float) -> None:
    for _ in range(20):
        world.propose(ON, age_s=age_s)  # type: ignore[arg-type]
        world.wait(0.05)
    assert (world.devices["heater"], world.devices["fan"], world.devices["arm"]) == ("OFF", "OFF", (0.0,))


def test_two_thousand_frames_in_one_tick_step_no_further_than_one(world: World) -> None:
    for k in range(2_000):
        world.propose({"arm": (1.0 if k % 2 else 0.9,)})
    last = world.session["arm"][-1]
    assert isinstance(last, tuple)
    assert last[0] <= 0.4 + 0.2 + 1e-6


def test_a_number_of_tick_that_goes_back_changes_nothing(world: World) -> None:
    world.tick_number = 0
    act(world, 3)
    assert world.host.gate.armed
    assert world.devices["heater"] == "ON"


def test_reasons_of_a_degraded_agent_fill_no_status(world: World) -> None:
    frame = orjson.loads(ipc.pack(world_proposal(world)))
    for k in range(50):
        world.frame(orjson.dumps(frame | {"degraded": [f"{k} {n} " + "x" * 50 for n in range(500)], "tick": 1_000 + k}))
        world.wait(0.01)
    status = world.retained[TOPICS("status")]
    assert len(status.payload) < 65_536
    world.stop(STOP)
    world.wait(0.02)
    assert orjson.loads(world.retained[TOPICS("status")].payload)["state"] == "stopped"


def world_proposal(world: World):  # noqa: ANN201 - the proposal of the agent
    from actuators.safety.decisions import Proposal

    return Proposal(1_000, "d", "p", world.loop.now_s + 0.5, dict(ON))  # type: ignore[arg-type]


# --- who restricts what


def test_a_reload_lifts_no_restriction_that_an_operator_made(world: World) -> None:
    world.request("mode", b'{"mode": "shadow", "actuator": "lamp"}')
    world.host.reload(world.host.info, "assist")
    world.host.reload(world.host.info, "autonomous")
    assert world.host.gate.modes["lamp"] == "shadow"
    assert {mode for name, mode in world.host.gate.modes.items() if name != "lamp"} == {"autonomous"}
    assert "mode_restricted" in world.event_types
    assert isinstance(world.host.info, InfoBuilder)


def test_a_reload_that_adds_a_deliberator_leaves_goals_to_the_agent(world: World) -> None:
    """And one that removes it makes `override/goal` a name that no actuator has."""
    before = world.host.config
    deliberator = {"goals": {"idle": "do nothing", "go": "go there"}, "default": "idle"}
    more = {"gate": before.gate.model_dump(), "state_dir": world.folder, "deliberator": deliberator}
    answers: list[str] = []
    world.listeners.append(lambda out: answers.append(out.topic) if "/response/" in out.topic else None)
    properties = SimpleNamespace(ResponseTopic=TOPICS("response", "me"), CorrelationData=b"c")

    def set_goal() -> tuple[int, int]:
        goal = b'{"value": "go", "hold_s": 9}'
        world.arrive(world.requests, TOPICS("override", "goal"), goal, properties=properties)
        world.settle_loop()
        return len(answers), world.host.connection.refused[TOPICS("override", "+")]

    assert set_goal() == (1, 1)
    world.host.reload(InfoBuilder(Config.model_validate(SETTINGS | more), "0"))
    assert world.host.channel.agreement != before.agreement, "the agent must read the file again"
    act(world, 3)
    assert world.host.gate.armed
    assert set_goal() == (1, 1), "the agent answers"
    world.host.reload(InfoBuilder(before, "0"))
    assert set_goal() == (2, 2)


def test_an_override_of_one_actuator_cannot_break_a_rule_that_another_hold_keeps(world: World) -> None:
    world.arrive(world.requests, TOPICS("override", "heater"), b'{"value": "ON", "hold_s": 9}')
    world.arrive(world.requests, TOPICS("override", "fan"), b'{"value": "OFF", "hold_s": 9}')
    world.wait(0.1)
    assert world.devices["fan"] == "ON"
    assert world.host.gate.refused["fan", "forbidden"] >= 1


def test_two_persons_on_one_slider_step_no_further_than_one(world: World) -> None:
    before = len(world.session["arm"])
    for k in range(40):
        value = 1.0 if k % 2 else -1.0
        world.arrive(world.requests, TOPICS("override", "arm"), orjson.dumps({"value": [value], "hold_s": 5}))
        world.wait(0.01)
        world.propose(ON)  # type: ignore[arg-type]
    numbers = [float(value[0]) for value in world.session["arm"][before - 1 :] if isinstance(value, tuple)]
    assert len(numbers) > 10
    assert max(abs(b - a) for a, b in pairwise(numbers)) <= 0.2 + 1e-6


def test_the_end_of_a_hold_that_nothing_holds_moves_nothing(world: World) -> None:
    before = {name: len(sent) for name, sent in world.session.items()}
    for name in world.devices:
        world.request("end_override", orjson.dumps({"actuator": name}))
    assert {name: len(sent) for name, sent in world.session.items()} == before


# --- latches and templates


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"stopped": 0, "modes": {}},
        {"stopped": "false", "modes": {}},
        {"stopped": None, "wanted": True, "modes": {}},
        {"stopped": False},
    ],
)
def test_latches_that_someone_edited_are_a_stop(world: World, content: dict[str, object]) -> None:
    world.disk.content = content
    world.kill("autonomous")
    world.stop_in_force = True
    act(world, 3)
    assert world.host.gate.stopped


def test_a_request_to_arm_is_no_word_on_the_disk(world: World) -> None:
    world.request("disarm", b"")
    for word in ("yes", 1, [True], {"wanted": True}):
        world.disk.content = dict(world.disk.content or {}, wanted=word)
        world.kill("autonomous")
        world.granted = False
        act(world, 3)
        assert not world.host.gate.armed


@pytest.mark.parametrize("text", ['", "brightness": 255, "x": "', "\\", "${seq}", "$value", "\n", "\u2028", "}"])
def test_a_choice_in_a_template_adds_no_key(text: str) -> None:
    lamp: AnyActuator = ChoiceSettings(
        kind="choice", choices=(text, "OFF"), safe="OFF", topic="z/lamp/set", payload='{"state": "${value}"}'
    )
    out = CommandWriter("reflexd/a", {"lamp": lamp}, "boot").write(
        "lamp", text, decision=None, policy="p", stamp_s=0.0, ttl_ms=None
    )
    assert orjson.loads(out.payload) == {"state": text}


def test_a_message_of_unknown_age_is_no_message(world: World) -> None:
    """Stored and sent just after the connection resumed: neither a release nor, as ever, a request."""
    world.stop(STOP)
    old = Message(TOPICS("stop"), RELEASE, 1, retain=False, resumed=True)
    with pytest.raises(Exception, match="send it again"):
        world.operators.stop(old)
    assert world.host.gate.stopped
