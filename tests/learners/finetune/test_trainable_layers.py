"""What each mode trains, on several architectures; what is frozen stays bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import architectures
import numpy as np
import orjson
import peft
import pytest
import tinymodels
import torch
from transformers import BartConfig, BartForConditionalGeneration

from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainable_layers import counts, lora_targets, merged, prepare, set_training, top_modules
from learners.finetune.trainer import Trainer, TrainerSettings
from learners.finetune.training_phases import tune
from learners.tasks.task_classes import open_task

LABELS = ("go", "stop")
ROWS = tinymodels.orders(24, 0, {"go": "go", "stop": "stop"})


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("mode", ["frozen", "top", "full"])
def test_frozen_parameters_are_bit_identical_and_the_others_moved(tmp_path: Path, mode: str) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path), labels=LABELS)
    before = snapshot(task.model)
    prepare(task.model, mode)
    trained = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    tune(task, Splits(ROWS, ROWS), TrainerSettings(epochs=1, batch=8, learning_rate=1e-2), mode)
    moved = {name for name, tensor in snapshot(task.model).items() if not torch.equal(tensor, before[name])}
    assert moved <= trained
    assert {
        name for name in trained if name.endswith("weight") and "token_type" not in name and "position" not in name
    } <= moved
    heads = {name for name in trained if name.startswith("classifier.")}
    assert heads
    if mode == "frozen":
        assert trained == heads
    if mode == "top":
        assert any(name.startswith("bert.encoder.layer.2.") for name in trained)
        assert any(name.startswith("bert.pooler.") for name in trained)
        assert not any(name.startswith(("bert.encoder.layer.0.", "bert.embeddings.")) for name in trained)


@pytest.mark.parametrize("kind", ["text-classification", "token-classification"])
@pytest.mark.parametrize("architecture", ["ALBERT", "BERT"])
def test_a_model_of_one_layer_has_an_encoder_too(tmp_path: Path, architecture: str, kind: str) -> None:
    """ALBERT repeats one layer. Without a list of several, the whole model was the head: `frozen` trained it, `lora` found nothing."""
    source = architectures.ARCHITECTURES[architecture](tmp_path / "m")
    if architecture == "BERT":
        config = orjson.loads((source / "config.json").read_bytes()) | {"num_hidden_layers": 1}
        (source / "config.json").write_bytes(orjson.dumps(config))
    task = open_task(kind, source, labels=("O", "B-X"))
    prepare(task.model, "frozen")
    trained = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}
    task = open_task(kind, source, labels=("O", "B-X"))
    assert counts(prepare(task.model, "lora"))[0] > 1000


def test_lora_trains_exactly_its_matrices_and_the_head(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path), labels=LABELS)
    targets = lora_targets(task.model)
    shapes = [task.model.get_submodule(name).weight.shape for name in targets]
    wrapped = prepare(task.model, "lora", rank=4)
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    # A is rank x in, B is out x rank; the head is 32 x 2 + 2
    assert counts(wrapped)[0] == sum(4 * (a + b) for a, b in shapes) + 66
    assert len(targets) == 3 * 6 + 1  # query, key, value, output and two of the feed-forward in each layer; the pooler
    before = snapshot(wrapped)
    Trainer(task, wrapped, ROWS, ROWS, TrainerSettings(epochs=2, batch=8, learning_rate=1e-2)).run()
    moved = {name for name, tensor in snapshot(wrapped).items() if not torch.equal(tensor, before[name])}
    assert moved == trained, "and everything else is what it was, bit for bit"


def test_merging_changes_no_output(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path), labels=LABELS)
    wrapped = prepare(task.model, "lora", rank=4).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    batch = task.collate([f for row in ROWS[:4] for f in task.features(row)])
    with torch.no_grad():
        want = task.outputs(wrapped, batch)
    plain = merged(wrapped)
    assert not isinstance(plain, peft.PeftModel)
    with torch.no_grad():
        got = task.outputs(plain, batch)
    assert np.allclose(want, got, atol=1e-5)


@pytest.mark.parametrize(("kind", "make"), [("translation", tinymodels.t5), ("text-generation", tinymodels.llama)])
def test_top_and_lora_fit_other_architectures(tmp_path: Path, kind: str, make: Callable[[Path], Path]) -> None:
    task = open_task(kind, make(tmp_path))
    names = top_modules(task.model)
    assert any(name.rpartition(".")[2].isdigit() for name in names)
    assert not any(isinstance(task.model.get_submodule(name), torch.nn.Embedding) for name in names)
    assert all("shared" not in name and "lm_head" not in name for name in lora_targets(task.model))
    wrapped = prepare(task.model, "lora")
    assert 0 < counts(wrapped)[0] < counts(wrapped)[1]


def test_top_takes_no_decoder_for_what_follows_the_encoder() -> None:
    config = BartConfig(
        vocab_size=20, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=8,
    )  # fmt: skip
    names = top_modules(BartForConditionalGeneration(config))
    assert {"model.encoder.layers.1", "model.decoder.layers.1"} <= set(names)
    assert not any(name in ("model.decoder", "model.decoder.layers.0", "lm_head", "model.shared") for name in names)


def test_nothing_to_train_is_reported(tmp_path: Path) -> None:
    task = open_task("text-generation", tinymodels.llama(tmp_path))
    with pytest.raises(ValueError, match="has no head of its own"):
        prepare(task.model, "frozen")


def test_norm_statistics_and_frozen_dropout_rest(tmp_path: Path) -> None:
    pictures = open_task("image-classification", tinymodels.efficientnet(tmp_path / "e"), labels=LABELS)
    prepare(pictures.model, "full")
    set_training(pictures.model)
    assert pictures.model.training
    assert not any(m.training for m in pictures.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    texts = open_task("text-classification", tinymodels.bert(tmp_path / "b", dropout=0.1), labels=LABELS)
    prepare(texts.model, "top")
    set_training(texts.model)
    assert not texts.model.bert.encoder.layer[0].attention.output.dropout.training
    assert texts.model.bert.encoder.layer[2].attention.output.dropout.training
    assert texts.model.classifier.training
