"""The engine in torch: on a GPU, with encoders that follow a task or come as a plug-in, and for recordings of older programs.

Its generators are those of torch, so that a recording made with them replays bit for bit.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.checkpoints.manifest import CheckpointRefused, LoadedCheckpoint
from learners.checkpoints.safetensors_torch import Shapes, shapes_of
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.checkpoint_graph import NO_GRAPH, StoredGraph
from learners.model.backends.cuda import CudaGraphRun, stream_of, wait_for
from learners.model.backends.fastest_backend import BackendChoice, EncoderNotCompiled, NotCompiled, Run
from learners.model.encoders.base import Encoder
from learners.model.features import Features, stack
from learners.model.heads import HeadOutput, Heads, actuator_values
from learners.model.policy import Policy
from learners.model.policy_graph import FlatPolicyModule, Window, digest, example_inputs
from learners.model.spec import PolicySpec
from learners.promotion.ope.propensities import taken
from runtime.inference.compiled_policy import compile_policy
from runtime.inference.decision import Masks
from runtime.inference.engine import ENCODER_FILE, NEEDS_TORCH, UNTRAINED, Engine, LoadedVersion
from runtime.inference.numpy_policy.history import Fuse, TickFeatures
from runtime.inference.second_version import OtherDecision
from sensors.config import FieldKind
from sensors.readings import Reading

WINDOWS, WINDOW_EVERY = 64, 16
"""Number of recorded observations, and the ticks between two of them: a minute and a half at 10 Hz."""


def _no_encoder(_name: str, _version: str, _base: Encoder) -> Mapping[str, Tensor] | None:
    return None


def untrained(spec: PolicySpec, seed: int) -> Policy:
    """Make the weights a daemon starts with; the same at every start, so that an untrained decision can be explained later."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(spec).eval()


def compare(
    version: str,
    other: Heads,
    theirs_1C: Tensor,
    acting: Heads,
    ours_1C: Tensor,
    out: HeadOutput,
    masks: Mapping[str, Tensor] | None = None,
) -> OtherDecision:
    """Return what a version would have done at a tick.

    Args:
        version: its name.
        other: its heads.
        theirs_1C: its context.
        acting: the heads that acted.
        ours_1C: their context.
        out: what they decided, while they explored.
        masks: 1,n by choice actuator: what was allowed; absent where all choices were.
    """
    best = other.act(theirs_1C, generator=torch.Generator(theirs_1C.device), explore=False, masks=masks)
    values = actuator_values(other.actions, best)
    own, by_acting = taken(other, theirs_1C, best.values, masks), taken(acting, ours_1C, best.values, masks)
    ours = taken(other, theirs_1C, out.values, masks)
    actions = {
        name: {"value": value, "probability": float(own[name][0]), "acting": float(by_acting[name][0])}
        for name, value in values.items()
    }
    return OtherDecision(version, actions, {name: float(p_B[0]) for name, p_B in ours.items()})


