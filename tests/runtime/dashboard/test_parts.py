"""The page's parts without a network: tokens, curves, what is shown, and which commands are allowed."""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from pathlib import Path
from typing import Any

import pytest
import structlog
from canaries import OPERATOR, VIEWER
from hypothesis import given
from hypothesis import strategies as st

from runtime.dashboard import view_state
from runtime.dashboard.access.auth import (
    LOGGED,
    MAX_SESSIONS,
    SESSION_S,
    TRIES,
    WINDOW_S,
    Access,
    RateLimited,
    token_file,
)
from runtime.dashboard.commands import ANSWER_S, COMMANDS, GATE_ANSWER_S, CommandPublisher, Forbidden, allowed
from runtime.dashboard.sections import ClientPosition, Sections
from runtime.dashboard.streams import StreamViews
from runtime.dashboard.time_series import MAX_POINTS, Returns, TimeSeries
from runtime.dashboard.view_state import EVENTS, QUESTIONS, ViewState
from runtime.mqtt import rpc
from runtime.mqtt.topics import Topics, parse
from runtime.requests.handlers import EXPLAIN_S, URGENT_S, USUAL_S


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def access(clock: Clock) -> Access:
    return Access(OPERATOR, VIEWER, clock)


# --- access


def test_each_token_gives_its_role_and_sessions_end() -> None:
    clock = Clock()
    door = access(clock)
    operator, viewer = door.login(OPERATOR, "a"), door.login(VIEWER, "a")
    assert operator is not None
    assert viewer is not None
    assert door.role(operator[0]) == "operator"
    assert door.role(viewer[0]) == "viewer"
    door.logout(operator[0])
    assert door.role(operator[0]) is None
    clock.now_s += SESSION_S
    assert door.role(viewer[0]) is None
    assert door.role(None) is None


def test_wrong_tokens_are_limited_by_address_and_a_right_one_always_gets_in() -> None:
    clock = Clock()
    door = access(clock)
    for _ in range(TRIES):
        assert door.login("wrong", "1.2.3.4") is None
    with pytest.raises(RateLimited) as limit:
        door.login("wrong", "1.2.3.4")
    assert 0 < limit.value.retry_s <= WINDOW_S
    assert door.login(OPERATOR, "1.2.3.4") is not None
    for i in range(600):
        assert door.login("wrong", f"10.0.{i % 256}.{i}") is None
    assert door.login("wrong", "4.3.2.1") is None
    assert door.login(OPERATOR, "10.0.0.1") is not None
    clock.now_s += WINDOW_S
    assert door.login("wrong", "1.2.3.4") is None


def test_wrong_tokens_are_logged_with_a_limit_and_without_the_token() -> None:
    clock = Clock()
    door = access(clock)
    with structlog.testing.capture_logs() as lines:
        for i in range(200):
            door.login(f"guess-{i}", f"10.0.0.{i}")
        clock.now_s += WINDOW_S
        door.login("guess", "10.0.0.9")
    assert len(lines) == LOGGED + 1
    assert lines[-1]["unlogged_before"] == 200 - LOGGED
    assert "guess" not in str(lines)


def test_the_session_unused_for_longest_gives_way_and_viewers_never_push_an_operator_out() -> None:
    door = access(Clock())
    operator, first, second = (door.login(token, "a") for token in (OPERATOR, VIEWER, VIEWER))
    assert operator is not None
    assert first is not None
    assert second is not None
    for _ in range(MAX_SESSIONS - 1):
        assert door.role(first[0]) == "viewer"
        door.login(VIEWER, "a")
    assert door.role(second[0]) is None
    assert door.role(first[0]) == "viewer"
    assert door.role(operator[0]) == "operator"


def test_a_session_lasts_while_it_is_used() -> None:
    clock = Clock()
    door = access(clock)
    login = door.login(VIEWER, "a")
    assert login is not None
    for _ in range(5):
        clock.now_s += SESSION_S / 2
        assert door.role(login[0]) == "viewer"


