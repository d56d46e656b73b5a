"""Learning rates, weight decay and which parameters get which, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tinymodels
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from learners.finetune.build import settings_of
from learners.finetune.optim import factor, groups, optimizer, set_rate
from learners.finetune.trainable_layers import prepare
from learners.tasks.base import Recipe
from learners.tasks.task_classes import open_task


def test_warm_up_rises_then_the_rate_falls_to_zero() -> None:
    linear = [factor(step, 10, warmup=0.2, kind="linear") for step in range(11)]
    assert linear[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 7 / 8])
    assert linear[10] == 0.0
    assert factor(6, 10, warmup=0.2, kind="cosine") == pytest.approx(0.5)
    assert factor(9, 10, warmup=0.2, kind="constant") == 1.0


class One(nn.Module):
    """A matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[2.0]]))
        self.vector = nn.Parameter(torch.tensor([2.0]))


def stepped(name: str) -> tuple[float, float]:
    model = One()
    made = optimizer(name, model, rate=0.1, weight_decay=0.5, layer_decay=1.0, momentum=0.9)
    model.matrix.grad, model.vector.grad = torch.tensor([[4.0]]), torch.tensor([4.0])
    made.step()
    return model.matrix.item(), model.vector.item()


def test_adamw_decay_is_decoupled_and_leaves_vectors_alone() -> None:
    # 2 * (1 - 0.1 * 0.5) = 1.9; Adam's first step is rate * sign(gradient) = 0.1
    assert stepped("adamw") == pytest.approx((1.8, 1.9), abs=1e-6)


def test_sgd_decay_is_decoupled() -> None:
    # 2 * (1 - 0.1 * 0.5) - 0.1 * 4 = 1.5; coupled decay would put 0.5 * 2 into the momentum
    assert stepped("sgd") == pytest.approx((1.5, 1.6), abs=1e-6)


def test_layer_decay_lowers_the_rate_from_head_to_embeddings(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tinymodels.bert(tmp_path), num_labels=2)
    rates = rate_of(model, groups(model, 1.0, 0.01, 0.5))
    assert rates["classifier.weight"] == 1.0
    assert rates["bert.encoder.layer.2.attention.self.query.weight"] == 0.5
    assert rates["bert.encoder.layer.0.attention.self.query.weight"] == 0.125
    assert rates["bert.embeddings.word_embeddings.weight"] == 0.0625


def test_set_rate_scales_every_group() -> None:
    model = One()
    made = optimizer("adamw", model, rate=0.1, weight_decay=0.5, layer_decay=1.0, momentum=0.9)
    set_rate(made, 0.25)
    assert {group["lr"] for group in made.param_groups} == {0.025}


def rate_of(model: nn.Module, made: list[dict[str, Any]]) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group["rate"] for group in made for parameter in group["params"]}


def test_what_follows_the_blocks_learns_as_fast_as_the_head(tmp_path: Path) -> None:
    pictures = open_task("image-classification", tinymodels.efficientnet(tmp_path / "e"), labels=("a", "b"))
    rates = rate_of(pictures.model, groups(pictures.model, 1.0, 0.01, 0.5))
    assert rates["efficientnet_lite.head.conv.weight"] == rates["classifier.weight"] == 1.0
    assert rates["efficientnet_lite.stem.conv.weight"] == 0.5**4, "three blocks lie between"
    texts = AutoModelForSequenceClassification.from_pretrained(tinymodels.bert(tmp_path / "b"), num_labels=2)
    assert rate_of(texts, groups(texts, 1.0, 0.01, 0.5))["bert.pooler.dense.weight"] == 1.0


def test_a_head_beside_adapters_learns_at_its_own_rate(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path), labels=("a", "b"))
    wrapped = prepare(task.model, "lora", rank=2)
    rates = rate_of(wrapped, groups(wrapped, 1.0, 0.01, 0.5, 10.0))
    heads = {name: rate for name, rate in rates.items() if ".classifier." in name}
    assert set(heads.values()) == {10.0}
    assert len(heads) == 2
    assert rates["base_model.model.bert.encoder.layer.2.attention.self.query.lora_A.default.weight"] == 0.5
    assert rates["base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.default.weight"] == 0.125
    assert set(rates) == {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}


def test_a_recipe_gives_each_mode_its_settings() -> None:
    recipe = Recipe(epochs=4, patience=7, rates={"lora": 0.1}, layer_decay=0.9, head_rates={"lora": 10.0})
    lora, top = settings_of(recipe, "lora", epochs=2), settings_of(recipe, "top")
    assert (lora.epochs, lora.patience, lora.learning_rate, lora.layer_decay, lora.head_rate) == (2, 7, 0.1, 1.0, 10.0)
    assert (top.epochs, top.patience, top.learning_rate, top.layer_decay, top.head_rate) == (4, 7, 1e-4, 0.9, 1.0)
