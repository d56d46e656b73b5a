"""Answer `request/explain`: the contribution of each stream to a decision, ages, lineage, what was executed and by whom.

Reads stored experience, not the running tick: the version that took the decision explains it, in a thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints
from learners.experience.reader import Reader, Row
from learners.experience.transition import Transition
from learners.ipc.policy_spec import spec_of_version
from learners.model.policy import Policy
from learners.model.policy import build as build_policy
from learners.model.shapley import NotExplainable, explain
from runtime.inference.build import untrained
from runtime.inference.engine import UNTRAINED, Engine
from runtime.mqtt.rpc import Answer, RequestFailed

BACKGROUND = 16
"""Other ticks that replace a stream whose contribution is measured."""
SPREAD = 32
"""Ticks between two ticks of the background."""


@dataclass(slots=True)
class Explainer:
    """Explains any stored decision."""

    folder: Path
    """`state_dir/experience`."""
    checkpoints: Checkpoints
    engine: Engine
    seed: int
    """Seed of the untrained weights."""

    async def __call__(self, decision: str) -> Answer:
        """Explain one decision.

        Raises:
            RequestFailed: it is not on record, or cannot be explained.
        """
        try:
            return await asyncio.to_thread(self._explain, decision)
        except (NotExplainable, CheckpointRefused, ValueError) as error:
            raise RequestFailed(f"{decision}: {error}") from None

    def _explain(self, decision: str) -> Answer:
        with Reader(self.folder) as reader:
            row = reader.decision(decision)
            if row is None:
                raise RequestFailed(
                    f"{decision}: not in the record; it may be older than experience.max_gb keeps, or a typing error"
                )
            policy = self._policy(row.transition.policy)
            history = policy.spec.history
            window = _window(reader, row, history)
            background = _background(reader, row, history)
        parts = explain(policy, window, background)
        return _answer(row.transition, parts) | {"lineage": self._lineage(row.transition.policy)}

    def _policy(self, version: str) -> Policy:
        if version == self.engine.version:
            return self.engine.frozen_policy()
        if version == UNTRAINED:
            return untrained(self.engine.spec, self.seed)
        loaded = self.checkpoints.load(version)
        spec = spec_of_version(loaded) or self.engine.spec
        try:
            return build_policy(spec, loaded.tensors["policy"])
        except RuntimeError as error:
            raise RequestFailed(f"{version}: its weights do not fit its spec: {str(error).splitlines()[0]}") from None

    def _lineage(self, version: str | None) -> list[str]:
        """Return the version and its ancestors, newest first."""
        parents = {manifest.version: manifest.parent for manifest in self.checkpoints.list()}
        line: list[str] = []
        while version is not None and version not in line and len(line) < 20:
            line.append(version)
            version = parents.get(version)
        return line


def _window(reader: Reader, row: Row, history: int) -> list[Transition]:
    """Return the decision and the ticks before it in its session, oldest first."""
    near = reader.rows(max(1, row.row - history + 1), row.row + 1)
    return [each.transition for each in near if each.transition.session == row.transition.session]


def _background(reader: Reader, row: Row, history: int) -> list[list[Transition]]:
    """Return windows of earlier ticks, far enough apart for streams to change."""
    windows: list[list[Transition]] = []
    for back in range(1, BACKGROUND * 4 + 1):
        at = row.row - back * SPREAD
        if at < 1 or len(windows) == BACKGROUND:
            break
        found = reader.rows(max(1, at - history + 1), at + 1)
        if found:
            windows.append(
                [each.transition for each in found if each.transition.session == found[-1].transition.session]
            )
    return windows


def _answer(transition: Transition, parts: dict[str, Any]) -> Answer:
    return {
        "decision": transition.decision,
        "policy": transition.policy,
        "stamp": transition.stamp_s,
        "parts": {name: asdict(part) for name, part in parts.items()},
        "actions": dict(transition.actions),
        "probabilities": dict(transition.probabilities),
        "by": dict(transition.by),
        "ages_ms": {name: round(age * 1e3, 1) for name, age in transition.ages_s.items()},
        "missing": sorted(name for name, present in transition.present.items() if not present),
        "reward": transition.reward,
        "value": transition.value,
    }