def test_sessions_survive_a_restart_and_a_changed_token_ends_those_of_its_role() -> None:
    clock = Clock()
    door = access(clock)
    operator, viewer = door.login(OPERATOR, "a"), door.login(VIEWER, "a")
    assert operator is not None
    assert viewer is not None
    assert door.changed
    stored = door.dump(wall_s=5_000.0)
    assert not door.changed
    for secret in (OPERATOR, VIEWER, operator[0], viewer[0]):
        assert secret.encode() not in stored
    again = access(clock)
    again.restore(stored, wall_s=5_000.0 + SESSION_S / 2)
    assert again.role(operator[0]) == "operator"
    assert again.role(viewer[0]) == "viewer"
    late = access(clock)
    late.restore(stored, wall_s=5_000.0 + SESSION_S)
    assert late.role(operator[0]) is None
    other = Access(OPERATOR, VIEWER + "!", clock)
    other.restore(stored, wall_s=5_000.0)
    assert other.role(operator[0]) == "operator"
    assert other.role(viewer[0]) is None
    ahead = access(clock)
    ahead.restore(stored, wall_s=0.0)
    clock.now_s += SESSION_S
    assert ahead.role(operator[0]) is None, "a clock that was set back gives no longer session"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"tokens": {}, "sessions": [{"role": "god"}]}', b" " * 300_000]
)
def test_a_damaged_session_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="sessions"):
        access(Clock()).restore(content, wall_s=0.0)


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than 16 characters"):
        Access("123456", None, Clock())
    with pytest.raises(ValueError, match="viewer_token"):
        Access(OPERATOR, "123456", Clock())


def test_the_token_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    token = token_file(tmp_path / "token")
    assert len(token) >= 40
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert token_file(tmp_path / "token") == token
    (tmp_path / "token").write_text("short")
    with pytest.raises(ValueError, match="fewer than 16"):
        token_file(tmp_path / "token")


def test_a_token_that_another_user_may_have_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token_file(path)
    path.chmod(0o666)
    with pytest.raises(ValueError, match="may have been written by another user"):
        token_file(path)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        with pytest.raises(ValueError, match="owner 65534"):
            token_file(path)


# --- curves


def test_a_curve_has_the_means_of_equal_spans_whatever_its_length() -> None:
    series = TimeSeries(span_s=1.0)
    for i in range(4 * MAX_POINTS + 1):
        series.add(float(i), float(i))
    assert len(series.points) < MAX_POINTS
    assert series.span_s == 8.0
    # every point is the mean of the values in its span: stamps 0..7 have the mean 3.5
    assert series.points[0] == (pytest.approx(4.0, abs=0.51), 3.5)
    assert all(abs(value - (stamp - 0.5)) < 1e-6 for stamp, value in series.points[:50])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=600))
def test_a_curve_never_leaves_the_range_of_its_values(values: list[float]) -> None:
    series = TimeSeries(span_s=0.5)
    for i, value in enumerate(values):
        series.add(float(i), value)
    slack = 1e-5 * max(1.0, *(abs(v) for v in values))
    assert all(min(values) - slack <= v <= max(values) + slack for _, v in series.points)


def test_a_return_is_an_episode_where_there_are_any_else_a_minute() -> None:
    minutes = Returns()
    assert [minutes.add(t, 0.5, done=False) for t in (0.0, 30.0, 60.0)] == [None, None, 1.5]
    episodes = Returns()
    assert [episodes.add(t, 1.0, done=t == 2) for t in range(4)] == [None, None, 3.0, None]
    assert episodes.add(500.0, 1.0, done=False) is None


# --- senses and state


def state() -> ViewState:
    made = ViewState(Topics("demo"), wall=Clock())
    tell(
        made,
        "info",
        {
            "streams": {
                "front": {"kind": "camera", "source": "topic"},
                "room": {"kind": "microphone", "source": "topic"},
                "orders": {"kind": "text", "source": "topic:home/orders"},
                "joints": {"kind": "telemetry", "source": "topic", "fields": ["q", "/imu/1", "gone"]},
            },
            "actuators": {
                "lamp": {"kind": "choice", "choices": ["ON", "OFF"], "topic": "z2m/lamp/set", "state_topic": "z2m/lamp"}
            },
        },
    )
    return made


def tell(made: ViewState, topic: str, body: object) -> None:
    made.take(f"reflexd/demo/{topic}" if not topic.startswith(("z2m", "home")) else topic, json.dumps(body).encode())


