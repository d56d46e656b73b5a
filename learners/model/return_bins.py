"""Represent a return as a categorical distribution over fixed bins, as C51 does.

The bins are in units of the deviation of returns, so that one set fits every task. Critics of choices and of continuous actions
use it, and the learner projects its targets here.

Sources: Bellemare et al. 2017 (C51), Farebrother et al. 2024 (classification instead of regression), Palenicek et al. 2025 (XQC).

Shapes: B batch, K bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS, LIMIT = 101, 5.0
"""Number of bins, and the magnitude of the outermost ones."""
WIDTH = 2 * LIMIT / (BINS - 1)


def bins(like: Tensor) -> Tensor:
    """Return the centres K of the bins, on the device of `like`."""
    return torch.linspace(-LIMIT, LIMIT, BINS, device=like.device)


def expectation(logits: Tensor) -> Tensor:
    """Return the mean of the distributions with logits ...,K."""
    mean: Tensor = torch.softmax(logits, dim=-1) @ bins(logits)
    return mean


def project(probabilities_BK: Tensor, values_BK: Tensor) -> Tensor:
    """Return the distribution B,K over the bins of values with the given probabilities; the mean stays (Bellemare et al. 2017).

    Values beyond the outermost bins count as these.
    """
    place_BK = ((values_BK + LIMIT) / WIDTH).clamp(0, BINS - 1)
    lower_BK = place_BK.floor()
    share_BK = place_BK - lower_BK
    # a value that is not a number has no bin; its share keeps it, so the loss is not finite and the batch is skipped
    index_BK = lower_BK.nan_to_num(0.0).long()
    out_BK = torch.zeros(len(probabilities_BK), BINS, device=probabilities_BK.device)
    out_BK.scatter_add_(-1, index_BK, probabilities_BK * (1 - share_BK))
    return out_BK.scatter_add_(-1, (index_BK + 1).clamp_(max=BINS - 1), probabilities_BK * share_BK)


def cross_entropy(logits_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Return the cross-entropy ... of target distributions ...,K and logits ...,K."""
    return -(target_BK * torch.log_softmax(logits_BK, dim=-1)).sum(-1)
