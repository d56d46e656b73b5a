"""A fast part of the table of architectures and kinds of tasks; `bench_architectures.py` verifies all pairs."""

from __future__ import annotations

from pathlib import Path

import architectures
import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.task_kinds import KINDS, TaskKind
from learners.tasks.task_classes import unfit_reason

FAST: tuple[tuple[str, TaskKind], ...] = (
    ("RoBERTa", "text-classification"),
    ("GPT-2", "text-classification"),
    ("DeBERTa-v2", "text-pair-classification"),
    ("DistilBERT", "token-classification"),
    ("Qwen2", "question-answering"),
    ("Llama", "text-generation"),
    ("ViT", "image-classification"),
    ("ConvNeXT", "image-classification"),
    ("AST", "audio-classification"),
)
REFUSED: tuple[tuple[str, TaskKind, str], ...] = (
    ("BERT", "translation", "bert has no head for translation; it can do "),
    ("RoBERTa", "text-generation", "roberta reads texts in both directions, and text-generation needs a causal model"),
    ("BART", "text-generation", "bart is an encoder with a decoder, and text-generation needs a decoder alone"),
    ("ViT", "audio-classification", "vit has no head for audio-classification; it can do image-classification"),
    ("wav2vec2", "automatic-speech-recognition", "wav2vec2 has no head for automatic-speech-recognition; it can do "),
)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("architecture", "kind"), FAST)
def test_a_pair_trains_equals_transformers_loads_and_resumes(tmp_path: Path, architecture: str, kind: TaskKind) -> None:
    assert architectures.verify(tmp_path, architecture, kind) == "ok"


@pytest.mark.parametrize(("architecture", "kind", "sentence"), REFUSED)
def test_a_pair_without_a_head_is_refused_in_one_sentence(
    tmp_path: Path, architecture: str, kind: TaskKind, sentence: str
) -> None:
    assert architectures.verify(tmp_path, architecture, kind).startswith(sentence)


@pytest.mark.parametrize("architecture", ["GPT-2", "Llama", "Mamba", "Qwen2", "XLNet"])
def test_no_token_of_a_model_that_may_generate_sees_those_after_it(tmp_path: Path, architecture: str) -> None:
    """Where it does, as in XLNet, the loss falls by copying the answer."""
    source = architectures.ARCHITECTURES[architecture](tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    ids_BT = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]])
    with torch.inference_mode():
        one_TV, two_TV = model(ids_BT).logits[:, :-1]
    causal = bool(torch.allclose(one_TV, two_TV, atol=1e-6))
    assert (unfit_reason("text-generation", source) is None) == causal == (architecture != "XLNet")


def test_every_architecture_can_do_something(tmp_path: Path) -> None:
    for name, make in architectures.ARCHITECTURES.items():
        source = make(tmp_path / name)
        assert any(unfit_reason(kind, source) is None for kind in KINDS), name