class TorchEngine(Engine):
    """The policy and its encoders as torch modules, which faster backends may run.

    Args:
        policy: the weights to start with.
        encoders: by their name in the settings.
        routes: which encoder reads each stream; telemetry has none.
        calibrations: chooses backends and remembers them.
        load_weights: reads and verifies a version's weights, which must have the given shapes and meaning; `load` raises what it raises.
        find_encoder: returns the weights of an encoder in a version, given the encoder in another one; None if they are not on disk.
        version: name of the weights to start with.
        device: where the policy lives.
        seed: of exploration; each tick draws from a generator seeded with it and the tick's number.
        field_kinds: by telemetry stream, the fields that are no plain numbers.
        at_arrival: names of encoders that encode readings when these arrive.
    """

    runtime = "torch"

    def __init__(
        self,
        policy: Policy,
        encoders: dict[str, Encoder],
        routes: Mapping[str, str],
        calibrations: Calibrations,
        load_weights: Callable[[str, Mapping[str, Shapes], Mapping[str, Any]], LoadedCheckpoint],
        *,
        find_encoder: Callable[[str, str, Encoder], Mapping[str, Tensor] | None] = _no_encoder,
        version: str = UNTRAINED,
        device: torch.device | None = None,
        seed: int = 0,
        field_kinds: Mapping[str, Mapping[str, FieldKind]] | None = None,
        at_arrival: Collection[str] = (),
    ) -> None:
        self.device = device or torch.device("cpu")
        self.device_name = str(self.device)
        self.load_weights, self.find_encoder = load_weights, find_encoder
        self.policy = policy.to(self.device).eval()
        self._spare = [copy.deepcopy(self.policy)]
        """Modules of released versions; the next load replaces their weights. A copy takes up to 70 ms of the interpreter lock."""
        self._windows: deque[tuple[TickFeatures, ...]] = deque(maxlen=WINDOWS)
        """Observations of the last minutes, on which a reduced precision is judged."""
        super().__init__(
            policy.spec,
            encoders,
            routes,
            calibrations,
            version=version,
            seed=seed,
            field_kinds=field_kinds,
            at_arrival=at_arrival,
        )

    def _prepare_thread(self, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)  # denormals made one model 14 times slower

    def _first(self) -> LoadedVersion:
        self._stream = stream_of(self.device)
        encoders = {name: self._ready(name, encoder, first=True) for name, encoder in self.encoders.items()}
        fuse, choice = self._fuse_run(self.policy, first=True)
        return LoadedVersion(self.version, self.policy, encoders, fuse, choice)

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes that a checkpoint's files must hold."""
        return {"policy": shapes_of(self._live.policy.state_dict())}

    @property
    def untrained_digest(self) -> str:
        """The digest of the weights to start with; only for these."""
        return digest(self.policy)

    def exploration_share(self) -> float | None:
        """Return how much the acting policy explores: the share of random choices, else the factor on its noise; None for a bandit."""
        share: float | None = self._live.policy.heads.exploration_share()
        return share

    @property
    def has_excursions(self) -> bool:
        """Whether exploration of the acting policy depends on all ticks before."""
        head = self._live.policy.heads.continuous
        return head is not None and head.excursion_share > 0

    @torch.inference_mode()
    def _compared(
        self,
        other: LoadedVersion,
        theirs_BHD: NDArray[np.float32],
        live: LoadedVersion,
        ours_BHD: NDArray[np.float32],
        out: Any,
        masks: Masks,
    ) -> OtherDecision:
        theirs_1C, ours_1C = (
            one.policy.context(torch.from_numpy(states).to(self.device))
            for one, states in ((other, theirs_BHD), (live, ours_BHD))
        )
        return compare(
            other.version, other.policy.heads, theirs_1C, live.policy.heads, ours_1C, out, self._on_device(masks)
        )

    def _exploration_state(self) -> dict[str, NDArray[Any]]:
        head = self._live.policy.heads.continuous
        return {} if head is None else {name: x.cpu().numpy() for name, x in head.exploration_state().items()}

    def _restore_exploration(self, rows: Mapping[str, NDArray[Any]]) -> None:
        head = self._live.policy.heads.continuous
        if head is not None:
            names = rows.keys() & {"noise", "wander", "free"}
            head.restore_exploration({name: torch.tensor(rows[name]).to(self.device) for name in names})

    def _prepare(self, version: str) -> LoadedVersion:
        """Read a checkpoint into weights of its own and compile them."""
        weights = self.load_weights(version, self.shapes, self.spec.meaning())
        acting = self._live.policy
        policy: Policy = self._spare.pop() if self._spare else copy.deepcopy(acting)
        policy.load_state_dict(weights.tensors["policy"])
        head, mine = acting.heads.continuous, policy.heads.continuous
        if head is not None and mine is not None:
            mine.share_exploration(head)
        encoders = {name: self._encoder_of(name, base, weights) for name, base in self._pretrained.items()}
        stored = StoredGraph.of(weights, self.calibrations.library)
        try:
            fuse, choice = self._fuse_run(policy, stored=stored)
            wait_for(self.device)  # the weights were copied on the stream of this thread, and another one reads them
            return LoadedVersion(version, policy, encoders, fuse, choice)
        except NotCompiled as missing:
            raise NotCompiled(stored.reason or str(missing)) from None

    def _released(self, loaded: LoadedVersion) -> None:
        if not self._spare:
            self._spare.append(loaded.policy)

    def _encoder_of(self, name: str, base: Encoder, weights: LoadedCheckpoint) -> Encoder:
        """Return the encoder that a checkpoint was trained with: by its own weights, else by the version in its manifest.

        A checkpoint that names none acts with the pretrained encoder.

        Raises:
            CheckpointRefused: that version is not on disk.
        """
        if (state := weights.tensors.get(ENCODER_FILE + name)) is not None:
            if base.module is None:
                detail = f"it contains weights of encoder {name}, and its module was freed; restart to load it"
                raise CheckpointRefused(weights.manifest.version, NEEDS_TORCH, detail)
            return self._with_state(name, base, state)
        manifest = weights.manifest
        routed = {stream for stream, route in self.routes.items() if route == name}
        wanted = {version for stream, version in manifest.encoder_versions.items() if stream in routed}
        if not wanted:
            return base
        loaded = (base, *(one.encoders[name] for one in self._versions.values()))
        known: Encoder | None = next((one for one in loaded if {one.version} == wanted), None)
        if known is not None:
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
        acting: Encoder = self._live.encoders[name]
        return acting if acting.version == tuned.version else self._ready(name, tuned)

    def _flip(self, version: str) -> None:
        super()._flip(version)
        self.policy = self._live.policy

    @torch.inference_mode()
    def _fuse_history_again(self, live: LoadedVersion) -> None:
        if not self.fuse_history_as_batch:
            super()._fuse_history_again(live)
            return

        def fuse(ticks: Sequence[TickFeatures]) -> list[NDArray[np.float32]]:
            past = stack([self._tensors(tick) for tick in ticks]).map(lambda x: x.squeeze(1))
            states: Tensor = live.policy.fuse(past)
            return [state_D.unsqueeze(0).cpu().numpy() for state_D in states.unbind(0)]

        self._past.fuse_again_at_once(fuse)

    def _tensors(self, tick: TickFeatures) -> Features:
        tokens = {name: torch.from_numpy(x) for name, x in tick.tokens.items()}
        return Features(tokens, torch.from_numpy(tick.present), torch.from_numpy(tick.ages)).to(self.device)

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

    def _fuse_run(
        self, policy: Policy, *, first: bool = False, stored: StoredGraph = NO_GRAPH
    ) -> tuple[Fuse, BackendChoice | None]:
        """Compile the fused part for its fastest backend; a plain policy is a few additions and stays in torch."""
        if self.spec.plain:
            return self._on_arrays(FlatPolicyModule(policy).eval()), None
        if self.device.type == "cuda":
            return self._on_arrays(CudaGraphRun(FlatPolicyModule(policy).eval(), self._example())), None
        windows: list[Window] = [[self._tensors(tick) for tick in window] for window in self._windows.copy()]
        run, choice = compile_policy(
            self.calibrations, policy, self._example(), first=first, windows=windows, stored=stored
        )
        return self._on_arrays(run), choice

    def _on_arrays(self, run: Run) -> Fuse:
        def fuse(*arrays: NDArray[Any]) -> NDArray[np.float32]:
            with torch.inference_mode():
                state_BD = run(*(torch.from_numpy(array).to(self.device) for array in arrays))
                found: NDArray[np.float32] = state_BD.cpu().numpy()
                return found

        return fuse

    def _example(self) -> tuple[Tensor, ...]:
        return tuple(x.to(self.device) for x in example_inputs(self.spec))

    @torch.inference_mode()
    def _encode(self, encoder: Encoder, readings: Sequence[Reading]) -> NDArray[np.float16]:
        tokens_BTW: NDArray[np.float16] = encoder.encode(encoder.prepare(readings)).half().cpu().numpy()
        return tokens_BTW

    @torch.inference_mode()
    def _act(
        self,
        live: LoadedVersion,
        states_BHD: NDArray[np.float32],
        tick: int,
        explore: bool | float,  # noqa: FBT001 - as in decide
        masks: Masks,
    ) -> HeadOutput:
        if tick % WINDOW_EVERY == 0:
            self._windows.append(self._past.window())
        policy: Policy = live.policy
        context_BC = policy.context(torch.from_numpy(states_BHD).to(self.device))
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + tick)
        return policy.heads.act(context_BC, generator=generator, explore=explore, masks=self._on_device(masks))

    def _on_device(self, masks: Masks) -> dict[str, Tensor]:
        """Return masks 1,n."""
        return {name: torch.from_numpy(mask_n).to(self.device)[None] for name, mask_n in masks.items()}
