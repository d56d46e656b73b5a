"""Payloads wait in short queues: the newest picture wins, sound keeps its order, refusals stop nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fakes import eventually
from runtime.control.payload_decoder import MAX_PAYLOAD, SMALL, SOUND_CHUNKS, PayloadDecoder
from runtime.mqtt import Message
from sensors.base import PayloadRefused
from sensors.readings import Reading, Telemetry, Text
from sensors.streams.telemetry import TopicTelemetry


class FakeSensor:
    """Decodes bytes to text once `gate` is open; refuses `bad`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.topic = None
        self.drops: Counter[str] = Counter()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.gate.set()

    def decode(self, payload: bytes, stamp_s: float) -> Reading | None:
        self.entered.set()
        self.gate.wait(5)
        if payload == b"bad":
            self.drops["bad"] += 1
            raise PayloadRefused("bad", "a bad one")
        return Text(self.name, stamp_s, 0, payload.decode()) if payload else None


def message(payload: bytes, stamp_s: float) -> Message:
    return Message("reflexd/a/in/s", payload, 0, retain=False, stamp_s=stamp_s)


async def _offered(kind: str, payloads: list[bytes]) -> tuple[list[str], PayloadDecoder]:
    sensor = FakeSensor("s")
    got: list[str] = []
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def publish(reading: Reading) -> None:
        assert isinstance(reading, Text)
        got.append(reading.text)
        if reading.text == payloads[-1].decode():
            loop.call_soon_threadsafe(arrived.set)

    with ThreadPoolExecutor(1) as executor:
        intake = PayloadDecoder({"s": (sensor, kind)}, publish, executor)
        running = asyncio.create_task(intake.run())
        sensor.gate.clear()
        intake.offer("s", message(payloads[0], 0.0))
        await asyncio.to_thread(sensor.entered.wait, 5)
        for stamp, payload in enumerate(payloads[1:], start=1):
            intake.offer("s", message(payload, float(stamp)))
        sensor.gate.set()
        async with asyncio.timeout(60):
            await arrived.wait()
        running.cancel()
        await asyncio.wait([running])
    return got, intake


async def test_only_the_newest_picture_is_decoded_and_the_rest_counted() -> None:
    got, intake = await _offered("camera", [b"0", b"1", b"2", b"3"])
    assert got == ["0", "3"]
    assert intake.drops["s"]["backlog"] == 2


async def test_sound_chunks_keep_their_order_up_to_the_bound() -> None:
    payloads = [str(n).encode() for n in range(SOUND_CHUNKS + 3)]
    got, intake = await _offered("microphone", payloads)
    assert got == ["0", *[str(n) for n in range(3, SOUND_CHUNKS + 3)]]
    assert intake.drops["s"]["backlog"] == 2


async def test_a_refused_payload_stops_nothing_and_its_reason_is_retained() -> None:
    got, intake = await _offered("microphone", [b"0", b"bad", b"", b"3"])
    assert got == ["0", "3"]
    assert intake.refusals == {"s": "bad: a bad one"}


async def test_a_refusal_is_published_with_its_field_at_once_and_then_with_a_count() -> None:
    sensor = TopicTelemetry("z", None, ("occupancy", "illuminance"))
    events: list[tuple[str, dict[str, Any]]] = []
    now = [0.0]
    readings: list[Reading] = []
    payloads = [
        b'{"occupancy": true, "illuminance": null}',
        b'{"linkquality": 80}',
        b'{"linkquality": 81}',
        b'{"linkquality": 82}',
        b'{"occupancy": "true", "illuminance": "12,5"}',
        b'{"occupancy": true, "illuminance": 12}',
    ]
    with ThreadPoolExecutor(1) as executor:
        decoder = PayloadDecoder(
            {"z": (sensor, "telemetry")}, readings.append, executor, lambda *event: events.append(event), lambda: now[0]
        )

        def handled() -> int:
            published = sum(data["count"] for _, data in events)
            return published + sum(decoder._unpublished.values()) + len(readings)

        running = asyncio.create_task(decoder.run())
        for n, payload in enumerate(payloads):
            now[0] = 11.0 if n == 3 else now[0]
            decoder.offer("z", message(payload, 1.0))
            await eventually(lambda: handled() > n)  # noqa: B023 - within the round
        running.cancel()
        await asyncio.wait([running])
    assert {kind for kind, _ in events} == {"payload_refused"}
    assert [(data["cause"], data["count"]) for _, data in events] == [
        ("unavailable", 1),
        ("missing_field", 1),
        ("missing_field", 2),
        ("not_a_number", 1),
    ]
    assert "illuminance" in events[0][1]["reason"]
    assert "occupancy" in events[1][1]["reason"]
    assert len(readings) == 1
    assert "12,5" in decoder.refusals["z"]


async def test_what_the_broker_stored_is_of_unknown_age() -> None:
    sensor, readings = FakeSensor("s"), list[Reading]()
    with ThreadPoolExecutor(1) as executor:
        decoder = PayloadDecoder({"s": (sensor, "telemetry")}, readings.append, executor)
        running = asyncio.create_task(decoder.run())
        for payload, retain in ((b"old", True), (b"new", False)):
            decoder.offer("s", Message("reflexd/a/in/s", payload, 0, retain=retain, stamp_s=1.0))
            await eventually(lambda: bool(readings) and readings[-1].text == payload.decode())  # type: ignore[union-attr]  # noqa: B023 - within the round
        running.cancel()
        await asyncio.wait([running])
    assert [reading.stamp_source for reading in readings] == ["unknown", "arrival"]


async def test_a_payload_beyond_the_limit_is_named_and_counted_and_never_decoded() -> None:
    sensor, events = FakeSensor("s"), list[tuple[str, dict[str, Any]]]()
    with ThreadPoolExecutor(1) as executor:
        intake = PayloadDecoder(
            {"s": (sensor, "camera")}, lambda _: None, executor, lambda kind, data: events.append((kind, data))
        )
        for _ in range(3):
            intake.offer("s", message(bytes(MAX_PAYLOAD + 1), 0.0))
    assert intake.drops["s"] == {"too_large": 3}
    assert [(kind, data["cause"]) for kind, data in events] == [("payload_refused", "too_large")]
    assert str(MAX_PAYLOAD) in intake.refusals["s"]
    assert not sensor.entered.is_set()


async def test_a_small_message_of_numbers_needs_no_thread_and_a_long_one_does() -> None:
    sensor = TopicTelemetry("z", None, ("warmth",))
    readings: list[Reading] = []
    with ThreadPoolExecutor(1) as executor:
        used: list[Any] = []
        submit = executor.submit
        executor.submit = lambda work, *args: used.append(work) or submit(work, *args)  # type: ignore[method-assign, func-returns-value, assignment]
        decoder = PayloadDecoder({"z": (sensor, "telemetry")}, readings.append, executor)
        running = asyncio.create_task(decoder.run())
        decoder.offer("z", message(b'{"warmth": 20.5}', 1.0))
        await eventually(lambda: len(readings) == 1)
        assert used == []
        decoder.offer("z", message(b'{"warmth": 21.5, "note": "' + b"x" * SMALL + b'"}', 2.0))
        await eventually(lambda: len(readings) == 2)
        assert len(used) == 1
        running.cancel()
        await asyncio.wait([running])
    assert [float(reading.values[0]) for reading in readings if isinstance(reading, Telemetry)] == [20.5, 21.5]
