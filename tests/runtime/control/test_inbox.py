"""Latest wins, every drop is counted, old readings are missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from runtime.control.inbox import LEAST_SLEEP_S, Inbox
from runtime.process.machine_sleep import slept_s
from sensors.config import TelemetrySettings, TextSettings
from sensors.readings import Reading, Telemetry, Text


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


def _stored(stamp_s: float) -> Telemetry:
    return Telemetry("joints", stamp_s, 0, ("q",), np.array([1.0]), "unknown")


def test_a_reading_of_unknown_age_counts_as_old_as_is_allowed_and_not_where_it_is_required() -> None:
    inbox = _inbox()
    inbox.put(_stored(1.0))
    observation = inbox.observe(0, 1.1)
    assert observation.readings["joints"].stamp_source == "unknown"
    assert observation.ages_s["joints"] == 0.5
    assert observation.unknown_age == {"joints"}
    assert "joints" in inbox.stale(1.1)
    late = inbox.observe(1, 1.6)
    assert "joints" in late.missing
    assert late.unknown_age == frozenset()


def test_a_reading_of_unknown_age_never_replaces_one_of_known_age() -> None:
    """The broker sends it again after each reconnect."""
    inbox = _inbox()
    inbox.put(Telemetry("joints", 1.0, 0, ("q",), np.array([2.0])))
    inbox.put(_stored(1.2))
    observation = inbox.observe(0, 1.3)
    assert observation.readings["joints"].stamp_source == "arrival"
    assert observation.unknown_age == frozenset()
    assert inbox.drops["joints"]["retained"] == 1
    assert inbox.stale(1.3) == {"orders": None}


def test_a_reading_that_is_encoded_first_is_observed_when_it_is_passed_on() -> None:
    inbox, heard, waiting = _inbox(), list[int](), list[Reading]()

    def encode(reading: Reading, store: Callable[[Reading], None]) -> bool:
        waiting.append(reading)
        if reading.seq == 2:
            store(waiting[0])
        return reading.seq == 1

    inbox.encode_first("orders", encode)
    inbox.listen("orders", lambda reading: heard.append(reading.seq))
    for seq in (0, 1):
        inbox.put(_text(1.0 + seq, seq))
    assert "orders" in inbox.observe(0, 2.5).missing, "no tokens are ready"
    assert inbox.drops["orders"]["superseded"] == 1
    inbox.put(_text(3.0, 2))
    observation = inbox.observe(1, 3.5)
    assert observation.readings["orders"].seq == 0
    assert observation.ages_s["orders"] == 2.5, "the age of the reading that has tokens"
    assert observation.fresh == {"orders"}
    assert heard == [0, 1, 2], "listeners do not wait"


@pytest.mark.parametrize("align", ["newest", "common"])
def test_a_reading_from_before_a_sleep_of_the_machine_is_old(align: Literal["newest", "common"]) -> None:
    """The monotonic clock stops while a machine is suspended; stamps from before seem new."""
    slept = [100.0]
    streams = {name: TelemetrySettings(kind="telemetry", fields=("q",), max_age_s=0.5) for name in ("joints", "wheels")}
    inbox = Inbox(streams, align=align, slept=lambda: slept[0])
    for name in streams:
        inbox.put(Telemetry(name, 10.0, 0, ("q",), np.zeros(1)))
    assert inbox.observe(0, 10.1).missing == frozenset()
    slept[0] += 3_600.0
    inbox.put(Telemetry("wheels", 10.15, 1, ("q",), np.zeros(1)))
    observation = inbox.observe(1, 10.2)
    assert observation.missing == {"joints"}
    assert observation.ages_s == {"joints": pytest.approx(3_600.2), "wheels": pytest.approx(0.05)}
    assert inbox.stale(10.2) == {"joints": pytest.approx(3_600.2)}
    inbox.put(Telemetry("joints", 10.25, 2, ("q",), np.zeros(1)))
    assert inbox.observe(2, 10.3).missing == frozenset()


def test_the_sleep_of_a_machine_does_not_grow_while_it_is_awake() -> None:
    assert slept_s() >= -1e-3
    assert slept_s() == pytest.approx(slept_s(), abs=LEAST_SLEEP_S)
