"""The engine on graphs: OpenVINO, or ONNX Runtime where it is not installed, runs encoders and the fused part, numpy runs the heads and draws the actions. No torch.

A version needs a graph of its fused part: of its checkpoint, else one that the compiler process made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.checkpoints.manifest import CheckpointRefused, LoadedCheckpoint
from learners.checkpoints.safetensors_numpy import shapes_of
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.checkpoint_graph import FIRST, LATER, NO_GRAPH, StoredGraph, digest_of
from learners.model.backends.definitions import CPU, BackendChoice, NotCompiled, readable_graph
from learners.model.backends.graph_libraries import missing_reason
from learners.model.spec import PolicySpec
from runtime.inference.decision import Masks, actions_of
from runtime.inference.engine import ENCODER_FILE, NEEDS_TORCH, UNTRAINED, Engine, LoadedVersion
from runtime.inference.graph_store import ArrayEncoder, stored_graph
from runtime.inference.numpy_policy.history import Fuse
from runtime.inference.numpy_policy.policy import ArrayPolicy, Weights
from runtime.inference.numpy_policy.sampling import ArrayOutput, Exploration, generator_of
from runtime.inference.second_version import OtherDecision
from sensors.config import FieldKind
from sensors.readings import Reading

MOST_REASON = 200
"""Characters of an error of a library of graphs that another one quotes."""


class CompiledEngine(Engine):
    """The policy and its encoders as graphs.

    Args:
        spec: of the policy.
        weights: to start with.
        encoders: by their name in the settings.
        routes: which encoder reads each stream; telemetry has none.
        calibrations: reads choices and graphs.
        load_weights: reads and verifies a version's weights as arrays; `load` raises what it raises.
        version: name of the weights to start with.
        seed: of exploration; each tick draws from a generator seeded with it and the tick's number.
        field_kinds: by telemetry stream, the fields that are no plain numbers.
        at_arrival: names of encoders that encode readings when these arrive.

    Raises:
        NotCompiled: there is no graph of the weights to start with.
    """

    runtime = "compiled"

    def __init__(
        self,
        spec: PolicySpec,
        weights: Weights,
        encoders: dict[str, ArrayEncoder],
        routes: Mapping[str, str],
        calibrations: Calibrations,
        load_weights: Callable[..., LoadedCheckpoint],
        *,
        version: str = UNTRAINED,
        seed: int = 0,
        field_kinds: Mapping[str, Mapping[str, FieldKind]] | None = None,
        at_arrival: Collection[str] = (),
    ) -> None:
        self.load_weights, self._weights = load_weights, weights
        self._memory = Exploration(sum(len(a.low) for a in spec.actions.continuous))
        calibrations.convert_here = False
        super().__init__(
            spec,
            encoders,
            routes,
            calibrations,
            version=version,
            seed=seed,
            field_kinds=field_kinds,
            at_arrival=at_arrival,
        )

    def _prepare_thread(self, threads: int) -> None:
        """A library of graphs has threads of its own, and flushes denormals itself."""

    def _first(self) -> LoadedVersion:
        for name, encoder in self.encoders.items():
            choice = self.calibrations.recall(encoder.version, CPU)
            if choice is not None:
                self.choices[name] = choice
        policy, choice = self._policy(self._weights, first=True)
        return LoadedVersion(self.version, policy, self.encoders, policy.fuse, choice)

    def _policy(
        self, weights: Weights, *, first: bool = False, stored: StoredGraph = NO_GRAPH
    ) -> tuple[ArrayPolicy, BackendChoice | None]:
        """Return a version with its graph compiled and warmed up, and what runs the graph.

        Raises:
            NotCompiled: there is none.
        """
        if self.spec.plain:
            return ArrayPolicy(self.spec, weights, None), None
        run, choice = graph_run(self.calibrations, self.spec, weights, first=first, stored=stored)
        return ArrayPolicy(self.spec, weights, run), choice

    def _prepare(self, version: str) -> LoadedVersion:
        loaded = self.load_weights(version, self.shapes, self.spec.meaning())
        self._check_encoders(loaded)
        stored = StoredGraph.of(loaded, self.calibrations.library)
        try:
            policy, choice = self._policy(loaded.arrays["policy"], stored=stored)
        except NotCompiled as missing:
            raise NotCompiled(stored.reason or str(missing)) from None
        return LoadedVersion(version, policy, dict(self._pretrained), policy.fuse, choice)

    def _check_encoders(self, loaded: LoadedCheckpoint) -> None:
        """Check that the checkpoint was trained with the encoders that are here.

        Raises:
            CheckpointRefused: it was trained with others.
        """
        manifest = loaded.manifest
        for name, encoder in self._pretrained.items():
            if ENCODER_FILE + name in loaded.arrays:
                detail = f"it contains weights of encoder {name}; the daemon loads them in torch at its next start, if engine.runtime allows it"
                raise CheckpointRefused(manifest.version, NEEDS_TORCH, detail)
            routed = {stream for stream, route in self.routes.items() if route == name}
            wanted = {version for stream, version in manifest.encoder_versions.items() if stream in routed}
            if wanted - {encoder.version}:
                detail = f"it was trained with version {' and '.join(sorted(wanted))} of encoder {name}, which is not on disk"
                raise CheckpointRefused(manifest.version, "encoder_missing", detail)

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes that a checkpoint's files must hold."""
        return {"policy": shapes_of(self._weights)}

    @property
    def untrained_digest(self) -> str:
        """The digest of the weights to start with."""
        return digest_of(self.spec.to_json(), self._weights)

    def exploration_share(self) -> float | None:
        """Return how much the acting policy explores: the share of random choices, else the factor on its noise; None for a bandit."""
        policy: ArrayPolicy = self._live.policy
        return policy.exploration_share()

    @property
    def has_excursions(self) -> bool:
        """Whether exploration of the acting policy depends on all ticks before."""
        policy: ArrayPolicy = self._live.policy
        return policy.excursion_share > 0

    def _encode(self, encoder: ArrayEncoder, readings: Sequence[Reading]) -> NDArray[np.float16]:
        return encoder.encode(readings).astype(np.float16)

    def _act(
        self,
        live: LoadedVersion,
        states_BHD: NDArray[np.float32],
        tick: int,
        explore: bool | float,  # noqa: FBT001 - as in decide
        masks: Masks,
    ) -> ArrayOutput:
        policy: ArrayPolicy = live.policy
        return policy.act(states_BHD, generator_of(self.seed, tick), self._memory, explore=explore, masks=masks)

    def _compared(
        self,
        other: LoadedVersion,
        theirs_BHD: NDArray[np.float32],
        live: LoadedVersion,
        ours_BHD: NDArray[np.float32],
        out: Any,
        masks: Masks,
    ) -> OtherDecision:
        theirs, ours = other.policy, live.policy
        best = theirs.act(theirs_BHD, generator_of(0, 0), Exploration(0), explore=False, masks=masks)
        own, by_acting = (p.taken(s, best.values, masks) for p, s in ((theirs, theirs_BHD), (ours, ours_BHD)))
        values = {name: action.value for name, action in actions_of(self.spec, best)[0].items()}
        actions = {n: {"value": v, "probability": own[n], "acting": by_acting[n]} for n, v in values.items()}
        return OtherDecision(other.version, actions, theirs.taken(theirs_BHD, out.values, masks))

    def _exploration_state(self) -> dict[str, NDArray[Any]]:
        return self._memory.state()

    def _restore_exploration(self, rows: Mapping[str, NDArray[Any]]) -> None:
        self._memory.restore(rows)

    def _released(self, loaded: LoadedVersion) -> None:
        """A graph holds nothing that another version could use."""

    def _with_state(self, name: str, base: Any, state: Mapping[str, Any]) -> Any:
        raise RuntimeError(
            f"encoder {name}: only engine.runtime: torch loads {len(state)} other weights into {base.version}"
        )


