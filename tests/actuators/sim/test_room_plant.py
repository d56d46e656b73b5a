"""The simulated room: its physics, its topics, and what its switch refuses."""

from __future__ import annotations

import math

import orjson
import pytest

from actuators.sim.plant import Plant
from actuators.sim.registry import build_plant
from actuators.sim.room_plant import COLD_C, COMMAND, SENSOR, STATE, TIME_CONSTANT_S, WARM_C, RoomPlant


def test_the_room_approaches_its_rest_with_a_time_constant_of_forty_seconds() -> None:
    room = build_plant("room", agent="thermostat", seed=3)
    assert isinstance(room, Plant)
    assert isinstance(room, RoomPlant)
    room.step(100.0)
    start_c = room.temperature_c
    room.step(100.0 + TIME_CONSTANT_S)
    assert room.temperature_c == pytest.approx(COLD_C + (start_c - COLD_C) / math.e)
    assert [out.payload for out in room.receive(COMMAND, b"ON", retained=False, now_s=140.0)] == [b"ON"]
    for second in range(141, 400):
        room.step(float(second))
    assert room.temperature_c == pytest.approx(WARM_C, abs=0.1)


def test_it_publishes_json_and_reports_its_switch() -> None:
    room = RoomPlant(seed=0)
    report, reading = room.step(1.0)
    assert (report.topic, report.payload, report.retain) == (STATE, b"OFF", True)
    assert reading.topic == SENSOR
    assert orjson.loads(reading.payload)["temperature"] == pytest.approx(room.temperature_c, abs=0.3)
    assert len(room.step(2.0)) == 1


@pytest.mark.parametrize(("payload", "retained"), [(b"on", False), (b"", False), (b'"ON"', False), (b"ON", True)])
def test_its_switch_refuses_other_words_and_old_commands(payload: bytes, *, retained: bool) -> None:
    room = RoomPlant()
    assert room.receive(COMMAND, payload, retained=retained, now_s=1.0) == []
    assert not room.heats
    assert room.refused == 1
