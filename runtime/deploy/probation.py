"""Probation in the agent: watches a version that went live, and rolls it back by itself.

The verdict falls in the event loop, within a tick of the evidence; the rollback and the file are written off it. The state lies
in `probation.json` in the state folder, written before a version first acts: an agent that dies on probation finds there that it
did. Everything is an event with its numbers: `policy_on_probation`, `policy_confirmed`, `policy_rolled_back`, `rollback_failed`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints, Live
from learners.files import write_atomically
from learners.safeguards.probation import FILE, Probation, ProbationVerdict
from learners.safeguards.reward_ledger import Entry
from runtime.process.events import Emit

SAVE_EVERY_S = 5.0


@dataclass(slots=True)
class ProbationMonitor:
    """Carries out what a `Probation` says."""

    probation: Probation
    checkpoints: Checkpoints
    state_dir: Path
    emit: Emit
    wall: Callable[[], float]
    """Unix seconds."""
    quarantined: Callable[[], frozenset[str]] = frozenset
    """Sources whose rewards do not count."""
    ending: bool = False
    """The agent was told to end: nothing that it dies of."""
    _verdict: ProbationVerdict | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _unwritten: bool = False

    def start(self) -> None:
        """Take up what is on file, before any policy is loaded; an agent that died once too often on probation rolls back.

        Without a file nothing is known, and the live version is trusted.
        """
        live = self.checkpoints.live()
        body = self._read()
        if body is None:
            if live.version is not None:
                self.probation.trust(live.version)
            return
        trial = self.probation.trial
        if trial is not None and trial.version != live.version:
            self.probation.trial = None  # somebody moved the pointer meanwhile
        verdict = self.probation.crashed() if body.get("running") else None
        if verdict is not None:
            self._concluded(verdict, self._take_out(verdict))
        self._write(self._body(running=True))

    async def before_activation(self, version: str) -> None:
        """A version is about to act; on disk before it does."""
        trial = self.probation.acts(version, self.wall())
        if trial is not None:
            self._verdict = None
            fields = {"version": version, "before": trial.before}
            self.emit("policy_on_probation", {**fields, **self.probation.figures()})
        await self._save()

    def refused(self, version: str) -> None:
        """It is not to act, or could not be loaded after all: its probation is over."""
        trial = self.probation.trial
        if trial is not None and trial.version == version:
            self.probation.trial = None

    def settled(self, entries: list[Entry]) -> None:
        """Decisions whose rewards have come."""
        self._unwritten = True
        if self._verdict is None:
            self._verdict = self.probation.observe(entries, self.quarantined())
            if self._verdict is not None:
                self._wake.set()

    async def run(self, follow: Callable[[], Awaitable[object]]) -> None:
        """Carry out verdicts and keep the file fresh until cancelled; `follow` brings the live version into the engine."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            await self.conclude(follow)
            if self._unwritten:
                await self._save()

    async def conclude(self, follow: Callable[[], Awaitable[object]]) -> None:
        """Carry out the verdict, if there is one."""
        verdict = self._verdict
        if verdict is None:
            return
        if verdict.passed:
            self.probation.trust(verdict.version)
            self.emit("policy_confirmed", {"version": verdict.version, "before": verdict.before, **verdict.figures})
        else:
            self._concluded(verdict, await asyncio.to_thread(self._take_out, verdict))
            await follow()
        if self._verdict is verdict:  # else another version came meanwhile
            self._verdict = None

    def close(self) -> None:
        """Write what is known at the agent's end, and whether that was a regular one."""
        self._write(self._body(running=not self.ending))

    def figures(self) -> dict[str, Any]:
        """For `health`."""
        trial = self.probation.trial
        return {} if trial is None else {"version": trial.version, **self.probation.figures()}

    def _take_out(self, verdict: ProbationVerdict) -> Live | CheckpointRefused:
        """Move the pointer back: to the good version, else to any earlier one that loads."""
        try:
            return self.checkpoints.rollback(to=verdict.before, failing=verdict.version)
        except CheckpointRefused:
            try:
                return self.checkpoints.rollback(failing=verdict.version)
            except CheckpointRefused as refusal:
                return refusal

    def _concluded(self, verdict: ProbationVerdict, live: Live | CheckpointRefused) -> None:
        fields = {"version": verdict.version, "by": "probation", "why": verdict.why, **verdict.figures}
        self.refused(verdict.version)
        if isinstance(live, CheckpointRefused):
            self.emit("rollback_failed", {**fields, "reason": str(live)})
            return
        self.emit("policy_rolled_back", {**fields, "to": live.version})
        if live.version == verdict.before and live.version is not None:
            self.probation.trust(live.version)

    def _body(self, *, running: bool) -> bytes:
        return orjson.dumps({**self.probation.dump(), "running": running})

    async def _save(self) -> None:
        body, self._unwritten = self._body(running=True), False
        await asyncio.to_thread(self._write, body)

    def _write(self, body: bytes) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(self.state_dir / FILE, body, durable=False)

    def _read(self) -> dict[str, Any] | None:
        try:
            body: dict[str, Any] = orjson.loads((self.state_dir / FILE).read_bytes())
            self.probation.restore(body)
        except FileNotFoundError:
            return None
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            self.emit("probation_lost", {"reason": f"{FILE} is broken: {error}"})
            return None
        return body
