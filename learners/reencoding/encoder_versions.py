"""An encoder in one of its versions: the pretrained one, or what a version of its task makes of it.

The agent swaps encoders (`runtime/deploy/encoder_updater.py`); here the learner, or a replay, gets at the same weights again. A version is a digest
of weights and shaping, so what is found is what is wanted, or nothing is.
"""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from learners.continual.versions import TaskVersion, TaskVersionStore
from learners.ipc.settings import LearnerConfig, encoder_window_s
from learners.model.encoders.base import Encoder
from learners.model.encoders.pretrained import load
from learners.reencoding.task_encoder import encoder_tasks, state_of

CPU = torch.device("cpu")


class EncoderVersions:
    """Finds encoders by stream and version.

    Args:
        inputs: the settings.
    """

    def __init__(self, inputs: LearnerConfig) -> None:
        self.inputs = inputs
        self._tasks = encoder_tasks(inputs.encoders, inputs.tasks, {n: s.encoder for n, s in inputs.streams.items()})

    def __call__(self, stream: str, version: str) -> Encoder | None:
        """Return the encoder of a stream in a version, on the agent's backend; None if it is not available."""
        name = self.inputs.streams[stream].encoder if stream in self.inputs.streams else None
        if name not in self.inputs.encoders:
            return None
        encoder = self._weights(name, version, encoder_window_s(self.inputs.streams.values(), name))
        return None if encoder is None else self._ready(encoder)

    def _weights(self, name: str, version: str, heard_s: float) -> Encoder | None:
        settings = self.inputs.encoders[name]
        encoder = load(settings, self.inputs.policy.tokens, CPU, window_s=heard_s)
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

    def _versions(self, name: str, encoder_version: str) -> list[TaskVersion]:
        """Return the versions of the encoder's task, the most likely ones first."""
        if name not in self._tasks:
            return []
        folder = self.inputs.state_dir / "learner" / "tasks" / self._tasks[name]
        return TaskVersionStore(folder).by_encoder_version(encoder_version)

    def _ready(self, encoder: Encoder) -> Encoder:
        from learners.model.backends.calibration_cache import Calibrations, shared_cache  # noqa: PLC0415 - see below
        from learners.model.backends.selection import BackendSettings  # noqa: PLC0415 - openvino: only where something is encoded

        if encoder.module is not None:
            wanted = BackendSettings(**self.inputs.engine.model_dump())
            calibrations = Calibrations(self.inputs.state_dir, wanted, shared_cache())
            encoder.run, _ = calibrations.runner(encoder.module, encoder.examples(), encoder.version)
        return encoder
