"""Quarantine in the agent: what contradicts the others is taken out of learning, said aloud, and remembered through restarts.

The store keeps every reward and label with its source (bounded with the rest of experience); a source that is kept apart does not
count in any transition, past or future, until a person releases it. Two find such sources: `learners/safeguards/source_consistency.py` from rewards as
they come, here; and the learner from labels that lower the held-out metric (as `label:NAME`), which tells of it in its outbox.
Events: `source_quarantined`, `source_released`, `sources_disagree`, each with the numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson

from learners.files import write_atomically
from learners.safeguards.reward_ledger import Entry, Ledger
from learners.safeguards.source_consistency import Finding, Quarantine
from runtime.process.events import Emit

FILE = "quarantine.json"
SAVE_EVERY_S = 30.0
DISAGREE_EVERY_S = 600.0


class QuarantineSink(Protocol):
    """Who takes a source's rewards and labels out of learning, or puts them back."""

    def quarantine(self, source: str, *, on: bool = True) -> bool:
        """False when the order could not be taken."""


@dataclass(slots=True)
class SourceQuarantine:
    """Carries out what a `Quarantine` finds."""

    quarantine: Quarantine
    store: QuarantineSink
    ledger: Ledger
    state_dir: Path
    emit: Emit
    wall: Callable[[], float]
    """Unix seconds."""
    _told_s: dict[str, float] = field(default_factory=dict)
    _changed: bool = False
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """Take up what is on file; the store is told again, as it may have been replaced."""
        try:
            self.quarantine.restore(orjson.loads((self.state_dir / FILE).read_bytes()))
        except FileNotFoundError:
            return
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
            self.emit("quarantine_lost", {"reason": f"{FILE} is broken: {error}"})
            return
        for source in self.quarantine.kept:
            self.store.quarantine(source)

    def settled(self, entries: list[Entry]) -> None:
        """Decisions with everything that came for them in time."""
        for entry in entries:
            if entry.rewards:
                self._changed = True
                self._act(self.quarantine.observe(entry, partial(self.ledger.around, entry)))

    def late(self, entry: Entry, source: str) -> None:
        """A reward for a decision that was settled before: being late is no way around the comparison."""
        self._act(self.quarantine.judge(entry, source))

    def report(self, fields: dict[str, Any]) -> None:
        """The learner found a source: `source`, and the numbers."""
        source = str(fields.get("source", ""))[:128]
        if source and source not in self.quarantine.released:
            self._keep(source, {name: value for name, value in fields.items() if name != "source"})

    def release(self, source: str) -> bool:
        """A person vouches for a source: it counts again, and is not judged any more. False when it was not kept apart."""
        if not self.quarantine.release(source):
            return False
        self.store.quarantine(source, on=False)
        self.emit("source_released", {"source": source})
        self._soon()
        return True

    def names(self) -> frozenset[str]:
        """Sources kept apart; those of labels as `label:NAME`."""
        return self.quarantine.names

    def figures(self) -> dict[str, Any]:
        """For `health`."""
        return {"quarantined": sorted(self.quarantine.kept), "released": sorted(self.quarantine.released)}

    async def run(self) -> None:
        """Keep the file fresh until cancelled."""
        while True:
            try:
                async with asyncio.timeout(SAVE_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                if not self._changed:
                    continue
            self._wake.clear()
            self._changed = False
            await asyncio.to_thread(self._write, orjson.dumps(self.quarantine.dump()))

    def close(self) -> None:
        """Write what is known."""
        self._write(orjson.dumps(self.quarantine.dump()))

    def _act(self, findings: list[Finding]) -> None:
        for finding in findings:
            if finding.kind == "contradicts":
                self._keep(finding.source, finding.figures)
            elif self.wall() - self._told_s.get(finding.source, float("-inf")) >= DISAGREE_EVERY_S:
                self._told_s[finding.source] = self.wall()
                self.emit("sources_disagree", {"source": finding.source, **finding.figures})

    def _keep(self, source: str, figures: dict[str, Any]) -> None:
        self.quarantine.keep(source, figures)
        self.store.quarantine(source)
        self.emit("source_quarantined", {"source": source, **figures})
        self._soon()

    def _soon(self) -> None:
        self._changed = True
        self._wake.set()

    def _write(self, body: bytes) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(self.state_dir / FILE, body)
