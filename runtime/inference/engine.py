"""Inference off the event loop: one thread, cached tokens, weights that change between two ticks.

`decide` awaits the inference thread, which encodes the streams that have something new (those that share an encoder in one
batch), fuses, stores the history and runs the heads. A compiled policy without encoders decides in the event loop instead while
its decisions are short (`decision_times.py`). All else stays in the thread, and a decision that comes meanwhile follows it there. The
engine holds several loaded versions, of which one acts. `load` reads
a version in a loader thread and compiles it at low priority while ticks go on. `activate` moves the pointer in the inference
thread: a tick never sees a mix of two versions, and a return to a loaded version takes one tick. Tokens are rounded to float16
before they are used, so that the stored tokens are exactly those of the decision.

`stream_tokens.py` encodes readings and remembers their tokens. Encoders with `when: arrival` make theirs beside the tick
(`arrival_encoder.py`).

This module imports no torch. `compiled_engine.py` runs graphs, `torch_engine.py` runs torch.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from learners.checkpoints.manifest import CheckpointRefused
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.definitions import BackendChoice, EncoderNotCompiled, NotCompiled
from learners.model.spec import PolicySpec
from runtime.inference.decision import HeadRow, InferenceResult, Masks, actions_of, choices_of, masks_of
from runtime.inference.decision_times import DecisionTimes
from runtime.inference.graph_compiler import CompilationFailed, GraphCompiler
from runtime.inference.numpy_policy.history import Fuse, ObservationHistory
from runtime.inference.numpy_policy.input_statistics import InputStatistics
from runtime.inference.second_version import OtherDecision, SecondPolicy
from runtime.inference.stream_tokens import StreamTokens
from sensors.config import FieldKind
from sensors.readings import Observation, Reading

__all__ = ["UNTRAINED", "Engine", "EngineSnapshot", "InferenceResult"]

UNTRAINED = "untrained"
"""The version of weights that no checkpoint holds."""
MOST_LOADED = 4
"""Versions in memory at once: the acting one, the one before it, a candidate, and one to spare."""
HISTORY_FILE = "history.safetensors"
ENCODER_FILE = "encoder-"
"""Fine-tuned weights of encoder NAME are the checkpoint's file `encoder-NAME.safetensors`."""
NEEDS_TORCH = "needs_torch"
"""The reason of a refusal: only an engine in torch that holds the modules of its encoders can run the version."""


