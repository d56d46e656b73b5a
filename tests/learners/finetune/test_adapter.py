"""An exported adapter fits the model that it names, also where the task changed that model before training."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import peft
import pytest
import soundfile
import tinymodels
import torch
import transformers
from PIL import Image

import learners.model.encoders.bundled_weights
from learners.finetune.run import finetune
from learners.tasks.task_classes import open_task, task_class

assert learners.model.encoders.bundled_weights  # registers the architecture of EfficientNet-Lite


def pooled(folder: Path) -> Path:
    """A sentence encoder, which a classifier widens by a layer."""
    made = tinymodels.bert(folder)
    (made / "sentence.json").write_text(json.dumps({"pooling": "mean", "max_length": 64}))
    return made


def rows(kind: str, folder: Path) -> list[dict[str, Any]]:
    rng = random.Random(0)
    generator = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    for i in range(16):
        words = rng.sample(tinymodels.WORDS[:15], 6)
        if kind == "text-classification":
            found.append({"text": " ".join(words), "label": "ab"[i % 2]})
        elif kind == "token-classification":
            found.append({"tokens": ["Paris", *words], "tags": ["B-X", *["O"] * 6]})
        elif kind == "image-classification":
            out = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(out, "PNG")
            (folder / f"{i}.png").write_bytes(out.getvalue())
            found.append({"picture": f"{i}.png", "label": "ab"[i % 2]})
        else:
            samples = (generator.standard_normal(16_000) * 0.1).astype(np.float32)
            soundfile.write(folder / f"{i}.wav", samples, 16_000)
            found.append({"sound": f"{i}.wav", "label": "ab"[i % 2]})
    return found


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("text-classification", pooled),
        ("token-classification", tinymodels.bert),
        ("image-classification", tinymodels.efficientnet),
        ("audio-classification", tinymodels.whisper),
    ],
)
def test_an_adapter_fits_the_model_that_it_names(tmp_path: Path, kind: str, make: Any) -> None:
    """A pooling layer, token types of the case, a fitted head and a shorter table of positions are part of that model."""
    model, out = make(tmp_path / "model"), tmp_path / "out"
    data = tmp_path / "rows.jsonl"
    data.write_bytes(b"\n".join(orjson.dumps(row) for row in rows(kind, tmp_path)))
    finetune(
        task=kind, model=str(model), train=data, validation=data, out=out, mode="lora", adapter=True, epochs=2,
        learning_rate=2e-2, batch=4, probe=True,
    )  # fmt: skip
    named = peft.PeftConfig.from_pretrained(str(out / "adapter")).base_model_name_or_path
    assert named == str(out / "adapter" / "base")
    auto = getattr(transformers, task_class(kind).auto.__name__)
    base = auto.from_pretrained(named).eval()
    adapted = peft.PeftModel.from_pretrained(base, str(out / "adapter")).eval()
    exported = auto.from_pretrained(out).eval()
    task = open_task(kind, out)
    examples = [
        {name: str(tmp_path / value) if name in ("picture", "sound") else value for name, value in row.items()}
        for row in rows(kind, tmp_path)[:3]
    ]
    batch = {
        name: value
        for name, value in task.collate([task.features(one)[0] for one in examples]).items()
        if name not in ("labels", "first")
    }
    with torch.no_grad():
        wanted, found = exported(**batch).logits, adapted(**batch).logits
        before = auto.from_pretrained(named).eval()(**batch).logits
    assert torch.allclose(wanted, found, atol=1e-5)
    assert not torch.allclose(wanted, before, atol=1e-3), "and the adapter is what was learned"
    assert open_task(kind, named).labels == task.labels


def test_a_mode_without_adapter_refuses_to_store_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode full trains no adapter; use mode lora"):
        finetune(
            task="text-classification", model="m", train="t.csv", validation="t.csv", out=tmp_path, mode="full",
            adapter=True,
        )  # fmt: skip
