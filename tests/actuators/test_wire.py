"""The wire: what the gate writes is what a device reads, and what a hostile publisher writes is not taken."""

from __future__ import annotations

import math
import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, UtteranceSettings
from actuators.device import MAX_BOOTS, DeviceInbox, parse_command
from actuators.wire import (
    CommandWriter,
    DeviceReport,
    WireError,
    check_state_value,
    parse_json,
    parse_state,
    state_payload,
    state_topic,
)

BASE = "reflexd/demo"
HEAD = ChoiceSettings(kind="choice", choices=("left", "stay", "right"), safe="stay", ttl_ms=300)
ARM = ContinuousSettings(kind="continuous", low=(-1.0, -1.0), high=(1.0, 1.0), ttl_ms=1_500)
DIM = ContinuousSettings(
    kind="continuous", low=(0.0,), high=(254.0,), topic="z2m/dim/set", payload='{"brightness": ${value}}'
)
LAMP = ChoiceSettings(
    kind="choice",
    choices=("OFF", "ON"),
    safe="OFF",
    topic="z2m/lamp/set",
    payload='{"state": "${value}"}',
    state_topic="z2m/lamp",
    state_value="state",
)
SAY = UtteranceSettings(kind="text", task="chat", topic="tts", payload='{"text": "${value}", "of": "${decision}"}')
PLAIN = ChoiceSettings(kind="choice", choices=("a", "b"), safe="a", topic="plain", payload="${value}")
ALL: dict[str, AnyActuator] = {"head": HEAD, "arm": ARM, "dim": DIM, "lamp": LAMP, "say": SAY, "plain": PLAIN}


def write(name: str, value: object, decision: str | None = "d1") -> bytes:
    return CommandWriter(BASE, ALL, "boot1").write(name, value, decision=decision, policy="p1", stamp_s=100.0).payload  # type: ignore[arg-type]


def test_a_command_has_the_fields_of_the_contract() -> None:
    commands = CommandWriter(BASE, ALL, "boot1")
    first = commands.write("head", "left", decision="d1", policy="p1", stamp_s=100.0)
    assert (first.topic, first.qos, first.retain, first.expiry_s) == ("reflexd/demo/act/head/set", 1, False, 1)
    assert orjson.loads(first.payload) == {
        "value": "left",
        "decision": "d1",
        "boot": "boot1",
        "seq": 1,
        "stamp": 100.0,
        "ttl_ms": 300,
        "policy": "p1",
    }
    second = commands.write("arm", (0.5, -1.0), decision=None, policy="gate", stamp_s=101.0)
    assert (orjson.loads(second.payload)["seq"], second.expiry_s) == (2, 2)
    assert orjson.loads(second.payload)["value"] == [0.5, -1.0]


def test_foreign_devices_get_their_own_words() -> None:
    assert write("lamp", "ON") == b'{"state": "ON"}'
    assert write("dim", (12.5,)) == b'{"brightness": 12.5}'
    assert write("plain", "a") == b"a"
    lamp = CommandWriter(BASE, ALL, "b").write("lamp", "ON", decision=None, policy="gate", stamp_s=1.0)
    assert (lamp.topic, lamp.retain) == ("z2m/lamp/set", False)


@given(decision=st.text(max_size=30), policy=st.text(max_size=30))
def test_words_of_the_agent_add_nothing_to_a_payload_that_is_no_json(decision: str, policy: str) -> None:
    """The device reads the last value; an identifier of the agent may contain no second one."""
    dimmer = DIM.model_copy(update={"payload": "v=${value};id=${decision} by ${policy}"})
    out = CommandWriter(BASE, {"it": dimmer}, "b").write("it", (0.5,), decision=decision, policy=policy, stamp_s=1.0)
    assert re.fullmatch(r"v=0\.5;id=[\w.:+-]* by [\w.:+-]*", out.payload.decode(), re.ASCII)
    usual = CommandWriter(BASE, {"it": dimmer}, "b").write("it", (0.5,), decision="a1-7", policy="p-3.0", stamp_s=1.0)
    assert usual.payload == b"v=0.5;id=a1-7 by p-3.0"


@given(st.text(max_size=30))
def test_no_text_can_add_a_key(text: str) -> None:
    assert orjson.loads(write("say", text, None)) == {"text": text, "of": ""}


