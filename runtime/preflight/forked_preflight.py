"""Run the preflight in a forked process while the daemon imports, so that what the check imports stays out of the supervisor's memory."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from runtime.config.loader import LoadedConfig

CHECK_S = 240.0
"""For the check of the settings at a start; its own parts have limits of 60 and 180 s."""


def forked_preflight(path: Path, loaded: LoadedConfig) -> Callable[[], str]:
    """Begin to look for what would keep a daemon with these settings from starting; return what waits for it, one problem a line.

    A forked process does that: it has what this one has imported, and what the check imports stays out of the supervisor's memory.
    It shows nothing that the plug-ins print which it builds. Call this while the process has one thread. A check that crashes, or
    takes longer than `CHECK_S`, is named on standard error and finds nothing.
    """
    answer = tempfile.TemporaryFile()  # noqa: SIM115 - no pipe: a process that a plug-in has left behind would keep it open
    checker = os.fork()
    if checker == 0:
        code = 1
        try:
            shown, null = os.dup(2), os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(null, standard)
            try:
                from runtime.preflight.preflight import preflight  # noqa: PLC0415 - in this process alone

                text = "".join(f"{problem}\n" for problem in preflight(path, loaded))
                answer.write(text.encode("utf-8", "surrogateescape"))
                answer.flush()
                code = 0
            except BaseException:  # noqa: BLE001 - the daemon starts, and what a check cannot do is seen
                with os.fdopen(shown, "w", errors="backslashreplace") as out:
                    traceback.print_exc(file=out)
        finally:
            os._exit(code)

    def found() -> str:
        status = _ended(checker, CHECK_S)
        if status is None:
            sys.stderr.write(f"{path}: the check of the settings took longer than {CHECK_S:g} s and was ended\n")
        elif status < 0:
            sys.stderr.write(f"{path}: the check of the settings ended with signal {-status}\n")
        with answer:
            answer.seek(0)
            return answer.read().decode("utf-8", "surrogateescape")

    return found


def _ended(child: int, limit_s: float) -> int | None:
    """Wait for a child process and return its exit code; None after `limit_s`, when it is killed."""
    until_s = time.monotonic() + limit_s
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)
