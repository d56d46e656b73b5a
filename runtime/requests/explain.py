"""Answer `request/explain`: the contribution of each stream to a decision, ages, lineage, what was executed and by whom.

Reads stored experience, not the running tick. The version that took the decision explains it, in one thread with the priority of
the agent; the work is bounded by `BUDGET` and `LIMIT_S` of `learners.model.shapley`. A thread of lower priority loses its core to
other processes while it holds the interpreter lock. The tick waits for that lock: 230 ms at p99 on a busy machine.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints
from learners.experience.reader import Reader, Row
from learners.experience.transition import Transition
from learners.ipc.policy_spec import spec_of_version
from learners.model.backends.choice import NotCompiled
from learners.model.shapley import LIMIT_S, Explainable, NotExplainable, explain, same_encoders
from runtime.inference.compiled_engine import CompiledEngine
from runtime.inference.engine import UNTRAINED, Engine
from runtime.mqtt.rpc import Answer, RequestFailed

BACKGROUND = 16
"""Number of other ticks that replace the stream of which the contribution is measured."""
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
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "explain"))

    async def explain(self, decision: str) -> Answer:
        """Explain one decision.

        Raises:
            RequestFailed: it is not on record, or cannot be explained.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, self._explain, decision)
        except (NotExplainable, CheckpointRefused, NotCompiled, ValueError) as error:
            raise RequestFailed(f"{decision}: {error}") from None

    def _explain(self, decision: str) -> Answer:
        with Reader(self.folder) as reader:
            row = reader.decision(decision)
            if row is None:
                raise RequestFailed(
                    f"{decision}: no stored decision has this id; it was deleted (experience.max_gb), or the id is mistyped"
                )
            policy = self._policy(row.transition.policy)
            history = policy.spec.history
            window = _window(reader, row, history)
            background = _background(reader, row, history)
        parts = explain(policy, window, background, limit_s=LIMIT_S)
        return _answer(row.transition, parts) | {"lineage": self._lineage(row.transition.policy)}

    def _policy(self, version: str) -> Explainable:
        """Return the version that decided, on a graph of its own or in torch, as the engine runs."""
        engine = self.engine
        return engine.explaining(version) if isinstance(engine, CompiledEngine) else self._in_torch(version)

    def _in_torch(self, version: str) -> Explainable:
        import torch  # noqa: PLC0415 - this agent has imported it

        from learners.model.policy import build  # noqa: PLC0415 - as above
        from runtime.inference.torch_engine import TorchEngine, untrained  # noqa: PLC0415 - as above

        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        engine = self.engine
        if version == engine.version and isinstance(engine, TorchEngine):
            return engine.frozen_policy()
        if version == UNTRAINED:
            return untrained(engine.spec, self.seed)
        loaded = self.checkpoints.load(version)
        spec = spec_of_version(loaded) or engine.spec
        try:
            return build(spec, loaded.tensors["policy"])
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
    """Return the decision and the ticks of its history, oldest first: of its session, since the last encoder swap."""
    near = [each.transition for each in reader.rows(max(1, row.row - history + 1), row.row + 1)]
    return _of_one_kind(row.transition, near)


def _background(reader: Reader, row: Row, history: int) -> list[list[Transition]]:
    """Return windows of earlier ticks of the same encoder versions, far enough apart for streams to change."""
    windows: list[list[Transition]] = []
    for back in range(1, BACKGROUND * 4 + 1):
        at = row.row - back * SPREAD
        if at < 1 or len(windows) == BACKGROUND:
            break
        found = [each.transition for each in reader.rows(max(1, at - history + 1), at + 1)]
        if found and same_encoders(row.transition, found[-1]):
            windows.append(_of_one_kind(found[-1], found))
    return windows


def _of_one_kind(last: Transition, ticks: list[Transition]) -> list[Transition]:
    """Return the end of a window that is of one session and of the same encoder versions as its last tick."""
    transitions: list[Transition] = []
    for tick in reversed(ticks):
        if tick.session != last.session or not same_encoders(last, tick):
            break
        transitions.insert(0, tick)
    return transitions


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
