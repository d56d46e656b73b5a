"""What every process below the supervisor is: titled, and dead when its parent is.

`python -m runtime.process.child --parent PID --signal NAME -- COMMAND ...` asks the kernel for a signal at the parent's death and then
becomes COMMAND. It is used for every child, foreign binaries included, so that there is no moment (an import of several
seconds, say) in which a child could outlive the supervisor. Ctrl-C in a terminal reaches the whole group; children leave it to
the supervisor, which stops them in order.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from contextlib import suppress
from typing import Literal

from setproctitle import setproctitle

_PR_SET_PDEATHSIG = 1
Priority = Literal["idle", "nice", "normal"]
ORPHAN = 75
"""Exit code of a child whose parent was gone before it began."""


def set_process_title(title: str) -> None:
    """Show this process as `reflexd: TITLE`."""
    setproctitle(f"reflexd: {title}")


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Ask for `number` at the parent's death; False when the parent is gone already.

    The kernel means the parent *thread*: children must be started from a thread that lives as long as the process.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent


def with_parent_death(
    command: list[str],
    *,
    title: str | None = None,
    number: signal.Signals = signal.SIGKILL,
    priority: Priority = "normal",
) -> list[str]:
    """`command` as a child of this process; `title` renames a foreign binary (a Python child titles itself).

    It has its priority from its first import on. `idle`: only when nobody else wants the core; where the kernel refuses, as it is.
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


def main(arguments: list[str] | None = None) -> int:
    """Become the command; returns only when that is not possible."""
    parser = argparse.ArgumentParser(prog="runtime.process.child")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--title")
    parser.add_argument("--priority", choices=("idle", "nice", "normal"), default="normal")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    if not die_with(given.parent, signal.Signals[given.signal]):
        return ORPHAN
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:  # the gate's place in line is not for its children
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    if given.priority == "idle":
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if given.priority == "nice":
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    name = f"reflexd: {given.title}" if given.title else given.command[0]
    try:
        os.execvp(given.command[0], [name, *given.command[1:]])  # noqa: S606 - replaces this process, no shell
    except OSError as error:
        sys.stderr.write(f"{given.command[0]}: {error.strerror}\n")
    return 127


if __name__ == "__main__":
    sys.exit(main())