def graph_run(
    calibrations: Calibrations, spec: PolicySpec, weights: Weights, *, first: bool, stored: StoredGraph = NO_GRAPH
) -> tuple[Fuse, BackendChoice]:
    """Return the fused part of a policy on its graph, warmed up, and the choice of its precision.

    A reduced precision runs only where the learner, or the compiler process, found that these weights decide alike in it.

    Args:
        calibrations: reads choices and graphs.
        spec: of the policy.
        weights: by name.
        first: these are the weights a daemon starts with.
        stored: the graph of the checkpoint.

    Raises:
        NotCompiled: there is no graph for this machine, or the library cannot run it.
    """
    version = f"{FIRST if first else LATER}-{digest_of(spec.to_json(), weights)}"
    library = calibrations.library
    if library is None:
        raise NotCompiled(missing_reason(calibrations.settings.backend))
    choice = calibrations.recall(hashlib.sha256(spec.to_json()).hexdigest()[:16], CPU)
    if choice is None or choice.backend != library.name:
        raise NotCompiled(f"{version}: no choice of a graph is stored")
    if choice.precision != "float32" and calibrations.settings.precision == "auto":
        verdict = stored.same_decisions
        if verdict is None:
            known = calibrations.recall(version, CPU)
            verdict = known is not None and known.precision == choice.precision
        choice = choice if verdict else replace(choice, precision="float32")
    folders = calibrations.folders(shared=first)
    tokens = [np.zeros((1, s.tokens, s.width), np.float32) for s in spec.streams]
    count = len(spec.streams)
    inputs = (np.ones((1, count), bool), np.full((1, count), 0.1, np.float32), *tokens)

    def started(graph: Any) -> Fuse:
        try:
            run = library.run(graph, choice.precision, calibrations.settings.threads, background=not first)
            run.warm_up(*inputs)
        except RuntimeError as error:  # a library reads graphs that it cannot compile, or that take other inputs
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise NotCompiled(f"{version}: its graph does not run: {reason[:MOST_REASON]}") from None
        return run.arrays

    if stored.files is None:
        return started(stored_graph(library, version, folders)), choice
    try:
        return started(readable_graph(version, stored.files, library)), choice
    except NotCompiled as unusable:
        try:
            return started(stored_graph(library, version, folders)), choice
        except NotCompiled:
            raise unusable from None
