"""Encoders of every architecture from tiny random models in folders, preprocessing, and the backends that run them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from learners.config.policy import EncoderSettings
from learners.model.backends import fastest_backend
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.cuda import CudaGraphRun
from learners.model.backends.fastest_backend import BackendSettings, NoBackend
from learners.model.encoders import efficientnet_lite, pretrained, towers
from learners.model.encoders.preprocess import Mel, normalised, resize, window
from sensors import plugins
from sensors.readings import Frame, Reading, Sound, Text

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PICTURE = {**SMALL, "image_size": 32, "patch_size": 8}
READ = {**SMALL, "vocab_size": 40, "max_position_embeddings": 64}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "turn", "to", "the", "coffee", "left"]
W2V = {
    "conv_dim": (8, 8),
    "conv_kernel": (10, 8),
    "conv_stride": (8, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 80,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
LITE = ((1, 3, 1, 1, 8), (2, 3, 2, 2, 12), (1, 5, 2, 2, 16))

MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "clip": (
        lambda: hf.CLIPModel(
            hf.CLIPConfig(
                text_config={**READ, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
                vision_config=PICTURE,
                projection_dim=16,
            )
        ),
        "image",
    ),
    "siglip": (lambda: hf.SiglipModel(hf.SiglipConfig(text_config=READ, vision_config=PICTURE)), "image"),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**PICTURE, mlp_ratio=2)), "image"),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**PICTURE)), "image"),
    "lite": (
        lambda: efficientnet_lite.EfficientNetLiteModel(
            efficientnet_lite.EfficientNetLiteConfig(stages=LITE, stem=8, hidden_size=20, image_size=64)
        ),
        "image",
    ),
    "whisper": (lambda: hf.WhisperModel(hf.WhisperConfig(**WHISPER)), "audio"),
    "wav2vec2": (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SMALL, **W2V)), "audio"),
    "bert": (lambda: hf.BertModel(hf.BertConfig(**READ)), "text"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, (make, _) in MODELS.items():
        make().save_pretrained(root / name)
    (root / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    (root / "bert" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return root


def make(folders: Path, name: str, tokens: int = 4) -> Any:
    return pretrained.load(EncoderSettings(model=str(folders / name)), tokens, CPU, window_s=0.5)


def reading(modality: str, seed: int = 0) -> Reading:
    rng = np.random.default_rng(seed)
    if modality == "image":
        return Frame("x", 0.0, seed, rng.integers(0, 255, (40, 90, 3), dtype=np.uint8))
    if modality == "audio":
        return Sound("x", 0.0, seed, rng.normal(size=7_000).astype(np.float32))
    return Text("x", 0.0, seed, "turn to the coffee" if seed % 2 else "turn left")


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_gives_finite_tokens_that_do_not_depend_on_the_batch(folders: Path, name: str) -> None:
    encoder = make(folders, name)
    assert encoder.modality == MODELS[name][1]
    one, two = reading(encoder.modality, 0), reading(encoder.modality, 1)
    both = encoder.encode(encoder.prepare([one, two]))
    assert both.shape == (2, encoder.tokens, encoder.width)
    assert both.dtype == torch.float32
    assert both.isfinite().all()
    torch.testing.assert_close(both[0], encoder.encode(encoder.prepare([one]))[0], rtol=1e-4, atol=1e-5)
    assert not torch.equal(both[0], both[1])
    assert encoder.version == make(folders, name).version


@pytest.mark.parametrize("name", MODELS)
def test_openvino_gives_the_same_tokens(folders: Path, name: str, tmp_path: Path) -> None:
    encoder = make(folders, name)
    run, choice = Calibrations(tmp_path, BackendSettings("openvino", "float32")).runner(
        encoder.module, encoder.examples(), encoder.version
    )
    assert choice.backend == "openvino"
    for batch in (1, 3, 2):
        inputs = encoder.prepare([reading(encoder.modality, i) for i in range(batch)])
        torch.testing.assert_close(run(*inputs), encoder.encode(inputs), rtol=1e-3, atol=1e-3)


def test_version_follows_weights_and_shape(folders: Path) -> None:
    encoder = make(folders, "vit")
    before = encoder.version
    state = {name: x.clone() for name, x in encoder.module.state_dict().items()}
    encoder.load_state(state)
    assert encoder.version == before
    next(iter(state.values())).add_(1e-3)
    encoder.load_state(state)
    assert encoder.version != before
    assert make(folders, "vit", tokens=2).version != before


def test_a_model_of_no_known_modality_and_a_missing_plugin_are_refused(folders: Path, tmp_path: Path) -> None:
    class Odd(nn.Module):
        pass

    with pytest.raises(pretrained.UnknownArchitecture, match="no entry point"):
        pretrained.load(EncoderSettings(model="x", plugin="nothing"), 4, CPU)
    hf.TimesformerModel(hf.TimesformerConfig(**PICTURE, num_frames=2)).config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no file named"):
        pretrained.load(EncoderSettings(model=str(tmp_path)), 4, CPU)


def test_a_plugin_is_called_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        value = "package:make"

        def load(self) -> Callable[..., Any]:
            return lambda settings, tokens, device: (settings.model, tokens, device)

    monkeypatch.setattr(plugins, "entry_points", lambda **_: [Point()])
    got: Any = pretrained.load(EncoderSettings(model="m", plugin="p"), 4, CPU)
    assert got == ("m", 4, CPU)


def test_vision_tokens_keep_left_and_right() -> None:
    class Map(nn.Module):
        config = None

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return hf.modeling_outputs.BaseModelOutput(last_hidden_state=nn.functional.avg_pool2d(pixel_values, 8))

    tower = towers.VisionTower(Map(), 4, (56, 56), [0.0] * 3, [1.0] * 3)
    picture = torch.zeros(1, 3, 56, 56, dtype=torch.uint8)
    picture[..., :16] = 255  # two of seven columns; a token covers 1.75
    assert tower(picture)[0, :, 0].tolist() == pytest.approx([1, 1 / 7, 0, 0], abs=1e-6)


@pytest.mark.parametrize(("tokens", "want"), [(1, (1, 1)), (4, (1, 4)), (7, (1, 7)), (14, (2, 7)), (49, (7, 7))])
def test_grid_prefers_columns(tokens: int, want: tuple[int, int]) -> None:
    assert towers.grid(tokens, 7, 7) == want


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        towers.grid(11, 7, 7)


def test_pool_weights_share_evenly() -> None:
    weights = towers.pool_weights(7, 4)
    torch.testing.assert_close(weights.sum(0), torch.ones(4))
    torch.testing.assert_close(weights.sum(1), torch.full((7,), 4 / 7))


def test_windows_keep_the_end_and_start_with_silence() -> None:
    got = window([np.arange(5, dtype=np.float32), np.ones(2, np.float32)], 3)
    assert got.tolist() == [[2, 3, 4], [0, 1, 1]]


def test_mel_equals_transformers_own() -> None:
    extractor = hf.WhisperFeatureExtractor()
    sound = np.random.default_rng(0).normal(size=8_000).astype(np.float32)
    want = extractor(sound, sampling_rate=16_000, padding=False, return_tensors="pt").input_features
    got = Mel.build(extractor.mel_filters, CPU)(torch.from_numpy(sound[None]))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_sound_at_another_rate_is_refused(folders: Path) -> None:
    with pytest.raises(ValueError, match="16000"):
        make(folders, "wav2vec2").prepare([Sound("x", 0.0, 0, np.zeros(10, np.float32), 8_000)])


def test_normalised_sound_has_zero_mean_and_unit_variance() -> None:
    out = normalised(torch.randn(2, 1000) * 3 + 1)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, correction=0), torch.ones(2), atol=1e-4, rtol=0)


def test_resize_is_close_to_float_and_reads_read_only_pictures() -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    image.flags.writeable = False
    got = resize([image], (32, 32), CPU)
    want = nn.functional.interpolate(
        torch.tensor(image.copy()).permute(2, 0, 1)[None].float(), (32, 32), mode="bilinear", antialias=True
    )
    assert got.dtype == torch.uint8
    assert float((got.float() - want).abs().max()) <= 1.5
    assert torch.equal(
        resize([np.ascontiguousarray(image[:32, :32])], (32, 32), CPU)[0],
        torch.tensor(image[:32, :32].copy()).permute(2, 0, 1),
    )


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"crop_size": {"height": 3, "width": 4}, "size": {"shortest_edge": 9}}, (3, 4)),
        ({"size": {"shortest_edge": 9}}, (9, 9)),
        ({"size": 5}, (5, 5)),
        ({}, (7, 7)),
        ({"size": [2, 3]}, (2, 3)),
    ],
)
def test_picture_size(options: dict[str, Any], want: tuple[int, int]) -> None:
    assert pretrained.picture_size(options, hf.ViTConfig(image_size=7)) == want


def test_a_choice_is_remembered_and_used_again(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make(folders, "vit")
    own = Calibrations(tmp_path, BackendSettings(tolerance=0.05))
    _, first = own.runner(encoder.module, encoder.examples(), encoder.version)
    assert {m.backend for m in first.measured} == {"torch", "openvino"}
    assert next(m for m in first.measured if m.backend == "torch").difference == 0

    def forbidden(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(fastest_backend, "calibrate", forbidden)
    _, again = Calibrations(tmp_path, BackendSettings(tolerance=0.05)).runner(
        encoder.module, encoder.examples(), encoder.version
    )
    assert again == first
    with pytest.raises(AssertionError, match="measured again"):
        Calibrations(tmp_path, BackendSettings(tolerance=0.01)).runner(
            encoder.module, encoder.examples(), encoder.version
        )
    (tmp_path / "engine.json").write_text("{torn")
    assert own.recall(encoder.version, CPU) is None
    own.remember(encoder.version, CPU, first)
    assert own.recall(encoder.version, CPU) == first


class Unstable(nn.Module):
    """Cancels large numbers: right in float32, wrong in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + 1000) - self.layer(x + 999)


