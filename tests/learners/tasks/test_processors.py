"""A task reads pictures and sounds as the model's own processor does: transformers' is the reference for every architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels
import torch
import transformers as hf
from PIL import Image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from learners.config.policy import EncoderSettings
from learners.model.encoders import pretrained
from learners.tasks.inputs.pictures import PictureProcessor, tiles_of
from learners.tasks.task_classes import open_task
from sensors.readings import Frame, Sound

CPU = torch.device("cpu")
UNLIKE = ("imagegpt", "siglip2", "timm_wrapper")
"""Architectures that read numbers of colours, read patches, or need a package of their own."""
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "not normalised": {"do_normalize": False},
    "another factor": {"rescale_factor": 1 / 127.5},
    "not rescaled": {"do_rescale": False},
    "blue first": {"do_flip_channel_order": True},
}


def picture(high: int = 45, wide: int = 80) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 255, (high, wide, 3), dtype=np.uint8)


def classes() -> list[str]:
    """The processors, with their PIL backend, of all architectures that classify pictures."""
    found: dict[str, None] = {}
    for name, backends in IMAGE_PROCESSOR_MAPPING_NAMES.items():
        pil = backends.get("pil")
        if name in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and isinstance(pil, str) and name not in UNLIKE:
            found[pil] = None
    return sorted(found)


@pytest.mark.parametrize("name", classes())
def test_every_architectures_processor_is_the_reference(tmp_path: Path, name: str) -> None:
    small = {"size": {"height": 96, "width": 64}} if name.startswith("Donut") else {}
    for change, options in CHANGES.items():
        getattr(hf, name)(**options, **small).save_pretrained(tmp_path)
        auto: Any = hf.AutoImageProcessor
        reference = auto.from_pretrained(tmp_path, backend="pil")
        own = PictureProcessor.from_pretrained(tmp_path)
        wanted = reference(Image.fromarray(picture()), return_tensors="pt")["pixel_values"][0].float()
        assert torch.equal(own(picture()), wanted), change
        own.save_pretrained(tmp_path)
        assert torch.equal(
            auto.from_pretrained(tmp_path, backend="pil")(picture(), return_tensors="pt")["pixel_values"][0].float(),
            wanted,
        ), f"{change}, saved"
    assert own(picture(40, 50), np.random.default_rng(0)).shape[0] == 3


def test_patches_are_refused(tmp_path: Path) -> None:
    hf.Siglip2ImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"makes inputs of shape .*; tasks read pixels"):
        PictureProcessor.from_pretrained(tmp_path)


def test_flipped_channels_and_no_normalisation(tmp_path: Path) -> None:
    """The figures of MobileViT and of a ViT without normalisation, by hand."""
    red = np.zeros((300, 300, 3), np.uint8)
    red[..., 0], red[..., 1] = 255, 64
    hf.MobileViTImageProcessorPil(size={"shortest_edge": 288}).save_pretrained(tmp_path / "mobilevit")
    means = PictureProcessor.from_pretrained(tmp_path / "mobilevit")(red).mean((1, 2))
    assert means.tolist() == pytest.approx([0.0, 64 / 255, 1.0], abs=1e-6)
    hf.ViTImageProcessorPil(do_normalize=False).save_pretrained(tmp_path / "vit")
    means = PictureProcessor.from_pretrained(tmp_path / "vit")(red).mean((1, 2))
    assert means.tolist() == pytest.approx([1.0, 64 / 255, 0.0], abs=1e-6)


@pytest.mark.parametrize("change", list(CHANGES))
def test_an_encoder_of_the_policy_scales_as_the_processor_does(tmp_path: Path, change: str) -> None:
    """A picture of the model's size is resized by neither, so that both give the model the same pixels."""
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    hf.ViTModel(config).save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    processor = hf.MobileViTImageProcessorPil if change == "blue first" else hf.ViTImageProcessorPil
    own: dict[str, Any] = {"crop_size": size} if change == "blue first" else {}
    processor(size=size, **own, **CHANGES[change]).save_pretrained(tmp_path)
    encoder = pretrained.load(EncoderSettings(model=str(tmp_path)), 1, CPU)
    seen: list[torch.Tensor] = []
    assert encoder.module is not None
    model = encoder.module.model
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["pixel_values"]), with_kwargs=True)
    image = picture(32, 32)
    encoder.encode(encoder.prepare([Frame("camera", 0.0, 0, image)]))
    wanted = PictureProcessor.from_pretrained(tmp_path)(image)
    torch.testing.assert_close(seen[0][0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalises", [True, False])
def test_an_encoder_of_the_policy_hears_as_the_extractor_does(tmp_path: Path, normalises: bool) -> None:
    tinymodels.wav2vec2(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": normalises}))
    encoder = pretrained.load(EncoderSettings(model=str(tmp_path)), 1, CPU, window_s=1.0)
    sound = (np.random.default_rng(0).standard_normal(16_000) * 0.1 + 0.05).astype(np.float32)
    (given,) = encoder.prepare([Sound("microphone", 0.0, 0, sound, 16_000)])
    auto: Any = hf.AutoFeatureExtractor
    wanted = auto.from_pretrained(tmp_path)(sound, sampling_rate=16_000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


def test_a_picture_in_tiles_is_the_mean_of_all(tmp_path: Path) -> None:
    """A mark that vanishes when the whole picture shrinks is seen in a tile; training sees one part in each epoch."""
    task = open_task(
        "image-classification", tinymodels.efficientnet(tmp_path / "model"), labels=("a", "b"), tiles=3, augment=()
    )
    image = picture(200, 301)
    parts = tiles_of(image, 3)
    assert len(parts) == 10
    assert len({part.shape for part in parts[1:]}) == 1
    seen = np.zeros(image.shape[:2], bool)
    for number in range(9):
        high, wide = parts[1].shape[:2]
        top, left = (round(at * (edge - size) / 2) for at, edge, size in
                     ((number // 3, 200, high), (number % 3, 301, wide)))  # fmt: skip
        seen[top : top + high, left : left + wide] = True
    assert seen.all()
    assert high * 3 > 200 * 1.15, "tiles overlap"
    alone = open_task("image-classification", tmp_path / "model", labels=("a", "b"))
    with torch.no_grad():
        alone.model.load_state_dict(task.model.state_dict())
    expected = np.mean([one.probabilities["a"] for one in alone.predict([{"picture": part} for part in parts])])
    assert task.predict([{"picture": image}])[0].probabilities["a"] == pytest.approx(expected, abs=1e-5)
    drawn = {
        task.features({"picture": image}, rng=np.random.default_rng(i))[0]["pixel_values"].numpy().tobytes()
        for i in range(40)
    }
    assert len(drawn) > 5
    assert task.varying