@pytest.mark.parametrize(
    "payload",
    ['{"state": ${value}}', '{"state": "${value}"', '["${value}",]', '{"state": "${value}", "n": 1${decision}}'],
)
def test_a_template_that_gives_no_json_is_refused_at_load(payload: str) -> None:
    with pytest.raises(WireError, match=r"actuators\.lamp\.payload"):
        CommandWriter(BASE, {"lamp": LAMP.model_copy(update={"payload": payload})}, "b")


@pytest.mark.parametrize("payload", ['{"cmd": "{\\"say\\": \\"${value}\\"}"}', '[[" [\\"${value}\\"]"]]'])
def test_a_text_inside_json_in_a_string_is_refused_at_load(payload: str) -> None:
    """It is escaped once, and the device reads it twice."""
    with pytest.raises(WireError, match=r"actuators\.say\.payload: the text is inside JSON in a string"):
        CommandWriter(BASE, {"say": SAY.model_copy(update={"payload": payload})}, "b")
    CommandWriter(BASE, {"lamp": LAMP.model_copy(update={"payload": payload})}, "b")
    CommandWriter(BASE, {"say": SAY.model_copy(update={"payload": '{"a": "{}", "b": "say: {${value}}"}'})}, "b")


@given(decision=st.text(max_size=30), policy=st.text(max_size=30))
def test_no_identifier_of_the_agent_adds_a_key_inside_json_in_a_string(decision: str, policy: str) -> None:
    payload = '{"cmd": "{\\"state\\": \\"${value}\\", \\"by\\": \\"${policy}${decision}\\"}"}'
    lamp = LAMP.model_copy(update={"payload": payload})
    out = CommandWriter(BASE, {"it": lamp}, "b").write("it", "ON", decision=decision, policy=policy, stamp_s=1.0)
    inner = orjson.loads(orjson.loads(out.payload)["cmd"])
    assert inner.keys() == {"state", "by"}
    assert inner["state"] == "ON"


@given(
    value=st.one_of(
        st.text(max_size=20), st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4).map(tuple)
    ),
    decision=st.one_of(st.none(), st.text(max_size=8)),
    stamp_s=st.floats(0, 4e9),
)
def test_round_trip(value: str | tuple[float, ...], decision: str | None, stamp_s: float) -> None:
    out = CommandWriter(BASE, {"it": HEAD}, "b").write("it", value, decision=decision, policy="p", stamp_s=stamp_s)
    command = DeviceInbox().accept(out.payload, retained=False, now_s=stamp_s)
    assert command is not None
    assert (command.value, command.decision, command.boot, command.seq) == (value, decision, "b", 1)
    assert (command.stamp_s, command.ttl_ms, command.policy) == (stamp_s, 300, "p")
    assert parse_state(HEAD, state_payload("left", command.seq, command.boot)) == DeviceReport("left", 1, "b")


def test_answers_to_older_commands_are_known() -> None:
    commands = CommandWriter(BASE, ALL, "b")
    assert not commands.is_older("head", DeviceReport("left", 0, "b"))
    for _ in range(2):
        commands.write("head", "left", decision=None, policy="p", stamp_s=1.0)
    commands.write("arm", (0.0, 0.0), decision=None, policy="p", stamp_s=1.0)
    assert commands.is_older("head", DeviceReport("left", 1, "b"))
    assert not commands.is_older("head", DeviceReport("left", 2, "b"))
    assert not commands.is_older("head", DeviceReport("left", 1, "another"))
    assert not commands.is_older("head", DeviceReport("left"))


@pytest.mark.parametrize(
    ("settings", "payload", "report"),
    [
        (HEAD, b'{"value":"left","seq":3,"boot":"b"}', DeviceReport("left", 3, "b")),
        (HEAD, b'{"value":"left","seq":true,"boot":"b"}', DeviceReport("left")),
        (HEAD, b'{"value":"left","seq":3}', DeviceReport("left")),
        (HEAD, b"left", DeviceReport("left")),
        (HEAD, b' "left"', DeviceReport("left")),
        (HEAD, b'{"value":true}', DeviceReport("true")),
        (HEAD, b"1", DeviceReport("1")),
        (LAMP, b'{"state":"ON","linkquality":80}', DeviceReport("ON")),
        (LAMP.model_copy(update={"state_value": "/a/0/b"}), b'{"a":[{"b":"ON"}]}', DeviceReport("ON")),
        (ARM, b'{"value":[1,-0.5]}', DeviceReport([1.0, -0.5])),
        (DIM, b'{"value":3}', DeviceReport(3.0)),
        (DIM, b"3.5", DeviceReport(3.5)),
    ],
)
def test_reports(settings: AnyActuator, payload: bytes, report: DeviceReport) -> None:
    assert parse_state(settings, payload) == report


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"other":1}',
        b'{"value":null}',
        b'{"value":[]}',
        b'{"value":[true]}',
        b'{"value":{"a":1}}',
        b'{"value":NaN}',
        b"[1,",
        b"\xff\xfe",
        b"[" * 40 + b"]" * 40,
        b'"' + b"a" * 70_000 + b'"',
    ],
)
def test_bad_reports(payload: bytes) -> None:
    with pytest.raises(WireError):
        parse_state(ARM, payload)


