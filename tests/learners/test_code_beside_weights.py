"""Code that lies beside the weights of a model is never run, whatever loads the folder."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from learners.config.policy import EncoderSettings
from learners.model.encoders.image_processor import load_image_processor
from learners.model.encoders.pretrained import load
from learners.tasks.task_classes import unfit_reason

ROOT = Path(__file__).parents[2]
PICKY = {"AutoModel", "AutoTokenizer", "AutoConfig", "AutoModelForCausalLM", "auto", "extractor"}
"""Names under which the code calls the classes of transformers that would run such code."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a configuration that names a module that leaves a mark."""
    source = tmp_path / "model"
    source.mkdir()
    classes = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor", "AutoTokenizer")
    named = dict.fromkeys(classes, "beside.Anything")
    config = {"model_type": "never-heard-of", "auto_map": named, "image_processor_type": "Anything"}
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        (source / name).write_text(json.dumps(config))
    (source / "beside.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\nclass Anything: ...\n")
    return source


@pytest.mark.parametrize(
    "loads",
    [
        lambda folder: load(EncoderSettings(model=str(folder)), 4, torch.device("cpu")),
        load_image_processor,
        lambda folder: unfit_reason("image-classification", folder),
    ],
    ids=["encoder", "image processor", "task"],
)
def test_it_is_refused_without_a_question(loads: Callable[[Path], Any], folder: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"trust_remote_code|never-heard-of|Anything"):
        loads(folder)
    assert not (folder.parent / "mark").exists()


def test_every_call_refuses_it() -> None:
    calls, careless = 0, []
    for path in (ROOT / "learners").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if node.func.attr != "from_pretrained" or name not in PICKY:
                continue
            calls += 1
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("trust_remote_code") != "False" and given.get(None) != "LOCAL":
                careless.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert calls >= 15
    assert not careless, careless
