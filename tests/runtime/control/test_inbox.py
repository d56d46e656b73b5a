"""Latest wins, every drop is counted, old readings are missing."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.control.inbox import Inbox
from sensors.config import TelemetrySettings, TextSettings
from sensors.readings import Telemetry, Text


def _inbox() -> Inbox:
    return Inbox(
        {
            "orders": TextSettings(kind="text", ttl_s=5, encoder="language"),
            "joints": TelemetrySettings(kind="telemetry", fields=("q",), max_age_s=0.5, required=True),
        }
    )


def _text(stamp_s: float, seq: int = 0) -> Text:
    return Text("orders", stamp_s, seq, "go")


def test_nothing_received_is_missing() -> None:
    observation = _inbox().observe(0, 10.0)
    assert observation.missing == {"orders", "joints"}
    assert not observation.readings
    assert not observation.ages_s


def test_the_latest_wins_and_the_unseen_one_is_counted() -> None:
    inbox = _inbox()
    inbox.put(_text(1.0, 0))
    inbox.put(_text(2.0, 1))
    observation = inbox.observe(0, 2.5)
    assert observation.readings["orders"].seq == 1
    assert inbox.drops["orders"]["superseded"] == 1


def test_a_seen_reading_is_used_again_but_not_fresh() -> None:
    inbox = _inbox()
    inbox.put(_text(1.0))
    assert inbox.observe(0, 1.5).fresh == {"orders"}
    again = inbox.observe(1, 2.0)
    assert again.fresh == frozenset()
    assert "orders" in again.readings
    inbox.put(_text(2.0, 1))
    assert inbox.drops["orders"]["superseded"] == 0


def test_an_older_reading_never_replaces_a_newer() -> None:
    inbox = _inbox()
    inbox.put(_text(2.0, 1))
    inbox.put(_text(1.0, 0))
    assert inbox.observe(0, 2.0).readings["orders"].seq == 1
    assert inbox.drops["orders"]["out_of_order"] == 1


def test_a_reading_past_its_limit_is_missing_with_its_age() -> None:
    inbox = _inbox()
    inbox.put(_text(1.0))
    observation = inbox.observe(0, 6.5)
    assert "orders" in observation.missing
    assert observation.ages_s["orders"] == 5.5
    assert inbox.stale(6.5) == {"orders": 5.5, "joints": None}
    assert inbox.required == {"joints"}
    latest = inbox.latest("orders")
    assert latest is not None
    assert latest.stamp_s == 1.0


def test_a_stamp_from_the_future_is_dropped_and_blocks_no_good_reading() -> None:
    inbox = Inbox({"j": TelemetrySettings(kind="telemetry", fields=("a",), max_age_s=0.2)})
    for seq, stamp_s in enumerate((10.0, 1000.0)):
        inbox.put(Telemetry("j", stamp_s, seq, ("a",), np.zeros(1, np.float32)))
    assert inbox.observe(0, 10.1).missing == {"j"}
    inbox.put(Telemetry("j", 10.2, 2, ("a",), np.zeros(1, np.float32)))
    observation = inbox.observe(1, 10.3)
    assert observation.readings["j"].seq == 2
    assert observation.ages_s["j"] == pytest.approx(0.1)
    assert inbox.drops["j"]["future"] == 1