def test_raw_sound_is_shown_as_loudness_in_dbfs() -> None:
    made = state()
    sine = [int(16_384 * math.sin(2 * math.pi * i / 16)) for i in range(1_600)]
    made.take("reflexd/demo/in/room", struct.pack("<1600h", *sine) + b"?")
    level = made.sections["streams"]["room"]
    assert level["level_db"] == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=0.1)
    assert level["peak_db"] == pytest.approx(-6.0, abs=0.1)
    made.take("reflexd/demo/in/room", bytes(200))
    assert made.sections["streams"]["room"]["level_db"] == -90.0
    made.take("reflexd/demo/in/room", b"")
    assert made.sections["streams"]["room"]["level_db"] == -90.0


def test_pictures_texts_and_numbers_are_stored_as_facts() -> None:
    made = state()
    made.take("reflexd/demo/in/front", b"\xff\xd8\xff first")
    made.take("reflexd/demo/in/front", b"\xff\xd8\xff too soon")
    made.take("reflexd/demo/preview/front", b"not a picture")
    assert made.stream_views.pictures == {"front": b"\xff\xd8\xff first"}
    made.take("home/orders", b"find the cat")
    made.take("home/orders", b'{"text": "now the dog"}')
    made.take("home/orders", b"{no json")
    assert [t["text"] for t in made.sections["streams"]["orders"]["texts"]] == [
        "find the cat",
        "now the dog",
        "{no json",
    ]
    tell(made, "in/joints", {"q": 1, "imu": [0, 2.5]})
    assert made.sections["streams"]["joints"]["values"] == {"q": 1.0, "/imu/1": 2.5, "gone": None}
    tell(made, "preview/room", {"level_db": -20.5, "unknown": "find"})
    assert "unknown" not in made.sections["streams"]["room"]
    made.take("reflexd/demo/in/room", bytes(64))  # a preview came just now: the raw sound adds nothing
    assert made.sections["streams"]["room"]["level_db"] == -20.5


def test_foreign_actuators_are_heard_on_their_own_topics() -> None:
    made = state()
    tell(made, "z2m/lamp/set", {"state": "ON"})
    made.take("z2m/lamp", b"ON")
    assert made.sections["actuators"]["lamp"]["set"]["state"] == "ON"
    assert made.sections["actuators"]["lamp"]["state"]["value"] == "ON"
    assert made.foreign_topics() == ["home/orders", "z2m/lamp", "z2m/lamp/set"]


