"""Mix two examples of a batch and their targets (mixup, Zhang et al. 2018): pictures and sounds as they are, texts as embeddings.

Shapes: B batch, T tokens, X width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING

Batch = dict[str, Tensor]
CONCENTRATION = 0.4
"""Of the beta distribution from which the share of the first example is drawn: most mixtures are nearly one of the two."""


def can_mix(model: Any) -> bool:
    """Return whether the inputs of a model can be mixed: pixels, sounds, and embeddings of tokens that attend to both sides."""
    mapping: Any = MODEL_FOR_MASKED_LM_MAPPING
    config = model.config
    return model.main_input_name != "input_ids" or (type(config) in mapping and not config.is_encoder_decoder)


def draw(count: int) -> tuple[float, Tensor]:
    """Return the share of the first example of each pair, and the second one's place [B]; from torch's generator."""
    share = float(torch.distributions.Beta(CONCENTRATION, CONCENTRATION).sample())
    return share, torch.randperm(count)


def mixed(model: Any, given: Batch, share: float, other_B: Tensor) -> Batch:
    """Return the inputs of a batch, each mixed with another; `share` is of the first."""
    if "input_ids" not in given:
        name = next(iter(given))
        return given | {name: share * given[name] + (1 - share) * given[name][other_B]}
    embedded_BTX = model.get_input_embeddings()(given["input_ids"])
    rest = {name: tensor for name, tensor in given.items() if name != "input_ids"}
    mask_BT = torch.maximum(given["attention_mask"], given["attention_mask"][other_B])
    return rest | {
        "inputs_embeds": share * embedded_BTX + (1 - share) * embedded_BTX[other_B],
        "attention_mask": mask_BT,
    }
