"""When a reading was captured: the sender's stamp within bounds, else the arrival; clocks that run off are followed."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import pytest
from pydantic import TypeAdapter, ValidationError

from fakes import eventually
from runtime.control.inbox import Inbox
from runtime.control.payload_decoder import PayloadDecoder
from runtime.control.sender_stamps import (
    AGREE,
    AGREE_S,
    SILENT_S,
    ClockReporter,
    SenderClock,
    SenderStamps,
    unix_seconds,
)
from runtime.mqtt import Message
from sensors.config import AnyStream
from sensors.readings import Frame, Reading, Telemetry, Text
from sensors.streams.telemetry import TopicTelemetry

STREAM: TypeAdapter[AnyStream] = TypeAdapter(AnyStream)
UNIX_S, NOW_S = 1_750_000_000.0, 500.0


def settings(**fields: Any) -> AnyStream:
    return STREAM.validate_python({"kind": "telemetry", "fields": ["x"], **fields})


def message(body: dict[str, Any], stamp_s: float = NOW_S, **properties: str) -> Message:
    return Message("in/s", orjson.dumps(body), 0, retain=False, stamp_s=stamp_s, properties=tuple(properties.items()))


def stamps(**fields: Any) -> SenderStamps:
    return SenderStamps(settings(**fields), wall=lambda: UNIX_S + 1.0, clock=lambda: NOW_S + 1.0)


@pytest.mark.parametrize(
    ("stated", "captured_s", "source"),
    [
        (UNIX_S - 0.25, NOW_S - 0.25, "sender"),
        ((UNIX_S - 0.25) * 1e3, NOW_S - 0.25, "sender"),
        (int((UNIX_S - 0.25) * 1e9), NOW_S - 0.25, "sender"),
        ("2025-06-15T15:06:39.750Z", NOW_S - 0.25, "sender"),
        (UNIX_S + 0.05, NOW_S, "sender"),  # clocks are not that exact; nothing is captured after its arrival
        (UNIX_S + 5, NOW_S, "arrival"),
        (UNIX_S - 61, NOW_S, "arrival"),
        (0, NOW_S, "arrival"),
        (True, NOW_S, "arrival"),
        ("soon", NOW_S, "arrival"),
        (None, NOW_S, "arrival"),
        (1e30, NOW_S, "arrival"),
        ([1], NOW_S, "arrival"),
    ],
)
def test_a_stamp_counts_where_it_is_plausible(stated: object, captured_s: float, source: str) -> None:
    by_field, by_pointer = stamps(stamp="t"), stamps(stamp="/header/t")
    for one, body in ((by_field, {"t": stated}), (by_pointer, {"header": {"t": stated}})):
        found = one.of(message(body))
        assert found == (pytest.approx(captured_s, abs=1e-5), source)
        assert sum(one.figures().values()) == (source == "arrival"), "what is not believed is counted"
    if isinstance(stated, str | float):
        found = stamps(stamp="property:captured").of(message({}, other="1", captured=str(stated)))
        assert found == (pytest.approx(captured_s, abs=1e-5), source)


def test_without_a_setting_the_arrival_counts() -> None:
    assert stamps().of(message({"stamp": UNIX_S - 1})) == (NOW_S, "arrival")
    assert stamps(stamp="t").of(Message("in/s", b"\xff", 0, retain=False, stamp_s=NOW_S)) == (NOW_S, "arrival")
    assert unix_seconds(1e10) == 1e10


@pytest.mark.parametrize(("ppm", "offset_s"), [(200.0, 0.0), (-200.0, 37.5), (0.0, -4_000.0)])
def test_an_hour_with_a_clock_that_runs_off(ppm: float, offset_s: float) -> None:
    """10 Hz, 3 ms and exponential delays of 8 ms; now and then a second of stalled network."""
    rng, clock, errors = np.random.default_rng(0), SenderClock(), []
    for k in range(36_000):
        true_s = k / 10
        delay_s = 0.003 + rng.exponential(0.008) + (rng.uniform(0, 1) if rng.random() < 0.01 else 0.0)
        captured_s = clock.captured_s(UNIX_S + offset_s + true_s * (1 + ppm * 1e-6), 1_000 + true_s + delay_s)
        errors.append(captured_s - (1_000 + true_s))
    after_a_minute = np.abs(errors[600:])
    assert after_a_minute.max() <= 0.02, f"worst {after_a_minute.max() * 1e3:.1f} ms"
    assert np.median(after_a_minute) < 0.006
    assert clock.figures()["drift_ppm"] == pytest.approx(-ppm, abs=20)


def test_a_clock_that_is_set_is_followed() -> None:
    clock = SenderClock()
    for k in range(2_000):
        jump_s = 3_600.0 if k > 1_000 else 0.0
        assert clock.captured_s(UNIX_S + jump_s + k / 10, k / 10 + 0.002) == pytest.approx(k / 10 + 0.002, abs=0.01)


def test_readings_name_the_source_of_their_stamp() -> None:
    async def run() -> list[Reading]:
        got: list[Reading] = []
        with ThreadPoolExecutor(1) as executor:
            sensor = TopicTelemetry("s", None, ("x",))
            decoder = PayloadDecoder(
                {"s": (sensor, "telemetry")}, got.append, executor, stamps={"s": stamps(stamp="t")}
            )
            running = asyncio.create_task(decoder.run())
            for count, body in enumerate(({"x": 1, "t": UNIX_S - 0.5}, {"x": 1})):
                decoder.offer("s", message(body))
                await eventually(lambda count=count: len(got) > count)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return got

    first, second = asyncio.run(run())
    assert (first.stamp_s, first.stamp_source) == (pytest.approx(NOW_S - 0.5), "sender")
    assert (second.stamp_s, second.stamp_source) == (NOW_S, "arrival")


def test_settings_that_name_no_stamp_are_refused() -> None:
    with pytest.raises(ValidationError, match="which only telemetry has"):
        STREAM.validate_python({"kind": "text", "source": "topic", "stamp": "t"})
    with pytest.raises(ValidationError, match="needs messages over MQTT"):
        STREAM.validate_python({"kind": "camera", "source": 0, "stamp": "property:t"})


def test_readings_of_one_moment() -> None:
    """A camera that is 300 ms late and a gyroscope that is not: `common` takes the gyroscope's reading of the picture's moment."""
    streams = {
        "front": STREAM.validate_python({"kind": "camera", "source": 0, "max_age_s": 1.0}),
        "gyro": settings(max_age_s=1.0),
        "orders": STREAM.validate_python({"kind": "text"}),
    }
    skews: dict[str, list[float]] = {}
    for align in ("newest", "common"):
        inbox = Inbox(streams, align=align)  # type: ignore[arg-type]
        inbox.put(Text("orders", 0.0, 0, "go"))
        skews[align] = []
        for k in range(100):
            now_s = k / 20
            inbox.put(Telemetry("gyro", now_s, k, ("x",), np.array([now_s])))
            if k >= 6:
                inbox.put(Frame("front", now_s - 0.3, k, np.zeros((2, 2, 3), np.uint8)))
            seen = inbox.observe(k, now_s)
            if k >= 12:
                assert seen.missing == frozenset()
                assert seen.fresh >= {"front", "gyro"}
                skews[align].append(seen.skew_s)
    assert min(skews["newest"]) == pytest.approx(0.3)
    assert max(skews["common"]) == pytest.approx(0.0, abs=1e-9)
    late = Inbox(streams, align="common")
    late.put(Frame("front", 0.0, 0, np.zeros((2, 2, 3), np.uint8)))
    late.put(Telemetry("gyro", 5.0, 0, ("x",), np.array([1.0])))
    assert late.observe(0, 5.0).ages_s["gyro"] == 0.0, "a stream that is stale holds nothing up"


def test_fast_numbers_are_read_at_the_moment_of_a_late_picture() -> None:
    """500 Hz beside pictures that are 400 ms old at a tick: the numbers of that moment are held long enough."""
    streams = {
        "front": STREAM.validate_python({"kind": "camera", "source": 0, "max_age_s": 1.0}),
        "gyro": settings(max_age_s=1.0),
    }
    inbox = Inbox(streams, align="common")
    for k in range(1_000):
        inbox.put(Telemetry("gyro", k / 500, k, ("x",), np.array([float(k)])))
    for k in range(40):
        inbox.put(Frame("front", k / 25, k, np.zeros((2, 2, 3), np.uint8)))
    seen = inbox.observe(0, 1.998)
    assert seen.readings["gyro"].seq == 780, "of 1.56 s, the moment of the newest picture"
    assert seen.skew_s == pytest.approx(0.0, abs=1e-9)


def test_a_stream_with_a_short_limit_is_not_missing_because_another_is_late() -> None:
    streams = {
        "front": STREAM.validate_python({"kind": "camera", "source": 0, "max_age_s": 2.0}),
        "gyro": settings(max_age_s=0.2, required=True),
    }
    inbox = Inbox(streams, align="common")
    inbox.put(Frame("front", 0.0, 0, np.zeros((2, 2, 3), np.uint8)))
    for k in range(101):
        inbox.put(Telemetry("gyro", k / 100, k, ("x",), np.array([float(k)])))
    seen = inbox.observe(0, 1.0)
    assert seen.missing == frozenset()
    assert seen.readings["gyro"].seq == 80, "the oldest that may be used: nearest to the picture"
    assert seen.skew_s == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("ahead_s", "is_stale"), [(-5.0, True), (-3_600.0, False), (3_600.0, False)], ids=["behind", "far behind", "ahead"]
)
def test_a_sender_with_another_clock_is_named_with_its_offset(ahead_s: float, is_stale: bool) -> None:
    past_s = [0.0]
    of = SenderStamps(
        settings(stamp="t", max_age_s=1), wall=lambda: UNIX_S + 1 + past_s[0], clock=lambda: NOW_S + 1 + past_s[0]
    )
    events, degraded = list[tuple[str, Any]](), dict[str, str]()
    reporter = ClockReporter({"s": of}, lambda kind, data: events.append((kind, data)), degraded)

    def deliver(offset_s: float, count: int) -> None:
        for _ in range(count):
            of.of(message({"t": UNIX_S + offset_s}))
            reporter.ticked(None)
            past_s[0] += AGREE_S / (AGREE - 1)

    deliver(ahead_s, AGREE - 1)
    assert events == []
    deliver(ahead_s, 5)
    ((kind, data),) = events
    assert (kind, data["of"], data["offset_s"]) == ("clock_offset", "streams.s", pytest.approx(ahead_s, abs=1e-3))
    assert ("stale" in data["reason"]) is is_stale
    assert (f"{abs(ahead_s):.1f} s behind" in degraded.get("streams.s", "")) is is_stale
    assert of.figures()["clock_offset_s"] == pytest.approx(ahead_s, abs=1e-3)
    deliver(3_600.0 if ahead_s < 0 else -5.0, AGREE + 1)
    assert ("streams.s" in degraded) is (ahead_s > 0), "the status follows the offset"
    assert len(events) <= 3
    past_s[0] += SILENT_S
    reporter.ticked(None)
    assert degraded == {}, "of a silent sender nothing is known"
    events[1:] = []
    deliver(ahead_s, AGREE)
    events[1:] = []
    deliver(-0.2, 1)
    assert events[1:] == [("clock_offset_ended", {"of": "streams.s"})]
    assert degraded == {}
    assert "clock_offset_s" not in of.figures()


def test_one_late_reading_and_an_own_clock_are_no_offset() -> None:
    shared, own = stamps(stamp="t", max_age_s=1), stamps(stamp="t", stamp_clock="own")
    for number in range(30):
        shared.of(message({"t": UNIX_S - (5.0 if number % AGREE else 0.1)}))
        own.of(message({"t": UNIX_S - 3_600}))
        assert shared.offset_s() is None
        assert own.offset_s() is None
