"""Let foreign code print what it likes, and end a process in which it left threads.

What Python or a library in C prints to standard output goes to standard error, so that results can be piped. Used by the verbs that
run simulators.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

GRACE_S = 5.0
"""Seconds that threads have to end after the work of the process."""


@contextmanager
def foreign_output() -> Iterator[None]:
    """Send all that is printed meanwhile to standard error; afterwards both outputs are as before, though they were closed."""
    out, error = sys.stdout, sys.stderr
    if out is not None:
        out.flush()
    copies = {number: copy for number in (1, 2) if (copy := _copy(number)) is not None}
    if 2 in copies:
        os.dup2(2, 1)
    sys.stdout = error
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or of foreign code
                stream.flush()
        for number, copy in copies.items():
            os.dup2(copy, number)
            os.close(copy)
        sys.stdout, sys.stderr = _opened(out, 1), _opened(error, 2)


def _copy(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:  # the process was started without it
        return None


def _opened(stream: TextIO, number: int) -> TextIO:
    """Return a stream, or a new one of the same descriptor where it was closed."""
    if stream is None or not stream.closed:
        return stream
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def end_in_time(code: int, grace_s: float = GRACE_S, end: Callable[[int], object] = os._exit) -> None:
    """Let the process end `grace_s` from now, with a sentence, though threads still run that Python waits for.

    Args:
        code: exit code.
        grace_s: seconds.
        end: ends the process.
    """
    main = threading.main_thread()
    left = [each for each in threading.enumerate() if each is not main and not each.daemon]
    if not left:
        return

    def watch() -> None:
        for each in left:
            each.join(grace_s / len(left))
        if names := ", ".join(each.name for each in left if each.is_alive()):
            sys.stderr.write(f"the process ends, although threads of foreign code still run: {names}\n")
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            end(code)

    threading.Thread(target=watch, name="end in time", daemon=True).start()
