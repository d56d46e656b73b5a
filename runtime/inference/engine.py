"""Inference off the event loop: one thread, cached tokens, weights that change between two ticks.

`decide` awaits the inference thread, which encodes the streams that have something new (those that share an encoder in one
batch), fuses, stores the history and runs the heads. The engine holds several loaded versions, of which one acts. `load` reads
a version in a loader thread and compiles it at low priority while ticks go on. `activate` moves the pointer in the inference
thread: a tick never sees a mix of two versions, and a return to a loaded version takes one tick. Tokens are rounded to float16
before they are used, so that the stored tokens are exactly those of the decision.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.checkpoints.manifest import CheckpointRefused, LoadedCheckpoint
from learners.checkpoints.tensors import Shapes, shapes_of
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.cuda import CudaGraphRun, stream_of
from learners.model.backends.selection import BackendChoice, EncoderNotCompiled, NotCompiled, Run
from learners.model.compiled import FlatPolicyModule, Window, example_inputs
from learners.model.encoders.base import Encoder
from learners.model.features import Features
from learners.model.heads import HeadOutput
from learners.model.policy import Policy
from learners.model.spec import PolicySpec
from runtime.inference.comparison import OtherDecision, SecondPolicy, compare
from runtime.inference.compiled_policy import NO_GRAPH, StoredGraph, compile_policy
from runtime.inference.decision import InferenceResult, actions_of, choices_of
from runtime.inference.graph_compiler import CompilationFailed, GraphCompiler
from runtime.inference.history import ObservationHistory
from runtime.inference.input_statistics import InputStatistics
from sensors.codecs.telemetry_numbers import policy_numbers
from sensors.config import AngleField, EnumField
from sensors.readings import Observation, Reading, Telemetry

__all__ = ["UNTRAINED", "Engine", "EngineSnapshot", "InferenceResult"]

WINDOWS, WINDOW_EVERY = 64, 16
"""Number of recorded observations, and the ticks between two of them: a minute and a half at 10 Hz."""
UNTRAINED = "untrained"
"""The version of weights that no checkpoint holds."""
MOST_LOADED = 4
"""Versions in memory at once: the acting one, the one before it, a candidate, and one to spare."""
HISTORY_FILE = "history.safetensors"
ENCODER_FILE = "encoder-"
"""Fine-tuned weights of encoder NAME are the checkpoint's file `encoder-NAME.safetensors`."""


