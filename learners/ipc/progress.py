"""Publish the learner's progress: one small JSON file, replaced by a rename, which the agent reads for `health` and metrics.

- `state`: `starting`; `waiting` (too little experience); `training`; `idle` (no update is pending); `finetuning` (a task is being
  fine-tuned, while training continues); `stopped`.
- `updates`, and `updates_per_s` over the last half minute.
- `pending_updates` that are due, and `dropped_updates` that were given up.
- `loss` and further metrics of the algorithm; `q`: the mean value of sampled actions.
- `buffer`: transitions in memory; `sampleable`, `demonstrations` and `terminal` count some of them; `outdated` wait
  for tokens of a new encoder version.
- `row`: the last transition that was read; `reward_mean`: the mean reward of the last thousand.
- `policy`: the live version; `candidate`: the last one that was evaluated.
- `storage`: what could not be written, as `PATH: REASON`, or null.
- `finetuning`: task, epoch, step, loss and score of a running fine-tune, or null.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from learners.files import private_folder, write_atomically

WINDOW_S = 30.0
FORMER_FIELDS = {
    "drawable": "sampleable",
    "taught": "demonstrations",
    "failures": "terminal",
    "owed": "pending_updates",
    "forgotten": "dropped_updates",
}
"""Names in a file that was written before 0.1.0."""


class ProgressWriter:
    """Writes `path`, at most every `every_s`."""

    def __init__(self, path: Path, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.every_s = path, every_s
        self._clock, self._written_s = clock, -float("inf")
        self._updates: deque[tuple[float, int]] = deque()
        private_folder(path.parent)

    def report(self, updates: int, fields: Callable[[], dict[str, Any]], *, now: bool = False) -> bool:
        """Write if it is time (or `now`); False if it is not, or if the disk refuses: the file then grows old."""
        moment = self._clock()
        self._updates.append((moment, updates))
        while moment - self._updates[0][0] > WINDOW_S:
            self._updates.popleft()
        if not now and moment - self._written_s < self.every_s:
            return False
        self._written_s = moment
        body = {"updates": updates, "updates_per_s": self.rate(), **fields()}
        try:
            write_atomically(self.path, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), durable=False)
        except OSError:
            return False
        return True

    def rate(self) -> float:
        """Return updates per second over the window."""
        (first_s, first), (last_s, last) = self._updates[0], self._updates[-1]
        return round((last - first) / (last_s - first_s), 2) if last_s > first_s else 0.0


def read_progress(path: Path) -> dict[str, Any] | None:
    """Return the learner's progress file, or None if there is none that is readable."""
    try:
        progress = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    if not isinstance(progress, dict):
        return None
    return {FORMER_FIELDS.get(str(name), str(name)): value for name, value in progress.items()}