_Prepared = TypeVar("_Prepared")


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """Everything of one version that a tick uses; the engine replaces it as a whole."""

    version: str
    policy: Any
    """As the kind of engine has it."""
    encoders: dict[str, Any]
    """By their name in the settings; each is `Versioned`."""
    fuse: Fuse
    choice: BackendChoice | None = None
    """What runs the fused part; None where no backend was chosen."""


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The state of an engine between two ticks."""

    files: dict[str, bytes]
    """The history and the memory of exploration noise, by file name."""
    tick: int
    """The last tick in it; -1 before the first one."""
    version: str
    """Of the policy."""
    encoders: dict[str, str]
    """The version of every encoder by its name."""


class Engine(ABC):
    """The policy and its encoders, acting.

    Args:
        spec: of the policy.
        encoders: those to start with, by their name in the settings.
        routes: which encoder reads each stream; telemetry has none.
        calibrations: chooses backends and remembers them.
        version: name of the weights to start with.
        seed: of exploration; each tick draws from a generator seeded with it and the tick's number.
        field_kinds: by telemetry stream, the fields that are no plain numbers.
        at_arrival: names of encoders that encode readings when these arrive, through `arrivals`.
    """

    runtime: str
    """`compiled` or `torch`: what runs the models and draws the actions."""
    device_name = "cpu"
    """Where the policy lives."""

    def __init__(
        self,
        spec: PolicySpec,
        encoders: dict[str, Any],
        routes: Mapping[str, str],
        calibrations: Calibrations,
        *,
        version: str = UNTRAINED,
        seed: int = 0,
        field_kinds: Mapping[str, Mapping[str, FieldKind]] | None = None,
        at_arrival: Collection[str] = (),
    ) -> None:
        self.spec, self.encoders, self.routes, self.calibrations = spec, encoders, routes, calibrations
        self.version, self.seed, self.field_kinds = version, seed, field_kinds or {}
        self.choices: dict[str, BackendChoice] = {}
        """What runs each encoder, and the fused part of the acting version under `policy`."""
        self.compiler: GraphCompiler | None = None
        """Compiles what a checkpoint or an encoder lacks in another process. Without one, this process converts."""
        self.fuse_history_as_batch = False
        """Whether new weights fuse the history in one batch. Only a replay of recordings that state no conditions sets it."""
        threads = calibrations.settings.threads
        self._inference = ThreadPoolExecutor(1, "inference", self._prepare_thread, (threads,))
        self._loader = ThreadPoolExecutor(1, "loader", self._prepare_thread, (threads,))
        self._tokens = StreamTokens(
            spec,
            routes,
            field_kinds=self.field_kinds,
            at_arrival=at_arrival,
            encode=self._encode,
            acting=lambda: self._live.encoders,
            prepare_thread=partial(self._prepare_thread, threads),
        )
        self.arrivals = self._tokens.arrivals
        """Encodes readings when they arrive, beside the tick."""
        self._past = ObservationHistory(spec)
        self._statistics = InputStatistics(spec)
        self._durations = DecisionTimes() if self.runtime == "compiled" and not routes else None
        """None where an encoder or torch takes part: these need the thread at any time."""
        self._between: list[Future[Any]] = []
        """What was given to the inference thread and is not over."""
        self._loading = asyncio.Lock()
        self._stream: AbstractContextManager[Any] = nullcontext()
        self._second = SecondPolicy(spec.history)
        self._last: tuple[NDArray[np.float32], Any, Masks] | None = None
        """States, output and masks of the last decision, if it explored."""
        self._tick = -1  # the last one that was decided
        self._live = self._inference.submit(self._begin).result()
        self._pretrained = dict(self.encoders)
        """The encoders of the start, as the settings name them."""
        self._versions = {self.version: self._live}
        """The loaded versions by name, the acting one among them; the inference thread alone changes it."""

    def _begin(self) -> LoadedVersion:
        first = self._first()
        self._note_choice(first)
        fuse = self._statistics.applied_to(first.fuse) if self.version == UNTRAINED else first.fuse
        return replace(first, fuse=fuse)

    def _note_choice(self, acting: LoadedVersion) -> None:
        """Show what runs the version that acts; a version that is only loaded, or explains, changes nothing."""
        if acting.choice is not None:
            self.choices["policy"] = acting.choice

    @abstractmethod
    def _prepare_thread(self, threads: int) -> None:
        """Set what belongs to a thread of inference or loading.

        Both threads have the priority of the process. A thread of lower priority could lose its core while it holds the
        interpreter lock, and the tick would wait for it. Graphs are compiled at low priority, without that lock (`OpenVinoRun`).
        """

    @abstractmethod
    def _first(self) -> LoadedVersion:
        """Make the version to start with, in the inference thread."""

    @abstractmethod
    def _prepare(self, version: str) -> LoadedVersion:
        """Read a version and compile it, in the loader thread.

        Raises:
            CheckpointRefused: it may not be loaded.
            NotCompiled: a graph is missing.
        """

    @abstractmethod
    def _encode(self, encoder: Any, readings: Sequence[Reading]) -> NDArray[np.float16]:
        """Return the tokens [B, T, W] of readings of one modality."""

    @abstractmethod
    def _act(
        self,
        live: LoadedVersion,
        states_BHD: NDArray[np.float32],
        tick: int,
        explore: bool | float,  # noqa: FBT001 - as in decide
        masks: Masks,
    ) -> HeadRow:
        """Draw an action for each actuator."""

    @abstractmethod
    def _compared(
        self,
        other: LoadedVersion,
        theirs_BHD: NDArray[np.float32],
        live: LoadedVersion,
        ours_BHD: NDArray[np.float32],
        out: Any,
        masks: Masks,
    ) -> OtherDecision:
        """Return what a version would have done, given its states, and the states, output and masks of the acting one."""

    @abstractmethod
    def _exploration_state(self) -> dict[str, NDArray[Any]]:
        """Return what the next draw depends on, by name."""

    @abstractmethod
    def _restore_exploration(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `_exploration_state` returned; further names are ignored."""

    @abstractmethod
    def _released(self, loaded: LoadedVersion) -> None:
        """Reuse what a released version held."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes that a checkpoint's files must hold."""

    @property
    @abstractmethod
    def untrained_digest(self) -> str:
        """The digest of the weights to start with; only for these."""

    @abstractmethod
    def exploration_share(self) -> float | None:
        """Return how much the acting policy explores: the share of random choices, else the factor on its noise; None for a bandit."""

    @property
    @abstractmethod
    def has_excursions(self) -> bool:
        """Whether exploration of the acting policy depends on all ticks before."""

    @property
    def encoder_versions(self) -> dict[str, str]:
        """The version of the encoder behind each stream."""
        return {stream: self._live.encoders[name].version for stream, name in self.routes.items()}

    def input_statistics(self) -> dict[str, NDArray[Any]]:
        """Return the statistics by which untrained weights normalise telemetry; from any thread."""
        return self._statistics.pack()

    def close(self) -> None:
        """End all threads; a running decision is completed first."""
        self.arrivals.close()
        self._loader.shutdown(wait=True)
        self._inference.shutdown(wait=True)
        self.calibrations.close()

    async def _between_ticks(self, work: Callable[..., _Prepared], *arguments: Any) -> _Prepared:
        """Run what no tick may meet halfway in the inference thread."""
        future = self._inference.submit(work, *arguments)
        self._between = [*(other for other in self._between if not other.done()), future]
        return await asyncio.wrap_future(future)

    async def decide(self, observation: Observation, *, explore: bool | float = False) -> InferenceResult:
        """Compute the actions for an observation."""
        times = self._durations
        if times is None:
            return await self._between_ticks(self._decide, observation, explore)
        is_alone = all(other.done() for other in self._between)
        if is_alone and times.is_short(self._live.version):  # `version` follows a swap a turn later
            result = self._decide(observation, explore)
        else:
            result = await self._between_ticks(self._decide, observation, explore)
        times.add(result.policy, result.latency_s)
        return result

    async def compare(self, version: str) -> OtherDecision | None:
        """Return what another loaded version would have done at the last tick.

        None if it is not loaded, has other encoders, or the policy did not explore.
        """
        return await self._between_ticks(self._compare, version)

    async def snapshot(self) -> EngineSnapshot:
        """Return everything the next decision depends on besides its observation: what a recording needs at its begin."""
        return await self._between_ticks(self._pack)

    async def restore(self, files: Mapping[str, bytes]) -> None:
        """Continue from the files of a snapshot, before the first decision of a replay.

        Raises:
            KeyError, safetensors.SafetensorError: the files are not a snapshot.
        """
        await self._between_ticks(self._unpack, files[HISTORY_FILE])

    def _pack(self) -> EngineSnapshot:
        live = self._live
        rows = self._past.pack(states=live.version == UNTRAINED) | self._exploration_state() | self._statistics.pack()
        data = safetensors.numpy.save(
            {name: x.copy(order="C") for name, x in rows.items()} or {"empty": np.zeros(1, np.float32)}
        )
        encoders = {name: encoder.version for name, encoder in live.encoders.items()}
        return EngineSnapshot({HISTORY_FILE: data}, self._tick, live.version, encoders)

    def _unpack(self, data: bytes) -> None:
        rows = safetensors.numpy.load(data)
        self._statistics.unpack(rows)
        self._past.unpack(rows, self._live.fuse, states=self._live.version == UNTRAINED)
        self._restore_exploration(rows)

    @property
    def loaded(self) -> frozenset[str]:
        """The names of the loaded versions, the acting one among them."""
        return frozenset(self._versions)

    async def load(self, version: str) -> None:
        """Load a version while the present one acts: read, compile and warm up in the loader thread.

        A loaded version stays as it is.

        Raises:
            CheckpointRefused, or whatever else `load_weights` raises: nothing changes. The reason is `not_compiled` if the
                checkpoint has no graph for this machine and none could be made.
            RuntimeError: `MOST_LOADED` versions are loaded; release one first.
        """
        async with self._loading:
            if version in self._versions:
                return
            if len(self._versions) >= MOST_LOADED:
                raise RuntimeError(
                    f"{len(self._versions)} versions are loaded, at most {MOST_LOADED}: release one first"
                )
            try:
                loaded = await self._compiled(partial(self._prepare, version), version)
            except (CompilationFailed, NotCompiled) as reason:
                raise CheckpointRefused(version, "not_compiled", str(reason)) from None
            await self._between_ticks(self._add, loaded)

    async def _compiled(self, prepare: Callable[[], _Prepared], version: str) -> _Prepared:
        """Run `prepare` in the loader thread; let another process compile what it lacks, each part once.

        Raises:
            CompilationFailed, NotCompiled: a part is still missing.
        """
        loop, tried = asyncio.get_running_loop(), set[str]()
        while True:
            try:
                return await loop.run_in_executor(self._loader, prepare)
            except NotCompiled as missing:
                part = missing.name if isinstance(missing, EncoderNotCompiled) else ""
                if self.compiler is None or part in tried:
                    raise
                tried.add(part)
                if isinstance(missing, EncoderNotCompiled):
                    await self.compiler.encoder(part, missing.version, str(missing))
                else:
                    await self.compiler.policy(version, str(missing))

    async def activate(self, version: str) -> None:
        """Make a loaded version act from the next tick on.

        Raises:
            KeyError: it is not loaded.
        """
        await self._between_ticks(self._flip, version)
        self.version = version

    async def release(self, version: str) -> None:
        """Free the memory of a version that does not act; one that is not loaded is ignored.

        Raises:
            ValueError: it acts.
        """
        await self._between_ticks(self._remove, version)
        if self._durations is not None:
            self._durations.forget(version)

    async def switch(self, version: str) -> None:
        """Load and activate a version, and release all others but the one that acted before.

        Raises:
            CheckpointRefused, or whatever else `load_weights` raises: nothing changes.
        """
        before = self.version
        for other in self.loaded - {version, before}:
            await self.release(other)
        await self.load(version)
        await self.activate(version)

    async def load_encoder(self, name: str, state: Mapping[str, Any]) -> bool:
        """Load other weights into an encoder of the acting version between two ticks; False where it has them already.

        This is for an untrained policy and for replays: a trained policy acts with the encoders of its manifest. Cached tokens of the older weights are not used again: current readings are encoded again, and the history is cleared.

        Raises:
            RuntimeError: a weight is missing, unknown or of another shape.
            CompilationFailed, NotCompiled: it has no graph for this machine, and none could be made.
        """
        async with self._loading:
            tuned = await self._compiled(partial(self._with_state, name, self.encoders[name], state), "")
            if tuned is self._live.encoders[name]:
                return False
            await self._between_ticks(self._take, name, tuned)
        return True

    @abstractmethod
    def _with_state(self, name: str, base: Any, state: Mapping[str, Any]) -> Any:
        """Return a copy of an encoder with other weights, or the acting encoder where it has the same.

        Raises:
            RuntimeError: the weights do not fit, or this engine changes no weights of encoders.
        """

    def _take(self, name: str, tuned: Any) -> None:
        """Replace an encoder of the acting version between two ticks."""
        self.encoders = {**self.encoders, name: tuned}
        self._live = self._versions[self._live.version] = replace(self._live, encoders=self.encoders)
        self._past.clear()

    def _add(self, loaded: LoadedVersion) -> None:
        self._versions[loaded.version] = loaded

    def _remove(self, version: str) -> None:
        if version == self._live.version:
            raise ValueError(f"policy version {version} acts; activate another one before its release")
        released = self._versions.pop(version, None)
        if released is not None:
            self._released(released)

    def _flip(self, version: str) -> None:
        """Activate loaded weights between two ticks; they fuse the history again, as they were trained."""
        live = self._versions[version]
        if live is self._live:
            return
        if any(encoder.version != self._live.encoders[name].version for name, encoder in live.encoders.items()):
            self._past.clear()
        self._live, self.encoders = live, live.encoders
        self._note_choice(live)
        self._fuse_history_again(live)

    def _fuse_history_again(self, live: LoadedVersion) -> None:
        self._past.fuse_again(live.fuse)

    def _decide(self, observation: Observation, explore: bool | float) -> InferenceResult:  # noqa: FBT001 - as in decide
        start = time.perf_counter()
        live = self._live
        self._tick = observation.tick
        with self._stream:
            encoded, encode_s = self._tokens.encode_new(live.encoders, observation)
            not_finite = self._tokens.not_finite(observation)
            observation = observation.without(not_finite)
            features = self._tokens.features(observation)
            if live.version == UNTRAINED:
                self._statistics.observe(features, observation.fresh & observation.readings.keys())
            states_BHD = self._past.take(features, live.fuse)
            masks = masks_of(self.spec, observation.allowed)
            out = self._act(live, states_BHD, observation.tick, explore, masks)
            self._last = (states_BHD, out, masks) if explore is True else None
            actions, scores = actions_of(self.spec, out)
            choices = choices_of(self.spec, out)
        if not all(np.isfinite(values).all() for values in scores.values()):
            raise ValueError(
                f"{live.version}: the scores of the choices are not finite; no decision is drawn from them"
            )
        tokens, versions = self._tokens.of(observation)
        value = float(out.value[0])
        latency_s = time.perf_counter() - start
        encoders = {name: encoder.version for name, encoder in live.encoders.items()}
        return InferenceResult(
            *(live.version, actions, value, tokens, versions, scores, latency_s, encoded, choices, encode_s, encoders),
            not_finite=not_finite,
        )

    def _compare(self, version: str) -> OtherDecision | None:
        live, other = self._live, self._versions.get(version)
        if other is None or other is live or self._last is None:
            return None
        if any(encoder.version != live.encoders[name].version for name, encoder in other.encoders.items()):
            return None
        with self._stream:
            states_BHD, out, masks = self._last
            theirs_BHD = self._second.states(version, self.spec.names, other.fuse, self._past.window(), self._tick)
            return self._compared(other, theirs_BHD, live, states_BHD, out, masks)