def test_a_pointer_into_nothing() -> None:
    settings = LAMP.model_copy(update={"state_value": "/a/b"})
    for payload in (b'{"a":3}', b'{"a":[1]}', b"{}"):
        with pytest.raises(WireError, match="set state_value"):
            parse_state(settings, payload)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_bytes_are_a_report_or_refused(payload: bytes) -> None:
    for settings in (HEAD, ARM, LAMP):
        try:
            value = parse_state(settings, payload).value
        except WireError:
            continue
        numbers = value if isinstance(value, list) else [value]
        assert all(isinstance(number, str) or math.isfinite(number) for number in numbers)


def test_depth_is_counted_exactly() -> None:
    assert parse_json(b"[" * 16 + b"]" * 16)
    with pytest.raises(WireError, match="deeper"):
        parse_json(b"[" * 17 + b"]" * 17)


@pytest.mark.parametrize(
    "payload", [b'{"value":1,"value":2}', b'{"value":{"a":1,"a":1}}', b'[{"seq":1,"s\\u0065q":2}]']
)
def test_repeated_key_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError, match="twice"):
        parse_json(payload)
    with pytest.raises(WireError, match="twice"):
        parse_json(payload, bare_words=True)


# The device's side.


def command(seq: int = 1, boot: str = "b", stamp_s: float = 100.0, **more: object) -> bytes:
    body = {"value": "left", "decision": "d", "boot": boot, "seq": seq, "stamp": stamp_s, "ttl_ms": 300, "policy": "p"}
    return orjson.dumps(body | more)


def test_a_device_takes_each_command_once_and_in_order() -> None:
    inbox = DeviceInbox()
    taken = [inbox.accept(command(seq), retained=False, now_s=100.0) is not None for seq in (1, 1, 3, 2, 3, 4)]
    assert taken == [True, False, True, False, False, True]
    assert inbox.drops == {"seq": 3}


def test_a_device_ignores_what_is_late_early_or_retained() -> None:
    inbox = DeviceInbox()
    assert inbox.accept(command(1), retained=True, now_s=100.0) is None
    assert inbox.accept(command(1), retained=False, now_s=100.31) is None
    assert inbox.accept(command(1), retained=False, now_s=99.69) is None
    assert inbox.drops == {"retained": 1, "expired": 2}
    assert inbox.accept(command(1), retained=False, now_s=100.29) is not None, (
        "what was dropped was not counted as seen"
    )


def test_a_new_run_starts_its_own_sequence_and_an_old_one_cannot_be_replayed() -> None:
    inbox = DeviceInbox()
    assert inbox.accept(command(9, "old"), retained=False, now_s=100.0)
    assert inbox.accept(command(0, "new"), retained=False, now_s=100.0)
    assert inbox.accept(command(9, "old"), retained=False, now_s=100.0) is None
    for run in range(MAX_BOOTS):
        inbox.accept(command(1, f"run{run}"), retained=False, now_s=100.0)
    assert inbox.accept(command(0, "run15"), retained=False, now_s=100.0) is None
    assert len(inbox._last) == MAX_BOOTS


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"null",
        b'{"value":"left"}',
        command(seq=-1),
        command(seq=True),
        command(seq=1.5),  # type: ignore[arg-type]
        command(boot=3),  # type: ignore[arg-type]
        command(policy=None),
        command(decision=4),
        command(value=None),
        command(value=3),
        command(value=["a"]),
        command(value=[True]),
        command(value={"a": 1}),
        command(ttl_ms="300"),
        command(stamp=None),
        command().replace(b"100.0", b"1e999"),
        command(extra=[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]),
    ],
)
def test_malformed_commands(payload: bytes) -> None:
    inbox = DeviceInbox()
    assert inbox.accept(payload, retained=False, now_s=100.0) is None
    assert inbox.drops == {"malformed": 1}


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from("ab"), st.floats(99, 101), st.booleans()), max_size=30))
def test_whatever_arrives_nothing_is_executed_twice(messages: list[tuple[int, str, float, bool]]) -> None:
    inbox = DeviceInbox()
    executed: dict[str, int] = {}
    for seq, boot, now_s, retained in messages:
        if inbox.accept(command(seq, boot), retained=retained, now_s=now_s) is not None:
            assert not retained
            assert abs(now_s - 100.0) <= 0.3
            assert seq > executed.get(boot, -1)
            executed[boot] = seq


