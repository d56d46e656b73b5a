"""Fine-tune requests from the agent to the learner: one small file each in `state_dir/learner/requests`.

The agent adds a request when `request/finetune` arrives. The learner acknowledges it once every task that it names has started.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from learners.ipc.outbox import Event, Outbox

LIMIT = 16
"""Requests that may wait."""
FORMER = "wishes"
"""The folder's name before 0.1.0: files that are left in it move to the new one."""


class FinetuneRequests:
    """The queue of fine-tune requests.

    Args:
        state_dir: the state folder of agent and learner.
        clock: Unix seconds; default: the wall clock.
    """

    def __init__(self, state_dir: Path, *, clock: Callable[[], float] | None = None) -> None:
        folder = state_dir / "learner"
        more = {} if clock is None else {"clock": clock}
        self._queue = Outbox(folder / "requests", limit=LIMIT, **more)
        _move_files(folder / FORMER, folder / "requests")

    def add(self, task: str | None) -> bool:
        """Add a request for one task, or for all of them (None); False when `LIMIT` requests are waiting."""
        return self._queue.post("finetune", {"task": task})

    def waiting(self) -> list[Event]:
        """List the waiting requests, oldest first; field `task` is a task's name or None."""
        return self._queue.collect()


def _move_files(former: Path, folder: Path) -> None:
    """Move every file once; agent and learner may both try."""
    if not former.is_dir():
        return
    for path in former.glob("[!.]*.json"):
        with suppress(FileNotFoundError):
            path.rename(folder / path.name)
    with suppress(OSError):  # a draft lies in it still, or the other process removed it
        former.rmdir()
