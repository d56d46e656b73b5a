"""A tick is as slow as it is late: latency counts from the deadline, in the result, in health and in the metric."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fakes import FakeClock
from learners.config.rewards import ExpressionReward
from learners.experience.reader import Reader
from learners.experience.store import Mark, Store
from learners.rewards.tick_rewards import TickRewards
from learners.safeguards.reward_ledger import Ledger
from runtime.agent.build_models import exploration_seed
from runtime.control.inbox import Inbox
from runtime.control.tick import ControlLoop, TickResult, Utterances
from runtime.feedback.outcomes import OutcomeTracker
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
            actions={}, policy=f"v{explore}", tokens={}, encoder_versions={}, encode_s={}, encoders={}, value=0.0, not_finite=(),
            actions_message=lambda: nothing,
        )  # fmt: skip


class Gate:
    """Answers nothing."""

    async def propose(self, _proposal: Any, patience_s: float) -> None:
        assert patience_s == PERIOD_S / 2


def loop_of(clock: FakeClock, inbox: Inbox, **others: Any) -> ControlLoop:
    """Return a loop that decides nothing, stores nothing and earns nothing, but for `others`."""
    parts: dict[str, Any] = {
        "engine": Engine(clock),
        "gate": Gate(),
        "store": SimpleNamespace(hold=lambda _: True, release=lambda *_: True),
        "rewards": TickRewards(()),
        "listeners": [],
    }
    return ControlLoop(
        session="s",
        pacer=Pacer(PERIOD_S, clock),
        clock=clock,
        wall=lambda: 1e9 + clock.now(),
        inbox=inbox,
        utterances=Utterances(),
        **parts | others,
    )


async def test_lateness_counts_from_the_deadline() -> None:
    clock, registry, results = FakeClock(50.0), CollectorRegistry(), list[TickResult]()
    inbox = Inbox({"j": TelemetrySettings(kind="telemetry", fields=("a",))})
    inbox.put(Telemetry("j", 50.0, 0, ("a",), np.zeros(1, np.float32)))
    link = SimpleNamespace(enqueue=lambda *_, **__: None)
    reporter = Reporter(link, Topics("a"), Metrics(registry, agent="a", version="1"))  # type: ignore[arg-type]
    loop = loop_of(clock, inbox, listeners=[results.append, reporter.ticked])
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


async def test_a_decision_earns_by_what_the_next_tick_sees(tmp_path: Path) -> None:
    """Rewards and marks that arrive before the next tick are stored with it; sources are compared on the same."""
    clock, store, sources = FakeClock(50.0), Store(tmp_path), []
    inbox = Inbox({"j": TelemetrySettings(kind="telemetry", fields=("a",))})
    rewards = TickRewards([ExpressionReward(name="a", kind="expression", value="j.a", clip=8.0)], {"j": ("a",)})
    ledger = Ledger(0.0)
    ignore = SimpleNamespace(settled=lambda entries: sources.extend((e.decision, e.own) for e in entries))
    experiments = SimpleNamespace(
        settled=lambda _entries: None, ticked=lambda _result: None, credit=lambda *_, **__: None
    )
    outcomes = OutcomeTracker(ledger, ignore, experiments, lambda: 1e9 + clock.now())  # type: ignore[arg-type]
    loop = loop_of(clock, inbox, store=store, rewards=rewards, listeners=[outcomes.ticked])
    earned = []
    for index in range(10):
        inbox.put(Telemetry("j", clock.now(), index, ("a",), np.array([float(index)])))
        result = await loop.tick(index)
        assert store.credit(100.0, decision=result.decision)
        assert store.mark(Mark(result.decision, truncated=index == 4))
        earned.append(result.reward)
        clock.advance(PERIOD_S)
    assert store.close()
    assert earned == [None, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 8.0], "the limit counts for the tenth"
    rows = [row.transition for row in Reader(tmp_path).rows(0, 99)]
    assert [row.reward - 100.0 for row in rows] == [*earned[1:], 0.0]
    assert [row.truncated for row in rows] == [n == 4 for n in range(10)]
    assert sources == [(f"s-{n}", value) for n, value in enumerate(earned[1:])]
    assert not any(store.drops.values())


def test_a_restart_explores_differently() -> None:
    seeds = {exploration_seed("robot", session) for session in ("3f9c1a2b7d4e", "aa00bb11cc22")}
    assert len(seeds) == 2


async def test_a_stream_with_tokens_that_are_no_numbers_is_missing_everywhere_and_counted_once_a_reading() -> None:
    """The gate needs the stream for what requires it, so it must not count as present there."""
    clock, proposals, refused = FakeClock(50.0), list[Any](), list[tuple[str, str]]()

    class Broken(Engine):
        async def decide(self, observation: Observation, *, explore: bool) -> Any:
            decided = await super().decide(observation, explore=explore)
            decided.not_finite = tuple(observation.readings)
            return decided

    class Listening(Gate):
        async def propose(self, proposal: Any, patience_s: float) -> None:
            proposals.append(proposal)

    inbox = Inbox({"j": TelemetrySettings(kind="telemetry", fields=("a",))})
    loop = loop_of(
        clock,
        inbox,
        engine=Broken(clock),
        gate=Listening(),
        refuse=lambda stream, refusal: refused.append((stream, refusal.cause)),
    )
    inbox.put(Telemetry("j", 50.0, 0, ("a",), np.zeros(1, np.float32)))
    for index in range(2):
        result = await loop.tick(index)
        assert (dict(result.observation.readings), result.observation.missing) == ({}, {"j"})
        clock.advance(PERIOD_S)
    assert [proposal.stale for proposal in proposals] == [("j",), ("j",)]
    assert refused == [("j", "not_finite")]