def test_numbers_in_commands() -> None:
    assert parse_command(command(value=[1, -0.5])).value == (1.0, -0.5)
    assert parse_command(command(value=[])).value == ()


def test_the_newest_number_of_each_actuator() -> None:
    head = ChoiceSettings(kind="choice", choices=("left", "stay"), safe="stay")
    writer = CommandWriter("reflexd/a", {"head": head, "tail": head}, "b")
    assert (writer.last("head"), writer.last("tail")) == (0, 0)
    writer.write("head", "left", decision=None, policy="gate", stamp_s=1.0)
    writer.write("tail", "left", decision=None, policy="gate", stamp_s=1.0)
    assert (writer.last("head"), writer.last("tail")) == (1, 2)


def test_where_a_device_reports() -> None:
    head = ChoiceSettings(kind="choice", choices=("left", "stay"), safe="stay")
    assert state_topic("reflexd/a", "head", head) == "reflexd/a/act/head/state"
    assert state_topic("reflexd/a", "head", head.model_copy(update={"state_topic": "z/head"})) == "z/head"


def test_a_report_in_words_of_the_device_is_the_choice_that_it_means() -> None:
    words = {"OFF": "true", "ON": "false"}  # a relay that is closed without current
    inverted = ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", state_value="closed", state_words=words)
    reports = (b'{"closed": true}', b"false", b'{"closed": "broken"}')
    assert [parse_state(inverted, each).value for each in reports] == ["OFF", "ON", "broken"]
    for wrong in ({"on": "true"}, {"ON": "OFF"}):
        with pytest.raises(ValueError, match="state_words: "):
            ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF", state_words=wrong)


def test_a_state_value_is_a_key_or_a_pointer() -> None:
    check_state_value("state")
    check_state_value("/a/0/b~1c")
    with pytest.raises(WireError, match=r"^'/a~2' is not a JSON pointer: .*; write ~0 for ~ and ~1 for /$"):
        check_state_value("/a~2")


def test_bytes_that_are_no_text_are_no_word() -> None:
    head = ChoiceSettings(kind="choice", choices=("left", "stay"), safe="stay")
    with pytest.raises(WireError, match=r"^neither JSON nor UTF-8$"):
        parse_state(head, b"\xff\xfe")


@pytest.mark.parametrize(
    ("where", "payload", "message"),
    [
        ("x", b'{"y": 1}', "the report has no 'x'; set state_value to the key of the value"),
        ("/a/x", b'{"a": {}}', "the report has no '/a/x'; set state_value to the key of the value"),
        ("/a/x", b'{"a": "word"}', "the report has no '/a/x'; set state_value to the key of the value"),
        ("x", b'{"x": null}', "the value must be a string, a number or a list of numbers"),
        ("x", b'{"x": []}', "the value must be a string, a number or a list of numbers"),
    ],
)
def test_a_report_without_a_value_names_the_setting(where: str, payload: bytes, message: str) -> None:
    arm = ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), safe=(0.0,), state_value=where)
    with pytest.raises(WireError) as refused:
        parse_state(arm, payload)
    assert str(refused.value) == message


def test_a_long_repeated_key_is_shown_in_part() -> None:
    key = "k" * 70
    with pytest.raises(WireError) as refused:
        parse_json(f'{{"{key}": 1, "{key}": 2}}'.encode())
    assert str(refused.value) == f"the key {'k' * 64!r} appears twice in one object"


EVERY_FIELD = (
    '{"v": %s, "d": "${decision}", "b": "${boot}", "s": ${seq}, "t": ${stamp}, "l": ${ttl_ms}, "p": "${policy}"}'
)


