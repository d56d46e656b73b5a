"""An executor without a thread, for worlds in virtual time: thousands of ticks need no switch between threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class AtOnce(ThreadPoolExecutor):
    """Runs work where it is submitted. A loop takes only this kind of executor as its default one."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the work; its error is raised by the future."""
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whatever the work raises belongs to who awaits it
            done.set_exception(error)
        return done
