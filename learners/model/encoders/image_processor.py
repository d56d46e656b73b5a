"""Load the image processor of a pretrained model: transformers' own, with its PIL backend, so that torchvision is not needed.

Tasks call it for the inputs of their model. Policy encoders read its settings only, because they scale in their own graph and never
crop. A model without a known processor gets that of ViT with the settings of its `preprocessor_config.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

Settings = dict[str, Any]
_UNIT = 1 / 255


def load_image_processor(source: Path | str) -> Any:
    """Load the processor of a folder or id.

    Raises:
        OSError: it has no `preprocessor_config.json`.
        ValueError: no processor of this type is installed.
    """
    reader: Any = BaseImageProcessor
    settings: Settings = reader.get_image_processor_dict(source)[0]
    if _declares_type(source, settings):
        auto: Any = AutoImageProcessor
        return auto.from_pretrained(source, trust_remote_code=False, backend="pil")
    from transformers import ViTImageProcessorPil  # noqa: PLC0415 - only for models that transformers does not know

    plain: Any = ViTImageProcessorPil
    return plain(**settings)


def _declares_type(source: Path | str, settings: Settings) -> bool:
    """Return whether transformers finds the processor's class, by the settings or by the model's type."""
    if settings.get("image_processor_type") or settings.get("feature_extractor_type"):
        return True
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING  # noqa: PLC0415 - seconds to import

    mapping: Any = IMAGE_PROCESSOR_MAPPING
    try:
        return type(AutoConfig.from_pretrained(source, trust_remote_code=False)) in mapping
    except (OSError, ValueError):  # no configuration, or one of a type that is not installed
        return False


def scaling(processor: Any) -> tuple[list[float], list[float], bool]:
    """Return mean and deviation of pixels in [0, 1], and whether the channels are blue, green, red.

    A processor that does not normalise has mean 0 and deviation 1. Another factor of rescaling changes both.
    """
    mean, deviation = [0.0] * 3, [1.0] * 3
    if getattr(processor, "do_normalize", True):
        mean, deviation = (_three(getattr(processor, name)) for name in ("image_mean", "image_std"))
    factor = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
    if abs(factor / _UNIT - 1) > 1e-6:
        mean, deviation = ([value * _UNIT / factor for value in row] for row in (mean, deviation))
    return mean, deviation, bool(getattr(processor, "do_flip_channel_order", False))


def _three(value: Any) -> list[float]:
    return [float(one) for one in value] if isinstance(value, list | tuple) else [float(value)] * 3
