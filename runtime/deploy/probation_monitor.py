"""Monitor a version on probation in the agent, and roll it back when probation decides so.

The verdict falls in the event loop, within a tick of the evidence; `PolicyUpdater` has it carried out. The state lies in
`probation.json` in the state folder, written before a version first acts: an agent that dies on probation finds there that it
did. Events, each with its numbers: `policy_on_probation`, `policy_confirmed`, `policy_rolled_back`, `rollback_failed`,
`probation_state_unreadable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints, Live
from learners.safeguards.probation import FILE, Probation, ProbationVerdict
from learners.safeguards.reward_ledger import LedgerEntry
from learners.safeguards.source_consistency import Quarantine
from runtime.process.events import Emit
from runtime.process.state_file import StateFile, StateUnreadable

SAVE_EVERY_S = 5.0


@dataclass(slots=True)
class ProbationMonitor:
    """Feeds settled decisions to a `Probation` and carries out its verdict."""

    probation: Probation
    checkpoints: Checkpoints
    state_dir: Path
    emit: Emit
    wall: Callable[[], float]
    """Unix seconds."""
    quarantine: Quarantine
    """Rewards of the sources in it do not count."""
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a verdict waits for `conclude`."""
    file: StateFile = field(init=False)
    _verdict: ProbationVerdict | None = None
    _unwritten: bool = False
    """The disk refused the verdict; it is tried again."""
    _running: bool = True
    """Written to the file: the agent runs, so a next start that reads it follows a crash."""
    _crashed: bool = False

    def __post_init__(self) -> None:
        self.file = StateFile(self.state_dir / FILE, self._dump, self._restore, SAVE_EVERY_S, self.emit, durable=False)

    def start(self) -> None:
        """Restore the state before any policy is loaded; after too many crashes on probation, roll back.

        Without a file nothing is known, and the live version is trusted.
        """
        live = self.checkpoints.live()
        try:
            known = self.file.load()
        except StateUnreadable as error:
            self.emit("probation_state_unreadable", {"reason": str(error)})
            known = False
        if not known:
            if live.version is not None:
                self.probation.trust(live.version)
            return
        trial = self.probation.trial
        if trial is not None and trial.version != live.version:
            self.probation.trial = None  # the pointer was moved while no agent ran
        verdict = self.probation.crashed() if self._crashed else None
        if verdict is not None:
            self._rolled_back(verdict, self._roll_back(verdict))
        self.file.write()

    async def before_activation(self, version: str) -> None:
        """Begin the probation of a version that is about to act; the file says so before this returns."""
        trial = self.probation.acts(version, self.wall())
        if trial is not None:
            self._verdict = None
            fields = {"version": version, "before": trial.before}
            self.emit("policy_on_probation", {**fields, **self.probation.figures()})
        await self.file.save()

    @property
    def verdict(self) -> ProbationVerdict | None:
        """The verdict that waits for `conclude`."""
        return self._verdict

    def activation_failed(self, version: str) -> None:
        """End the probation of a version that could not be loaded."""
        trial = self.probation.trial
        if trial is not None and trial.version == version:
            self.probation.trial = None

    def settled(self, entries: list[LedgerEntry]) -> None:
        """Take settled decisions, oldest first."""
        self.file.changed()
        if self._verdict is None:
            self._verdict = self.probation.observe(entries, self.quarantine.names)
            if self._verdict is not None:
                self.decided.set()

    async def conclude(self) -> None:
        """Carry out the verdict, if there is one: confirm the version, or move LIVE back."""
        self.decided.clear()
        verdict = self._verdict
        if verdict is None:
            return
        if verdict.passed:
            self.probation.trust(verdict.version)
            self.emit("policy_confirmed", {"version": verdict.version, "before": verdict.before, **verdict.figures})
        else:
            try:
                live = await asyncio.to_thread(self._roll_back, verdict)
            except OSError as error:  # the verdict stays, and the next call tries again
                if not self._unwritten:
                    self.emit("rollback_failed", {"version": verdict.version, "why": verdict.why, "reason": str(error)})
                self._unwritten = True
                return
            self._rolled_back(verdict, live)
        self._verdict, self._unwritten = None, False
        self.file.changed(urgent=True)

    def close(self, *, clean: bool) -> None:
        """Write the state at the agent's end; where that was not a clean stop, the next start counts a crash."""
        self._running = not clean
        self.file.write()

    def figures(self) -> dict[str, Any]:
        """Return the numbers of the version on probation for `health`; empty when there is none."""
        trial = self.probation.trial
        return {} if trial is None else {"version": trial.version, **self.probation.figures()}

    def _roll_back(self, verdict: ProbationVerdict) -> Live | CheckpointRefused:
        """Move LIVE to the version before, else to any earlier one that loads."""
        try:
            return self.checkpoints.rollback(to=verdict.before, failing=verdict.version)
        except CheckpointRefused:
            try:
                return self.checkpoints.rollback(failing=verdict.version)
            except CheckpointRefused as refusal:
                return refusal

    def _rolled_back(self, verdict: ProbationVerdict, live: Live | CheckpointRefused) -> None:
        fields = {"version": verdict.version, "by": "probation", "why": verdict.why, **verdict.figures}
        self.activation_failed(verdict.version)
        if isinstance(live, CheckpointRefused):
            self.emit("rollback_failed", {**fields, "reason": str(live)})
            return
        self.emit("policy_rolled_back", {**fields, "to": live.version})
        if live.version == verdict.before and live.version is not None:
            self.probation.trust(live.version)

    def _dump(self) -> dict[str, Any]:
        return {**self.probation.dump(), "running": self._running}

    def _restore(self, body: dict[str, Any]) -> None:
        self.probation.restore(body)
        self._crashed = bool(body.get("running"))
