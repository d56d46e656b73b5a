"""What happens at the device when the agent dies, freezes or holds the interpreter lock. Real processes, real signals.

Bounds are wide, because a test machine may be busy; `tests/benchmarks/bench_gate.py` measures against the real ones.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from faults.harness import (
    SLEEPER,
    Daemon,
    Device,
    agent_row,
    device_on,
    end_daemon,
    start_daemon,
    under_test,
    write_config,
)

from fakes import Contention, Mosquitto, eventually

BUSY_S = 1.0
"""Wide bound for a busy machine."""
STOPPED_S = 0.050 + 0.150


async def fault(daemon: Daemon, device: Device, number: signal.Signals) -> tuple[float, float]:
    """Seconds from a signal to the agent until the device receives the safe action, and seconds in which tasks waited for a core."""
    contention = Contention()
    await device.moving()
    agent = daemon.agent()
    begun_s = time.monotonic()
    agent.send_signal(number)
    return await device.safe_after(begun_s), contention.s


async def test_killed(tmp_path: Path, broker: Mosquitto) -> None:
    async with under_test(tmp_path, broker) as (daemon, device):
        times = [await fault(daemon, device, signal.SIGKILL) for _ in range(4)]
        await device.moving()
    print("kill -9 to safe, ms:", [round(t * 1e3, 1) for t, _ in times])
    assert max(took_s - waited_s for took_s, waited_s in times) <= BUSY_S


async def test_frozen_and_back(tmp_path: Path, broker: Mosquitto) -> None:
    async with under_test(tmp_path, broker) as (daemon, device):
        times = []
        for _ in range(4):
            times.append(await fault(daemon, device, signal.SIGSTOP))
            daemon.agent().send_signal(signal.SIGCONT)
        await device.moving()
        assert not any(event["type"] == "child_restarted" for event in device.events)
    print("SIGSTOP to safe, ms:", [round(t * 1e3, 1) for t, _ in times])
    assert min(took_s + waited_s for took_s, waited_s in times) >= STOPPED_S - 0.06
    assert max(took_s - waited_s for took_s, waited_s in times) <= STOPPED_S + BUSY_S


async def test_the_interpreter_lock_held_for_three_seconds(tmp_path: Path, broker: Mosquitto) -> None:
    async with under_test(tmp_path, broker) as (daemon, device):
        took_s, waited_s = await fault(daemon, device, signal.SIGUSR1)
        await device.moving()
    print("interpreter lock held to safe, ms:", round(took_s * 1e3, 1))
    assert took_s - waited_s <= STOPPED_S + BUSY_S


async def test_a_stale_required_stream_is_safe(tmp_path: Path, broker: Mosquitto) -> None:
    config = write_config(tmp_path, broker.url)
    config.write_text(config.read_text().replace("max_age_s: 0.5}", "max_age_s: 0.5, required: true}"))
    async with device_on(broker.port) as device:
        daemon = start_daemon(tmp_path, config, [agent_row("--stale", "joints")])
        try:
            await eventually(
                lambda: any("joints: no recent data" in s["reasons"] for s in device.statuses), "the status"
            )
        finally:
            await asyncio.to_thread(end_daemon, daemon)
    assert device.moves() == 0
    assert any(event["data"].get("rule") == "stale" for event in device.events if event["type"] == "action_refused")


async def test_commands_are_not_retained_and_replays_move_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    async with under_test(tmp_path, broker) as (_, device):
        await device.moving()
        captured = list(device.raw)
    moved = len(device.done)
    assert captured
    assert not any(message.retain for message in captured)
    async with device_on(broker.port) as fresh:  # a device that comes later gets no old command
        assert fresh.raw == []
        fresh.inbox = device.inbox
        for message in captured * 2:
            await fresh.connection.publish(message.topic, message.payload)
        await fresh.connection.publish(captured[-1].topic, captured[-1].payload, retain=True)
        await eventually(lambda: len(fresh.raw) == 2 * len(captured) + 1, "the replays")
    assert fresh.done == []
    assert len(device.done) == moved
    assert sum(device.inbox.drops.values()) >= 2 * len(captured) + 1


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_the_broker_frozen_or_killed(tmp_path: Path, broker: Mosquitto, number: signal.Signals) -> None:
    async with under_test(tmp_path, broker) as (daemon, device):
        await device.moving()
        broker.signal(number)
        await asyncio.sleep(1.5)  # longer than any time to live: what is in flight must not be carried out later
        if number == signal.SIGSTOP:
            broker.signal(signal.SIGCONT)
        else:
            broker.stop()
            broker.start()
        back_s = time.monotonic()
        await device.moving()
        print(f"broker {number.name}: moving again {time.monotonic() - back_s:.1f} s after it was back")
        await eventually(lambda: device.statuses[-1]["state"] == "online", "online again")
        assert '"type":"broker_recovered"' in daemon.log.read_text()  # the device may come back later than the event
    assert max(device.ages_s) <= 0.3  # the actuator's ttl_ms


async def test_the_link_is_in_the_agent_alone(tmp_path: Path, broker: Mosquitto) -> None:
    rows = [agent_row(), ["other", False, SLEEPER], ["another", False, SLEEPER]]
    async with under_test(tmp_path, broker, rows) as (daemon, device):
        await device.moving()
        daemon.agent().kill()  # after a restart, too
        await device.moving()
        everyone = [psutil.Process(daemon.process.pid), *psutil.Process(daemon.process.pid).children()]
        held = {p.pid: seqpackets(p.pid) for p in everyone}
        agent = daemon.agent().pid
        others = [p.pid for p in everyone if p.pid not in {agent, daemon.process.pid}]
        assert len(others) == 2
    assert held[agent] == 1
    assert held[daemon.process.pid] == 3, "the link, and both ends of the channel of the stop listener"
    assert [held[pid] for pid in others] == [0, 0]


def seqpackets(pid: int) -> int:
    """Descriptors of a process that are SOCK_SEQPACKET sockets."""
    inodes = {
        fields[6]
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if (fields := line.split())[4] == "0005"
    }
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        target = str(fd.readlink())
        found += target.startswith("socket:[") and target[8:-1] in inodes
    return found


async def test_too_many_failures_end_the_daemon_safely(tmp_path: Path, broker: Mosquitto) -> None:
    config = write_config(tmp_path, broker.url)
    async with device_on(broker.port) as device:
        daemon = start_daemon(tmp_path, config, [agent_row("--exit-after", "2"), ["other", False, SLEEPER]])
        code = await asyncio.to_thread(daemon.process.wait, 120)
        await eventually(lambda: device.statuses[-1]["state"] == "offline", "the last word")
    assert code == 1
    assert "agent failed 6 times" in device.statuses[-1]["reasons"][0]
    assert sum(event["type"] == "child_restarted" for event in device.events) == 5
    assert device.value == "stay"


async def test_children_die_with_the_supervisor(tmp_path: Path, broker: Mosquitto) -> None:
    config = write_config(tmp_path, broker.url)
    async with device_on(broker.port) as device:
        daemon = start_daemon(tmp_path, config, [agent_row(), ["other", False, SLEEPER]])
        await device.moving()
        children = psutil.Process(daemon.process.pid).children()
        assert len(children) == 2
        daemon.process.kill()
        daemon.process.wait()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 60)
        await eventually(lambda: device.statuses[-1]["state"] == "offline", "the will")
    assert alive == []
    assert len(gone) == 2


def stubborn(folder: Path) -> list[object]:
    """A child that does not hear SIGTERM, from the moment `deaf` exists."""
    code = f"import signal; signal.signal(15, signal.SIG_IGN); open({str(folder / 'deaf')!r}, 'w')\nwhile True: signal.pause()"
    return ["other", False, [sys.executable, "-c", code]]


async def test_a_second_signal_forces(tmp_path: Path, broker: Mosquitto) -> None:
    config = write_config(tmp_path, broker.url)
    async with device_on(broker.port) as device:
        daemon = start_daemon(tmp_path, config, [agent_row(), stubborn(tmp_path)])
        await device.moving()
        await eventually((tmp_path / "deaf").exists)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):  # as a rotation of logs may send them
            daemon.process.send_signal(number)
            await eventually(lambda name=number.name: f'"signal":"{name}"' in daemon.log.read_text(), "ignored")
        for _ in range(2):  # at once: one Ctrl-C
            daemon.process.send_signal(signal.SIGINT)
        await eventually(lambda: "supervisor.draining" in daemon.log.read_text(), "draining")
        await asyncio.sleep(0.6)  # a person's second thought
        assert "supervisor.forced" not in daemon.log.read_text()
        daemon.process.send_signal(signal.SIGINT)
        code = await asyncio.to_thread(daemon.process.wait, 60)
    assert code == 128 + signal.SIGINT
    assert "supervisor.forced" in daemon.log.read_text()
    assert device.value == "stay"


async def test_a_hanging_child_is_killed_after_its_grace(tmp_path: Path, broker: Mosquitto) -> None:
    async with under_test(tmp_path, broker, [agent_row(), stubborn(tmp_path)]) as (daemon, device):
        await device.moving()
        await eventually((tmp_path / "deaf").exists)
    assert daemon.process.returncode == 0
    assert "child.killed" in daemon.log.read_text()


async def test_a_signal_to_everybody_at_once_restarts_no_one(tmp_path: Path, broker: Mosquitto) -> None:
    async with under_test(tmp_path, broker, [agent_row(), ["other", False, SLEEPER]]) as (daemon, device):
        await device.moving()
        parent = psutil.Process(daemon.process.pid)
        for each in (parent, *parent.children()):
            with suppress(psutil.NoSuchProcess):  # the supervisor may have been quicker
                each.terminate()
        assert await asyncio.to_thread(daemon.process.wait, 60) == 0
        await eventually(lambda: device.value == "stay", "the safe action")
    assert daemon.log.read_text().count("child.started") == 2
    assert "child.failed" not in daemon.log.read_text()
