"""Store ticks, rewards, marks and labels on behalf of the agent, without delaying the control loop.

Every item passes through one bounded queue to one writer thread. The order is preserved, so a reward finds the tick before it.
A full queue drops the new item and counts it. Items before a completed `flush` are committed and survive kill -9. Readers in
other processes use `reader.Reader`.

Events (`on_event(kind, fields)`, called in the writer thread):

- `unknown_decision`: a reward or mark names a decision that is not stored.
- `experience_corrupt`: a file is corrupt; the fields count the recovered rows.
- `transition_rejected`: an item is incomplete.
- `experience_write_failed`: an item could not be written to disk; at most one event a minute.
- `experience_recovered`: items can be written again.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from actuators.actions import Value
from learners.config.learner import ExperienceSettings
from learners.experience.records import Credit, Label, LabelCorrection, Mark, Raw, ReadingLabels, SourceExclusion
from learners.experience.transition import Outcome, Transition
from learners.experience.writer import Item, OnEvent, Writer
from learners.files import private_folder

__all__ = ["Credit", "Label", "Mark", "Raw", "Store", "Transition"]

MAX_BEHIND = 256
"""Rewards and marks that wait for a held tick."""
GATHER_S = 0.25
"""An item waits so long for others, so that they are committed together: a transaction costs more than a row. `flush` does not wait."""
_BATCH = 256
_TRIM_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class _Flush:
    done: threading.Event
    lost: threading.Event
    losses: int
    """Batches that were lost before what this mark acknowledges was queued."""

    def answer(self, *, lost: bool) -> None:
        """Wake the thread that waits."""
        if lost:
            self.lost.set()
        self.done.set()


class Store:
    """The writer of `folder` (there is one at a time: the agent).

    Opening happens in the writer thread, so a broken file never delays the start; meanwhile items queue.
    """

    def __init__(
        self,
        folder: Path,
        settings: ExperienceSettings | None = None,
        *,
        on_event: OnEvent = lambda _kind, _fields: None,
        clock: Callable[[], float] = time.time,
        limit: int = 4_096,
    ) -> None:
        self.folder = folder
        self.drops: Counter[str] = Counter()
        """Items not stored, by cause: `full` queue, `refused`, `disk`, `unknown`."""
        self._clock = clock
        self._items: queue.Queue[Item | _Flush] = queue.Queue(limit)
        self._closing = threading.Event()
        self._hurried = threading.Event()
        """Someone waits for what is queued, or the queue fills."""
        self._held: Transition | None = None
        self._behind: list[Credit | Mark] = []
        """Rewards and marks for the held tick."""
        limits = settings or ExperienceSettings.model_validate({})
        self._writer = Writer(folder, limits, self.drops, on_event, clock, self._closing.wait)
        private_folder(folder)
        self._thread = threading.Thread(target=self._run, name="experience", daemon=True)
        self._thread.start()

    @property
    def committed(self) -> int:
        """Transitions acknowledged since the start."""
        return self._writer.committed

    def append(self, transition: Transition) -> bool:
        """Remember a tick; False when the queue is full and it was dropped."""
        return self._put(transition)

    def hold(self, transition: Transition) -> bool:
        """Remember a tick once `release` says what followed it. What arrives for it meanwhile is stored after it."""
        self.release(0.0)
        self._held = transition
        return not self._closing.is_set()

    def release(self, reward: float, overridden: Mapping[str, Value] | None = None) -> bool:
        """Store the held tick; False when there is none, or it was dropped.

        Args:
            reward: its own.
            overridden: what a person commanded before the next tick, by actuator: the action of this tick.
        """
        held, self._held = self._held, None
        if held is None:
            return False
        stored = self._put(replace(held.overridden(overridden or {}), reward=reward))
        waiting, self._behind = self._behind, []
        for item in waiting:
            self._put(item)
        return stored

    def credit(
        self, value: float, *, decision: str | None = None, stamp_s: float | None = None, done: bool = False,
        source: str = "default", truncated: bool = False, outcome: Outcome | None = None,
    ) -> bool:  # fmt: skip
        """Reward the named decision, else the tick in force at `stamp_s` (Unix; default now)."""
        if decision is None and stamp_s is None:
            stamp_s = self._clock()
        return self._follow(Credit(value, decision, stamp_s, done, source, truncated, outcome))

    def mark(self, mark: Mark) -> bool:
        """Set flags on a remembered decision."""
        return self._follow(mark)

    def add_label(self, label: Label) -> bool:
        """Store one labelled example for fine-tuning."""
        return self._put(label)

    def edit_labels(self, edit: ReadingLabels | LabelCorrection, timeout_s: float = 10.0) -> bool:
        """Store labels or corrections of an operator; True once they are committed and `edit.outcome` is filled. Blocks."""
        losses = self._writer.losses
        return self._put(edit) and self._flush(timeout_s, losses)

    def add_raw(self, raw: Raw) -> bool:
        """Keep an encoded frame or sound for `raw_retention_s`, for re-encoding after a fine-tune."""
        return self._put(raw)

    def quarantine(self, source: str, *, on: bool = True) -> bool:
        """Keep a source's rewards apart from learning, past and future ones; `on=False` releases it."""
        return self._put(SourceExclusion(source, on))

    def limit(self, max_bytes: int) -> None:
        """Lower or raise the size at which the oldest experience is deleted; the writer follows within seconds."""
        self._writer.max_bytes = max_bytes

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything queued before is committed; True is the acknowledgement."""
        return self._flush(timeout_s, self._writer.losses)

    def _flush(self, timeout_s: float, losses: int) -> bool:
        mark = _Flush(threading.Event(), threading.Event(), losses)
        deadline = time.monotonic() + timeout_s
        try:
            self._items.put(mark, timeout=timeout_s)
        except queue.Full:
            return False
        self._hurried.set()
        return mark.done.wait(max(0.0, deadline - time.monotonic())) and not mark.lost.is_set()

    def close(self, timeout_s: float = 10.0) -> bool:
        """Commit what is queued and stop; False when that took longer than `timeout_s`."""
        self.release(0.0)
        self._closing.set()
        self._hurried.set()
        with contextlib.suppress(queue.Full):  # else it has enough to do before it waits
            self._items.put_nowait(_Flush(threading.Event(), threading.Event(), 0))
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _follow(self, item: Credit | Mark) -> bool:
        """Store a reward or mark after its tick."""
        if self._held is None or item.decision not in {None, self._held.decision}:
            return self._put(item)
        if len(self._behind) >= MAX_BEHIND:
            self.drops["full"] += 1
            return False
        self._behind.append(item)
        return True

    def _put(self, item: Item | _Flush) -> bool:
        if self._closing.is_set():
            self.drops["closed"] += 1
            return False
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self.drops["full"] += 1
            return False
        if self._items.qsize() >= _BATCH:
            self._hurried.set()
        return True

    def _run(self) -> None:
        self._writer.open()
        trimmed_s = -float("inf")
        while not (self._closing.is_set() and self._items.empty()):
            batch = self._take(trimmed_s + _TRIM_EVERY_S - time.monotonic())
            trim = time.monotonic() - trimmed_s > _TRIM_EVERY_S
            if batch or trim:
                items = [item for item in batch if not isinstance(item, _Flush)]
                stored = self._writer.commit(items, trim=trim)
                for item in batch:
                    if isinstance(item, _Flush):
                        item.answer(lost=not stored or self._writer.losses > item.losses)
            if trim:
                trimmed_s = time.monotonic()
        self._writer.close()

    def _take(self, timeout_s: float) -> list[Item | _Flush]:
        """Wait for an item, and then a little for others; empty where none came within `timeout_s`."""
        batch: list[Item | _Flush] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._items.get(timeout=max(0.0, timeout_s)))
            if not self._closing.is_set() and self._items.qsize() < _BATCH:
                self._hurried.wait(GATHER_S)
            self._hurried.clear()
            while len(batch) < _BATCH:
                batch.append(self._items.get_nowait())
            self._hurried.set()  # more is queued, and perhaps a flush with it
        return batch