@pytest.mark.parametrize("indent", ["", "  "])
def test_a_template_may_name_every_field(indent: str) -> None:
    head = ChoiceSettings(
        kind="choice", choices=("left", "stay"), safe="stay", payload=indent + EVERY_FIELD % '"${value}"'
    )
    arm = ContinuousSettings(
        kind="continuous", low=(-1.0, -1.0), high=(1.0, 1.0), safe=(0.0, 0.0), payload=indent + EVERY_FIELD % "${value}"
    )
    writer = CommandWriter("reflexd/a", {"head": head, "arm": arm}, "boot")
    sent = [
        writer.write(name, value, decision="d", policy="p", stamp_s=1.5, ttl_ms=300).payload
        for name, value in (("head", 'le"ft'), ("arm", (0.5, 1.0)))
    ]
    rest = {"d": "d", "b": "boot", "t": 1.5, "l": 300, "p": "p"}
    assert [orjson.loads(each) for each in sent] == [
        {"v": 'le"ft', "s": 1, **rest},
        {"v": [0.5, 1.0], "s": 2, **rest},
    ]


@pytest.mark.parametrize("choices", [("false", "true"), ("0", "1"), ("0.5", "2.5")])
def test_choices_that_are_numbers_or_truth_values_may_stand_without_quotes(choices: tuple[str, ...]) -> None:
    relay = ChoiceSettings(
        kind="choice", choices=choices, safe=choices[0], payload='{"on": ${value}}', state_value="output"
    )
    writer = CommandWriter("reflexd/a", {"relay": relay}, "boot")
    for choice in choices:
        sent = writer.write("relay", choice, decision=None, policy="p", stamp_s=1.5)
        assert orjson.loads(sent.payload) == {"on": orjson.loads(choice)}
    assert parse_state(relay, f'{{"output": {choices[1]}}}'.encode()).value == choices[1]


@pytest.mark.parametrize(
    "choices", [("true", "on"), ("1", '2, "key": 3'), ("true", "[1]"), ("1", "null"), ("1", "NaN")]
)
def test_without_quotes_every_choice_must_be_one_number_or_truth_value(choices: tuple[str, ...]) -> None:
    relay = ChoiceSettings(kind="choice", choices=choices, safe=choices[0], payload='{"on": ${value}}')
    with pytest.raises(WireError, match="put quotes around words"):
        CommandWriter("reflexd/a", {"relay": relay}, "b")


def test_a_template_that_is_no_json_names_the_actuator_and_the_remedy() -> None:
    head = ChoiceSettings(kind="choice", choices=("left", "stay"), safe="stay", payload='{"v": ${value}}')
    with pytest.raises(
        WireError,
        match=r"^actuators\.head\.payload: not JSON when filled in \(.+\); put quotes around words, as in "
        r'"\$\{value\}", and none around numbers$',
    ):
        CommandWriter("reflexd/a", {"head": head}, "b")


def test_the_limit_of_a_report_is_exact() -> None:
    fits = b'"' + b"x" * 65_534 + b'"'
    assert parse_json(fits) == "x" * 65_534
    with pytest.raises(WireError, match=r"^65537 bytes of JSON; the limit is 65536 bytes$"):
        parse_json(b" " + fits)


@pytest.mark.parametrize(
    ("actuator", "payload", "value"),
    [
        ("number", b"21.5", 21.5),
        ("number", b'"21.5"', 21.5),
        ("number", b'{"value": "200"}', 200.0),
        ("number", b'{"value": "-1e2"}', -100.0),
        ("number", b"21,5", "21,5"),
        ("number", b"21.5 %", "21.5 %"),
        ("number", b'"0x10"', "0x10"),
        ("switch", b"ON", "ON"),
        ("switch", b"on", "on"),
        ("switch", b"unavailable", "unavailable"),
        ("scene", b"1", "1"),
        ("scene", b'{"value": "1"}', "1"),
    ],
)
def test_a_device_of_a_home_reports_in_its_own_words(actuator: str, payload: bytes, value: object) -> None:
    """What cannot be read as a command stays as it is, and the gate refuses it by name."""
    settings: dict[str, AnyActuator] = {
        "number": ContinuousSettings(kind="continuous", low=(-100.0,), high=(254.0,), safe=(0.0,)),
        "switch": ChoiceSettings(kind="choice", choices=("OFF", "ON"), safe="OFF"),
        "scene": ChoiceSettings(kind="choice", choices=("1", "2"), safe="1"),
    }
    assert parse_state(settings[actuator], payload).value == value