_Prepared = TypeVar("_Prepared")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Everything of one version that a tick uses; the engine replaces it as a whole."""

    version: str
    policy: Policy
    encoders: dict[str, Encoder]
    fuse: Run


@dataclass(slots=True)
class _Cached:
    reading: Reading
    version: str
    tokens_TW: NDArray[Any]


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


@dataclass(slots=True)
class Engine:
    """The policy and its encoders, acting.

    Args:
        policy: the weights to start with.
        encoders: by their name in the settings.
        routes: which encoder reads each stream; telemetry has none.
        calibrations: chooses backends and remembers them.
        load_weights: reads and verifies a version's weights, which must have the given shapes and meaning; `load` raises what it raises.
        find_encoder: finds the weights of the encoder versions that a policy's manifest names.
        version: name of the weights to start with.
        device: where the policy lives.
        seed: of exploration; each tick draws from a generator seeded with it and the tick's number.
    """

    policy: Policy
    encoders: dict[str, Encoder]
    routes: Mapping[str, str]
    calibrations: Calibrations
    load_weights: Callable[[str, Mapping[str, Shapes], Mapping[str, Any]], LoadedCheckpoint]
    find_encoder: Callable[[str, str, Encoder], Mapping[str, Tensor] | None] = lambda _name, _version, _base: None
    """Returns the weights of an encoder in a version, given the encoder in another one; None if they are not on disk."""
    version: str = UNTRAINED
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    choices: dict[str, BackendChoice] = field(default_factory=dict)
    """What runs each encoder, and the fused part under `policy`."""
    field_kinds: Mapping[str, Mapping[str, AngleField | EnumField]] = field(default_factory=dict)
    """By telemetry stream, the fields that are no plain numbers."""
    compiler: GraphCompiler | None = None
    """Compiles what a checkpoint or an encoder lacks in another process. Without one, this process converts."""
    fuse_history_as_batch: bool = False
    """Whether new weights fuse the history in one batch. Only a replay of recordings that state no conditions sets it."""
    _live: _Loaded = field(init=False)
    _pretrained: dict[str, Encoder] = field(init=False)
    """The encoders of the start, as the settings name them."""
    _versions: dict[str, _Loaded] = field(init=False)
    """The loaded versions by name, the acting one among them; the inference thread alone changes it."""
    _spare: list[Policy] = field(init=False)
    """Modules of released versions; the next load replaces their weights. A copy takes up to 70 ms of the interpreter lock."""
    _cache: dict[str, _Cached] = field(default_factory=dict)
    _past: ObservationHistory = field(init=False)
    _statistics: InputStatistics = field(init=False)
    _inference: ThreadPoolExecutor = field(init=False)
    _loader: ThreadPoolExecutor = field(init=False)
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _stream: Any = field(init=False)
    _windows: deque[Window] = field(default_factory=lambda: deque(maxlen=WINDOWS))
    """Observations of the last minutes, on which a reduced precision is judged."""
    _tick: int = -1
    """The last tick that was decided."""
    _last: tuple[Tensor, HeadOutput] | None = None
    """Context and output of the last decision, if it explored."""
    _second: SecondPolicy = field(init=False)

    def __post_init__(self) -> None:
        threads = self.calibrations.settings.threads
        self._inference = ThreadPoolExecutor(1, "inference", _prepare_thread, (threads,))
        self._loader = ThreadPoolExecutor(1, "loader", _prepare_thread, (threads,))
        self._past = ObservationHistory(self.spec)
        self._second = SecondPolicy(self.spec.history)
        self._statistics = InputStatistics(self.spec, self.device)
        self.policy = self.policy.to(self.device).eval()
        self._spare = [copy.deepcopy(self.policy)]
        self._live = self._inference.submit(self._first).result()
        self._pretrained = dict(self.encoders)
        self._versions = {self.version: self._live}

    def _first(self) -> _Loaded:
        self._stream = stream_of(self.device)
        encoders = {name: self._ready(name, encoder, first=True) for name, encoder in self.encoders.items()}
        fuse = self._fuse_run(self.policy, first=True)
        if self.version == UNTRAINED:
            fuse = self._statistics.applied_to(fuse)
        return _Loaded(self.version, self.policy, encoders, fuse)

    @property
    def spec(self) -> PolicySpec:
        """The spec of the policy."""
        return self.policy.spec

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes that a checkpoint's files must hold."""
        return {"policy": shapes_of(self._live.policy.state_dict())}

    @property
    def encoder_versions(self) -> dict[str, str]:
        """The version of the encoder behind each stream."""
        return {stream: self._live.encoders[name].version for stream, name in self.routes.items()}

    def frozen_policy(self) -> Policy:
        """Copy the acting policy, for work outside the tick."""
        live = self._live
        policy = copy.deepcopy(live.policy)
        if live.version == UNTRAINED:
            self._statistics.copy_to(policy)
        return policy.cpu()

    def close(self) -> None:
        """End both threads; a running decision is completed first."""
        self._loader.shutdown(wait=True)
        self._inference.shutdown(wait=True)

    async def decide(self, observation: Observation, *, explore: bool | float = False) -> InferenceResult:
        """Compute the actions for an observation in the inference thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inference, self._decide, observation, explore)

    async def compare(self, version: str) -> OtherDecision | None:
        """Return what another loaded version would have done at the last tick.

        None if it is not loaded, has other encoders, or the policy did not explore.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inference, self._compare, version)

    async def snapshot(self) -> EngineSnapshot:
        """Return everything the next decision depends on besides its observation: what a recording needs at its begin."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._inference, self._pack)

    async def restore(self, files: Mapping[str, bytes]) -> None:
        """Continue from the files of a snapshot, before the first decision of a replay.

        Raises:
            KeyError, safetensors.SafetensorError: the files are not a snapshot.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._inference, self._unpack, files[HISTORY_FILE])

    @torch.inference_mode()
    def _pack(self) -> EngineSnapshot:
        live = self._live
        rows = self._past.pack(states=live.version == UNTRAINED)
        continuous = live.policy.heads.continuous
        rows |= {} if continuous is None else continuous.exploration_state()
        rows |= self._statistics.pack()
        # cloned: the first ticks of an episode appear in the history more than once, and safetensors refuses shared memory
        data = safetensors.torch.save(
            {name: x.cpu().contiguous().clone() for name, x in rows.items()} or {"empty": torch.zeros(1)}
        )
        encoders = {name: encoder.version for name, encoder in live.encoders.items()}
        return EngineSnapshot({HISTORY_FILE: data}, self._tick, live.version, encoders)

    def _unpack(self, data: bytes) -> None:
        rows = {name: x.to(self.device) for name, x in safetensors.torch.load(data).items()}
        with torch.inference_mode():
            self._statistics.unpack(rows)
            self._past.unpack(rows, self._live.fuse, states=self._live.version == UNTRAINED)
        continuous = self._live.policy.heads.continuous
        if continuous is not None:
            continuous.restore_exploration(rows)

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
        loop = asyncio.get_running_loop()
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
            await loop.run_in_executor(self._inference, self._add, loaded)

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
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._inference, self._flip, version)
        self.version = version

    async def release(self, version: str) -> None:
        """Free the memory of a version that does not act; one that is not loaded is ignored.

        Raises:
            ValueError: it acts.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._inference, self._remove, version)

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

    async def load_encoder(self, name: str, state: Mapping[str, Tensor]) -> bool:
        """Load other weights into an encoder of the acting version between two ticks; False where it has them already.

        This is for an untrained policy and for replays: a trained policy acts with the encoders of its manifest. Cached tokens of the older weights are not used again: current readings are encoded again, and the history is cleared.

        Raises:
            RuntimeError: a weight is missing, unknown or of another shape.
            CompilationFailed, NotCompiled: it has no graph for this machine, and none could be made.
        """
        loop = asyncio.get_running_loop()
        async with self._loading:
            tuned = await self._compiled(partial(self._with_state, name, self.encoders[name], state), "")
            if tuned is self._live.encoders[name]:
                return False
            await loop.run_in_executor(self._inference, self._take, name, tuned)
        return True

    def _take(self, name: str, tuned: Encoder) -> None:
        """Replace an encoder of the acting version between two ticks."""
        self.encoders = {**self.encoders, name: tuned}
        self._live = self._versions[self._live.version] = replace(self._live, encoders=self.encoders)
        self._past.clear()

    def _prepare(self, version: str) -> _Loaded:
        """Read a checkpoint into weights of its own and compile them."""
        weights = self.load_weights(version, self.shapes, self.spec.meaning())
        acting = self._live.policy
        policy = self._spare.pop() if self._spare else copy.deepcopy(acting)
        policy.load_state_dict(weights.tensors["policy"])
        head, mine = acting.heads.continuous, policy.heads.continuous
        if head is not None and mine is not None:
            mine.share_exploration(head)
        encoders = {name: self._encoder_of(name, base, weights) for name, base in self._pretrained.items()}
        stored = StoredGraph.of(weights)
        try:
            return _Loaded(version, policy, encoders, self._fuse_run(policy, stored=stored))
        except NotCompiled as missing:
            raise NotCompiled(stored.reason or str(missing)) from None

    def _add(self, loaded: _Loaded) -> None:
        self._versions[loaded.version] = loaded

    def _remove(self, version: str) -> None:
        if version == self._live.version:
            raise ValueError(f"policy version {version} acts; activate another one before its release")
        released = self._versions.pop(version, None)
        if released is not None and not self._spare:
            self._spare.append(released.policy)

    def _encoder_of(self, name: str, base: Encoder, weights: LoadedCheckpoint) -> Encoder:
        """Return the encoder that a checkpoint was trained with: by its own weights, else by the version in its manifest.

        A checkpoint that names none acts with the pretrained encoder.

        Raises:
            CheckpointRefused: that version is not on disk.
        """
        if (state := weights.tensors.get(ENCODER_FILE + name)) is not None:
            return self._with_state(name, base, state)
        manifest = weights.manifest
        routed = {stream for stream, route in self.routes.items() if route == name}
        wanted = {version for stream, version in manifest.encoder_versions.items() if stream in routed}
        if not wanted:
            return base
        loaded = (base, *(one.encoders[name] for one in self._versions.values()))
        if (known := next((one for one in loaded if {one.version} == wanted), None)) is not None:
            return known
        found = self.find_encoder(name, next(iter(wanted)), base) if len(wanted) == 1 else None
        tuned = self._with_state(name, base, found) if found is not None else base
        if {tuned.version} != wanted:
            detail = (
                f"it was trained with version {' and '.join(sorted(wanted))} of encoder {name}, which is not on disk"
            )
            raise CheckpointRefused(manifest.version, "encoder_missing", detail)
        return tuned

    def _with_state(self, name: str, base: Encoder, state: Mapping[str, Tensor]) -> Encoder:
        """Return a copy with other weights on its backend, or the acting encoder where it has the same."""
        if base.module is None:
            raise RuntimeError(f"encoder {name}: it has no module that could take weights")
        tuned = copy.copy(base)
        tuned.module = copy.deepcopy(base.module)
        tuned.load_state(state)
        acting = self._live.encoders[name]
        return acting if acting.version == tuned.version else self._ready(name, tuned)

    @torch.inference_mode()
    def _flip(self, version: str) -> None:
        """Activate loaded weights between two ticks; they fuse the history again, as they were trained."""
        live = self._versions[version]
        if live is self._live:
            return
        if any(encoder.version != self._live.encoders[name].version for name, encoder in live.encoders.items()):
            self._past.clear()
        self._live, self.policy, self.encoders = live, live.policy, live.encoders
        if self.fuse_history_as_batch:
            self._past.fuse_again_as_batch(live.policy)
        else:
            self._past.fuse_again(live.fuse)

    def _ready(self, name: str, encoder: Encoder, *, first: bool = False) -> Encoder:
        """Compile the encoder for its fastest backend; graphs of the `first` weights are shared with other daemons."""
        if encoder.module is not None:
            try:
                encoder.run, self.choices[name] = self.calibrations.runner(
                    encoder.module, encoder.examples(), encoder.version, shared=first
                )
            except NotCompiled as missing:
                raise EncoderNotCompiled(name, encoder.version, str(missing)) from None
        return encoder

    def _fuse_run(self, policy: Policy, *, first: bool = False, stored: StoredGraph = NO_GRAPH) -> Run:
        """Compile the fused part for its fastest backend; a plain policy is a few additions and stays in torch."""
        if self.spec.plain:
            return FlatPolicyModule(policy).eval()
        if self.device.type == "cuda":
            return CudaGraphRun(FlatPolicyModule(policy).eval(), self._example())
        run, self.choices["policy"] = compile_policy(
            self.calibrations,
            policy,
            self._example(),
            first=first,
            windows=tuple(self._windows.copy()),
            stored=stored,
        )
        return run

    def _example(self) -> tuple[Tensor, ...]:
        return tuple(x.to(self.device) for x in example_inputs(self.spec))

    @torch.inference_mode()
    def _decide(self, observation: Observation, explore: bool | float) -> InferenceResult:  # noqa: FBT001 - as in decide
        start = time.perf_counter()
        live = self._live
        self._tick = observation.tick
        with self._stream:
            encoded, encode_s = self._perceive(live, observation)
            features = self._features(observation)
            if live.version == UNTRAINED:
                self._statistics.observe(features, observation.fresh & observation.readings.keys())
            states_BHD = self._past.take(features, live.fuse)
            context_BC = live.policy.context(states_BHD)
            if observation.tick % WINDOW_EVERY == 0:
                self._windows.append(self._past.window())
            generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + observation.tick)
            out = live.policy.heads.act(context_BC, generator=generator, explore=explore)
            self._last = (context_BC, out) if explore is True else None
            actions, scores = actions_of(self.spec, out)
            choices = choices_of(self.spec, out)
        tokens = {name: self._cache[name].tokens_TW for name in observation.readings if name in self.spec.names}
        versions = {name: self._cache[name].version for name in tokens if name in self.routes}
        value = float(out.value[0])
        latency_s = time.perf_counter() - start
        encoders = {name: encoder.version for name, encoder in live.encoders.items()}
        return InferenceResult(
            live.version, actions, value, tokens, versions, scores, latency_s, encoded, choices, encode_s, encoders
        )

    @torch.inference_mode()
    def _compare(self, version: str) -> OtherDecision | None:
        live, other = self._live, self._versions.get(version)
        if other is None or other is live or self._last is None:
            return None
        if any(encoder.version != live.encoders[name].version for name, encoder in other.encoders.items()):
            return None
        with self._stream:
            context_BC, out = self._last
            theirs_BC = self._second.context(version, other.policy, other.fuse, self._past.window(), self._tick)
            return compare(version, other.policy.heads, theirs_BC, live.policy.heads, context_BC, out)

    def _numbers(self, reading: Telemetry) -> NDArray[np.float32]:
        return policy_numbers(reading.fields, reading.values, self.field_kinds.get(reading.stream, {}))

    def _perceive(self, live: _Loaded, observation: Observation) -> tuple[tuple[str, ...], dict[str, float]]:
        """Encode new readings, streams that share an encoder in one batch; return these streams and the seconds of each encoder."""
        work: dict[str, list[Reading]] = defaultdict(list)
        for name, reading in observation.readings.items():
            if isinstance(reading, Telemetry):
                self._cache[name] = _Cached(reading, "", self._numbers(reading)[None])
            elif name in self.routes:
                encoder = live.encoders[self.routes[name]]
                cached = self._cache.get(name)
                if cached is None or cached.reading is not reading or cached.version != encoder.version:
                    work[self.routes[name]].append(reading)
        took_s: dict[str, float] = {}
        for route, readings in work.items():
            encoder, start = live.encoders[route], time.perf_counter()
            tokens_BTW = encoder.encode(encoder.prepare(readings)).half().cpu().numpy()
            for reading, tokens_TW in zip(readings, tokens_BTW, strict=True):
                self._cache[reading.stream] = _Cached(reading, encoder.version, tokens_TW)
            took_s[route] = time.perf_counter() - start
        return tuple(reading.stream for readings in work.values() for reading in readings), took_s

    def _features(self, observation: Observation) -> Features:
        """Return the features [1] of this tick; missing streams are zeros."""
        tokens: dict[str, Tensor] = {}
        present = [name in observation.readings for name in self.spec.names]
        for stream, there in zip(self.spec.streams, present, strict=True):
            if there:
                array = np.asarray(self._cache[stream.name].tokens_TW, np.float32)
                tokens[stream.name] = torch.tensor(array).unsqueeze(0)
            else:
                tokens[stream.name] = torch.zeros(1, stream.tokens, stream.width)
        ages = [observation.ages_s.get(name, float("inf")) for name in self.spec.names]
        return Features(tokens, torch.tensor([present]), torch.tensor([ages], dtype=torch.float32)).to(self.device)


def _prepare_thread(threads: int) -> None:
    """Set what belongs to a thread: its torch threads, and no denormals, which made one model 14 times slower.

    Both threads have the priority of the process. A thread of lower priority could lose its core while it holds the interpreter
    lock, and the tick would wait for it. Graphs are compiled at low priority, without that lock (`OpenVinoRun`).
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
