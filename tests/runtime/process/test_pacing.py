"""Deadlines do not drift, and an overrun is followed by the next multiple."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeClock
from runtime.process.pacing import SPIN_S, MonotonicClock, Pacer


async def _run(pacer: Pacer, clock: FakeClock, work_s: list[float]) -> list[tuple[int, float]]:
    seen: list[tuple[int, float]] = []

    async def ticks() -> None:
        for work in work_s:
            index = await pacer.next()
            seen.append((index, clock.now()))
            await clock.sleep_until(clock.now() + work)

    task = asyncio.create_task(ticks())
    while not task.done():
        await asyncio.sleep(0)
        clock.advance(0.001)
    await task
    return seen


async def test_ticks_keep_to_multiples_of_the_period() -> None:
    clock = FakeClock()
    seen = await _run(Pacer(0.1, clock), clock, [0.03] * 10)
    assert [index for index, _ in seen] == list(range(10))
    assert all(when == pytest.approx(index * 0.1 + seen[0][1], abs=0.002) for index, when in seen)


async def test_an_overrun_skips_to_the_next_multiple_and_is_counted() -> None:
    clock = FakeClock()
    pacer = Pacer(0.1, clock)
    seen = await _run(pacer, clock, [0.01, 0.25, 0.01])
    assert [index for index, _ in seen] == [0, 1, 4]
    assert (pacer.overruns, pacer.skipped) == (1, 2)


@settings(deadline=None)  # of the machine, not of the ticks
@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=12))
def test_ticks_never_pile_up(work: list[float]) -> None:
    clock = FakeClock()
    pacer = Pacer(0.1, clock)
    seen = asyncio.run(_run(pacer, clock, work))
    indices = [index for index, _ in seen]
    assert indices == sorted(set(indices))
    assert indices[-1] == len(indices) - 1 + pacer.skipped


async def test_the_real_clock_returns_at_once_for_the_past() -> None:
    clock = MonotonicClock()
    before = clock.now()
    await clock.sleep_until(before - 1)
    assert clock.now() >= before


async def test_a_short_period_ends_with_a_busy_wait_that_lets_the_loop_run() -> None:
    assert (MonotonicClock.for_period(0.1).spin_s, MonotonicClock.for_period(0.004).spin_s) == (0.0, SPIN_S)
    clock, ran = MonotonicClock(spin_s=60.0), 0

    async def other() -> None:
        nonlocal ran
        while True:
            ran += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    deadline_s = clock.now() + 0.02
    await clock.sleep_until(deadline_s)
    assert clock.now() >= deadline_s
    assert ran > 1
    beside.cancel()
