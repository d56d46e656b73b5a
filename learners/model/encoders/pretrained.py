"""Load pretrained encoders: any transformers model, or a plug-in.

`load` finds the modality in the model's configuration. An encoder has a `version`, a digest of its weights and of
everything that shapes its tokens: stored tokens are comparable only under the same version. Its `run` is the tower in
plain torch until a faster backend replaces it (`learners.model.backends`).

Shapes: B batch, T tokens, W width.
"""

# transformers is typed in parts only
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.image_processing_utils import BaseImageProcessor

from learners.config.policy import EncoderSettings
from learners.model.encoders import modulation_spectrum, utterance_encoder
from learners.model.encoders.base import Encoder, Inputs, Run
from learners.model.encoders.bundled_weights import resolve
from learners.model.encoders.image_processor import load_image_processor, scaling
from learners.model.encoders.preprocess import HOP, RATE_HZ, Mel, normalised, resize, tokenize, upload, window
from learners.model.encoders.towers import (
    AudioTower,
    LanguageTower,
    UnknownArchitecture,
    VisionTower,
    whisper_encoder,
)
from learners.model.spec import FORMER_MODALITIES, Modality
from sensors.plugins import PluginError, load_plugin
from sensors.readings import Frame, Reading, Sound, Text

FORMAT = 1
"""Raised when the same weights would give different tokens."""
_DIGESTED = {now: former for former, now in FORMER_MODALITIES.items()}
"""The digest uses the former names of modalities, so that stored tokens stay those of the same encoder version."""


