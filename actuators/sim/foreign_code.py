"""Call foreign code so that the settings of the process are as before: each of the two sides has its own.

An environment may change the working directory, replace the output, switch gradients off, or set torch's default device. What it
changed is put aside when its call ends, and in force again in its next call. Some settings belong to the program alone: they are put
back, with one warning. Knows no environment, and no settings of libraries; `SETTINGS` may be extended.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

T = TypeVar("T")
ENDED = 1
"""Exit code of a process that foreign code forked, and that returned from its call."""


@dataclass(frozen=True, slots=True)
class ProcessSetting:
    """A setting of this process that foreign code may change.

    Args:
        name: for warnings.
        read: returns the value; values are compared.
        write: puts a value in force.
        is_shared: the value of the foreign code is in force again in its next call; else its change is undone, with a warning.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    is_shared: bool = True


def _output() -> tuple[TextIO | None, TextIO | None]:
    return _opened(sys.stdout), _opened(sys.stderr)


def _set_output(streams: tuple[TextIO | None, TextIO | None]) -> None:
    sys.stdout, sys.stderr = (_opened(stream) for stream in streams)


def _opened(stream: TextIO | None) -> TextIO | None:
    """Return a stream, or a new one of standard error where foreign code closed it; the descriptor may be closed too."""
    if stream is None or not stream.closed:
        return stream
    _ERRORS.reopen()
    return open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


def _folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted
        return None


def _enter_folder(path: str | None) -> None:
    if path is not None:
        with suppress(OSError):  # it was deleted meanwhile
            os.chdir(path)


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


def _filters() -> tuple[Any, ...]:
    return tuple(warnings.filters)


def _set_filters(filters: tuple[Any, ...]) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined] # a list, which typeshed shows as a sequence


def _handler(number: signal.Signals) -> ProcessSetting:
    def write(handler: Any) -> None:
        if handler is not None:  # None: of a library in C, which cannot be put back
            signal.signal(number, handler)

    return ProcessSetting(f"the handler of {number.name}", lambda: signal.getsignal(number), write, is_shared=False)


class _Descriptor:
    """An output of the process as the system knows it. A copy is put back where foreign code closed or replaced it."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._copies: dict[tuple[int, int], int] = {}

    def read(self) -> tuple[int, int] | None:
        """Return device and inode; None where it is closed."""
        try:
            found = os.fstat(self._number)
        except OSError:
            return None
        identity = found.st_dev, found.st_ino
        if identity not in self._copies:
            self._copies[identity] = os.dup(self._number)
        return identity

    def reopen(self) -> None:
        """Put the newest copy in force where the output is closed."""
        if self.read() is None:
            copies = list(self._copies.values()) or [os.open(os.devnull, os.O_WRONLY)]
            os.dup2(copies[-1], self._number)

    def write(self, identity: tuple[int, int] | None) -> None:
        """Put one that was read in force again."""
        if identity is not None:
            os.dup2(self._copies[identity], self._number)


_OUTPUT, _ERRORS = _Descriptor(1), _Descriptor(2)
EACH_CALL = (ProcessSetting("the output", _output, _set_output),)
"""Settings that are compared before and after every call, because the program uses them between two."""
RARE_CALLS = (
    ProcessSetting("the working directory", _folder, _enter_folder),
    ProcessSetting("the umask", _umask, os.umask),
    ProcessSetting("the filters of warnings", _filters, _set_filters),
    ProcessSetting("numpy's errors", np.geterr, lambda kinds: np.seterr(**kinds)),
    ProcessSetting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    ProcessSetting("the garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    ProcessSetting("standard output", _OUTPUT.read, _OUTPUT.write, is_shared=False),
    ProcessSetting("standard error", _ERRORS.read, _ERRORS.write, is_shared=False),
    *(_handler(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)),
)
"""Settings that are compared at calls that are rare; together they cost some 50 us."""


@dataclass(slots=True)
class ForeignCode:
    """Calls foreign code.

    Args:
        settings: what is compared at every call; others may be added.
        rare: what is compared at rare calls as well.
        end: ends the process with an exit code.
    """

    settings: list[ProcessSetting] = field(default_factory=lambda: list(EACH_CALL))
    rare: tuple[ProcessSetting, ...] = RARE_CALLS
    end: Callable[[int], object] = os._exit
    _theirs: dict[str, Any] = field(default_factory=dict)
    """By name, the value of the foreign code where it has its own."""
    _warned: set[str] = field(default_factory=set)
    _is_inside: bool = False

    def call(self, work: Callable[[], T], name: str, *, is_rare: bool = False) -> T:
        """Return what `work` returns; afterwards the settings are as before. A call within a call changes nothing.

        Args:
            work: the foreign code; in another thread than the main one, nothing is compared.
            name: of the call, for the warning.
            is_rare: compare all settings.
        """
        if self._is_inside or threading.current_thread() is not threading.main_thread():
            return work()
        settings = [*self.settings, *(each for each in self.rare if is_rare or each.name in self._theirs)]
        ours = [each.read() for each in settings]
        process = os.getpid()
        self._is_inside = True
        for each in settings:
            if each.name in self._theirs:
                each.write(self._theirs[each.name])
        try:
            return work()
        finally:
            self._is_inside = False
            if os.getpid() != process:
                self.end(ENDED)  # a copy of this process would do everything twice
            undone = [each.name for each, before in zip(settings, ours, strict=True) if self._restore(each, before)]
            for one in set(undone) - self._warned:
                self._warned.add(one)
                warnings.warn(f"{name} changed {one}; it is as before", stacklevel=2)

    def _restore(self, setting: ProcessSetting, before: Any) -> bool:
        """Put a setting in force that the call has changed; return whether the change is undone for the next call, too."""
        now = setting.read()
        if now == before:
            self._theirs.pop(setting.name, None)
            return False
        if setting.is_shared:
            self._theirs[setting.name] = now
        setting.write(before)
        return not setting.is_shared


FOREIGN = ForeignCode()
"""The one of this process."""
