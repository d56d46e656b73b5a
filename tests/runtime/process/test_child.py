"""Children: titled, and gone with their parent, foreign binaries too."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fakes import Contention, eventually, wait_for
from learners.checkpoints.signing import REFUSED_EXIT
from runtime.config.loader import load
from runtime.config.schema import Config
from runtime.process import child
from runtime.supervisor import child_processes as children
from runtime.supervisor.child_processes import (
    CANNOT_START,
    Child,
    RestartLimitExceeded,
    Spec,
    environment,
    exit_reason,
    table,
)
from sensors.drivers.parent_death import die_with

ROOT = Path(__file__).resolve().parents[3]
PARENT = """
import subprocess, sys, time
from runtime.process import child
for command in (["sleep", "60"], [sys.executable, "-c", "import time; time.sleep(60)"]):
    print(subprocess.Popen(child.with_parent_death(command, title="broker" if command[0] == "sleep" else None)).pid, flush=True)
time.sleep(60)
"""


def test_children_die_with_a_killed_parent_and_a_foreign_binary_is_titled() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    try:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        children = [psutil.Process(pid) for pid in pids]
        wait_for(lambda: children[0].cmdline()[:1] == ["reflexd: broker"], "the title")
        wait_for(lambda: children[1].cmdline()[1:2] == ["-c"], "the second command")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()  # type: ignore[union-attr]
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_an_orphan_does_not_begin() -> None:
    code = subprocess.call(
        [sys.executable, "-m", "runtime.process.child", "--parent", "1", "--", "true"], cwd=ROOT, env=environment()
    )
    assert code == child.ORPHAN


def test_a_missing_command() -> None:
    done = subprocess.run(
        child.with_parent_death(["/no/such/binary"]),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 127
    assert "No such file" in done.stderr


def test_children_leave_ctrl_c_to_the_supervisor() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    done = subprocess.run(
        child.with_parent_death([sys.executable, "-c", code]),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"True\n"


def test_a_title() -> None:
    code = (
        "from runtime.process import child; child.set_process_title('agent'); print(open('/proc/self/cmdline').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, check=True)
    assert done.stdout.startswith(b"reflexd: agent")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
@pytest.mark.parametrize(
    ("own", "priority", "seen"),
    [
        (-10, "first", -10),
        (-10, "tick", -5),
        (-10, "normal", 0),
        (-3, "tick", -3),
        (0, "tick", 0),
        (7, "background", 7),
    ],
)
def test_a_child_never_gets_a_higher_priority_than_its_parent_has(
    own: int, priority: child.Priority, seen: int
) -> None:
    command = child.with_parent_death([sys.executable, "-c", "import os; print(os.nice(0))"], priority=priority)
    command[command.index("--parent") + 1] = "$$"
    script = f"renice -n {own} -p $$ > /dev/null; {' '.join(command[:-2])} -c 'import os; print(os.nice(0))'"
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=60)
    assert int(done.stdout) == seen


def test_a_nice_child_is_nice_from_its_first_moment() -> None:
    command = child.with_parent_death([sys.executable, "-c", "import os; print(os.nice(0))"], priority="nice")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=True)
    assert done.stdout == b"19\n"


def test_an_idle_child_gives_way_from_its_first_moment() -> None:
    code = "import os; print(os.sched_getscheduler(0) == os.SCHED_IDLE)"
    command = child.with_parent_death([sys.executable, "-c", code], priority="idle")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=True)
    assert done.stdout == b"True\n"


async def test_a_child_that_no_restart_helps_is_not_started_again() -> None:
    assert CANNOT_START == REFUSED_EXIT
    code = f"raise SystemExit({CANNOT_START})"
    stored = Child(Spec("bad", (sys.executable, "-S", "-c", code)))
    with pytest.raises(RestartLimitExceeded, match="bad cannot start; its log names the file"):
        await stored.supervise()
    assert stored.restarts == 0


def test_the_agent_ends_at_once_with_a_key_that_cannot_be_used(tmp_path: Path) -> None:
    key = tmp_path / "state" / "keys" / "checkpoint-key.pem"
    key.parent.mkdir(parents=True)
    key.write_bytes(b"junk")
    key.chmod(0o600)
    config = tmp_path / "robot.yaml"
    config.write_text(
        f"agent: robot\nstate_dir: {tmp_path / 'state'}\n"
        "streams: {joints: {kind: telemetry, source: topic, fields: [a]}}\n"
        "actuators: {head: {kind: choice, choices: [left, stay], safe: stay}}\n"
    )
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        command = [sys.executable, "-m", "runtime.agent", str(config), "--gate-fd", str(one.fileno())]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, pass_fds=[one.fileno()], check=False
        )
    assert done.returncode == CANNOT_START, done.stderr
    assert b"agent.cannot_start" in done.stderr + done.stdout
    assert b"Traceback" not in done.stderr


async def test_a_failing_child_is_restarted_and_given_up() -> None:
    seen: list[tuple[str, int, int]] = []
    stored = Child(
        Spec("bad", (sys.executable, "-S", "-c", "raise SystemExit(9)")),
        restarted=lambda name, code, count: seen.append((name, code, count)),
    )
    begun_s = time.monotonic()
    with pytest.raises(RestartLimitExceeded, match="bad failed 6 times within 60 s, last with exit code 9"):
        await stored.supervise()
    assert seen == [("bad", 9, n) for n in range(1, 6)]
    assert time.monotonic() - begun_s > 0.1 + 0.2 + 0.4 + 0.8 + 1.6 - 0.01


async def test_a_child_that_is_not_essential_never_ends_the_daemon() -> None:
    stored = Child(
        Spec("page", (sys.executable, "-S", "-c", "raise SystemExit(9)"), grace_s=5, essential=False), patience_s=0.1
    )
    task = asyncio.create_task(stored.supervise())
    await eventually(lambda: stored.restarts >= 8)
    assert not task.done()
    await stored.stop()
    await task
    specs = {spec.name: spec.essential for spec in table(settings_with_a_page(), Path("x.yaml"))}
    assert specs["agent"]
    assert not specs["dashboard"]
    assert not specs["learner"]


@pytest.mark.parametrize("cause", ["create_subprocess_exec", "pidfd_open"])
async def test_a_machine_without_resources_does_not_end_the_daemon_because_of_a_helper(
    monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """Too many processes or descriptors, or too little memory: the helper is tried again, and starts when it can."""
    attempts = 0

    def refuse(*_args: Any, **_options: Any) -> Any:
        nonlocal attempts
        attempts += 1
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    stored = Child(Spec("models", ("sleep", "60"), grace_s=5, essential=False), patience_s=0.01)
    with monkeypatch.context() as patch:
        if cause == "pidfd_open":
            patch.setattr(children, "os", SimpleNamespace(pidfd_open=refuse, environ=os.environ, pathsep=os.pathsep))
        else:
            patch.setattr(asyncio, cause, refuse)
        task = asyncio.create_task(stored.supervise())
        await eventually(lambda: attempts >= 3 or task.done())
        assert stored.is_failing()
        with pytest.raises(BlockingIOError):
            await Child(Spec("agent", ("sleep", "60"))).supervise()
    await eventually(lambda: stored._pidfd is not None)
    await stored.stop()
    await task


async def test_a_restart_for_new_settings_does_not_wait_for_the_next_attempt(tmp_path: Path) -> None:
    """A helper that fails too often waits for a minute; settings that mend it are taken at once."""
    mended = tmp_path / "mended"
    command = ("sh", "-c", f"[ -e {mended} ] && exec sleep 60; exit {CANNOT_START}")
    stored = Child(Spec("models", command, grace_s=5, essential=False), patience_s=3_600.0)
    task = asyncio.create_task(stored.supervise())
    await eventually(lambda: stored.restarts == 1)
    assert stored.is_failing()
    mended.touch()
    stored.restart()
    await eventually(lambda: stored._pidfd is not None)
    assert not stored.planned, "the next failure counts"
    await stored.stop()
    await task


def settings_with_a_page() -> Config:
    return Config.model_validate(
        {
            "agent": "a",
            "state_dir": "/nonexistent",
            "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["a"]}},
            "actuators": {"head": {"kind": "choice", "choices": ["a", "b"], "safe": "a"}},
            "dashboard": {},
        }
    )


async def test_stopping_ends_a_back_off_at_once() -> None:
    stored = Child(Spec("bad", (sys.executable, "-S", "-c", "raise SystemExit(9)"), grace_s=5))
    task = asyncio.create_task(stored.supervise())
    await eventually(lambda: stored.restarts == 4)
    begun_s, contention = time.monotonic(), Contention()
    await stored.stop()
    assert time.monotonic() - begun_s < 0.8 + contention.s
    await task


async def test_a_planned_restart_is_no_failure_and_a_frozen_child_can_be_stopped() -> None:
    stored = Child(Spec("good", ("sleep", "60"), grace_s=5))
    task = asyncio.create_task(stored.supervise())
    await eventually(lambda: stored.process is not None)
    first = stored.process
    assert first is not None
    stored.restart()
    await eventually(lambda: stored.process is not first)
    assert stored.restarts == 0
    assert stored.process is not None
    os.kill(stored.process.pid, signal.SIGSTOP)
    await stored.stop()
    await task
    assert stored.process.returncode == -signal.SIGTERM


def test_exit_codes_in_words() -> None:
    assert [exit_reason(3), exit_reason(-9), exit_reason(-77)] == ["exit code 3", "SIGKILL", "signal 77"]


def test_the_usual_children() -> None:
    path = ROOT / "configs" / "demo.yaml"
    specs = table(load(path).config, path, faults=("front=off",), verbose=True)
    assert [spec.name for spec in specs] == ["agent", "stop listener", "learner", "dashboard", "plant"]
    assert specs[0].linked
    assert specs[0].command[-6:] == (str(path), "--gate-fd", "{gate_fd}", "--fault", "front=off", "--verbose")
    assert not any(spec.linked for spec in specs[1:])
    assert specs[2].command[-1].endswith("learner/settings.json")


def test_the_steps_before_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    requested: list[tuple[int, signal.Signals]] = []
    ran: list[tuple[str, list[str]]] = []

    def exec_nothing(file: str, arguments: list[str]) -> None:
        ran.append((file, arguments))
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(child, "die_with", lambda parent, number: requested.append((parent, number)) or True)
    monkeypatch.setattr(os, "execvp", exec_nothing)
    before = signal.getsignal(signal.SIGINT)
    try:
        code = child.main(["--parent", "7", "--signal", "SIGTERM", "--title", "broker", "--", "/x/mosquitto", "-v"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 127
    assert requested == [(7, signal.SIGTERM)]
    assert ran == [("/x/mosquitto", ["reflexd: broker", "-v"])]
    assert "/x/mosquitto: No such file" in capsys.readouterr().err
    monkeypatch.setattr(child, "die_with", lambda _parent, _number: False)
    assert child.main(["--parent", "7", "--", "true"]) == child.ORPHAN
    ran.clear()
    try:
        assert child.main(["--outlive", "--", "true"]) == 127, "that child needs no parent"
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran == [("true", ["true"])]


def test_asking_the_kernel() -> None:
    code = (
        "import os; from sensors.drivers.parent_death import die_with;"
        " print(die_with(os.getppid()), die_with(1 << 22), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, check=True)
    assert done.stdout == b"True False"
    with pytest.raises(OSError, match="prctl"):
        die_with(os.getppid(), 999)  # type: ignore[arg-type]


def test_where_the_kernel_refuses_idle_nice_is_next() -> None:
    code = (
        "import os\nfrom runtime.process import child\n"
        "def refuse(*_): raise PermissionError\n"
        "os.sched_setscheduler = refuse\n"
        "print(child.lower_priority('idle'), os.nice(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, check=True)
    assert done.stdout.split() == [b"nice", b"19"]
