"""A tick is as slow as it is late: latency counts from the deadline, in the result, in health and in the metric."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fakes import FakeClock
from runtime.control.inbox import Inbox
from runtime.control.tick import ControlLoop, TickResult, Utterances
from runtime.monitoring.metrics import Metrics
from runtime.monitoring.reporter import Reporter
from runtime.mqtt.topics import Topics
from runtime.process.pacing import Pacer
from sensors.config import TelemetrySettings
from sensors.readings import Observation, Telemetry

PERIOD_S, WORK_S, LATE_S = 1 / 8, 1 / 256, 3 / 32  # exact in binary: the clock reaches its deadlines


class Engine:
    """Takes `WORK_S`, and decides nothing."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    async def decide(self, _observation: Observation, *, explore: bool) -> Any:
        self.clock.advance(WORK_S)
        nothing: dict[str, Any] = {}
        return SimpleNamespace(
            actions={}, policy=f"v{explore}", tokens={}, encoder_versions={}, encode_s={}, encoders={}, value=0.0,
            actions_message=lambda: nothing,
        )  # fmt: skip


class Gate:
    """Answers nothing."""

    async def propose(self, _proposal: Any, patience_s: float) -> None:
        assert patience_s == PERIOD_S / 2


async def test_lateness_counts_from_the_deadline() -> None:
    clock, registry, results = FakeClock(50.0), CollectorRegistry(), list[TickResult]()
    inbox = Inbox({"j": TelemetrySettings(kind="telemetry", fields=("a",))})
    inbox.put(Telemetry("j", 50.0, 0, ("a",), np.zeros(1, np.float32)))
    link = SimpleNamespace(enqueue=lambda *_, **__: None)
    reporter = Reporter(link, Topics("a"), Metrics(registry, agent="a", version="1"))  # type: ignore[arg-type]
    loop = ControlLoop(
        session="s",
        pacer=Pacer(PERIOD_S, clock),
        clock=clock,
        wall=lambda: 1e9 + clock.now(),
        inbox=inbox,
        engine=Engine(clock),  # type: ignore[arg-type]
        gate=Gate(),  # type: ignore[arg-type]
        store=SimpleNamespace(append=lambda _: True),  # type: ignore[arg-type]
        rewards=SimpleNamespace(at=lambda *_: 0.0, latest={}),
        utterances=Utterances(),
        listeners=[results.append, reporter.ticked],
    )
    index = await loop.pacer.next()
    await loop.tick(index)
    clock.advance(PERIOD_S - WORK_S)
    index = await loop.pacer.next()
    clock.advance(LATE_S)  # something holds the event loop past the deadline
    await loop.tick(index)
    assert [result.latency_s for result in results] == pytest.approx([WORK_S, LATE_S + WORK_S])
    assert list(loop.latencies_s) == [result.latency_s for result in results]
    exposed = generate_latest(registry).decode()
    (total,) = (float(line.split()[1]) for line in exposed.splitlines() if line.startswith("reflexd_tick_seconds_sum"))
    assert total == pytest.approx(LATE_S + 2 * WORK_S)
