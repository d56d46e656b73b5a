"""A source that hangs delivers fresh readings of old content: they are noticed, and missing where the settings say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from runtime.control.frozen_streams import FrozenReporter, FrozenStreams
from runtime.control.inbox import Inbox
from sensors.config import AnyStream
from sensors.readings import Frame, Reading, Sound, Telemetry, Text

STREAM: TypeAdapter[AnyStream] = TypeAdapter(AnyStream)
RNG = np.random.default_rng(0)


def settings(kind: str, **fields: Any) -> dict[str, AnyStream]:
    needed: dict[str, Any] = {"camera": {"source": 0}, "telemetry": {"fields": ["x"]}}.get(kind, {})
    return {"s": STREAM.validate_python({"kind": kind, **needed, **fields})}


def picture(n: int, image: np.ndarray[Any, Any] | None = None, encoded: bytes | None = None) -> Frame:
    return Frame("s", n / 10, n, RNG.integers(0, 256, (4, 6, 3), np.uint8) if image is None else image, encoded)


def number(n: int, value: float) -> Telemetry:
    return Telemetry("s", n / 10, n, ("x",), np.array([value]))


def first_frozen(watch: FrozenStreams, readings: list[Reading]) -> int | None:
    """The number of readings after which the stream is frozen; None if it never is."""
    for n, reading in enumerate(readings, 1):
        watch.put(reading)
        if watch.figures():
            return n
    return None


def test_equal_pictures_and_sounds_are_noticed() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    alive: list[Reading] = [picture(n) for n in range(50)]
    assert (
        first_frozen(FrozenStreams(settings("camera")), [*alive, *(picture(n, image.copy()) for n in range(600))])
        == 150
    )
    jpegs: list[Reading] = [picture(n, image.copy(), b"same") for n in range(600)]
    assert first_frozen(FrozenStreams(settings("camera")), jpegs) == 100
    stamped: list[Reading] = [picture(n, image.copy(), b"comment %d" % n) for n in range(600)]
    assert first_frozen(FrozenStreams(settings("camera")), stamped) == 100, "only the time in its JPEGs differs"
    mute: list[Reading] = [Sound("s", n / 10, n, np.zeros(1_600, np.float32)) for n in range(600)]
    assert first_frozen(FrozenStreams(settings("microphone")), mute) == 100
    assert first_frozen(FrozenStreams(settings("camera", frozen_after=0)), jpegs) is None
    assert first_frozen(FrozenStreams(settings("camera", frozen_after=7)), jpegs) == 7


def test_a_scene_that_may_rest_is_not_frozen() -> None:
    """A simulated camera without noise that stood still for 30 pictures may do so for 299."""
    image = np.zeros((4, 6, 3), np.uint8)
    scene: list[Reading] = [*(picture(n, image) for n in range(30)), *(picture(n) for n in range(5))]
    assert first_frozen(FrozenStreams(settings("camera")), [*scene, *(picture(n, image) for n in range(299))]) is None
    assert first_frozen(FrozenStreams(settings("camera")), [*scene, *(picture(n, image) for n in range(300))]) == 335


def test_telemetry_is_judged_by_its_own_noise() -> None:
    noisy: list[Reading] = [number(n, float(RNG.normal())) for n in range(300)]
    rests: list[Reading] = [number(n, 1.0) for n in range(600)]
    assert first_frozen(FrozenStreams(settings("telemetry")), [*noisy, *rests]) == 400
    door: list[Reading] = [number(n, float(n // 40 % 2)) for n in range(400)]
    assert first_frozen(FrozenStreams(settings("telemetry")), [*door, *rests]) is None
    words: list[Reading] = [Text("s", float(n), n, "go") for n in range(2_000)]
    assert first_frozen(FrozenStreams(settings("text")), words) is None


@pytest.mark.parametrize("when_frozen", ["event", "missing"])
def test_a_frozen_stream_is_published_and_missing_by_settings(when_frozen: str) -> None:
    inbox = Inbox(settings("camera", frozen_after=3, when_frozen=when_frozen, required=True))
    events: list[tuple[str, dict[str, Any]]] = []
    reporter = FrozenReporter(inbox.frozen, lambda kind, data: events.append((kind, data)))
    image, missing = np.zeros((4, 6, 3), np.uint8), []
    for n in range(6):
        inbox.put(picture(n, image if n < 5 else None))
        missing.append("s" in inbox.observe(n, n / 10).missing)
        assert ("s" in inbox.stale(n / 10)) == missing[-1]
        reporter.ticked(None)
    assert missing == [when_frozen == "missing" and n in {2, 3, 4} for n in range(6)]
    assert events == [
        ("stream_frozen", {"stream": "s", "equal": 3, "missing": when_frozen == "missing"}),
        ("stream_unfrozen", {"stream": "s"}),
    ]
