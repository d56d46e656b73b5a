"""Sentence encoders as classifiers: the added layer is the mean of the tokens, and other tasks do not see it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import tinymodels
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, RobertaConfig, RobertaModel

from learners.config.policy import EncoderSettings
from learners.finetune.run import finetune
from learners.model.encoders.pretrained import load
from learners.reencoding.task_encoder import state_of
from learners.tasks.base import Task
from learners.tasks.task_classes import open_task

LAYERS = 3
"""Of the encoders here."""
TEXTS = ("go to the red", "stop", "please go left now")


def sentence_encoder(folder: Path, body: dict[str, object] | None = None) -> Path:
    tinymodels.bert(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_bytes(orjson.dumps(body or {"pooling_mode_mean_tokens": True}))
    return folder


def roberta(folder: Path) -> Path:
    torch.manual_seed(0)
    AutoTokenizer.from_pretrained(tinymodels.bert(folder)).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    (folder / "sentence.json").write_bytes(orjson.dumps({"pooling": "mean"}))
    return folder


def means(source: Path, batch: dict[str, Tensor]) -> Tensor:
    """The masked means of the untouched encoder's tokens, normalised; [B, W]."""
    hidden_BTX = AutoModel.from_pretrained(source).eval()(**batch).last_hidden_state
    mask_BT1 = batch["attention_mask"].unsqueeze(-1)
    return F.layer_norm((hidden_BTX * mask_BT1).sum(1) / mask_BT1.sum(1), hidden_BTX.shape[-1:])


def batch_of(task: Task) -> dict[str, Tensor]:
    batch = task.collate([task.features({"text": text})[0] for text in TEXTS])
    assert batch["attention_mask"].min() == 0, "some are padded"
    return batch


@pytest.mark.parametrize("make", [sentence_encoder, roberta])
@torch.no_grad()
def test_the_first_token_is_the_mean_of_the_encoders_tokens(tmp_path: Path, make: object) -> None:
    source = make(tmp_path / "m")  # type: ignore[operator]
    task = open_task("text-classification", source, labels=("a", "b"))
    assert (task.model.config.num_hidden_layers, len(task.model.base_model.encoder.layer)) == (LAYERS + 1, LAYERS + 1)
    batch = batch_of(task)
    first_BX = task.model.base_model(**batch).last_hidden_state[:, 0]
    alike_B = F.cosine_similarity(first_BX, means(source, batch))
    assert alike_B.min() > 0.98
    plain_BX = AutoModel.from_pretrained(source).eval()(**batch).last_hidden_state[:, 0]
    assert F.cosine_similarity(plain_BX, means(source, batch)).max() < alike_B.min(), (
        "the encoder's own first token is not"
    )


@torch.no_grad()
def test_what_is_saved_is_a_plain_model_of_its_architecture(tmp_path: Path) -> None:
    task = open_task("text-classification", sentence_encoder(tmp_path / "m"), labels=("a", "b"))
    task.save(tmp_path / "o")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "o").eval()
    batch = batch_of(task)
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert torch.equal(plain(**batch).logits, task.model(**batch).logits)
    again = open_task("text-classification", tmp_path / "o", labels=("a", "b", "c"))
    assert again.model.config.num_hidden_layers == LAYERS + 1, "added once"
    assert torch.allclose(again.model(**batch).logits[:, :2], task.model(**batch).logits)


@torch.no_grad()
def test_another_task_opens_such_a_folder_without_the_layer(tmp_path: Path) -> None:
    task = open_task("text-classification", sentence_encoder(tmp_path / "m"), labels=("a", "b"))
    task.save(tmp_path / "o")
    tags = open_task("token-classification", tmp_path / "o", labels=("O", "B-x"))
    assert tags.model.config.num_hidden_layers == LAYERS
    batch = batch_of(task)
    own = AutoModel.from_pretrained(tmp_path / "m").eval()(**batch).last_hidden_state
    assert torch.allclose(tags.model.base_model(**batch).last_hidden_state, own, atol=1e-6)
    tags.save(tmp_path / "t")
    back = open_task("token-classification", tmp_path / "t")
    assert back.model.config.num_hidden_layers == LAYERS


def test_every_weight_of_the_layer_can_learn(tmp_path: Path) -> None:
    """Where queries and keys, or both halves of the feed-forward part, were zero, neither would ever move."""
    task = open_task("text-classification", sentence_encoder(tmp_path / "m"), labels=("a", "b"))
    layer = task.model.base_model.encoder.layer[-1]
    for step in range(2):
        task.model.zero_grad()
        task.loss(task.model, batch_of(task) | {"labels": torch.tensor([0, 1, 1])}).backward()
        if not step:
            torch.optim.SGD(task.model.parameters(), lr=0.1).step()
    still = [name for name, p in layer.named_parameters() if name.endswith("weight") and not p.grad.abs().max() > 0]
    assert not still


def test_models_that_do_not_say_so_or_have_other_layers_stay_as_they_are(tmp_path: Path) -> None:
    assert (
        open_task(
            "text-classification", tinymodels.bert(tmp_path / "b"), labels=("a", "b")
        ).model.config.num_hidden_layers
        == LAYERS
    )
    by_first = sentence_encoder(tmp_path / "c", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    assert open_task("text-classification", by_first, labels=("a", "b")).model.config.num_hidden_layers == LAYERS
    llama = tinymodels.llama(tmp_path / "l")
    (llama / "sentence.json").write_bytes(orjson.dumps({"pooling": "mean"}))
    assert not hasattr(open_task("text-classification", llama, labels=("a", "b")).model.config, "mean_pooling_layer")


def test_a_broken_declaration_is_named(tmp_path: Path) -> None:
    folder = sentence_encoder(tmp_path / "m")
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"1_Pooling.config.json: .*; repair it"):
        open_task("text-classification", folder, labels=("a", "b"))


@torch.no_grad()
def test_fusion_reads_the_layers_below(tmp_path: Path) -> None:
    source = sentence_encoder(tmp_path / "m")
    settings = EncoderSettings(model=str(source), follow_task=True)
    encoder = load(settings, 1, torch.device("cpu"))
    task = open_task("text-classification", source, labels=("a", "b"))
    for parameter in task.model.parameters():
        parameter.add_(0.01)
    task.save(tmp_path / "o")
    encoder.load_state(state_of(settings, encoder, tmp_path / "o"))
    assert encoder.module is not None
    there = dict(task.model.bert.named_parameters())
    for name, parameter in encoder.module.named_parameters():
        assert torch.equal(parameter, there[name.removeprefix("model.")]), name


def test_report_and_card_say_that_a_layer_was_added(tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    data.write_text("text,label\ngo left,a\nstop now,b\n")
    for source, added in ((sentence_encoder(tmp_path / "m"), True), (tinymodels.bert(tmp_path / "b"), False)):
        out = tmp_path / f"o{added}"
        report = finetune(
            task="text-classification", model=str(source), train=data, validation=data, out=out, mode="full", epochs=1
        )
        assert report["mean_pooling_layer"] is added
        assert ("began as the mean of all tokens" in (out / "README.md").read_text()) is added
