"""Classify sounds with any AutoModelForAudioClassification: windows of a microphone, and sound files.

Whisper reads a short window instead of its 30 s: mel and position table are cut to `window_s`. One second takes a 30th of the
computation. The configuration in the saved folder contains the length, so that transformers loads it without changes.

Shapes: B batch, M mels, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from learners.data_error import DataError
from learners.tasks.augmentation.sounds import changed, masked
from learners.tasks.base import Batch, EncodedMedia, Example, Feature, Options, Recipe
from learners.tasks.classifier import Classifier
from learners.tasks.inputs.sounds import duration_s, read_sound
from sensors.codecs.resampling import RATE_HZ, resampled

MOST_WINDOWS = 64
"""Windows of one sound, the newest."""
FRAMES_HZ = 100
"""Frames a second of models that read frames first, as the Audio Spectrogram Transformer."""
WHISPER_STEPS_HZ = 50
"""Positions of Whisper's encoder a second."""


class ClassifySounds(Classifier):
    """`sound` (a path or float32 samples, with `rate_hz` unless 16 kHz) -> `label`."""

    kind = "audio-classification"
    auto: ClassVar[Any] = AutoModelForAudioClassification
    recipe = Recipe(
        epochs=8,
        batch=16,
        rates={"frozen": 3e-3, "top": 5e-4, "lora": 1e-3, "full": 1e-4},
        layer_decay=0.9,
        options={"label_smoothing": 0.05},
    )

    def __init__(self, source: Path | str, options: Options, labels: Sequence[str] = ()) -> None:
        super().__init__(source, replace(options, window_s=float(math.ceil(options.window_s or 2.0))), labels)

    def load_processor(self, source: Path | str) -> Any:
        """Load the feature extractor, with the length of the window."""
        auto: Any = AutoFeatureExtractor
        extractor = auto.from_pretrained(source, trust_remote_code=False)
        if hasattr(extractor, "chunk_length"):
            extractor.chunk_length = int(self.options.window_s or 1)
            extractor.n_samples = extractor.chunk_length * extractor.sampling_rate
            extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
        if extractor.sampling_rate != RATE_HZ:
            raise ValueError(f"{source}: wants {extractor.sampling_rate} Hz; models at {RATE_HZ} Hz are supported")
        return extractor

    def load_model(self, source: Path | str) -> Any:
        """Load the model; cut Whisper's positions to the window."""
        model = super().load_model(source)
        if model.config.model_type == "whisper":
            cut_positions(model, int((self.options.window_s or 1) * WHISPER_STEPS_HZ))
        return model

    @classmethod
    def fitting_window_s(cls, examples: Sequence[Example]) -> float:
        """Whole seconds that hold 99 % of the sounds."""
        examples = [dict(e) | s.decode() if isinstance(s := e["sound"], EncodedMedia) else e for e in examples]
        lengths = [
            duration_s(Path(e["sound"]))
            if isinstance(e["sound"], str | Path)
            else len(e["sound"]) / e.get("rate_hz", RATE_HZ)
            for e in examples
        ]
        return float(min(30, math.ceil(np.quantile(lengths, 0.99))))

    @property
    def varying(self) -> bool:
        """Sounds are changed a little in every epoch."""
        return bool(set(self.augmentations) - {"mixup"})

    def features(self, example: Example, *, rng: np.random.Generator | None = None) -> list[Feature]:
        """Return log mels for Whisper, samples for models that read them, of all windows; of a random one where epochs differ."""
        sound = example.get("sound")
        if isinstance(sound, EncodedMedia):
            example = dict(example) | sound.decode()
            sound = example["sound"]
        if sound is None:
            raise DataError("an example without `sound`")
        given = isinstance(sound, str | Path)
        samples = read_sound(Path(sound)) if given else resampled(np.asarray(sound), example.get("rate_hz", RATE_HZ))
        window = int((self.options.window_s or 1) * RATE_HZ)
        begin, end = 0, len(samples)
        if rng is not None and self.varying:
            samples, begin, end = changed(samples, rng, window, self.augmentations)
        target = {"labels": self.target(example)} if "label" in example else {}
        last = max(0, len(samples) - window)
        # prediction hears all, the newest whole, and takes the mean; training hears another part in each epoch, or all in each
        starts = [*range(last, -1, -max(1, window // 2))][::-1]
        if rng is not None and self.varying:
            starts = [int(rng.integers(0, last + 1))]
        features = [self._feature(samples[max(0, at) : at + window]) for at in starts[-MOST_WINDOWS:]]
        if rng is not None and "spec_augment" in self.augmentations:
            # of the window that was drawn
            heard = ((begin - starts[-1]) / window, (end - starts[-1]) / window)
            features = [{name: self._masked(made, rng, heard) for name, made in one.items()} for one in features]
        return [feature | target for feature in features]

    def _feature(self, samples: NDArray[np.float32]) -> Feature:
        made = self.processor(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        name = self.processor.model_input_names[0]
        return {name: made[name][0]}

    def _masked(self, made: Tensor, rng: np.random.Generator, heard: tuple[float, float]) -> Tensor:
        """Return features with masks in the sound; `heard` is where it begins and ends in its window, from 0 to 1."""
        bins = getattr(self.processor, "num_mel_bins", None)
        if made.dim() < 2 or made.shape[1] != bins:
            return masked(made, rng, heard)
        # frames first, and filled up to the length that the model was trained with
        filled = min(1.0, (self.options.window_s or 1.0) * FRAMES_HZ / len(made))
        return masked(made, rng, (heard[0] * filled, heard[1] * filled), time_axis=0)

    def length(self, feature: Feature) -> int:
        """Return the number of samples or frames, by which batches are grouped."""
        return int(feature[self.processor.model_input_names[0]].shape[-1])

    @property
    def pads_change_outputs(self) -> bool:
        """Models of raw samples hear the silence that pads a sound."""
        return bool(self.processor.model_input_names[0] == "input_values")

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Return inputs, padded with zeros at the end, and targets."""
        name = self.processor.model_input_names[0]
        longest = max(feature[name].shape[-1] for feature in features)
        rows = [nn.functional.pad(f[name], (0, longest - f[name].shape[-1])) for f in features]
        batch = {name: torch.stack(rows).float()}
        if "labels" in features[0]:
            batch["labels"] = self.targets([feature["labels"] for feature in features])
        return batch


@torch.no_grad()
def cut_positions(model: Any, count: int) -> None:
    """Keep the first `count` positions of Whisper's encoder, in place."""
    old = model.encoder.embed_positions
    if old.num_embeddings > count:
        new = nn.Embedding(count, old.embedding_dim)
        new.weight.copy_(old.weight[:count])
        new.requires_grad_(old.weight.requires_grad)
        model.encoder.embed_positions = new
    model.config.max_source_positions = model.encoder.max_source_positions = int(
        model.encoder.embed_positions.num_embeddings
    )
