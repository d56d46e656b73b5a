"""Previews: only while watched, at their pace, small, and in the shapes the contract names."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from runtime.monitoring.previews import KEEPALIVE_S, PERIOD_S, Previews
from runtime.mqtt.topics import Refused
from sensors.codecs.images import read_header
from sensors.codecs.loudness import levels
from sensors.drivers import opencv
from sensors.readings import Frame, Sound, Telemetry, Text


def test_nothing_is_due_without_a_watcher_and_nothing_after_it_fell_silent() -> None:
    look = Previews()
    assert not look.due("front", 0.0)
    look.watch(b'{"streams": ["front"]}', 0.0)
    assert look.due("front", 0.0)
    assert not look.due("room", 0.0)
    assert not look.due("front", PERIOD_S / 2)
    assert look.due("front", PERIOD_S)
    assert not look.due("front", KEEPALIVE_S)
    look.watch(b'{"streams": []}', KEEPALIVE_S + 1)
    assert look._until_s == {}


def test_at_most_four_a_second_whatever_the_ticks() -> None:
    look = Previews()
    look.watch(b'{"streams": ["front"]}', 0.0)
    assert sum(look.due("front", i / 50) for i in range(200)) == 16


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"streams": "front"}', b'{"streams": [1]}'])
def test_a_malformed_preview_request_is_refused(payload: bytes) -> None:
    with pytest.raises(Refused):
        Previews().watch(payload, 0.0)


def test_pictures_are_made_small_before_they_are_encoded() -> None:
    image = np.zeros((1_080, 1_920, 3), np.uint8)
    payload = Previews().make(Frame("front", 0.0, 1, image))
    assert read_header(payload).kind == "jpeg"
    assert opencv.decode(payload).shape == (180, 320, 3)


def test_sound_text_and_numbers_are_json() -> None:
    look = Previews()
    sine = np.sin(np.arange(16_000) * 2 * math.pi / 16).astype(np.float32)
    assert json.loads(look.make(Sound("room", 0.0, 1, sine)))["level_db"] == pytest.approx(-3.0, abs=0.1)
    assert json.loads(look.make(Text("orders", 0.0, 1, "go"))) == {"text": "go"}
    numbers = Telemetry("joints", 0.0, 1, ("a", "/b"), np.array([1.5, 2.0], np.float32))
    assert json.loads(look.make(numbers)) == {"values": {"a": 1.5, "/b": 2.0}}
    assert levels(np.zeros(0, np.float32)) == {"level_db": -90.0, "peak_db": -90.0}
