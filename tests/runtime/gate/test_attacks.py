"""Attacks and accidents that the gate once did not withstand, each with what is right, in the world of `gate_model.py`.

The gate and the page were first attacked with a series of scripts. What each of them did, and the test that covers it:

- reports of a wrong width, a false place, 1e308; what rests against a rule: `test_no_report_switches_the_rate_limit_off`,
  `test_the_fan_never_rests_while_the_heater_is_on`
- shadow in the settings, a latch on a full disk, a stop while the gate is away, the gate killed while an arm moves:
  `test_shadow_in_the_settings_is_shadow_whatever_is_latched`,
  `test_a_stop_on_a_full_disk_holds_and_is_saved_as_soon_as_there_is_room`,
  `test_a_stop_that_was_sent_while_the_gate_was_away_is_obeyed_and_a_release_is_not`,
  `test_a_stop_that_the_broker_retained_is_obeyed_at_the_start_and_a_retained_release_is_not`,
  `test_a_stop_sent_while_the_gate_is_dead_holds_after_its_restart`
- every user on every topic, response topics as a way around the ACL, a session taken over:
  `test_only_the_gate_writes_commands`, `test_each_user_writes_its_own_topics_only`,
  `test_an_answer_goes_nowhere_but_below_the_agents_own_response`,
  `test_no_client_takes_over_the_gates_session_by_its_identifier`
- floods before a stop, of every topic and quality of service: `test_a_flood_is_cut_down_and_the_newest_wins`,
  `test_a_full_queue_swallows_no_safe_action_no_stop_and_no_status`; times are measured by `bench_stop.py`
- the page without a daemon, foreign hosts and origins, wrong tokens from many addresses, too many viewers, odd commands and
  odd retained `info`: `test_a_stop_that_no_gate_took_is_an_error`, `test_a_web_socket_from_another_site_is_refused`,
  `test_logins_are_limited_and_say_when_to_come_back`,
  `test_viewers_are_limited_in_all_and_by_address_and_never_keep_an_operator_out`,
  `test_nonsense_on_the_web_socket_is_answered_and_survived`, `test_whatever_is_retained_the_page_goes_on`
- odd rewards, labels, previews, requests, pictures and sounds at the real daemon, 10,000 at once:
  `test_damaged_pictures_never_exceed_the_limit`, `test_endless_sources_are_bounded`
- forged frames of the agent: `test_a_frame_with_one_wrong_field_is_no_heartbeat`,
  `test_datagrams_that_are_no_proposal_end_nothing`
- a broker that pauses while twelve actuators move and the agent dies:
  `test_a_broker_that_pauses_while_the_agent_drains_has_the_safe_actions_afterwards`
- one retained message that ended page and daemon: `test_a_child_that_is_not_essential_never_ends_the_daemon`
- half-open connections at the page, a token or key that another user wrote: `test_connections_held_open_block_no_other_client`,
  `test_a_token_that_another_user_may_have_written_is_refused`, `test_the_key_is_made_once_readable_by_its_owner_alone`
- a retained malformed report at the start, a forbidden zone entered by hand:
  `test_a_malformed_report_that_the_broker_stored_does_not_either`, `test_a_forbidden_zone_is_left_step_by_step`
- safe values that a rule forbids, alone or with what is held: `test_safe_values_that_a_rule_forbids`
- checkpoints with odd types, NaN, links and pipes; a damaged pointer: `test_numbers_that_are_not_finite_are_neither_saved_nor_loaded`,
  `test_with_a_damaged_pointer_only_a_version_that_passed_its_probation_acts`
- a damaged database of raw readings: `test_damaged_raw_readings_leave_the_experience_alone`
- each button of the page, twice and by two persons; refusals shown as success; holds; sliders; the confirmation of a proposal:
  `test_override_mode_promote_rollback_label_and_text_reach_the_agent`, `test_a_refusal_of_the_gate_is_shown_as_one`,
  `test_a_hold_shows_what_is_left_of_it_and_can_be_given_back`, `test_sliders_start_at_the_value_in_force`,
  `test_the_confirm_button_is_not_replaced_while_it_is_pressed`, `test_the_stop_works_over_an_open_question`
- the page offline, its broker gone, the agent frozen or gone: `test_a_lost_broker_is_reported_within_two_seconds_and_its_return_too`,
  `test_when_the_agent_is_gone_figures_are_old_and_no_stop_is_promised`
- accessibility, width, zoom and keyboard: `test_no_serious_accessibility_finding_and_no_sideways_scrolling`,
  `test_at_400_percent_zoom_the_content_has_room_and_the_stop_is_in_sight`
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import orjson
import pytest
from gate_model import QUIET, SETTINGS, TOPICS, World

from actuators.safety.decisions import Proposal
from runtime.config.schema import Config
from runtime.gate import ipc
from runtime.gate.host import AT_REST_S
from runtime.gate.info import InfoBuilder
from runtime.mqtt import Message
from runtime.mqtt import subscriber as subscriber_module
from runtime.mqtt.topics import Refused

STOP = b'{"engaged": true}'
RELEASE = b'{"engaged": false}'


@pytest.fixture
def world() -> Iterator[World]:
    """An armed gate with the arm at 0 and heater and fan on."""
    made = World()
    for name, value in {"arm": [0.0], "wheel": [0.0], "heater": "OFF", "fan": "OFF", "lamp": "OFF"}.items():
        made.report(name, value)
    act(made, 10)
    assert made.host.gate.armed
    assert (made.devices["heater"], made.devices["fan"]) == ("ON", "ON")
    yield made
    made.close()


def act(world: World, times: int = 1, arm: float = 0.0, **more: object) -> None:
    for _ in range(times):
        world.propose({"arm": (arm,), "heater": "ON", "fan": "ON"}, **more)  # type: ignore[arg-type]
        world.wait(0.05)


def arms(world: World) -> list[float]:
    return [float(value[0]) for value in world.session["arm"] if isinstance(value, tuple)]


@pytest.mark.parametrize("report", [[0.0, 0.0], [], "left", [1e308], [5.0], None, True, [-1.0], [1.0]])
@pytest.mark.parametrize("retain", [False, True])
def test_no_report_switches_the_rate_limit_off(world: World, report: object, retain: bool) -> None:
    act(world, 30, arm=1.0)
    world.report("arm", report, retain=retain)
    before = arms(world)[-1]
    act(world, 1, arm=-1.0)
    assert abs(arms(world)[-1] - before) <= 0.2


def test_a_malformed_report_that_the_broker_stored_does_not_either() -> None:
    world = World()
    world.report("arm", [0.0, 0.0], retain=True)
    act(world, 12, arm=1.0)
    steps = [b - a for a, b in zip([0.0, *arms(world)], arms(world), strict=False)]
    assert max(map(abs, steps)) <= 0.2
    world.close()


def test_the_fan_never_rests_while_the_heater_is_on(world: World) -> None:
    act(world, 1, stale=("air",))
    assert (world.devices["heater"], world.devices["fan"]) == ("OFF", "OFF")
    act(world, 4)
    assert (world.devices["heater"], world.devices["fan"]) == ("ON", "ON")
    world.request("mode", b'{"mode": "shadow", "actuator": "fan"}')
    assert (world.devices["heater"], world.devices["fan"]) == ("OFF", "OFF")


def test_shadow_in_the_settings_is_shadow_whatever_is_latched(world: World) -> None:
    world.request("mode", b'{"mode": "autonomous"}')
    world.kill("shadow")
    act(world, 20, arm=1.0)
    assert set(world.host.gate.modes.values()) == {"shadow"}
    assert "arm" not in world.commanded or world.commanded["arm"] == (0.0,)


def test_a_stop_on_a_full_disk_holds_and_is_saved_as_soon_as_there_is_room(world: World) -> None:
    world.disk.broken = True
    world.stop(STOP)
    world.wait(1.0)
    state, reasons = world.host.publisher.status()
    assert state == "degraded"
    assert "No space left on device" in reasons[1]
    assert "stopped" not in world.event_types
    world.disk.broken = False
    world.wait(0.1)
    assert world.host.publisher.status()[0] == "stopped"
    assert world.event_types[-1] == "stopped" or "stopped" in world.event_types
    world.kill("autonomous")
    act(world, 20, arm=1.0)
    assert world.host.gate.stopped


def test_a_stop_that_the_broker_retained_is_obeyed_at_the_start_and_a_retained_release_is_not(world: World) -> None:
    world.stop(STOP, retain=True)
    assert world.host.gate.stopped
    world.stop(RELEASE, retain=True)
    assert world.host.gate.stopped


def test_a_stop_that_was_sent_while_the_gate_was_away_is_obeyed_and_a_release_is_not(world: World) -> None:
    world.lose(world.safety)
    world.stop(STOP)
    world.stop(RELEASE)
    world.connect(world.safety)
    assert world.host.gate.stopped
    act(world, 20, arm=1.0)
    assert world.commanded["arm"] == (0.0,)
    world.wait(subscriber_module.RESUMED_S)
    world.stop(RELEASE)
    assert not world.host.gate.stopped
    act(world, 20, arm=1.0)
    assert world.commanded["arm"] == (0.0,), "a release alone moves nothing"


def test_a_full_queue_swallows_no_safe_action_no_stop_and_no_status(world: World) -> None:
    act(world, 10, arm=0.5)
    world.prompt = False
    for _ in range(500):
        world.host.connection.enqueue("reflexd/model/response/x", b"{}", qos=1)
        world.host.safety.enqueue("reflexd/model/response/x", b"{}", qos=1)
    act(world, 20, arm=0.5)
    world.stop(STOP)
    newest = [out.topic for out, _ in world.safety.client.under_way][-5:]
    assert {f"reflexd/model/act/{name}/set" for name in ("arm", "heater", "fan", "lamp")} <= set(newest)
    world.prompt = True
    world.wait(0.05)
    assert (world.devices["arm"], world.devices["heater"], world.devices["fan"]) == ((0.0,), "OFF", "OFF")
    assert world.host.gate.owed() == []


def test_a_broker_that_pauses_while_the_agent_drains_has_the_safe_actions_afterwards(world: World) -> None:
    act(world, 10, arm=0.5)
    world.prompt = False
    act(world, 10, arm=0.5)
    act(world, 2, arm=0.5, ready=False)
    world.prompt = True
    world.settle_loop()
    assert world.devices["arm"] == (0.0,)


@pytest.mark.parametrize("field", sorted(ipc.FIELDS))
@pytest.mark.parametrize("wrong", [None, "a", {"a": 1}, [1], 1e400, {"a": [None, "x"]}])
def test_a_frame_with_one_wrong_field_is_no_heartbeat(world: World, field: str, wrong: object) -> None:
    if (field, wrong) in [("decision", "a"), ("policy", "a"), ("agreement", "a")]:
        return
    now_s = world.loop.now_s
    body = orjson.loads(ipc.pack(Proposal(1, "d", "p", now_s)))
    world.wait(0.01)
    deadline_s = world.host.gate.deadline_s
    world.frame(orjson.dumps(body | {field: wrong}))
    assert world.host.gate.deadline_s == deadline_s
    world.frame(orjson.dumps(body))
    assert world.host.gate.deadline_s > deadline_s, "the same frame without the wrong field is a heartbeat"
    for _ in range(30):
        world.frame(orjson.dumps(body | {field: wrong}))
        world.wait(0.01)
    assert not world.host.gate.armed
    assert "agent_lost" in world.event_types


def test_an_agent_with_other_settings_than_the_gate_moves_nothing(world: World) -> None:
    """After an edit of the file and a crash of the agent, its names of what is stale are others than those of the gate."""
    config = world.host.config
    edited = orjson.loads(orjson.dumps(SETTINGS))
    edited["actuators"]["lamp"]["requires"] = ["room.warmth < 25"]
    gate = config.gate.model_dump()
    other = Config.model_validate(edited | {"gate": gate, "state_dir": config.state_dir})
    same = Config.model_validate(SETTINGS | {"gate": gate, "state_dir": config.state_dir})
    assert (same.agreement == config.agreement, other.agreement == config.agreement) == (True, False)

    def tick(agreement: str) -> None:
        now_s = world.loop.now_s
        world.frame(ipc.pack(Proposal(1, "d", "p", now_s, {"lamp": "ON"}, readings=QUIET, agreement=agreement)))
        world.wait(0.05)

    for _ in range(4):
        tick(config.agreement)
    assert world.devices["lamp"] == "ON"
    tick(other.agreement)
    assert world.devices["lamp"] == "OFF"
    for _ in range(3):
        tick(other.agreement)
    state, reasons = world.host.publisher.status()
    assert state == "degraded"
    assert any("it has read newer settings" in reason for reason in reasons), reasons
    world.host.reload(InfoBuilder(other, "0"), None)
    for _ in range(4):
        tick(other.agreement)
    assert (world.devices["lamp"], world.host.publisher.status()[0]) == ("ON", "online")


@pytest.mark.parametrize("arm", ["auto", "request"])
@pytest.mark.parametrize(
    ("code", "denial"), [(0x87, "Not authorized"), (0, "QoS 0 granted instead of 1")], ids=["refused", "QoS 0"]
)
def test_a_gate_that_cannot_hear_a_stop_arms_nothing_and_says_so(arm: str, code: int, denial: str) -> None:
    world = World(arm)
    try:
        world.report("arm", [0.0])
        world.request("arm", b"")
        act(world, 10, arm=0.4)
        assert arms(world)[-1] > 0.1
        world.refuses_stop = code
        world.lose(world.safety)
        world.connect(world.safety)
        assert world.host.safety.denial(TOPICS("stop")) == denial
        act(world, 3, arm=0.4)
        world.request("arm", b"")
        act(world, 10, arm=0.4)
        assert not world.host.gate.armed
        assert world.devices["arm"] == (0.0,)
        refused = world.host.override("arm", [0.1], 1.0)
        assert (refused.sent, refused.rule) == (False, "disarmed")
        state, reasons = world.host.publisher.status()
        assert state == "degraded"
        assert any(f"{denial}, so a stop may be lost and the gate arms nothing" in reason for reason in reasons), (
            reasons
        )
        world.subscribe_again()
        assert world.event_types.count("stop_not_heard") == 1
        assert "stop_heard" not in world.event_types
        world.refuses_stop = None
        world.subscribe_again()
        assert world.event_types.count("stop_heard") == 1
        world.request("arm", b"")
        act(world, 10, arm=0.4)
        assert (world.host.gate.armed, world.host.publisher.status()[0]) == (True, "online")
        assert arms(world)[-1] > 0.1
    finally:
        world.close()


@pytest.mark.parametrize("arm", ["auto", "request"])
@pytest.mark.parametrize("code", [0x87, 0], ids=["refused", "QoS 0"])
def test_a_stop_listener_that_cannot_hear_a_stop_keeps_the_gate_disarmed(arm: str, code: int) -> None:
    world = World(arm)
    try:
        world.report("arm", [0.0])
        world.request("arm", b"")
        act(world, 10, arm=0.4)
        assert arms(world)[-1] > 0.1
        world.refuses_listener = code
        for what in (
            "start",
            "lose",
            "connect",
            "kill",
        ):  # another one is deaf too, and the last word counts after its end
            world.change_the_listener(what)
            world.request("arm", b"")
            act(world, 3, arm=0.4)
            assert (world.host.gate.armed, world.devices["arm"]) == (False, (0.0,)), what
        state, reasons = world.host.publisher.status()
        assert state == "degraded"
        assert any("stop listener" in reason and "the gate arms nothing" in reason for reason in reasons), reasons
        assert world.event_types.count("stop_not_heard") == 1
        world.stop(b"ON", qos=0)
        assert world.host.gate.stopped, "the gate hears it"
        world.stop(b'{"engaged": false}')
        world.change_the_listener("start")
        assert "stop_heard" not in world.event_types
        world.refuses_listener = None
        world.listener.subscribe_again()
        assert world.event_types.count("stop_heard") == 1
        world.request("arm", b"")
        act(world, 10, arm=0.4)
        assert (world.host.gate.armed, world.host.publisher.status()[0]) == (True, "online")
        assert arms(world)[-1] > 0.1
    finally:
        world.close()


@pytest.mark.parametrize("arm", ["auto", "request"])
@pytest.mark.parametrize("waits", ["proposal", "override", "release", "nothing"])
def test_what_was_sent_before_the_machine_was_suspended_moves_nothing(arm: str, waits: str) -> None:
    """Neither the gate's clock nor the agent's counts the suspension: the proposal looks 10 ms old."""
    world = World(arm)
    try:
        world.report("arm", [0.0])
        world.request("arm", b"")
        act(world, 10, arm=0.4)
        before = arms(world)[-1]
        assert before > 0.1
        if waits == "release":
            world.stop(STOP)
        world.sleep(3_600.0)
        if waits == "proposal":
            world.propose({"arm": (0.4,)}, age_s=0.01)
        elif waits == "override":
            world.arrive(world.requests, TOPICS("override", "arm"), b'{"value": [0.4], "hold_s": 60}')
        elif waits == "release":
            world.stop(RELEASE)
            assert world.host.gate.stopped
        world.wait(0.3)  # `host.LONGEST_S`: nothing announces the end of a suspension
        assert world.devices["arm"] == (0.0,)
        assert world.host.gate.holds["arm"] is None
        assert world.event_types.count("machine_suspended") == 1
        act(world, 10, arm=0.4)
        assert world.host.gate.armed is (arm == "auto" and waits != "release")
        assert (arms(world)[-1] > 0.1) is world.host.gate.armed
        assert world.event_types.count("machine_suspended") == 1
    finally:
        world.close()


@pytest.mark.parametrize("agreement", ["", " ", "0" * 16])
def test_a_proposal_that_names_no_settings_or_others_moves_nothing(world: World, agreement: str) -> None:
    """It brings the device to rest, gives the rules no telemetry, and the status says why; the right one moves it again."""
    act(world, 8, arm=0.2)
    assert arms(world)[-1] == pytest.approx(0.2)
    for _ in range(4):
        now_s = world.loop.now_s
        frame = Proposal(1, "d", "p", now_s, {"arm": (0.4,)}, readings=QUIET, agreement=agreement)
        world.frame(ipc.pack(frame))
        world.wait(0.05)
    assert (world.devices["arm"], world.devices["heater"]) == ((0.0,), "OFF")
    assert world.host.gate.counters["not_ready"] > 0
    state, reasons = world.host.publisher.status()
    assert state == "degraded"
    assert any("settings" in reason for reason in reasons), reasons
    refused = world.host.override("heater", "ON", 1.0)
    assert (refused.sent, refused.rule) == (False, "forbidden"), "telemetry of such an agent is unknown"
    act(world, 8, arm=0.2)
    assert arms(world)[-1] == pytest.approx(0.2)


def test_a_forbidden_zone_is_left_step_by_step(world: World) -> None:
    world.report("lamp", "ON")
    world.report("arm", [0.9])
    world.host.gate._actuators["arm"].chain = []  # moved by hand before anything was commanded
    world.known["arm"] = (0.9,)
    world.commanded.pop("arm")
    act(world, 1, arm=1.0)
    assert "arm" not in world.commanded
    act(world, 1, arm=0.0)
    assert 0.7 <= arms(world)[-1] < 0.9


def test_arming_by_request_does_not_come_back_with_the_broker() -> None:
    world = World(arm="request")
    act(world, 10)
    world.request("arm", b"{}")
    act(world, 4, arm=1.0)
    assert world.host.gate.armed
    world.lose(world.safety)
    world.connect(world.safety)
    act(world, 20, arm=1.0)
    assert not world.host.gate.armed
    assert world.commanded["arm"] == (0.0,)
    world.close()


def test_a_flood_is_cut_down_and_the_newest_wins(world: World) -> None:
    before = world.requests.connection.drops.total()
    for number in range(2_000):
        world.arrive(world.requests, "reflexd/model/act/wheel/state", b'{"value": [%.4f]}' % (number / 4_000))
    world.wait(0.5)
    dropped = world.requests.connection.drops["too many on reflexd/model/act/wheel/state"]
    assert dropped > 1_500
    assert world.requests.connection.drops.total() - before == dropped
    assert world.host.gate.last_command("wheel")[0] == (0.4997,) or world.host.gate.last_command("wheel")[0] == (
        0.4998,
    )


def test_an_answer_goes_nowhere_but_below_the_agents_own_response(world: World) -> None:
    world.prompt = False
    for topic in ("zigbee2mqtt/door/set", "reflexd/other/response/x", "reflexd/model/act/arm/set", "reflexd/echo/x"):
        properties = SimpleNamespace(ResponseTopic=topic, CorrelationData=b"c")
        world.arrive(world.requests, "reflexd/model/request/warm", b"{}", properties=properties)
    answers = [out.topic for out, _ in world.requests.client.under_way if b"unknown verb" in out.payload]
    assert answers == ["reflexd/model/response/warm"] * 4
    assert world.requests.connection.drops["forbidden response topic"] == 4


@pytest.mark.parametrize("arm", ["auto", "request"])
def test_a_release_and_an_arm_that_cross_are_obeyed_in_the_order_in_which_they_were_sent(arm: str) -> None:
    made = World(arm)
    made.report("arm", [0.0])
    act(made, 10)
    made.stop(STOP)
    made.prompt = False  # the broker has not yet acknowledged the echo on the connection of the stop
    made.request("arm", b"")
    made.stop(RELEASE)
    assert not made.host.gate.armed
    made.prompt = True
    act(made, 3)
    assert made.host.gate.armed
    made.close()


@pytest.mark.parametrize("ended_by", ["disarm", "stop"])
def test_a_request_to_arm_that_waits_ends_with_a_disarming(world: World, ended_by: str) -> None:
    world.stop(STOP)
    world.prompt = False
    world.request("arm", b"")
    world.wait(0.02)
    if ended_by == "disarm":
        world.request("disarm", b"")
    else:
        world.stop(STOP)
    world.stop(RELEASE)
    world.prompt = True
    act(world, 5)
    assert not world.host.gate.armed


def test_an_arm_is_refused_while_the_connection_of_the_stop_does_not_respond(world: World) -> None:
    world.stop(STOP)
    world.prompt = False
    world.request("arm", b"")
    world.wait(1.2)
    world.stop(RELEASE)
    world.prompt = True
    act(world, 5)
    assert not world.host.gate.armed


def test_what_a_limit_delayed_does_not_undo_what_came_after_it(world: World) -> None:
    """A flood of requests: the newest one waits for a token, while one with another verb is handled at once."""
    operators, now_s = world.operators, world.loop.now_s
    topics = world.host.topics

    def late(*parts: str, payload: bytes = b"{}") -> Message:
        return Message(topics(*parts), payload, 1, retain=False, stamp_s=now_s)

    act(world, 2)
    world.request("disarm", b"{}")
    operators.requested(late("request", "arm"))
    act(world, 5)
    assert not world.host.gate.armed
    world.request("arm", b"{}")
    act(world, 5)
    assert world.host.gate.armed
    world.request("mode", b'{"mode": "shadow", "actuator": "fan"}')
    operators.requested(late("request", "mode", payload=b'{"mode": "autonomous"}'))
    assert world.host.gate.modes["fan"] == "shadow"
    operators.requested(late("request", "mode", payload=b'{"mode": "shadow", "actuator": "arm"}'))
    assert world.host.gate.modes["arm"] == "shadow", "what is more careful counts whenever it comes"
    world.request("end_override", b'{"actuator": "lamp"}')
    with pytest.raises(Refused, match="newer request ended the override"):
        operators.override(late("override", "lamp", payload=b'{"value": "ON", "hold_s": 5}'))
    assert world.host.gate.holds["lamp"] is None


def test_what_a_killed_gate_left_moving_gets_its_safe_action_in_shadow_too(world: World) -> None:
    act(world, 20, arm=0.5)
    assert world.devices["arm"] != (0.0,)
    world.kill("shadow")
    left = [body for kind, body in world.events if kind == "left_moving"]
    assert left == [{"actuators": ["arm", "fan", "heater"], "unreachable": []}]
    assert (world.devices["arm"], world.devices["heater"], world.devices["fan"]) == ((0.0,), "OFF", "OFF")
    assert "wheel" not in world.session, "nobody moved it"
    world.wait(AT_REST_S + 1.0)
    world.kill("shadow")
    assert not world.commanded, "all was at rest for long enough"


def test_a_device_that_the_settings_no_longer_reach_is_named(world: World) -> None:
    act(world, 5)
    assert world.disk.content is not None
    world.disk.content["moved"] = ["arm", "fan", "furnace", "heater", 7]
    world.events.clear()
    world.kill("shadow")
    assert world.events[0] == (
        "left_moving",
        {"actuators": ["arm", "fan", "heater"], "unreachable": ["furnace"]},
    )


def test_an_actuator_that_stops_and_goes_again_is_not_written_each_time(world: World) -> None:
    writes: list[object] = []
    save = world.disk.save
    world.disk.save = lambda path, content: (writes.append(content), save(path, content))[1]  # type: ignore[method-assign]
    for _ in range(20):
        act(world, 3)
        act(world, 3, stale=("air",))
        assert world.devices["heater"] == "OFF"
    assert writes == []
