"""Quarantine sources of feedback that contradict the others: exclude them from learning, publish it, store it across restarts.

The store keeps every reward and label with its source (bounded like all experience). A quarantined source counts in no
transition, past or future, until a person releases it. Two components find such sources. The comparison of rewards in
`learners/safeguards/source_consistency.py` runs here. The learner finds sources of labels that lower the held-out metric, and
reports them as `label:NAME` through its outbox.

Events, each with its numbers: `source_quarantined`, `source_released`, `sources_disagree`, `quarantine_state_unreadable`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from learners.experience.store import Store
from learners.safeguards.reward_ledger import Ledger, LedgerEntry
from learners.safeguards.source_consistency import Finding, Quarantine
from runtime.process.emit import Emit
from runtime.process.state_file import StateFile, StateUnreadable

FILE = "quarantine.json"
SAVE_EVERY_S = 30.0
DISAGREE_EVERY_S = 600.0
MAX_NAME = 128
"""Characters of a source's name."""


@dataclass(slots=True)
class SourceQuarantine:
    """Carries out what a `Quarantine` finds."""

    quarantine: Quarantine
    store: Store
    ledger: Ledger
    state_dir: Path
    emit: Emit
    wall: Callable[[], float]
    """Unix seconds."""
    file: StateFile = field(init=False)
    _disagreed_s: dict[str, float] = field(default_factory=dict)
    """By source, when `sources_disagree` was last published."""

    def __post_init__(self) -> None:
        quarantine = self.quarantine
        self.file = StateFile(self.state_dir / FILE, quarantine.dump, quarantine.restore, SAVE_EVERY_S, self.emit)

    def start(self) -> None:
        """Restore the state from the file, and repeat it to the store, which may have been replaced."""
        try:
            self.file.load()
        except StateUnreadable as error:
            self.emit("quarantine_state_unreadable", {"reason": str(error)})
            return
        for source in self.quarantine.isolated:
            self.store.quarantine(source)

    def settled(self, entries: list[LedgerEntry]) -> None:
        """Compare the sources of settled decisions."""
        for entry in entries:
            if entry.all_rewards:
                self.file.changed()
                self._act(self.quarantine.observe(entry, partial(self.ledger.around, entry)))

    def late(self, entry: LedgerEntry, source: str) -> None:
        """Compare a reward for a decision that was settled before: a late reward does not escape the comparison."""
        self._act(self.quarantine.judge(entry, source))

    def report(self, fields: dict[str, Any]) -> None:
        """Quarantine a source that the learner found: its name under `source`, and the numbers."""
        source = str(fields.get("source", ""))[:MAX_NAME]
        if source and source not in self.quarantine.released:
            self._quarantine(source, {name: value for name, value in fields.items() if name != "source"})

    def release(self, source: str) -> bool:
        """Release a source for a person: it counts again and is not compared any more. False when it was not quarantined."""
        if not self.quarantine.release(source):
            return False
        self.store.quarantine(source, on=False)
        self.emit("source_released", {"source": source})
        self.file.changed(urgent=True)
        return True

    def names(self) -> frozenset[str]:
        """Return the quarantined sources; those of labels as `label:NAME`."""
        return self.quarantine.names

    def figures(self) -> dict[str, Any]:
        """Return the quarantined and the released sources for `health`."""
        return {"quarantined": sorted(self.quarantine.isolated), "released": sorted(self.quarantine.released)}

    def _act(self, findings: list[Finding]) -> None:
        for finding in findings:
            if finding.kind == "contradicts":
                self._quarantine(finding.source, finding.figures)
            elif self.wall() - self._disagreed_s.get(finding.source, float("-inf")) >= DISAGREE_EVERY_S:
                self._disagreed_s[finding.source] = self.wall()
                self.emit("sources_disagree", {"source": finding.source, **finding.figures})

    def _quarantine(self, source: str, figures: dict[str, Any]) -> None:
        self.quarantine.keep(source, figures)
        self.store.quarantine(source)
        self.emit("source_quarantined", {"source": source, **figures})
        self.file.changed(urgent=True)
