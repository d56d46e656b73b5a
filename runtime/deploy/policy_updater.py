"""Keep the engine at the live policy version and at the versions that the live experiment needs, in one place and one order.

A person and the experiment controller move the LIVE pointer; this follows it. The order is: the learner's events, what the controller
decided, the pointer, a new proposal, loading. The control loop activates one of the loaded versions at each tick, as the controller
says. When a version cannot be loaded, the acting policy stays, and an event says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from learners.checkpoints.experiment_records import CHALLENGER
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import LIVE, Checkpoints
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.learner_events import LearnerEvents
from runtime.deploy.pointer_follower import NoVersionLeft, PointerFollower
from runtime.inference.engine import UNTRAINED, Engine
from runtime.process.emit import Emit
from runtime.process.read_again import ReadAgain

POLL_S = 0.5
READ_S = 2.0
"""Files that look unchanged are read this often."""
REMEDY = "restore the state from a backup (`reflexd restore`), or import a policy, then set the mode"
REMEDIES = {
    "wrong_signature": "put keys/checkpoint-key.pem back from a backup (`reflexd restore`) and restart, or import a policy and set "
    "the mode",
    "not_compiled": "make room on the disk and restart, or set engine.runtime: auto, which acts in torch",
    "needs_torch": "set engine.runtime: auto and restart, or promote a version with the encoders of the settings",
    "other_meaning": "restore the settings with which it was trained, or set the mode to let an untrained policy learn",
    "wrong_shapes": "restore the settings with which it was trained, or set the mode to let an untrained policy learn",
}
"""What an operator can do when no version loads, by the reason of the newest one."""


log = structlog.get_logger()


def unnamed_fields(spec: Any) -> list[str]:
    """Return the telemetry streams of a `spec.json` that name no fields, as `reflexd train` wrote them before 0.1.0.

    No order of their fields can be checked.
    """
    streams = spec["streams"] if isinstance(spec, dict) else []
    return [one["name"] for one in streams if one.get("modality") == "telemetry" and not one.get("fields")]


@dataclass(slots=True)
class PolicyUpdater:
    """Loads what LIVE and the live experiment name, and carries out what the controller decides."""

    checkpoints: Checkpoints
    engine: Engine
    experiments: ExperimentController
    learner_events: LearnerEvents
    emit: Emit
    is_untried: bool = False
    """Versions acted before and none can be loaded or trusted now: the untrained weights must not act."""
    _pointer: PointerFollower[str] = field(init=False)

    def __post_init__(self) -> None:
        self._pointer = PointerFollower(lambda: self.checkpoints.live().version, self._follow)

    async def start(self) -> None:
        """Load the live version with its encoders, else the newest that acted and still loads; else untrained weights act.

        If LIVE is damaged, the last trusted version acts, and LIVE names it again. Without such a version
        the untrained weights act in mode shadow. So they do if versions acted before and none of them loads, as when the
        signing key is missing.
        """
        damaged = await asyncio.to_thread(lambda: self.checkpoints.is_pointer_damaged)
        await asyncio.to_thread(self.experiments.start)
        refused: dict[str, CheckpointRefused] = {}
        while (version := await asyncio.to_thread(self._loadable, refused)) is not None:
            try:
                await self.engine.load(version)
            except CheckpointRefused as refusal:
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
            return
        await self.engine.activate(version)
        if version != self.experiments.live:
            self.experiments.became_live(version, "guard")

    def _loadable(self, refused: dict[str, CheckpointRefused]) -> str | None:
        """Return the newest version that loads and is not in `refused`; add those that do not load."""

        def refuse(refusal: CheckpointRefused) -> None:
            refused[refusal.version] = refusal

        loaded = self.checkpoints.load_live(
            refuse, self.engine.shapes, self.engine.spec.meaning(), without=frozenset(refused), as_arrays=True
        )
        if loaded is None:
            return None
        if unnamed := unnamed_fields(loaded.documents.get("spec")):
            remedy = "train it again, or make sure that `fields` has the order with which it was trained"
            log.warning("policy.fields_unnamed", version=loaded.manifest.version, streams=unnamed, remedy=remedy)
        return loaded.manifest.version

    async def run(self) -> None:
        """Follow LIVE and the experiment until cancelled; files that have not changed are read every `READ_S`."""
        files: list[tuple[int, ...]] | None = None
        read_s, again = 0.0, ReadAgain("which version is live", self.emit)
        while True:
            before, files = files, await asyncio.to_thread(self._files)
            now_s = time.monotonic()
            with again.attempt():
                if files != before or self.experiments.decided.is_set() or now_s - read_s >= READ_S:
                    read_s = now_s
                    await self.sync()
                else:
                    await self._proceed()
            if self.experiments.decided.is_set():  # the disk refused; try again a little later
                await asyncio.sleep(POLL_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.experiments.decided.wait()

    async def sync(self) -> bool:
        """Carry out what was decided, follow LIVE, take a proposal and load what is needed; True when LIVE changed.

        Raises:
            NoVersionLeft: the fleet withdrew the only version that ever acted.
        """
        before = self.experiments.live
        await self.experiments.conclude()
        await self._pointer.sync()
        live = await asyncio.to_thread(self.checkpoints.live)
        if live.version is None and self.engine.version in live.failed:
            await self.learner_events.forward()
            raise NoVersionLeft(self.engine.version)
        self.experiments.forget_failed(live)  # another version than the live one was taken back
        await self.learner_events.forward()
        await self.experiments.take_proposal()
        await self._pointer.sync()
        await self._proceed()
        return self.experiments.live != before

    async def _proceed(self) -> None:
        """Load what the experiment needs now, and begin its next phase."""
        await self._load_wanted()
        self.experiments.advance(self.engine.loaded)

    def _files(self) -> list[tuple[int, ...]]:
        """Return what changes with everything that the learner, or a request, may have written."""
        folder = self.checkpoints.folder
        return [_identity(path) for path in (folder / LIVE, folder / CHALLENGER, self.learner_events.outbox.folder)]

    async def _load_wanted(self) -> None:
        """Release what is not needed any more, then load what is."""
        wanted = self.experiments.state.wanted()
        for version in self.engine.loaded - wanted - {self.engine.version}:
            await self.engine.release(version)
        for version in sorted(wanted - self.engine.loaded - {UNTRAINED}):
            try:
                await self.engine.load(version)
            except CheckpointRefused as refusal:
                self.experiments.unloadable(version, refusal.reason)
                self._refused(refusal, live=self.experiments.live)

    async def _follow(self, version: str) -> bool:
        """Load the version that LIVE names now; the control loop activates it at the next tick."""
        before = self.experiments.live
        if version == before and version in self.engine.loaded:
            return False
        await self.learner_events.forward()
        try:
            wanted = self.experiments.state.wanted() | {version}
            for other in self.engine.loaded - wanted - {self.engine.version}:
                await self.engine.release(other)
            await self.engine.load(version)
        except CheckpointRefused as refusal:
            self._refused(refusal, live=before)
            return False
        live = await asyncio.to_thread(self.checkpoints.live)
        if version != before:
            self.experiments.became_live(version, live.by if live.version == version else "request")
        self.is_untried = False
        await self.engine.activate(version)
        self.emit("policy_swapped", {"version": version, "before": before})
        return True

    def _pointer_damaged(self, version: str | None) -> None:
        self.is_untried = version is None
        if version is None:
            remedy = "promote or import a version, then set the mode"
        else:
            remedy = "none needed: the last trusted version acts"
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


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
