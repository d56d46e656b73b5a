"""The watcher judges by age, reports once, replaces what is wedged, backs off, and lets the period be learned."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Generator
from typing import Self

import orjson
import pytest
from sensing import Witness

from fakes import Contention
from sensors.base import SensorLost
from sensors.drivers.messages import DriverMessage
from sensors.drivers.watchdog import Absent, Limits, Period, SourceWatchdog

QUICK = Limits(
    period_s=0.02, grace_s=0.05, start_s=0.1, open_s=0.3, replace_s=0.2, back_off_s=(0.01, 0.04), probe_wait_s=0.02
)


class Wire:
    """A connection in the test's hands. `None` ends it; stopping it ends it, unless it is wedged."""

    def __init__(self) -> None:
        self.inbox: queue.Queue[DriverMessage | None] = queue.Queue()
        self.stopped = False

    def messages(self) -> Generator[DriverMessage]:
        while (message := self.inbox.get()) is not None:
            yield message

    def stop(self) -> None:
        self.stopped = True
        self.inbox.put(None)

    def say(self, kind: str, body: bytes = b"", stamp_s: float | None = None) -> None:
        self.inbox.put(DriverMessage(kind, time.monotonic() if stamp_s is None else stamp_s, 0, 0, bytearray(body)))

    def revive(self) -> None:
        """Two data: one alone may be the last of a dying decoder."""
        for _ in range(QUICK.enough):
            self.say("F")


class Bench:
    """A watcher, the wires it asked for, and a witness."""

    def __init__(self, limits: Limits = QUICK) -> None:
        self.wires: list[Wire] = []
        self.absent = False
        self.dropped: list[str] = []
        self.failure: Exception | None = None
        self.witness = Witness()
        self.watcher = SourceWatchdog("cam", self._connect, limits, probe=self._probe)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(
            self.watcher.run(self._deliver, self.witness.on_lost, self.witness.on_recovered)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task
        assert self.wires[-1].stopped

    async def wire(self, number: int) -> Wire:
        async with asyncio.timeout(60):
            while len(self.wires) < number:  # noqa: ASYNC110 - the watcher announces nothing
                await asyncio.sleep(0.002)
        return self.wires[number - 1]

    def _connect(self) -> Wire:
        self.wires.append(Wire())
        return self.wires[-1]

    def _probe(self) -> None:
        if self.absent:
            raise Absent("it is not there")

    def _deliver(self, message: DriverMessage) -> bool:
        if self.failure is not None:
            raise self.failure
        if message.kind == "D":
            self.dropped.append(message.text)
        return message.kind == "F"


async def test_silence_is_reported_once_then_replaced_then_recovered() -> None:
    async with Bench() as bench:
        wire = await bench.wire(1)
        wire.say("F")
        fell_silent_s, contention = time.monotonic(), Contention()
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        assert 0.06 < bench.witness.lost[0][0] - fell_silent_s < 0.2 + contention.s
        assert "no further data" in bench.witness.lost[0][1]
        second = await bench.wire(2)
        assert wire.stopped
        assert bench.watcher.counts["replaced"] == 1
        second.revive()
        await bench.witness.until(lambda: len(bench.witness.recovered) == 1)
        assert len(bench.witness.lost) == 1


async def test_a_stop_that_resumes_needs_no_new_connection() -> None:
    async with Bench() as bench:
        wire = await bench.wire(1)
        wire.say("F")
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        wire.revive()
        await bench.witness.until(lambda: len(bench.witness.recovered) == 1)
        await bench.witness.until(lambda: len(bench.witness.lost) == 2)
        assert len(bench.wires) == 1


async def test_one_last_frame_is_no_recovery() -> None:
    async with Bench() as bench:
        wire = await bench.wire(1)
        wire.say("F")
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        wire.say("F")
        wire.say("E", b"gone")
        await bench.wire(2)
        assert bench.witness.recovered == []


async def test_an_old_frame_is_no_recovery() -> None:
    async with Bench() as bench:
        wire = await bench.wire(1)
        wire.say("F")
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        for _ in range(3):
            wire.say("F", stamp_s=time.monotonic() - 1.0)
        await bench.wire(2)
        assert bench.witness.recovered == []


async def test_a_connection_that_never_delivers_is_reported_and_replaced() -> None:
    async with Bench() as bench:
        await bench.wire(1)
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        assert "no data" in bench.witness.lost[0][1]
        await bench.wire(2)
        assert bench.watcher.counts == {"connections": 2, "replaced": 1, "failed": 1}


async def test_errors_and_deaths_are_reported_and_followed_by_a_new_connection() -> None:
    async with Bench() as bench:
        (await bench.wire(1)).say("E", b"the driver found no video there")
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        assert bench.witness.lost[0][1] == "cam: the driver found no video there"
        second = await bench.wire(2)
        second.say("D", b"superseded")
        second.revive()
        await bench.witness.until(lambda: len(bench.witness.recovered) == 1)
        second.inbox.put(None)
        await bench.witness.until(lambda: len(bench.witness.lost) == 2)
        assert "without a reason" in bench.witness.lost[1][1]
        assert bench.dropped == ["superseded"]
        await bench.wire(3)


async def test_an_absent_source_starts_no_driver() -> None:
    bench = Bench()
    bench.absent = True
    async with bench:
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        assert "it is not there" in bench.witness.lost[0][1]
        await bench.wire(4)
        bench.absent = False
        present = await bench.wire(len(bench.wires) + 2)
        present.revive()
        await bench.witness.until(lambda: len(bench.witness.recovered) == 1)


async def test_an_ended_recording_is_not_opened_again() -> None:
    async with Bench() as bench:
        wire = await bench.wire(1)
        wire.say("F")
        wire.say("X")
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        assert "loop: true" in bench.witness.lost[0][1]
        assert bench.watcher.counts == {"connections": 1}


async def test_a_slow_camera_is_not_reported_at_every_frame() -> None:
    async with Bench(Limits(period_s=0.02, grace_s=0.05, start_s=2.0, open_s=5.0, replace_s=2.0)) as bench:
        wire = await bench.wire(1)
        wire.say("O", orjson.dumps({"fps": 5.0}))
        for _ in range(3):  # claims and keeps 5 frames a second where 50 were asked for
            wire.say("F")
            await asyncio.sleep(0.2)  # the camera's own pace
        assert bench.watcher.fps == 5.0
        assert bench.witness.lost == []
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)


