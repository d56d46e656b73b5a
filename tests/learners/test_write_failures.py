"""A writer that fails publishes one loss at once, totals a minute apart, and one recovery, also where the disk wavers."""

from __future__ import annotations

from typing import Any

from learners.write_failures import CALM_S, EVERY_S, WriteFailures


def test_a_thousand_failures_are_few_events_and_the_total_is_right() -> None:
    now, events = [0.0], list[tuple[str, dict[str, Any]]]()
    failures = WriteFailures(lambda kind, data: events.append((kind, data)), "lost", "back", clock=lambda: now[0])
    failures.succeeded()
    for _ in range(1_000):
        failures.add("disk full", 2)
        failures.succeeded()
        now[0] += 0.1
    assert [data["total"] for kind, data in events if kind == "lost"] == [2, 1_202]
    assert EVERY_S == 60.0
    now[0] += CALM_S
    failures.succeeded()
    failures.succeeded()
    assert events[-1] == ("back", {"total": 2_000})
    assert len(events) == 3
