"""Start a child process that ends with its parent, at the priority it shall have.

`python -m runtime.process.child --parent PID --signal NAME -- COMMAND ...` asks the kernel for a signal at the parent's death
and then becomes COMMAND. The supervisor starts every child through it, foreign binaries too, so that no child can outlive
the supervisor, not even during its imports; only the stop listener shall (`--outlive`). Ctrl-C in a terminal reaches the whole process group; the children ignore it,
because the supervisor stops them in order.

A child never gets a higher priority than its parent has: the supervisor, which is the gate, raises its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Literal

from setproctitle import setproctitle

from sensors.drivers.parent_death import die_with

Priority = Literal["first", "tick", "page", "normal", "background", "swap", "nice", "idle"]
NICENESS: dict[Priority, int] = {
    "first": -10,
    "tick": -5,
    "page": -3,
    "normal": 0,
    "background": 2,
    "swap": 10,
    "nice": 19,
}
"""Values of `nice`.

`first`: the gate and the listener for stops. `tick`: the agent and the broker. `page`: it carries stops. `background`: what a person
may wait for. `swap`: what a new version waits for; at 19 it would get a hundredth of a core that other programs keep busy.
"""
IDLE_BLAS = {"OPENBLAS_THREAD_TIMEOUT": "4"}
"""Environment in which a thread of numpy's OpenBLAS sleeps when it has nothing to do; otherwise it runs for 25 ms to wait."""
ORPHAN = 75
"""Exit code of a child if its parent died before the child started."""


def set_process_title(title: str) -> None:
    """Show this process as `reflexd: TITLE` in ps and top."""
    setproctitle(f"reflexd: {title}")


def with_parent_death(
    command: list[str],
    *,
    title: str | None = None,
    number: signal.Signals = signal.SIGKILL,
    priority: Priority = "normal",
) -> list[str]:
    """Return the command line that runs `command` as a child of this process.

    Args:
        command: program and arguments.
        title: a name for a foreign binary; a Python child sets its own with `set_process_title`.
        number: the signal that the child gets when this process dies.
        priority: in force from the child's first import. `idle` runs only when no other process wants the core.
    """
    rename = ["--title", title] if title else []
    return [
        sys.executable,
        "-m",
        "runtime.process.child",
        "--parent",
        str(os.getpid()),
        "--signal",
        number.name,
        *rename,
        *([] if priority == "normal" else ["--priority", priority]),
        "--",
        *command,
    ]


def outliving(command: list[str], *, priority: Priority = "normal") -> list[str]:
    """Return the command line that runs `command` as a child that lives on when this process dies."""
    return [sys.executable, "-m", "runtime.process.child", "--outlive", "--priority", priority, "--", *command]


def lower_priority(priority: Priority) -> Priority:
    """Lower this process's CPU priority and return the one in force: `nice` where the kernel refuses `idle`.

    It only lowers: a process with a lower priority than the wanted one keeps its own.
    """
    if priority == "idle":
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except PermissionError:
            priority = "nice"
    if priority in NICENESS:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(before, NICENESS[priority]))
    return priority


def main(arguments: list[str] | None = None) -> int:
    """Become the command; return an exit code only when that fails: `ORPHAN`, or 127 for a program that cannot be run."""
    parser = argparse.ArgumentParser(prog="runtime.process.child")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--outlive", action="store_true")
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--title")
    parser.add_argument("--priority", choices=(*NICENESS, "idle"), default="normal")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    if not given.outlive and not die_with(given.parent, signal.Signals[given.signal]):
        return ORPHAN
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lower_priority(given.priority)
    name = f"reflexd: {given.title}" if given.title else given.command[0]
    try:
        os.execvp(given.command[0], [name, *given.command[1:]])  # noqa: S606 - replaces this process, no shell
    except OSError as error:
        sys.stderr.write(f"{given.command[0]}: {error.strerror}\n")
    return 127


if __name__ == "__main__":
    sys.exit(main())