def test_the_period_is_learned_from_the_gaps() -> None:
    period = Period(0.1)
    assert period.value_s == 0.1
    period.claim(0.5)
    assert period.value_s == 0.5
    for stamp in (0.0, 0.2, 0.4, 3.0, 3.2):
        period.add(stamp)
    assert period.value_s == pytest.approx((0.2 + 0.2 + 0.4 + 0.2) / 4)
    period.restart()
    period.add(100.0)
    assert period.value_s == pytest.approx(0.25)


async def test_losses_name_no_password() -> None:
    from sensors.config import CameraSettings, public_source
    from sensors.streams.camera import CameraSensor

    assert public_source("rtsp://user:secret@cam/1") == "rtsp://cam/1"
    assert public_source("http://cam:81/video?token=secret#secret") == "http://cam:81/video"
    assert public_source("rtsp://user:se@cret@cam?a=b") == "rtsp://cam"
    assert public_source("rtsp://user:se/c?r#et@cam/1") == "rtsp://cam/1"
    assert public_source("films/a?b.mp4") == "films/a?b.mp4"
    settings = CameraSettings(kind="camera", source="rtsp://user:secret@127.0.0.1:1/x")
    sensor, witness = CameraSensor("front", settings), Witness()
    task = asyncio.create_task(sensor.run(witness.publish, witness.on_lost, witness.on_recovered))
    await witness.until(lambda: bool(witness.lost))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "rtsp://127.0.0.1:1/x" in witness.lost[0][1]
    assert "secret" not in witness.lost[0][1]
    assert issubclass(Absent, SensorLost)


async def test_a_failure_of_the_sensor_itself_is_reported_and_tried_again() -> None:
    """Whatever the reader's thread raises: it ends with a reason, and the next connection follows."""
    async with Bench() as bench:
        bench.failure = ValueError("rtsp://cam:canary@host")
        (await bench.wire(1)).say("F")
        await bench.witness.until(lambda: len(bench.witness.lost) == 1)
        assert "failed with ValueError" in bench.witness.lost[0][1]
        assert "canary" not in bench.witness.lost[0][1]
        bench.failure = None
        (await bench.wire(2)).revive()
        await bench.witness.until(lambda: len(bench.witness.recovered) == 1)
