"""sd_notify over real datagram sockets, and a watchdog that only completed ticks feed."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from wire_helpers import Manager

from runtime.process.systemd import Feeder, Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@reflexd-{uuid.uuid4().hex}"
    made = Manager(address)
    yield made
    made.socket.close()


def test_every_message(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    notifier.ready("all\nwell")
    notifier.reloading()
    notifier.extend(1.5)
    notifier.watchdog()
    notifier.status("busy")
    notifier.stopping()
    ready, reloading, extend, watchdog, status, stopping = manager.got()
    assert ready == "READY=1\nSTATUS=all well"
    first, stamp = reloading.split("\n")
    assert first == "RELOADING=1"
    assert 0 <= int(stamp.removeprefix("MONOTONIC_USEC=")) - before < 10_000_000
    assert (extend, watchdog, status) == ("EXTEND_TIMEOUT_USEC=1500000", "WATCHDOG=1", "STATUS=busy")
    assert stopping == "STOPPING=1\nSTATUS=draining"


def test_the_environment_is_read_once_and_taken_from_children() -> None:
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    notifier = Notifier.from_environment(environment)
    assert (notifier.address, notifier.watchdog_s) == ("/run/x", 3.0)
    assert environment == {"A": "b"}
    assert Notifier.from_environment({}) == Notifier()


@pytest.mark.parametrize("usec", ["", "0", "-1", "x"])
def test_no_watchdog(usec: str) -> None:
    assert Notifier.from_environment({"WATCHDOG_USEC": usec}).watchdog_s is None
    assert Notifier.from_environment({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    silent = Notifier()
    silent.ready("x")
    assert silent.unsent == 0
    gone = Notifier(str(tmp_path / "nobody"))
    assert not gone.send("X=1")
    assert gone.unsent == 1


def test_ready_after_the_first_full_tick_and_food_only_from_ticks(manager: Manager) -> None:
    feeder = Feeder(Notifier(manager.address, watchdog_s=5.0), frozenset({"front"}))
    ticks = [
        (0.0, False, ()),  # starting
        (0.2, True, ("front",)),  # a required stream is missing: a restart would not bring it, so READY
        (0.3, True, ()),  # too soon to feed again
        (1.3, True, ()),  # fed
        (2.5, True, ("front",)),  # fed
        (9.9, False, ()),  # starving
        (10.0, True, ()),  # fed
    ]
    received = [feeder.ticked(ready=ready, stale=stale, now_s=at, status="ticking") for at, ready, stale in ticks]
    assert received == [False, True, False, True, True, False, True]
    first, *rest = manager.got()
    assert first == "READY=1\nSTATUS=degraded: no recent data from front"
    assert rest == ["WATCHDOG=1"] * 4


def test_ready_is_notified_without_a_watchdog(manager: Manager) -> None:
    feeder = Feeder(Notifier(manager.address), frozenset())
    assert feeder.ticked(ready=True, stale=(), now_s=0.0, status="ticking")
    assert feeder.ticked(ready=True, stale=(), now_s=9.0, status="ticking")
    assert manager.got() == ["READY=1\nSTATUS=ticking"]