def test_messages_of_actuators_are_read_when_a_browser_asks_for_news(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(view_state, "parse", lambda payload, limit: read.append(payload) or parse(payload, limit))
    made = state()
    made.sections.news(seen := ClientPosition(), lambda *_: True)
    read.clear()
    for number in range(50):
        made.take("z2m/lamp/set", b'{"state": "ON", "seq": %d}' % number)
    assert read == []
    assert made.sections["actuators"]["lamp"]["set"]["seq"] == 49
    assert len(read) == 1
    assert b'"seq":49' in made.sections.news(seen, lambda *_: True)
    made.take("reflexd/demo/act/lamp/set", b"[" * 300_000)
    made.take("reflexd/demo/act/lamp/state", b'{"a": 1, "a": 2}')
    assert made.sections["actuators"]["lamp"]["state"] == {"value": '{"a": 1, "a": 2}', "at": made.wall()}
    assert made.refused == {"act: Refused": 1}


def test_memory_is_bounded() -> None:
    made = state()
    for i in range(300):
        tell(made, "decision", {"id": f"d{i}", "stamp": i, "latency_ms": 20, "value": 1.0})
        tell(made, "event", {"type": "label_requested", "data": {"id": f"q{i}", "task": "t"}})
        tell(made, f"task/t{i}", {"label": "x"})
        tell(made, f"act/a{i}/set", {"value": "x"})
        tell(made, f"hold/a{i}", {"value": "x", "until": 5})
        made.take(f"reflexd/demo/{i}", b"?")
    assert not made.refused["info"]
    assert len(made.sections["events"]) == EVENTS
    assert [q["id"] for q in made.sections["questions"]] == [f"q{i}" for i in range(300 - QUESTIONS, 300)]
    for table in ("tasks", "actuators", "holds"):
        assert len(made.sections[table]) == 64
    assert len(made.refused) <= 65
    before = made.sections.version
    made.answered("never asked")
    assert made.sections.version == before
    made.answered("q299")
    assert made.sections["questions"][-1]["id"] == "q298"


def test_decisions_reach_the_browsers_five_times_a_second_at_most() -> None:
    made = state()
    clock = made.wall
    assert isinstance(clock, Clock)
    shown = []
    for i in range(100):
        clock.now_s += 0.02
        tell(made, "decision", {"id": f"d{i}", "stamp": i})
        shown.append(made.sections["decision"]["id"])
    assert 8 <= len(set(shown)) <= 11


def test_rewards_of_expressions_are_drawn_from_decisions() -> None:
    made = state()
    clock = made.wall
    assert isinstance(clock, Clock)
    for i in range(20):
        clock.now_s += 10
        tell(made, "decision", {"id": f"d{i}", "stamp": i, "reward": -0.25})
    assert {v for _, v in made.sections["series/reward"]} == {-0.25}
    assert made.sections["series/return"]


def test_learning_is_drawn_from_health_and_rewards() -> None:
    made = state()
    clock = made.wall
    assert isinstance(clock, Clock)
    for i in range(8):
        clock.now_s += 10
        tell(made, "health", {"learner": {"loss": {"q": 1.0, "pi": i}, "q": 2.0, "reward_mean": None}})
        tell(made, "reward", {"value": 0.5})
    assert [v for _, v in made.sections["series/loss"]] == [1.0 + i for i in range(7)]
    assert [v for _, v in made.sections["series/reward"]] == [0.5] * 7
    assert "series/reward_mean" not in made.sections


TOPICS = [
    "status", "info", "decision", "event", "reward", "health", "act/x/set", "in/front", "?", "preview/room", "hold/x",
]  # fmt: skip


def everything(made: ViewState) -> dict[str, dict[str, object]]:
    """What a browser that has just connected is sent."""
    sent: dict[str, dict[str, object]] = json.loads(
        b"{" + made.sections.news(ClientPosition(), lambda _section, _entry: True) + b"}"
    )
    return sent


@given(st.sampled_from(TOPICS), st.binary(max_size=60))
def test_whatever_arrives_is_survived(topic: str, payload: bytes) -> None:
    made = state()
    made.take(f"reflexd/demo/{topic}", payload)
    assert everything(made)["values"]
    assert still_listens(made)


def still_listens(made: ViewState) -> bool:
    """Whether what is well-formed is taken as ever, after any nonsense."""
    tell(made, "status", {"state": "degraded", "reasons": ["after nonsense"]})
    return bool(made.sections["status"]["reasons"] == ["after nonsense"])


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["streams", "actuators", "kind", "id", "type", "data", "value", "learner", "loss", "text", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from([*TOPICS, "proposal/x", "act/x/state"]), JSON)
def test_whatever_json_arrives_is_survived(topic: str, body: object) -> None:
    made = state()
    made.take(f"reflexd/demo/{topic}", json.dumps(body).encode())
    made.take("reflexd/demo/in/orders", b"x")
    assert everything(made)["values"]
    assert still_listens(made)


ODD_INFO: list[object] = [
    {"streams": {"a": {}}},
    {"streams": {"a": {"kind": "camera", "source": 5}}},
    {"streams": {"a": None}},
    {"streams": {"": {"kind": "text"}}},
    {"streams": {str(i): {"kind": "text"} for i in range(513)}},
    {"actuators": {"a": {"kind": "choice"}}},
    {"actuators": {"a": {"kind": "continuous", "low": [0], "high": []}}},
    {"actuators": {"a": {"kind": "text", "topic": ["x"]}}},
    {"actuators": [], "streams": []},
    {"tasks": {"t": {"labels": "abc"}}},
    {"rate_hz": "fast"},
    7,
]


def test_the_info_and_health_of_as_many_streams_as_the_settings_allow_are_shown() -> None:
    made = state()
    names = [f"{n:03d}" + "x" * 61 for n in range(512)]
    tell(made, "info", {"streams": {n: {"kind": "text", "source": f"topic:{n * 8}"} for n in names}})
    tell(made, "health", {"streams": {n: {"drops": {n: 1, n[::-1]: 2}, "last_refusal": "x" * 256} for n in names}})
    assert (len(made.sections["info"]["streams"]), len(made.sections["health"]["streams"])) == (512, 512)
    assert not made.refused


@pytest.mark.parametrize("body", ODD_INFO)
def test_an_odd_info_is_refused_and_the_last_good_one_stays(body: object) -> None:
    made = state()
    tell(made, "info", body)
    assert set(made.sections["info"]["streams"]) == {"front", "room", "orders", "joints"}
    assert sum(made.refused.values()) == 1
    assert made.sections["refused"]


def test_wildcards_and_system_topics_in_info_are_never_read() -> None:
    made = state()
    tell(
        made,
        "info",
        {
            "streams": {"a": {"kind": "text", "source": "topic:#"}, "b": {"kind": "text", "source": "topic:$SYS/x"}},
            "actuators": {"c": {"kind": "text", "topic": "+/x", "state_topic": "good/state"}},
        },
    )
    assert made.foreign_topics() == ["good/state"]


# --- changes


def news(sections: Sections, seen: ClientPosition, shows: set[str] | None = None) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(
        b"{" + sections.news(seen, lambda _section, entry: shows is None or entry in shows) + b"}"
    )
    return sent


def test_a_browser_is_sent_differences_only() -> None:
    sections, seen = Sections(), ClientPosition()
    sections.set("status", {"state": "online"})
    sections.put("actuators", "head", 1)
    sections.put("actuators", "arm", 2)
    for i in range(3):
        sections.append("events", i, limit=4)
    assert news(sections, seen) == {
        "values": {"status": {"state": "online"}},
        "tables": {"actuators": {"head": 1, "arm": 2}},
        "lists": {"events": {"first": 0, "at": 0, "items": [0, 1, 2]}},
    }
    assert news(sections, seen) == {}
    sections.put("actuators", "arm", 3)
    for i in range(3, 6):
        sections.append("events", i, limit=4)
    assert news(sections, seen) == {
        "values": {},
        "tables": {"actuators": {"arm": 3}},
        "lists": {"events": {"first": 2, "at": 3, "items": [3, 4, 5]}},
    }
    sections.replace("events", [8, 9], limit=4)
    assert news(sections, seen)["lists"] == {"events": {"first": 0, "at": 0, "items": [8, 9]}}
    assert sections["events"] == [8, 9]
    assert sections.get("absent", 5) == 5


def test_an_entry_out_of_view_is_sent_once_it_is_in_view() -> None:
    sections, seen = Sections(), ClientPosition()
    sections.put("streams", "a", 1)
    sections.put("streams", "b", 1)
    assert news(sections, seen, {"a"})["tables"] == {"streams": {"a": 1}}
    sections.put("streams", "b", 2)
    assert news(sections, seen, {"a"})["tables"] == {}
    assert news(sections, seen, {"a"}) == {}
    assert news(sections, seen, {"a", "b"})["tables"] == {"streams": {"b": 2}}
    assert news(sections, seen, {"a", "b"}) == {}


@given(st.lists(st.sampled_from(["append", "replace", "read"]), max_size=60))
def test_what_a_browser_puts_together_is_what_there_is(steps: list[str]) -> None:
    sections, seen, have, first = Sections(), ClientPosition(), list[int](), 0
    for number, step in enumerate(steps):
        match step:
            case "append":
                sections.append("l", number, limit=5)
            case "replace":
                sections.replace("l", [number] * (number % 7), limit=5)
            case "read":
                change = news(sections, seen).get("lists", {}).get("l")
                if change is not None:  # as static/socket.js does it
                    known = have[change["first"] - first :] if change["at"] > change["first"] else []
                    have = known[: change["at"] - change["first"]] + change["items"]
                    first = change["first"]
                assert have == list(sections.get("l", []))


def test_stream_views_ignore_streams_no_one_declared() -> None:
    assert not StreamViews().take("in", "unknown", b"x", 0.0)


# --- commands


class FakeBridge:
    def __init__(self) -> None:
        self.sent: list[tuple[str, object, int]] = []

    async def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        self.sent.append((topic, json.loads(payload), qos))

    async def request(self, parts: tuple[str, ...], body: dict[str, object], timeout_s: float) -> dict[str, object]:
        if parts[0] != "request":
            self.sent.append(("/".join(("reflexd/demo", *parts)), body, 1))
        return {"verb": parts[-1], "timeout_s": timeout_s, **body}


PUBLISHED = [
    ({"do": "stop", "engaged": True}, "stop", {"engaged": True}),
    (
        {"do": "override", "actuator": "head", "value": "left", "hold_s": 2},
        "override/head",
        {"value": "left", "hold_s": 2.0, "source": "dashboard"},
    ),
    ({"do": "reward", "value": 1, "decision": "d"}, "reward", {"value": 1.0, "decision": "d", "source": "dashboard"}),
    (
        {"do": "label", "task": "t", "label": "a", "question": "q"},
        "label",
        {"task": "t", "label": "a", "id": "q", "source": "dashboard"},
    ),
    ({"do": "text", "stream": "orders", "text": "hi"}, "in/orders", {"text": "hi"}),
]


@pytest.mark.parametrize(("command", "topic", "body"), PUBLISHED)
async def test_a_command_becomes_the_message_of_the_contract_and_is_an_operators(
    command: dict[str, object], topic: str, body: object
) -> None:
    bridge, answered = FakeBridge(), list[str]()
    commands = CommandPublisher(Topics("demo"), bridge, answered.append)
    parsed = COMMANDS.validate_python(command)
    with pytest.raises(Forbidden):
        await commands.execute("viewer", parsed)
    assert bridge.sent == []
    await commands.execute("operator", parsed)
    assert bridge.sent == [(f"reflexd/demo/{topic}", body, 1)]
    assert answered == (["q"] if command["do"] == "label" else [])


@pytest.mark.parametrize("verb", ["arm", "disarm", "mode", "promote", "rollback", "reload", "record", "finetune"])
async def test_a_viewer_may_ask_for_nothing_that_changes_anything(verb: str) -> None:
    command = COMMANDS.validate_python({"do": "request", "verb": verb, "data": {"x": 1}})
    assert not allowed("viewer", command)
    answer = await CommandPublisher(Topics("demo"), FakeBridge(), lambda _: None).execute("operator", command)
    agent_answers = verb in {"promote", "rollback", "record", "finetune"}
    assert answer == {"verb": verb, "timeout_s": ANSWER_S if agent_answers else GATE_ANSWER_S, "x": 1}
    assert max(URGENT_S, USUAL_S) < ANSWER_S, "the agent's reason arrives first"
    assert EXPLAIN_S < rpc.EXPLAIN_S


@pytest.mark.parametrize("verb", ["explain", "checkpoints"])
def test_a_viewer_may_ask_what_only_tells(verb: str) -> None:
    assert allowed("viewer", COMMANDS.validate_python({"do": "request", "verb": verb}))
    assert allowed("viewer", COMMANDS.validate_python({"do": "subscribe_previews", "streams": ["front"]}))


@pytest.mark.parametrize(
    "command",
    [
        {"do": "text", "stream": "../act/head/set", "text": "x"},
        {"do": "override", "actuator": "+", "value": "x"},
        {"do": "override", "actuator": "head", "value": [float("nan")]},
        {"do": "override", "actuator": "head", "value": ["0.5"]},
        {"do": "override", "actuator": "head", "value": [True]},
        {"do": "override", "actuator": "head", "value": True},
        {"do": "override", "actuator": "head", "value": [0.5], "hold_s": "2"},
        {"do": "override", "actuator": "head", "value": [0.5], "hold_s": True},
        {"do": "reward", "value": "1"},
        {"do": "reward", "value": True},
        {"do": "goal", "value": "idle", "hold_s": "9"},
        {"do": "request", "verb": "shutdown"},
        {"do": "stop", "engaged": 1},
        {"do": "label", "task": "t", "label": "x" * 3_000},
        {"do": "stop", "engaged": True, "more": 1},
    ],
)
def test_commands_outside_the_contract_are_refused(command: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        COMMANDS.validate_python(command)


def test_the_goal_is_shown_and_a_malformed_one_is_counted() -> None:
    made = state()
    body = {
        "goal": "greet",
        "goals": ["idle", "greet"],
        "probabilities": {"idle": 0.2, "greet": 0.8},
        "past": [{"goal": "idle"}],
    }
    tell(made, "goal", body)
    assert made.sections["goal"]["probabilities"] == {"idle": 0.2, "greet": 0.8}
    for odd in ({}, {"goal": "x" * 65}, {"goal": "idle", "goals": ["a"] * 65}, {"goal": "idle", "past": [3]}):
        tell(made, "goal", odd)
    assert made.refused == {"goal: ValidationError": 4}
    assert made.sections["goal"]["goal"] == "greet"
