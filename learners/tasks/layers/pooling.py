"""Add mean pooling to sentence encoders in a classifier: one more layer of their own architecture, initialised as the mean.

The classification head of BERT and RoBERTa reads the first token only. Sentence encoders were trained with the mean of all
tokens (Reimers and Gurevych 2019), and their first token carries less information (docs/benchmarks.md, orders in waves). One
further layer with uniform attention puts the mean into the first token; its feed-forward part starts at zero.

Transformers can therefore load the folder without our code. The layers below do not change their meaning for the fusion, and
all layers can be trained. Other tasks load such a folder without that layer.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

MARK = "mean_pooling_layer"
"""Entry of a model's configuration: its last layer was added here."""
SQUASHED = {"bert": "bert.pooler.dense", "roberta": "classifier.dense", "xlm-roberta": "classifier.dense"}
"""Architecture -> the dense layer with tanh between the first token and the output layer."""
SHARE = 16.0
"""How much more the mean counts than the first token itself, which the layer's residual connection adds."""
SLOPE = 0.5
"""Of the dense layer: most of a normalised token is where tanh is nearly straight."""


def declared(source: Path | str) -> bool:
    """Return whether a model declares mean pooling, in the format of sentence-transformers or of a bundle."""
    return _json_of(source, "sentence.json").get("pooling") == "mean" or bool(
        _json_of(source, "1_Pooling/config.json").get("pooling_mode_mean_tokens")
    )


def _json_of(source: Path | str, name: str) -> dict[str, Any]:
    """Read a JSON file of a folder or id; empty if there is none.

    Raises:
        ValueError: it is there and does not read.
    """
    try:
        path = Path(source) / name if Path(source).is_dir() else Path(str(cached_file(str(source), name)))
        return dict(orjson.loads(path.read_bytes()))
    except OSError:
        return {}
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}; repair it, or remove it to classify by the first token") from error


@torch.no_grad()
def add_layer(model: Any) -> bool:
    """Append a layer that puts the mean of all tokens into each; False, and nothing done, for an architecture not in `SQUASHED`."""
    if model.config.model_type not in SQUASHED:
        return False
    blocks = model.base_model.encoder.layer
    layer: Any = copy.deepcopy(blocks[-1])
    within, out = layer.attention.self, layer.attention.output
    _scaled(within.query, 0.0)  # the keys stay as they are: where both were zero, neither would ever learn
    _scaled(within.value, 1.0)
    _scaled(out.dense, SHARE)
    _scaled(layer.output.dense, 0.0)
    for norm in (out.LayerNorm, layer.output.LayerNorm):
        norm.weight.fill_(1.0)
        norm.bias.zero_()
    blocks.append(layer)
    _scaled(model.get_submodule(SQUASHED[model.config.model_type]), SLOPE)
    model.config.num_hidden_layers += 1
    setattr(model.config, MARK, True)
    return True


def _scaled(linear: Any, scale: float) -> None:
    """Make a linear layer a multiple of the identity."""
    linear.bias.zero_()
    linear.weight.copy_(scale * torch.eye(*linear.weight.shape))


def without_layer(config: PreTrainedConfig) -> None:
    """Leave out the layer that was added, where one was."""
    if getattr(config, MARK, False):
        config.num_hidden_layers -= 1
        delattr(config, MARK)
