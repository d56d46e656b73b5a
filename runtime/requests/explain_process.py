"""Compute explanations of stored decisions: `python -m runtime.requests.explain_process`. The agent starts it (`explain.py`).

The first message on standard input describes the agent (`Header` of `description`), each further one is a request. Each request has
one answer on standard output: `{"answer": ...}` or `{"error": reason}`. The process ends at the end of its input. It reads stored
experience and checkpoints, and writes nothing. It imports torch only where the agent runs on torch, or for a version without a graph.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors.numpy
from numpy.typing import NDArray

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.signing import credentials_folder, load_key
from learners.checkpoints.store import Checkpoints
from learners.experience.reader import Reader, Row
from learners.experience.transition import Transition
from learners.ipc.policy_spec import spec_of_version
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.checkpoint_graph import NO_GRAPH, StoredGraph
from learners.model.backends.definitions import BackendSettings, NotCompiled
from learners.model.shapley import LIMIT_S, Explainable, NotExplainable, explain, same_encoders
from learners.model.spec import PolicySpec
from runtime.inference.compiled_engine import graph_run
from runtime.inference.engine import UNTRAINED
from runtime.inference.graph_store import Preparation
from runtime.inference.numpy_policy.input_statistics import InputStatistics
from runtime.inference.numpy_policy.policy import ArrayPolicy
from runtime.models.messages import Header, packed, receive_from
from runtime.mqtt.rpc import Answer
from runtime.process import child

if TYPE_CHECKING:
    from learners.model.policy import Policy

BACKGROUND = 16
"""Number of other ticks that replace the stream of which the contribution is measured."""
SPREAD = 32
"""Ticks between two ticks of the background; fewer while the store is young."""
MOST_BYTES = 2 << 30
"""Memory that the process may write; a request that needs more is answered with an error."""
POLL_S = 0.05
"""Between two looks for a decision that is not stored yet."""


class Unanswerable(Exception):  # noqa: N818 - reads as what happened
    """A decision that cannot be explained; `str` is the reason for the person who asked."""


@dataclass(slots=True)
class Explanations:
    """Explains stored decisions of one agent.

    Args:
        folder: `state_dir/experience`.
        checkpoints: versions of the policy.
        spec: of the agent's policy.
        seed: of the untrained weights.
        compiled: the agent runs on graphs.
        preparation: reads the untrained weights.
    """

    folder: Path
    checkpoints: Checkpoints
    spec: PolicySpec
    seed: int
    compiled: bool
    preparation: Preparation
    _last: tuple[str, Explainable] | None = field(default=None, init=False)
    """The version that explained last."""

    @classmethod
    def described(cls, header: Header) -> Explanations:
        """Build it from the first message (`explain.description`)."""
        state_dir, shared = Path(header["state_dir"]), None if header["shared"] is None else Path(header["shared"])
        spare = None if header["spare"] is None else Path(header["spare"])
        calibrations = Calibrations(state_dir, BackendSettings(**header["settings"]), shared, spare=spare)
        calibrations.convert_here = False
        return cls(
            state_dir / "experience",
            Checkpoints(state_dir / "checkpoints", load_key(state_dir, credentials_folder())),
            PolicySpec.from_json(header["spec"]),
            int(header["seed"]),
            header["runtime"] == "compiled",
            Preparation(state_dir, shared or state_dir, calibrations),
        )

    def answer(self, header: Header, body: bytes) -> Header:
        """Answer one request; whatever fails is an answer.

        Args:
            header: the decision, and the seconds to wait for it if it is not stored yet.
            body: the agent's input statistics, as safetensors.
        """
        decision = str(header["decision"])
        try:
            return {"answer": self.explain(decision, float(header["wait_s"]), safetensors.numpy.load(body))}
        except (Unanswerable, NotExplainable, CheckpointRefused, NotCompiled, ValueError) as reason:
            return {"error": f"{decision}: {reason}"}
        except Exception as error:  # noqa: BLE001 - whatever was not foreseen is an answer, not the end of the process
            sys.stderr.write(traceback.format_exc(-4))
            return {"error": f"{decision}: internal error ({type(error).__name__}); see the agent's log"}

    def explain(self, decision: str, wait_s: float, statistics: Mapping[str, NDArray[Any]]) -> Answer:
        """Explain one decision.

        Args:
            decision: its id.
            wait_s: seconds to wait until it is stored; 0 if it is not a recent one of the running agent.
            statistics: of the agent's input, as `InputStatistics.pack` returns them.

        Raises:
            Unanswerable, NotExplainable, CheckpointRefused, NotCompiled, ValueError: with the reason.
        """
        with Reader(self.folder) as reader:
            row = _stored(reader, decision, wait_s)
            version = row.transition.policy or UNTRAINED
            policy = self._policy(version, statistics)
            history = policy.spec.history
            near = reader.rows(max(1, row.row - history + 1), row.row + 1)
            window = _of_one_kind(row.transition, [each.transition for each in near])
            notes = notes_of(row, near, window, history)
            background = _background(reader, row, history)
        parts = explain(policy, window, background, limit_s=LIMIT_S)
        return _answer(row.transition, parts) | {"lineage": self._lineage(row.transition.policy), "notes": notes}

    def _policy(self, version: str, statistics: Mapping[str, NDArray[Any]]) -> Explainable:
        if self._last is None or self._last[0] != version:
            self._last = None  # two versions in memory would double it
            self._last = (version, self._read(version))
        policy = self._last[1]
        return policy if version != UNTRAINED else _with_statistics(policy, statistics)

    def _read(self, version: str) -> Explainable:
        """Return the version that decided: on a graph as the agent runs it, else in torch."""
        if self.compiled:
            with suppress(NotCompiled):  # its graph was deleted, or made for another machine; torch computes the same
                return self._on_graph(version)
        return self._in_torch(version)

    def _on_graph(self, version: str) -> ArrayPolicy:
        if version == UNTRAINED:
            spec, weights, stored = self.spec, self.preparation.untrained(self.spec, self.seed), NO_GRAPH
        else:
            loaded = self.checkpoints.load_arrays(version)
            spec, weights, stored = (
                spec_of_version(loaded) or self.spec,
                loaded.arrays["policy"],
                StoredGraph.of(loaded, self.preparation.calibrations.library),
            )
        if spec.plain:
            return ArrayPolicy(spec, weights, None)
        calibrations, first = self.preparation.calibrations, version == UNTRAINED
        return ArrayPolicy(spec, weights, graph_run(calibrations, spec, weights, first=first, stored=stored)[0])

    def _in_torch(self, version: str) -> Explainable:
        import torch  # noqa: PLC0415 - an agent on graphs explains without it

        from learners.model.policy import build  # noqa: PLC0415 - as above
        from runtime.inference.torch_engine import untrained  # noqa: PLC0415 - as above

        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        if version == UNTRAINED:
            return untrained(self.spec, self.seed)
        loaded = self.checkpoints.load(version)
        spec = spec_of_version(loaded) or self.spec
        try:
            return build(spec, loaded.tensors["policy"])
        except RuntimeError as error:
            raise Unanswerable(f"{version}: its weights do not fit its spec: {str(error).splitlines()[0]}") from None

    def _lineage(self, version: str | None) -> list[str]:
        """Return the version and its ancestors, newest first."""
        parents = {manifest.version: manifest.parent for manifest in self.checkpoints.list()}
        line: list[str] = []
        while version is not None and version not in line and len(line) < 20:
            line.append(version)
            version = parents.get(version)
        return line


def _with_statistics(policy: Explainable, rows: Mapping[str, NDArray[Any]]) -> Explainable:
    """Return the untrained weights with the input statistics that the agent has now."""
    statistics = InputStatistics(policy.spec)
    statistics.unpack(rows)
    if isinstance(policy, ArrayPolicy):
        return ArrayPolicy(policy.spec, policy.weights, statistics.applied_to(policy.fuse))
    import torch  # noqa: PLC0415 - as in `_in_torch`, which made this policy

    normalisers = cast("Policy", policy).normalisers()
    for name, one in statistics.by_stream().items():
        normalisers[name].load_state_dict({key: torch.from_numpy(x) for key, x in one.items()})
    return policy


def _stored(reader: Reader, decision: str, wait_s: float) -> Row:
    """Return the row of a decision; wait until it is there.

    Raises:
        Unanswerable: it is not there after `wait_s`.
    """
    until_s = time.monotonic() + wait_s
    while (row := reader.decision(decision)) is None:
        if time.monotonic() >= until_s:
            raise Unanswerable(
                f"this decision is not stored {wait_s:g} s after the request: the disk is slow, or the experience store dropped it"
                if wait_s
                else "no stored decision has this id; it was deleted (experience.max_gb), or the id is mistyped"
            )
        time.sleep(POLL_S)
    return row


def notes_of(row: Row, near: list[Row], window: list[Transition], history: int) -> list[str]:
    """Return in words how what is explained differs from what the policy saw.

    Args:
        row: of the decision.
        near: the stored rows of the last `history` rows.
        window: those of them that belong to its history.
        history: ticks that the policy reads.
    """
    notes: list[str] = []
    if (row.transition.policy or UNTRAINED) == UNTRAINED:
        notes.append("the untrained policy scales telemetry by all that it has seen until now, not until this decision")
    if len(near) < min(history, row.row) and len(window) == len(near) and window[0].tick > 0:
        notes.append(f"the ticks before {window[0].decision} are deleted, so the history repeats this one instead")
    for one, two in pairwise(window):
        if two.tick != one.tick + 1:
            notes.append(
                f"no tick is stored from {one.decision} to {two.decision}: one that was decided there is not shown"
            )
    return notes


def _background(reader: Reader, row: Row, history: int) -> list[list[Transition]]:
    """Return windows of earlier ticks of the same encoder versions, as far apart as the store allows, at most `SPREAD`.

    Streams change little between neighbours, so the first decisions of an agent have small contributions.
    """
    earlier = row.row - max(1, reader.first_row())
    spread = max(1, min(SPREAD, earlier // BACKGROUND))
    windows: list[list[Transition]] = []
    for back in range(1, BACKGROUND * 4 + 1):
        at = row.row - back * spread
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


def _answer(transition: Transition, parts: Mapping[str, Any]) -> Answer:
    return {
        "decision": transition.decision,
        "policy": transition.policy,
        "stamp": transition.stamp_s,
        "parts": {name: asdict(part) for name, part in parts.items()},
        "actions": dict(transition.actions),
        "proposed": dict(transition.proposed),
        "refused": dict(transition.refused),
        "allowed": dict(transition.allowed),
        "probabilities": dict(transition.probabilities),
        "by": dict(transition.by),
        "ages_ms": {name: round(age * 1e3, 1) for name, age in transition.ages_s.items()},
        "missing": sorted(name for name, present in transition.present.items() if not present),
        "reward": transition.reward,
        "value": transition.value,
    }


def main() -> int:
    """Answer until the input ends; return the exit code."""
    child.set_process_title("explain")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES if hard < 0 else min(hard, MOST_BYTES), hard))
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not break a message
        try:
            explanations = Explanations.described(receive_from(sys.stdin.buffer)[0])
            while True:
                answers.write(packed(explanations.answer(*receive_from(sys.stdin.buffer))))
        except (EOFError, BrokenPipeError):
            return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to write; the libraries' own end takes seconds on a busy core
