"""Keep the engine at the live policy version: activation, probation's verdict and rollback, in one place and one order.

The learner, an operator's request and probation move the LIVE pointer; this follows it. For a new version the order is: the
learner's events (`policy_promoted` among them), `policy_on_probation` with its file on disk, the weights, `policy_swapped`. A
verdict of probation is carried out before the pointer is read, so that a rollback acts at once. When a version cannot be
loaded, the acting policy stays, and an event says so.

The version before stays in memory until probation is over. A verdict against the acting version takes effect in one tick, before
the LIVE pointer on disk changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import LIVE, Checkpoints
from runtime.deploy.learner_events import LearnerEvents
from runtime.deploy.pointer_follower import PointerFollower
from runtime.deploy.probation_monitor import ProbationMonitor
from runtime.inference.engine import Engine
from runtime.process.events import Emit

POLL_S = 0.2
REMEDY = "restore the state from a backup (`reflexd restore`), or import a policy, then set the mode"
REMEDIES = {
    "wrong_signature": "put keys/checkpoint-key.pem back from a backup (`reflexd restore`) and restart, or import a policy and set "
    "the mode",
    "other_meaning": "restore the settings with which it was trained, or set the mode to let an untrained policy learn",
    "wrong_shapes": "restore the settings with which it was trained, or set the mode to let an untrained policy learn",
}
"""What an operator can do when no version loads, by the reason of the newest one."""


@dataclass(slots=True)
class PolicyUpdater:
    """Loads what LIVE names and carries out what probation decides."""

    checkpoints: Checkpoints
    engine: Engine
    probation: ProbationMonitor
    learner_events: LearnerEvents
    emit: Emit
    is_untried: bool = False
    """Versions acted before and none can be loaded or trusted now: the untrained weights must not act."""
    _pointer: PointerFollower[str] = field(init=False)
    _acted: set[str] = field(default_factory=set)
    """Versions that this has activated or replaced and not released yet."""

    def __post_init__(self) -> None:
        self._pointer = PointerFollower(lambda: self.checkpoints.live().version, self._activate)

    async def start(self) -> None:
        """Load the live version with its encoders, else the newest that acted and still loads; else untrained weights act.

        If LIVE is damaged, the last version that passed its probation acts, and LIVE names it again. Without such a version
        the untrained weights act in mode shadow. So they do if versions acted before and none of them loads, as when the
        signing key is missing.
        """
        damaged = await asyncio.to_thread(lambda: self.checkpoints.is_pointer_damaged)
        await asyncio.to_thread(self.probation.start)
        refused: dict[str, CheckpointRefused] = {}
        while (version := await asyncio.to_thread(self._loadable, refused)) is not None:
            await self.probation.before_activation(version)
            try:
                await self._switch(version)
            except CheckpointRefused as refusal:
                self.probation.activation_failed(version)
                refused[version] = refusal
            else:
                break
        for each in refused.values():
            self._refused(each)
        if damaged:
            await asyncio.to_thread(self._pointer_damaged, version)
        elif version is None and refused:
            self._unusable(list(refused.values()))
        if version is None:
            remedy = "let the learner run, or put a checkpoint of `reflexd train` in place"
            self.emit("policy_untrained", {"remedy": remedy})

    def _loadable(self, refused: dict[str, CheckpointRefused]) -> str | None:
        """Return the newest version that loads and is not in `refused`; add those that do not load."""

        def refuse(refusal: CheckpointRefused) -> None:
            refused[refusal.version] = refusal

        loaded = self.checkpoints.load_live(
            refuse, self.engine.shapes, self.engine.spec.meaning(), without=frozenset(refused)
        )
        return loaded.manifest.version if loaded is not None else None

    async def run(self) -> None:
        """Follow LIVE and probation until cancelled."""
        while True:
            await self.sync()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.probation.decided.wait()

    async def sync(self) -> bool:
        """Carry out probation's verdict, then activate the version that LIVE names; True when another version acts."""
        acting = self.engine.version
        returned = await self._return_at_once()
        await self.probation.conclude()
        if returned:
            await self._confirm_return(acting)
        await self._pointer.sync()
        await self._release()
        return self.engine.version != acting

    async def _return_at_once(self) -> bool:
        """Activate the version before, where a verdict names it and it is in memory."""
        verdict = self.probation.verdict
        if verdict is None or verdict.passed or verdict.version != self.engine.version or verdict.before is None:
            return False
        if verdict.before not in self.engine.loaded:
            return False
        await self.engine.activate(verdict.before)
        return True

    async def _confirm_return(self, failed: str) -> None:
        """Publish the swap; where LIVE cannot be moved for good, the version it names acts again."""
        live = await asyncio.to_thread(self.checkpoints.live)
        if live.version == failed and self.probation.verdict is None:
            await self.engine.activate(failed)
        else:
            self.emit("policy_swapped", {"version": self.engine.version, "before": failed})

    async def _switch(self, version: str) -> None:
        """Load and activate a version; the one that acted stays in memory."""
        before = self.engine.version
        await self.engine.load(version)
        await self.engine.activate(version)
        self._acted |= {before, version}

    async def _release(self) -> None:
        """Free what acted and is neither acting nor needed by probation."""
        trial = self.probation.probation.trial
        needed = {self.engine.version} | ({trial.before} if trial is not None else set())
        for version in self._acted - needed:
            await self.engine.release(version)
        self._acted &= needed

    async def _activate(self, version: str) -> bool:
        before = self.engine.version
        if version == before:
            return False
        await self.learner_events.forward()
        await self.probation.before_activation(version)
        try:
            await self._switch(version)
        except CheckpointRefused as refusal:
            self.probation.activation_failed(version)
            self._refused(refusal, live=before)
            return False
        self.is_untried = False
        self.emit("policy_swapped", {"version": version, "before": before})
        return True

    def _pointer_damaged(self, version: str | None) -> None:
        self.is_untried = version is None
        if version is None:
            remedy = "promote or import a version, then set the mode"
        else:
            remedy = "none needed: the last version that passed its probation acts"
            try:
                self.checkpoints.repair_pointer(version)
            except OSError as error:
                remedy = f"free or repair the disk, then restart: {error}"
        fields = {"file": str(self.checkpoints.folder / LIVE), "version": version, "remedy": remedy}
        self.emit("live_pointer_damaged", fields)

    def _unusable(self, refused: Sequence[CheckpointRefused]) -> None:
        self.is_untried = True
        first = refused[0]
        fields = {"reason": first.reason, "detail": first.detail, "refused": len(refused), "version": first.version}
        self.emit("policy_unusable", {**fields, "remedy": REMEDIES.get(first.reason, REMEDY)})

    def _refused(self, refusal: CheckpointRefused, **more: str) -> None:
        fields = {"version": refusal.version, "reason": refusal.reason, "detail": refusal.detail, **more}
        self.emit("checkpoint_refused", fields)
