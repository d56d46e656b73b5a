"""Find an encoder in one of its versions: the pretrained one, or what a version of its task makes of it.

The engine loads the versions that a policy's manifest names, the learner those that it trains and evaluates with. A version is a
digest of weights and shaping, so either the wanted version is found or none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from safetensors import SafetensorError
from torch import Tensor

from learners.config.policy import EncoderSettings
from learners.ipc.settings import LearnerConfig, encoder_window_s
from learners.model.encoders.base import Encoder
from learners.reencoding.task_encoder import encoder_tasks, state_of
from learners.task_serving.versions import TaskVersion, TaskVersionStore

CPU = torch.device("cpu")


def find_state(
    settings: EncoderSettings, base: Encoder, versions: TaskVersionStore, wanted: str
) -> dict[str, Tensor] | None:
    """Return the weights of an encoder in a version, out of the versions of its task; None if none has them.

    Args:
        settings: of the encoder.
        base: the encoder in another version; it stays as it is.
        versions: of the task that fine-tunes it.
        wanted: the version of the encoder.
    """
    if base.module is None:
        return None
    probe = copy.copy(base)
    probe.module = copy.deepcopy(base.module)
    for one in versions.by_encoder_version(wanted):
        try:
            state = state_of(settings, base, one.path)
            probe.load_state(state)
        except (OSError, ValueError, RuntimeError, SafetensorError):
            continue  # a version that does not fit was reported when it was promoted
        one.record_encoder_version(probe.version)
        if probe.version == wanted:
            return state
    return None


class EncoderVersions:
    """Finds encoders by stream and version.

    Args:
        inputs: the settings.
    """

    def __init__(self, inputs: LearnerConfig) -> None:
        self.inputs = inputs
        self._made: dict[tuple[str, str], str | None] = {}
        """By encoder and task version, the encoder version that it makes; None if the weights do not fit."""
        self._tasks = encoder_tasks(inputs.encoders, inputs.tasks, {n: s.encoder for n, s in inputs.streams.items()})

    def __call__(self, stream: str, version: str) -> Encoder | None:
        """Return the encoder of a stream in a version, on the agent's backend; None if it is not available."""
        name = self.inputs.streams[stream].encoder if stream in self.inputs.streams else None
        if name not in self.inputs.encoders:
            return None
        encoder = self._weights(name, version, encoder_window_s(self.inputs.streams.values(), name))
        return None if encoder is None else self._ready(encoder)

    def followed(self, refused: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """Return, by stream, the encoder version that the live version of its task makes.

        Args:
            refused: called once with the fields of `encoder_refused` for each task version that does not fit its encoder.
        """
        found: dict[str, str] = {}
        for name, task in self._tasks.items():
            live = TaskVersionStore(self.inputs.state_dir / "learner" / "tasks" / task).live()
            if live is None:
                continue
            if (name, live.name) not in self._made:
                self._made[name, live.name] = self._make(name, task, live, refused)
            if (version := self._made[name, live.name]) is not None:
                found |= {stream: version for stream, one in self.inputs.streams.items() if one.encoder == name}
        return found

    def _make(self, name: str, task: str, live: TaskVersion, refused: Callable[[dict[str, str]], object]) -> str | None:
        settings = self.inputs.encoders[name]
        encoder = self._pretrained(settings, encoder_window_s(self.inputs.streams.values(), name))
        try:
            encoder.load_state(state_of(settings, encoder, live.path))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            refused({"encoder": name, "task": task, "task_version": live.name, "reason": str(error)})
            return None
        live.record_encoder_version(encoder.version)
        return encoder.version

    def _weights(self, name: str, version: str, window_s: float) -> Encoder | None:
        settings = self.inputs.encoders[name]
        encoder = self._pretrained(settings, window_s)
        if encoder.version == version:
            return encoder
        for one in self._versions(name, version):
            try:
                encoder.load_state(state_of(settings, encoder, one.path))
            except (OSError, ValueError, RuntimeError, SafetensorError):
                continue  # the agent refused it too, and published why
            one.record_encoder_version(encoder.version)
            if encoder.version == version:
                return encoder
        return None

    def _pretrained(self, settings: EncoderSettings, window_s: float) -> Encoder:
        from learners.model.encoders.pretrained import load  # noqa: PLC0415 - transformers: only where an encoder is built

        return load(settings, self.inputs.policy.tokens, CPU, window_s=window_s)

    def _versions(self, name: str, encoder_version: str) -> list[TaskVersion]:
        """Return the versions of the encoder's task, the most likely ones first."""
        if name not in self._tasks:
            return []
        folder = self.inputs.state_dir / "learner" / "tasks" / self._tasks[name]
        return TaskVersionStore(folder).by_encoder_version(encoder_version)

    def _ready(self, encoder: Encoder) -> Encoder:
        from learners.model.backends.calibration_cache import Calibrations, shared_cache  # noqa: PLC0415 - see below
        from learners.model.backends.fastest_backend import BackendSettings  # noqa: PLC0415 - openvino: only where something is encoded

        if encoder.module is not None:
            wanted = BackendSettings(**self.inputs.engine.model_dump())
            calibrations = Calibrations(self.inputs.state_dir, wanted, shared_cache())
            encoder.run, _ = calibrations.runner(encoder.module, encoder.examples(), encoder.version)
        return encoder
