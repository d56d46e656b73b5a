"""Every fault, on sensors that run and on sensors that are fed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensing import Running

from sensors.base import PayloadRefused, Publish, Sensor, TopicSensor
from sensors.readings import Frame, Reading, Sound, Telemetry, Text
from sensors.streams.fault_injection import (
    KINDS,
    MAX_DELAYED,
    Fault,
    FaultyTopicSensor,
    apply_fault,
    garbage,
    parse_fault,
    wrong,
)

FRAME = Frame("front", 1.0, 1, np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
SOUND = Sound("front", 1.0, 1, np.linspace(-1, 1, 8, dtype=np.float32))
TEXT = Text("front", 1.0, 1, "turn left")
NUMBERS = Telemetry("front", 1.0, 1, ("a", "b"), np.array([1.0, -2.0], np.float32))
ALL = (FRAME, SOUND, TEXT, NUMBERS)


class Clock:
    """Time in the test's hands."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Fed:
    """A topic sensor of telemetry: one byte a reading."""

    def __init__(self) -> None:
        self.name = "front"
        self.topic = "a/b"
        self.drops: Counter[str] = Counter()
        self.seq = 0

    def decode(self, payload: bytes, stamp_s: float) -> Telemetry:
        if not payload:
            raise PayloadRefused("empty", "nothing in it")
        self.seq += 1
        return Telemetry("front", stamp_s, self.seq, ("a",), np.array([payload[0]], np.float32))


class Script:
    """A sensor that publishes what the test hands it."""

    def __init__(self) -> None:
        self.name = "front"
        self.drops: Counter[str] = Counter()
        self.publish: Publish = lambda _reading: None

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        self.publish = publish
        lost("gone")
        recovered()
        await asyncio.Event().wait()


def fed(text: str, seconds: list[float]) -> tuple[list[tuple[float, float] | None], FaultyTopicSensor]:
    """(stamp, value) of what comes out for payloads 0, 1, 2 ... at these seconds after the start."""
    clock = Clock()
    faulty = apply_fault(Fed(), parse_fault(text), clock=clock)
    assert isinstance(faulty, FaultyTopicSensor)
    assert isinstance(faulty, TopicSensor)
    out: list[tuple[float, float] | None] = []
    for number, at_s in enumerate(seconds):
        clock.now_s = 100.0 + at_s
        reading = faulty.decode(bytes([number]), at_s)
        assert reading is None or isinstance(reading, Telemetry)
        out.append(None if reading is None else (reading.stamp_s, float(reading.values[0])))
    return out, faulty


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("front=stuck@10s", Fault("front", "stuck", 0.0, 10.0)),
        ("front=stuck", Fault("front", "stuck")),
        ("front=delayed:0.5@10s", Fault("front", "delayed", 0.5, 10.0)),
        ("a-b_1=slow:2s", Fault("a-b_1", "slow", 2.0)),
        ("x=off@1+2.5s", Fault("x", "off", 0.0, 1.0, 2.5)),
        ("x=delayed", Fault("x", "delayed", 0.5)),
    ],
)
def test_specifications(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("", "write STREAM=KIND"),
        ("front", "write STREAM=KIND"),
        ("Front=off", "write STREAM=KIND"),
        ("front=off@-1", "write STREAM=KIND"),
        ("front=off@nan", "write STREAM=KIND"),
        ("front=broken", "unknown fault"),
        ("front=off:3", "takes no amount"),
        ("front=slow:0", "above 0"),
        ("front=off\n", "write STREAM=KIND"),
    ],
)
def test_bad_specifications_say_what_is_wanted(text: str, reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        parse_fault(text)


@given(st.text(max_size=40) | st.from_regex(r"[a-z]{1,3}=[a-z]{2,12}(:[0-9.]{1,4})?(@[0-9.]{1,4}s?)?", fullmatch=True))
def test_any_text_is_a_fault_or_refused(text: str) -> None:
    try:
        fault = parse_fault(text)
    except ValueError as refusal:
        reported = str(refusal)
        fault = None
    assert reported if fault is None else fault.kind in KINDS


def test_off_begins_and_ends_on_command() -> None:
    out, faulty = fed("front=off@1+1", [0.0, 0.9, 1.0, 1.9, 2.0])
    assert out == [(0.0, 0.0), (0.9, 1.0), None, None, (2.0, 4.0)]
    assert faulty.drops == {"fault_off": 2}


def test_stuck_repeats_one_moment_with_fresh_stamps() -> None:
    out, _ = fed("front=stuck@1+2", [0.0, 1.0, 1.5, 2.0, 3.0])
    assert out == [(0.0, 0.0), (1.0, 1.0), (1.5, 1.0), (2.0, 1.0), (3.0, 4.0)]


def test_slow_lets_one_pass_in_a_while() -> None:
    out, faulty = fed("front=slow:1", [0.0, 0.4, 0.9, 1.0, 1.9, 2.1])
    assert [pair and pair[1] for pair in out] == [0.0, None, None, 3.0, None, 5.0]
    assert faulty.drops == {"fault_slow": 3}


def test_intermittent_comes_and_goes() -> None:
    out, _ = fed("front=intermittent:1@1", [0.5, 1.0, 1.9, 2.0, 2.9, 3.0, 4.5])
    assert [pair is not None for pair in out] == [True, True, True, False, False, True, False]


def test_delayed_keeps_true_stamps() -> None:
    out, faulty = fed("front=delayed:1@0+9", [0.0, 0.4, 1.0, 1.3, 1.4, 5.0, 9.0])
    assert out == [None, None, (0.0, 0.0), None, (0.4, 1.0), (1.4, 4.0), (9.0, 6.0)]
    assert faulty.drops == {"fault_delayed": 2}


def test_delayed_holds_a_bounded_number() -> None:
    out, _ = fed("front=delayed:1000", [0.001 * n for n in range(MAX_DELAYED + 3)])
    assert [pair and pair[1] for pair in out[-3:]] == [0.0, 1.0, 2.0]


def test_a_refusal_passes_through() -> None:
    faulty = apply_fault(Fed(), parse_fault("front=garbage"))
    assert isinstance(faulty, FaultyTopicSensor)
    with pytest.raises(PayloadRefused):
        faulty.decode(b"", 1.0)


def test_a_fault_of_another_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="other"):
        apply_fault(Fed(), parse_fault("other=off"))