@pytest.mark.skipif(not fastest_backend.has_bfloat16(), reason="the processor has no bfloat16")
def test_bfloat16_beyond_the_tolerance_is_never_chosen() -> None:
    example = (torch.randn(1, 8),)
    choice = fastest_backend.calibrate(Unstable(), [example], BackendSettings("torch"), "v")
    assert choice.precision == "float32"
    assert next(m for m in choice.measured if m.precision == "bfloat16").difference > 0.02
    with pytest.raises(NoBackend, match="bfloat16: difference"):
        fastest_backend.calibrate(Unstable(), [example], BackendSettings("torch", "bfloat16"), "v")


def test_nan_is_no_agreement() -> None:
    assert fastest_backend.compare([torch.ones(2)], [torch.tensor([1.0, float("nan")])]) == (0.0, fastest_backend.FAR)


def test_bfloat16_is_not_tried_without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastest_backend, "has_bfloat16", lambda: False)
    assert fastest_backend.candidates(BackendSettings(), CPU) == [("torch", "float32"), ("openvino", "float32")]
    assert fastest_backend.candidates(BackendSettings(precision="bfloat16"), CPU) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_cuda_graph_gives_what_the_module_gives() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.GELU()).cuda()
    x = torch.randn(1, 8, device="cuda")
    torch.testing.assert_close(CudaGraphRun(module, (x,))(x * 2), module(x * 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pictures_are_resized_on_the_gpu() -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    got, want = (resize([image], (32, 32), torch.device(d)) for d in ("cuda", "cpu"))
    assert float((got.cpu().float() - want.float()).abs().max()) <= 3
