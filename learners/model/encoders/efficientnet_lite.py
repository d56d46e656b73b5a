"""EfficientNet-Lite as a transformers model: convolutions, batch norm and ReLU6, no squeeze-and-excitation, no swish.

Architecture: Tan and Le 2019 (EfficientNet), with the Lite changes of Google's `efficientnet/lite`: fixed stem and head,
ReLU6 everywhere, TensorFlow's SAME padding. Takes pictures scaled to (x - 127) / 128. Knows the weights of the PyTorch
port by its parameter names (`from_port`).

Shapes: B batch, C channels, Y and X of a map (224 px -> 7 x 7), N classes.
"""

# transformers is typed in parts only
# mypy: disable-error-code="no-untyped-call,no-any-return"
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutput

MEAN, STD = 127 / 255, 128 / 255
"""(x - 127) / 128 for x in 0..255, written for pictures scaled to 0..1."""

# one row a stage: repeats, kernel, stride, expansion, channels out
LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLiteConfig(PreTrainedConfig):
    """Sizes; the defaults are EfficientNet-Lite0."""

    model_type = "efficientnet_lite"

    def __init__(
        self,
        stages: tuple[tuple[int, int, int, int, int], ...] = LITE0,
        stem: int = 32,
        hidden_size: int = 1280,
        image_size: int = 224,
        dropout: float = 0.2,
        **kwargs: Any,
    ) -> None:
        self.stages = [list(stage) for stage in stages]
        self.stem, self.hidden_size, self.image_size, self.dropout = stem, hidden_size, image_size, dropout
        super().__init__(**{"num_labels": 1000, **kwargs} if "id2label" not in kwargs else kwargs)


class ConvNorm(nn.Module):
    """Convolution with SAME padding (more at the far side), batch norm, and optionally ReLU6."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int, stride: int = 1, *, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.act = kernel, stride, act
        self.conv = nn.Conv2d(width_in, width_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width_out, eps=1e-3, momentum=0.01)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """Apply all three."""
        high, wide = (_same(size, self.kernel, self.stride) for size in x_BCYX.shape[-2:])
        if high or wide:
            x_BCYX = F.pad(x_BCYX, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        x_BCYX = self.norm(self.conv(x_BCYX))
        return F.relu6(x_BCYX) if self.act else x_BCYX


def _same(size: int, kernel: int, stride: int) -> int:
    """Return the total padding that makes the output ceil(size / stride) long."""
    return max((-(-int(size) // stride) - 1) * stride + kernel - int(size), 0)


class Block(nn.Module):
    """Mobile inverted bottleneck: expand, depthwise, project; a residual where shapes allow."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = ConvNorm(width_in, inner, 1) if expansion != 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = ConvNorm(inner, width_out, 1, act=False)
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """Apply the block."""
        y_BCYX: Tensor = self.project(self.depthwise(self.expand(x_BCYX)))
        return x_BCYX + y_BCYX if self.residual else y_BCYX


class EfficientNetLitePreTrainedModel(PreTrainedModel):
    """The base of both models."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 - the base class wants a list


class EfficientNetLiteModel(EfficientNetLitePreTrainedModel):
    """The feature extractor: `last_hidden_state` B,C,Y,X and its mean `pooler_output` B,C."""

    _keys_to_ignore_on_load_unexpected = [r"classifier\."]  # noqa: RUF012 - the base class wants a list

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = ConvNorm(3, config.stem, 3, 2)
        blocks: list[nn.Module] = []
        width = config.stem
        for repeats, kernel, stride, expansion, out in config.stages:
            for i in range(repeats):
                blocks.append(Block(width, out, kernel, stride if i == 0 else 1, expansion))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(width, config.hidden_size, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPoolingAndNoAttention:
        """Compute the features of normalised pictures B,3,Y,X."""
        x_BCYX = self.head(self.blocks(self.stem(pixel_values)))
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=x_BCYX, pooler_output=x_BCYX.mean((2, 3)))


class EfficientNetLiteForImageClassification(EfficientNetLitePreTrainedModel):
    """The feature extractor with a linear classifier."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.efficientnet_lite = EfficientNetLiteModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Compute logits B,N, and the cross-entropy where labels B are given."""
        pooled_BC = self.efficientnet_lite(pixel_values).pooler_output
        logits_BN = self.classifier(self.dropout(pooled_BC))
        loss = None if labels is None else F.cross_entropy(logits_BN, labels)
        return ImageClassifierOutput(loss=loss, logits=logits_BN)


def register() -> None:
    """Make the Auto classes of transformers know these models; repeated calls do nothing."""
    AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
    AutoModelForImageClassification.register(
        EfficientNetLiteConfig, EfficientNetLiteForImageClassification, exist_ok=True
    )


def from_port(state: Mapping[str, Tensor]) -> EfficientNetLiteForImageClassification:
    """Build the Lite0 classifier from weights named as in the PyTorch port (`_blocks.3._expand_conv.weight` ...).

    Raises:
        RuntimeError: a parameter is missing, unknown or of another shape.
    """
    model = EfficientNetLiteForImageClassification(EfficientNetLiteConfig())
    model.load_state_dict({_own_name(name, state): tensor for name, tensor in state.items()})
    return model.eval()


def _own_name(name: str, state: Mapping[str, Tensor]) -> str:
    if name.startswith("_fc."):
        return name.replace("_fc", "classifier")
    if match := re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name):
        block, layer, leaf = match.groups()
        expands = f"_blocks.{block}._expand_conv.weight" in state
        part = {"_expand_conv": "expand.conv", "_depthwise_conv": "depthwise.conv", "_project_conv": "project.conv"}
        part |= {"_bn0": "expand.norm" if expands else "", "_bn1": "depthwise.norm", "_bn2": "project.norm"}
        return f"efficientnet_lite.blocks.{block}.{part[layer]}.{leaf}"
    layer, leaf = name.split(".")
    part = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
    return f"efficientnet_lite.{part[layer]}.{leaf}"


def load_port(path: str) -> EfficientNetLiteForImageClassification:
    """Build it from a `.pth` file, of which only tensors are unpickled."""
    return from_port(torch.load(path, map_location="cpu", weights_only=True))