def content(reading: Reading) -> list[object]:
    match reading:
        case Frame(image=image):
            return list(image.ravel().tolist())
        case Sound(samples=samples):
            return list(samples.tolist())
        case Text(text=text):
            return [text]
        case Telemetry(values=values):
            return list(values.tolist())


@pytest.mark.parametrize("reading", ALL, ids=lambda reading: type(reading).__name__)
def test_garbage_and_wrong_change_the_content_and_nothing_else(reading: Reading) -> None:
    for changed in (garbage(reading, np.random.default_rng(1)), wrong(reading)):
        assert (changed.stream, changed.stamp_s, changed.seq) == ("front", 1.0, 1)
        assert content(changed) != content(reading)
        assert len(content(changed)) == len(content(reading))
    assert content(wrong(wrong(reading))) == content(reading)
    repeated = [content(garbage(reading, np.random.default_rng(7))) for _ in range(2)]
    assert repeated[0] == repeated[1]


def test_wrong_is_plausible() -> None:
    mirrored = wrong(FRAME)
    assert isinstance(mirrored, Frame)
    assert np.array_equal(mirrored.image, FRAME.image[:, ::-1])
    assert content(wrong(TEXT)) == ["left turn"]
    assert content(wrong(NUMBERS)) == [-1.0, 2.0]


async def test_a_running_sensor_is_wrapped_as_well(running: Running) -> None:
    script = Script()
    faulty = apply_fault(script, parse_fault("front=wrong"))
    assert isinstance(faulty, Sensor)
    async with running(faulty) as witness:
        await witness.until(lambda: bool(witness.recovered))
        script.publish(NUMBERS)
        await witness.until(lambda: len(witness.readings) == 1)
        assert content(witness.readings[0]) == [-1.0, 2.0]
        assert witness.lost[0][1] == "gone"


async def test_faults_add_up_and_a_running_sensor_can_be_delayed(running: Running) -> None:
    script = Script()
    first = apply_fault(script, parse_fault("front=delayed:0.05"))
    faulty = apply_fault(first, parse_fault("front=wrong"))
    async with running(faulty) as witness:
        await witness.until(lambda: bool(witness.recovered))
        sent_s = asyncio.get_running_loop().time()
        for _ in range(MAX_DELAYED + 2):
            script.publish(NUMBERS)
        await witness.until(lambda: len(witness.readings) == MAX_DELAYED)
        assert witness.arrivals_s[0] - sent_s >= 0.045
        assert content(witness.readings[0]) == [-1.0, 2.0]
        assert faulty.drops == {"fault_delayed": 2}


async def test_a_running_sensor_can_be_silent(running: Running) -> None:
    script = Script()
    clock = Clock()
    async with running(apply_fault(script, parse_fault("front=off@0+1"), clock=clock)) as witness:
        await witness.until(lambda: bool(witness.recovered))
        script.publish(NUMBERS)
        clock.now_s += 1.0
        script.publish(TEXT)
        await witness.until(lambda: len(witness.readings) == 1)
        assert witness.readings == [TEXT]
    assert script.drops == {"fault_off": 1}
