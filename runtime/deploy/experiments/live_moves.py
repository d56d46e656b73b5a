"""Move the LIVE pointer for the experiments: promote a version, take a version back, and publish both.

The controller decides; this writes. Events: `policy_promoted`, `policy_rolled_back`, `rollback_failed`, `policy_swapped`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints, Live
from runtime.deploy.experiments.state import ExperimentState
from runtime.inference.engine import UNTRAINED
from runtime.process.emit import Emit


@dataclass(slots=True)
class LiveMoves:
    """See the module."""

    checkpoints: Checkpoints
    state: ExperimentState
    emit: Emit
    is_acting: bool = False
    """An engine acts with the live version, so that another one is a swap."""
    _announced: str = ""
    """The version of the last `policy_promoted`."""

    async def promote(
        self, version: str, note: str, *, by: str, figures: Mapping[str, Any] | None = None
    ) -> CheckpointRefused | None:
        """Move LIVE to a version; the event comes before the pointer. Return why the version is refused, or None.

        Raises:
            OSError: the pointer cannot be written.
        """
        before = self.state.live
        fields = {"version": version, "before": None if before == UNTRAINED else before, "by": by, "why": note}

        def announce(_live: Live) -> None:
            if self._announced != version:  # a full disk may refuse the pointer, and this is tried again
                self.emit("policy_promoted", {**fields, **(figures or {})})
            self._announced = version

        try:
            await asyncio.to_thread(partial(self.checkpoints.promote, version, announce=announce, by=by))
        except CheckpointRefused as refusal:
            return refusal
        self.state.trust.note(version, f"live: {note}" if by == "untrusted" else note)
        return None

    async def confirm(self, version: str) -> CheckpointRefused | None:
        """Write into LIVE that the version which is live without a proof is trusted now; return why it is refused, or None.

        Raises:
            OSError: the pointer cannot be written.
        """
        try:
            await asyncio.to_thread(partial(self.checkpoints.promote, version, by="experiment"))
        except CheckpointRefused as refusal:
            return refusal
        return None

    def take_back(self, failing: str, back: str | None, *, or_none: bool = False) -> Live | CheckpointRefused:
        """Move LIVE to a trusted version, else to any earlier one that loads, else with `or_none` to none."""
        try:
            return self.checkpoints.rollback(to=back, failing=failing, by="guard", or_none=or_none)
        except CheckpointRefused:
            try:
                return self.checkpoints.rollback(failing=failing, by="guard", or_none=or_none)
            except CheckpointRefused as refusal:
                return refusal

    def publish_rollback(self, version: str, live: Live | CheckpointRefused, fields: dict[str, Any]) -> None:
        """Publish the result of `take_back`, and forget the version that failed."""
        if isinstance(live, CheckpointRefused):
            self.emit("rollback_failed", {"version": version, **fields, "reason": str(live)})
            return
        state, trust = self.state, self.state.trust
        is_trusted = trust.anchor is not None
        trust.forget(version)
        trust.judged.append(version)
        trust.note(version, f"taken back: {fields['why']}")
        state.live = live.version or UNTRAINED
        if is_trusted and trust.anchor is None and live.version is not None:
            trust.choose(live.version, "proof")
        state.proof.drop(version)
        if state.proof.leader == version:
            state.proof.leader = None
            if live.version is not None:
                state.proof.lead(live.version)
        self.emit("policy_rolled_back", {"version": version, "to": live.version, **fields})
        if self.is_acting:
            self.emit("policy_swapped", {"version": state.live, "before": version})
