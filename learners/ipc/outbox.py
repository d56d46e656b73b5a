"""Events from the learner to whoever has an MQTT connection: one small file each, taken and then deleted.

A file appears by one rename, and is deleted only after it was passed on: a crash on either side repeats an event rather
than losing it. Bounded: with `limit` files waiting, newcomers are dropped and counted.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from learners.files import private_folder, write_atomically

FORMER_EVENTS = {"learner_waits": "learner_waiting_for_spec", "task_held_back": "task_awaiting_approval"}
"""Event types that a learner before 0.1.0 may have left."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened; `acknowledge` once it was passed on."""

    kind: str
    fields: dict[str, Any]
    stamp_s: float
    """Unix seconds."""
    path: Path
    passed_on: set[str] = field(default_factory=set)
    """Names of files that need not be offered again; shared with the outbox."""

    def acknowledge(self) -> None:
        """It need not be offered again."""
        with suppress(OSError):  # a read-only disk: the outbox does not offer it again
            self.path.unlink(missing_ok=True)
        self.passed_on.add(self.path.name)


class Outbox:
    """The folder of waiting events."""

    def __init__(self, folder: Path, *, limit: int = 1_000, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.limit = folder, limit
        self.drops: Counter[str] = Counter()
        """`full`: no process collects the events; `unreadable`: a file is no event; `disk`: the event could not be written."""
        self._passed_on: set[str] = set()
        self._clock, self._count = clock, 0
        private_folder(folder)

    def post(self, kind: str, fields: dict[str, Any]) -> bool:
        """Leave an event; False when it was dropped."""
        if sum(1 for _ in self.folder.glob("*.json")) >= self.limit:
            self.drops["full"] += 1
            return False
        stamp_s = self._clock()
        self._count += 1
        body = orjson.dumps({"kind": kind, "stamp_s": stamp_s, "fields": fields}, option=orjson.OPT_SERIALIZE_NUMPY)
        name = f"{int(stamp_s * 1e6):020d}-{self._count:06d}-{os.getpid()}.json"  # several processes post
        try:
            write_atomically(self.folder / name, body, durable=False)
        except OSError:
            self.drops["disk"] += 1
            return False
        return True

    def collect(self) -> list[Event]:
        """Return the waiting events, oldest first."""
        found = []
        paths = sorted(self.folder.glob("[!.]*.json"))
        self._passed_on.intersection_update(path.name for path in paths)
        for path in paths:
            if path.name in self._passed_on:
                continue
            try:
                body = orjson.loads(path.read_bytes())
                kind = FORMER_EVENTS.get(body["kind"], body["kind"])
                found.append(Event(kind, body["fields"], body["stamp_s"], path, self._passed_on))
            except FileNotFoundError:
                continue
            except (orjson.JSONDecodeError, KeyError, TypeError):
                self.drops["unreadable"] += 1
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                self._passed_on.add(path.name)
        return found