class _Tower:
    """The base of the three kinds: a tower, its version, and the callable that runs it."""

    modality: Modality

    def __init__(
        self, tower: nn.Module, tokens: int, width: int, device: torch.device, shaping: Mapping[str, Any]
    ) -> None:
        self.module: nn.Module | None = tower.eval().requires_grad_(requires_grad=False).to(device)
        self.tokens, self.width, self.device, self.shaping = tokens, width, device, shaping
        self.run: Run = tower
        self.version = self._digest()

    @torch.inference_mode()
    def encode(self, inputs: Inputs) -> Tensor:
        """Return tokens B,T,W float32."""
        tokens_BTW: Tensor = self.run(*inputs)
        return tokens_BTW

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a complete set of fine-tuned weights, which changes `version`.

        Raises:
            RuntimeError: a weight is missing, unknown or of another shape.
        """
        assert self.module is not None
        self.module.load_state_dict(state)
        self.version = self._digest()

    def _digest(self) -> str:
        """SHA-256 over format, shaping and every weight by name."""
        assert self.module is not None
        digest = hashlib.sha256(
            orjson.dumps(
                [FORMAT, _DIGESTED[self.modality], self.tokens, dict(self.shaping)], option=orjson.OPT_SORT_KEYS
            )
        )
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


class VisionEncoder(_Tower):
    """Pictures through CLIP, SigLIP, DINOv2, ViT, EfficientNet-Lite and any model that returns a map or patches."""

    modality: Modality = "image"

    def __init__(
        self, model: Any, options: Mapping[str, Any], processor: Any, tokens: int, device: torch.device
    ) -> None:
        self.size = picture_size(options, model.config)
        mean, std, self.flips = scaling(processor) if processor is not None else ([0.5] * 3, [0.5] * 3, False)
        tower = VisionTower(model, tokens, self.size, mean, std)
        self.columns = tower.columns.shape[1]
        for convolution in (m for m in tower.modules() if isinstance(m, nn.Conv2d)):
            convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)
        shaping = {"size": self.size, "mean": mean, "std": std} | ({"channels": "BGR"} if self.flips else {})
        super().__init__(tower, tokens, tower.width, device, shaping)

    def prepare(self, readings: Sequence[Reading]) -> Inputs:
        """Return pictures as uint8 B,3,Y,X."""
        pixels_BCYX = resize([r.image for r in readings if isinstance(r, Frame)], self.size, self.device)
        return (pixels_BCYX.flip(1) if self.flips else pixels_BCYX,)

    def examples(self) -> list[Inputs]:
        """Return one picture with smooth structure."""
        coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(0)) * 255
        picture = torch.nn.functional.interpolate(coarse, self.size, mode="bicubic").clamp(0, 255)
        return [(picture.to(self.device, torch.uint8).contiguous(memory_format=torch.channels_last),)]


class AudioEncoder(_Tower):
    """Sound through Whisper's encoder (windows shorter than 30 s) or wav2vec2 and its kin."""

    modality: Modality = "audio"

    def __init__(self, model: Any, extractor: Any, tokens: int, window_s: float, device: torch.device) -> None:
        self.samples = round(window_s * RATE_HZ / (2 * HOP)) * 2 * HOP
        self.mel: Mel | None = None
        if model.main_input_name == "input_features":
            frames, bands = self.samples // HOP, model.config.num_mel_bins
            self.mel = Mel.build(extractor.mel_filters, device)
            tower = AudioTower(whisper_encoder(model, frames), tokens, torch.zeros(1, bands, frames))
        else:
            tower = AudioTower(model, tokens, torch.zeros(1, self.samples))
        self.normalises = getattr(extractor, "do_normalize", None) is not False
        shaping = {"samples": self.samples} | ({} if self.normalises else {"normalised": False})
        super().__init__(tower, tokens, tower.width, device, shaping)

    def prepare(self, readings: Sequence[Reading]) -> Inputs:
        """Return log-mel energies B,M,F, or normalised samples B,N.

        Raises:
            ValueError: a sound is not sampled at 16 kHz.
        """
        sounds = [r for r in readings if isinstance(r, Sound)]
        if wrong := next((s for s in sounds if s.rate_hz != RATE_HZ), None):
            raise ValueError(f"{wrong.stream}: sound at {wrong.rate_hz} Hz; the encoder needs {RATE_HZ} Hz")
        return (self._features(window([s.samples for s in sounds], self.samples)),)

    def _features(self, sound_BN: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
        x_BN = upload(sound_BN, self.device)
        if self.mel is not None:
            return self.mel(x_BN)
        return normalised(x_BN) if self.normalises else x_BN

    def examples(self) -> list[Inputs]:
        """Return one rising tone."""
        time_N = np.arange(self.samples, dtype=np.float32) / RATE_HZ
        chirp_N = 0.3 * np.sin(2 * np.pi * (200 + 400 * time_N) * time_N)
        return [(self._features(chirp_N[None].astype(np.float32)),)]


class LanguageEncoder(_Tower):
    """Texts through BERT-like models: one sentence embedding."""

    modality: Modality = "text"

    def __init__(self, model: Any, tokenizer: Any, limit: int, device: torch.device) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        tower = LanguageTower(model)
        super().__init__(tower, 1, tower.width, device, {"limit": limit})

    def prepare(self, readings: Sequence[Reading]) -> Inputs:
        """Return ids and mask, B,L each."""
        return tokenize(self.tokenizer, [r.text for r in readings if isinstance(r, Text)], self.limit, self.device)

    def examples(self) -> list[Inputs]:
        """Return a short and a longer order, both with padding, so that calibration compares masking too."""
        texts = (
            "turn to the coffee",
            "please turn slowly to the left until the red rocket appears in the middle of what you see",
        )
        return [tokenize(self.tokenizer, [text], self.limit, self.device) for text in texts]


def picture_size(options: Mapping[str, Any], config: Any) -> tuple[int, int]:
    """Return height and width of the training pictures, from the preprocessor's options or the configuration."""
    crop = options.get("crop_size") if options.get("do_center_crop") is not False else None
    size = crop or options.get("size") or getattr(config, "vision_config", config).image_size
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        return (edge, edge) if edge else (size["height"], size["width"])
    return (size, size) if isinstance(size, int) else (size[0], size[1])


BUILT_IN: dict[str, Callable[[int, float], Encoder]] = {
    modulation_spectrum.NAME: modulation_spectrum.ModulationEncoder,
    utterance_encoder.NAME: utterance_encoder.UtteranceEncoder,
}
"""Encoders without weights, made from their number of tokens and the seconds they hear at once."""


def load(settings: EncoderSettings, tokens: int, device: torch.device, *, window_s: float = 2.0) -> Encoder:
    """Load the encoder that the settings name.

    Raises:
        UnknownArchitecture: the model neither sees, hears nor reads, or the plugin is not installed.
        BundledError: bundled weights are missing or not the expected ones.
        OSError: transformers finds no such model.
    """
    if settings.plugin is not None:
        return _plugin(settings.plugin)(settings, tokens, device)
    if settings.model in BUILT_IN:
        return BUILT_IN[settings.model](tokens, window_s)
    source = resolve(settings.model)
    # float32: the reference every backend is measured against
    model = AutoModel.from_pretrained(source, trust_remote_code=False, dtype=torch.float32).eval()
    config, name = model.config, getattr(model, "main_input_name", "")
    if name == "pixel_values" or hasattr(config, "vision_config"):
        options = _options(BaseImageProcessor.get_image_processor_dict, source)
        return VisionEncoder(model, options, load_image_processor(source) if options else None, tokens, device)
    if name == "input_features":
        return AudioEncoder(model, _whisper_extractor(source), tokens, window_s, device)
    if name == "input_values" and config.model_type != "audio-spectrogram-transformer":
        return AudioEncoder(model, _sample_extractor(source), tokens, window_s, device)
    if name == "input_ids" and hasattr(config, "hidden_size"):
        return LanguageEncoder(
            model, AutoTokenizer.from_pretrained(source, trust_remote_code=False), _limit(source, config), device
        )
    raise UnknownArchitecture(
        f"encoder {settings.model}: {type(model).__name__} takes {name or 'unknown inputs'}; a model of vision, hearing or language is needed"
    )


def _plugin(name: str) -> Callable[[EncoderSettings, int, torch.device], Encoder]:
    try:
        factory: Callable[[EncoderSettings, int, torch.device], Encoder] = load_plugin("reflexd.encoders", name)
    except PluginError as error:
        raise UnknownArchitecture(f"encoder plugin: {error}") from error
    return factory


def _options(read: Callable[..., tuple[dict[str, Any], Any]], source: Path | str) -> dict[str, Any]:
    """Return a preprocessor's saved options; none where the model has none."""
    try:
        return read(source)[0]
    except OSError:
        return {}


def _whisper_extractor(source: Path | str) -> Any:
    from transformers import WhisperFeatureExtractor  # noqa: PLC0415 - seconds to import, for one kind of model only

    return WhisperFeatureExtractor(**_options(FeatureExtractionMixin.get_feature_extractor_dict, source))


def _sample_extractor(source: Path | str) -> Any:
    """Return the extractor of a model that reads samples; None where it has none."""
    from transformers import Wav2Vec2FeatureExtractor  # noqa: PLC0415 - as above

    options = _options(FeatureExtractionMixin.get_feature_extractor_dict, source)
    return Wav2Vec2FeatureExtractor(**options) if options else None


def _limit(source: Path | str, config: Any) -> int:
    """Return the longest text in ids: that of the sentence model's training, else what the positions allow."""
    own = Path(source) / "sentence.json" if isinstance(source, Path) else None
    if own is not None and own.is_file():
        return int(orjson.loads(own.read_bytes())["max_length"])
    return min(512, int(getattr(config, "max_position_embeddings", 512)))
