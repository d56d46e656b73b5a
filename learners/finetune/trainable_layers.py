"""Select the parameters that fine-tuning trains: the head, the top layers too, low-rank adapters (LoRA), or all. Owns peft.

LoRA (Hu et al. 2021) goes to every linear layer and every dense convolution of the backbone, whatever the architecture;
heads and new modules train in full beside it. Merged adapters leave a plain transformers model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
from torch import nn

from learners.config.tasks import Train
from learners.tasks.layers.heads import block_lists, following, head_modules

ASK_CONVOLUTIONS = frozenset({"whisper"})
"""Architectures with convolutions over time that cannot be wrapped."""
STATE_SPACE = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
"""Architectures with kernels that read the weights of these layers and not their outputs. So peft refuses adapters around them."""
READ_BY_KERNELS = frozenset({"out_proj", "conv1d"})
TOP_SHARE = 1 / 3
"""Share of the layers that `top` trains, at least one of each list."""


def prepare(
    model: nn.Module, mode: Train, *, rank: int = 8, extra: Sequence[str] = (), dropout: float = 0.0
) -> nn.Module:
    """Set what is trained; for LoRA the model comes back wrapped.

    Args:
        model: changed in place.
        mode: `frozen` trains the head, `top` the upper third of the layers too, `lora` adapters, `full` everything.
        rank: of the adapters; their scale is twice the rank over the rank.
        extra: new modules inside the backbone, trained by `lora` and `full`.
        dropout: before the adapters; the backbone's own stays on beside it, and drawing this one took a quarter of a step.

    Raises:
        ValueError: nothing would be trained.
    """
    if mode == "full":
        model.requires_grad_(requires_grad=True)
        return model
    heads = head_modules(model)
    model.requires_grad_(requires_grad=False)
    if mode == "lora":
        config = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=lora_targets(model),
            modules_to_save=[*heads, *extra] or None,
        )  # fmt: skip
        with warnings.catch_warnings():
            # peft reads an attribute of transformers 5 under its old name
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            # GPT-2's layers are transposed; peft says so, and treats them right
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
            wrapped: nn.Module = peft.get_peft_model(model, config)
        return wrapped
    for name in heads:
        model.get_submodule(name).requires_grad_(requires_grad=True)
    if mode == "top":
        for name in top_modules(model):
            model.get_submodule(name).requires_grad_(requires_grad=True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"train: {mode} trains nothing: {type(model).__name__} has no head of its own; use top, lora or full"
        )
    return model


def lora_targets(model: nn.Module) -> list[str]:
    """Full names of the linear layers and dense convolutions of the backbone."""
    heads = head_modules(model)
    tied = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    names = []
    # their code asks each convolution how far it steps, which an adapter around it does not answer
    architecture = getattr(getattr(model, "config", None), "model_type", "")
    bare, kernels = architecture in ASK_CONVOLUTIONS, architecture in STATE_SPACE
    for name, module in model.named_modules():
        dense = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        convolves = isinstance(module, nn.Conv1d) and not bare
        dense = dense or ((convolves or isinstance(module, nn.Conv2d)) and module.groups == 1)
        in_head = any(name == head or name.startswith(head + ".") for head in heads)
        in_kernel = kernels and name.rpartition(".")[2] in READ_BY_KERNELS
        if dense and not in_head and not in_kernel and id(module.weight) not in tied:
            names.append(name)
    return names


def top_modules(model: nn.Module) -> list[str]:
    """Return the upper third of each list of layers, and the modules after the list on its level (norms, poolers)."""
    names: list[str] = []
    for at, module in block_lists(model).items():
        blocks = [name for name, _ in module.named_children()]
        count = max(1, round(len(blocks) * TOP_SHARE))
        names += [f"{at}.{name}" for name in blocks[-count:]]
    return names + following(model)


def counts(model: nn.Module) -> tuple[int, int]:
    """Trained and all parameters; adapters count in both."""
    everything = list(model.parameters())
    return sum(p.numel() for p in everything if p.requires_grad), sum(p.numel() for p in everything)


def base_of(model: Any) -> nn.Module:
    """Return the model under its adapters; the model itself if it has none."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def set_training(model: nn.Module) -> None:
    """Training mode for what is trained; frozen parts stay as in inference: no dropout, no running statistics.

    Batch norms keep their statistics everywhere: fine-tuning sets are small and their batches are not the world.
    """
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        frozen = own and not any(parameter.requires_grad for parameter in own)
        if frozen or isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def save_adapter(model: nn.Module, folder: Path, base: Path) -> None:
    """Write the adapter for `PeftModel.from_pretrained`; its configuration names the model that it fits.

    Args:
        model: with adapters.
        folder: exists, and gets the adapter.
        base: the folder of the model without adapters.

    Raises:
        TypeError: the model has no adapter.
    """
    if not isinstance(model, peft.PeftModel):
        raise TypeError(f"{type(model).__name__} has no adapter")
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(base)
    model.save_pretrained(str(folder))


def merged(model: Any) -> Any:
    """Return the plain model with the adapters merged into its weights."""
    if isinstance(model, peft.PeftModel):
        model = model.merge_and_unload()
    model.requires_grad_(requires_grad=True)
    return model.eval()
