"""What a plug-in's sensor delivers is checked: a bad reading is dropped, counted, and reported with its reason."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from sensing import Witness

from sensors.base import PayloadRefused, Publish
from sensors.readings import Frame, Reading, Sound, Telemetry, Text
from sensors.streams.plugin import CheckedSensor, CheckedTopicSensor, check_reading

NOW_S = 100.0
FIELDS = ("a", "b")


def telemetry(*values: float, stamp_s: float = 99.0, stream: str = "s") -> Telemetry:
    return Telemetry(stream, stamp_s, 1, FIELDS, np.array(values, np.float32))


@pytest.mark.parametrize(
    "reading",
    [
        telemetry(1.0, 2.0),
        telemetry(1.0, 2.0, stamp_s=NOW_S + 0.05),
        Text("s", 99.0, 1, "left"),
        Telemetry("s", 99.0, 1, FIELDS, np.zeros(2)),
        Sound("s", 99.0, 1, np.zeros(160, np.float32)),
        Frame("s", 99.0, 1, np.zeros((4, 6, 3), np.uint8)),
    ],
)
def test_good_reading_passes(reading: Reading) -> None:
    assert check_reading(reading, "s", FIELDS, NOW_S) is reading


@pytest.mark.parametrize(
    ("reading", "cause"),
    [
        ({"a": 1.0}, "no_reading"),
        (None, "no_reading"),
        (telemetry(1.0, 2.0, stream="other"), "wrong_stream"),
        (telemetry(1.0, math.nan), "not_finite"),
        (telemetry(1.0, math.inf), "not_finite"),
        (telemetry(1.0, 2.0, stamp_s=1_700_000_000.0), "bad_stamp"),
        (telemetry(1.0, 2.0, stamp_s=NOW_S + 0.2), "bad_stamp"),
        (telemetry(1.0, 2.0, stamp_s=math.nan), "bad_stamp"),
        (telemetry(1.0, 2.0, stamp_s=-math.inf), "bad_stamp"),
        (telemetry(1.0), "wrong_fields"),
        (Telemetry("s", 99.0, 1, ("b", "a"), np.zeros(2, np.float32)), "wrong_fields"),
        (Telemetry("s", 99.0, 1, FIELDS, np.zeros(2, np.float16)), "bad_shape"),
        (Sound("s", 99.0, 1, np.full(160, np.nan, np.float32)), "not_finite"),
        (Sound("s", 99.0, 1, np.zeros((160, 2), np.float32)), "bad_shape"),
        (Frame("s", 99.0, 1, np.zeros((4, 6), np.uint8)), "bad_shape"),
        (Frame("s", 99.0, 1, np.zeros((4, 6, 4), np.uint8)), "bad_shape"),
        (Frame("s", 99.0, 1, [[0]]), "bad_shape"),  # type: ignore[arg-type]
    ],
)
def test_bad_reading_is_refused_by_its_cause(reading: object, cause: str) -> None:
    with pytest.raises(PayloadRefused) as refused:
        check_reading(reading, "s", FIELDS, NOW_S)
    assert refused.value.cause == cause


class Scripted:
    """A plug-in that publishes what a test gave it."""

    name = "s"

    def __init__(self, readings: list[Telemetry]) -> None:
        self.drops: Counter[str] = Counter()
        self._readings = readings

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        for reading in self._readings:
            publish(reading)
        await asyncio.Event().wait()


async def test_loss_is_reported_once_and_so_is_the_recovery() -> None:
    bad = telemetry(1.0, math.nan)
    sensor = CheckedSensor(Scripted([telemetry(1.0, 2.0), bad, bad, telemetry(3.0, 4.0)]), FIELDS, lambda: NOW_S)
    witness = Witness()
    task = asyncio.create_task(sensor.run(witness.publish, witness.on_lost, witness.on_recovered))
    await witness.until(lambda: len(witness.readings) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [reason for _, reason in witness.lost] == [
        "s: the plug-in's readings cannot be used: the reading holds numbers that are not finite"
    ]
    assert len(witness.recovered) == 1
    assert sensor.drops == {"not_finite": 2}


class Decoding:
    """A plug-in that decodes a payload to what a test gave it."""

    name, topic = "s", "a/b"

    def __init__(self, reading: Telemetry | None) -> None:
        self.drops: Counter[str] = Counter()
        self._reading = reading

    def decode(self, payload: bytes, stamp_s: float) -> Telemetry | None:
        return self._reading


def test_decoded_reading_is_checked_too() -> None:
    good = telemetry(1.0, 2.0)
    assert CheckedTopicSensor(Decoding(good), FIELDS, lambda: NOW_S).decode(b"", 99.0) is good
    assert CheckedTopicSensor(Decoding(None), FIELDS, lambda: NOW_S).decode(b"", 99.0) is None
    sensor = CheckedTopicSensor(Decoding(telemetry(1.0, math.nan)), FIELDS, lambda: NOW_S)
    with pytest.raises(PayloadRefused, match="not finite"):
        sensor.decode(b"", 99.0)
    assert sensor.drops == {"not_finite": 1}
