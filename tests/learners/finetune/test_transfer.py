"""A fine-tune that starts from another task's encoder reports what that gains; another architecture is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import tinymodels

from learners.finetune.build import ModelError
from learners.finetune.run import finetune
from learners.finetune.transfer import digest_of, start_from
from learners.tasks.task_classes import open_task

FIRST, SECOND = {"go": "move", "stop": "halt"}, {"go": "yes", "stop": "no"}


def written(path: Path, count: int, seed: int, intents: dict[str, str]) -> str:
    path.write_bytes(b"\n".join(map(orjson.dumps, tinymodels.orders(count, seed, intents))))
    return str(path)


def test_the_encoder_of_a_like_task_gains_and_the_report_says_so(tmp_path: Path) -> None:
    model = str(tinymodels.bert(tmp_path / "model"))
    common: dict[str, Any] = {"task": "text-classification", "model": model, "batch": 8, "learning_rate": 3e-3}
    first, held = written(tmp_path / "a.jsonl", 80, 1, FIRST), written(tmp_path / "b.jsonl", 40, 2, FIRST)
    finetune(train=first, validation=held, out=tmp_path / "first", mode="full", epochs=15, **common)
    few, test = written(tmp_path / "c.jsonl", 8, 3, SECOND), written(tmp_path / "d.jsonl", 60, 4, SECOND)
    report = finetune(
        train=few, validation=few, test=test, out=tmp_path / "second", mode="frozen", epochs=6, start=tmp_path / "first", **common
    )  # fmt: skip
    transfer = report["transfer"]
    assert transfer["copied_share"] == 1.0
    assert transfer["test"]["from"] == report["metrics"]["test"]["accuracy"] >= 0.95
    assert transfer["test"]["gain"] == pytest.approx(transfer["test"]["from"] - transfer["test"]["pretrained"])
    assert transfer["test"]["gain"] > 0.1, "eight labels alone do not show which word decides"
    card = (tmp_path / "second" / "README.md").read_text()
    assert f"The encoder is that of `{tmp_path / 'first'}` (100% of its tensors)" in card
    assert f"| test | {transfer['test']['from']:.4f} | {transfer['test']['pretrained']:.4f} |" in card
    plain = finetune(train=few, validation=few, test=test, out=tmp_path / "plain", mode="frozen", epochs=6, **common)
    assert plain["metrics"]["test"]["accuracy"] == transfer["test"]["pretrained"], (
        "the comparison is the run without --from"
    )
    assert digest_of(tmp_path / "first") != digest_of(tmp_path / "second")


def test_what_is_no_task_or_of_another_architecture_is_refused(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path / "model"), labels=("a", "b"))
    with pytest.raises(ValueError, match="not a folder that `reflexd finetune` wrote"):
        start_from(tmp_path / "model", task)
    open_task("text-classification", tinymodels.bert(tmp_path / "wide", width=64), labels=("a", "b")).save(
        tmp_path / "w"
    )
    with pytest.raises(ValueError, match=r"only \d+% of its tensors fit the model"):
        start_from(tmp_path / "w", task)
    chat = open_task("text-generation", tinymodels.llama(tmp_path / "llama"))
    chat.save(tmp_path / "chat")
    with pytest.raises(ValueError, match="llama shares no weights with bert; start from a task on the same model"):
        start_from(tmp_path / "chat", task)
    rows = written(tmp_path / "a.jsonl", 8, 1, FIRST)
    with pytest.raises(ModelError, match="llama shares no weights with bert"):
        finetune(
            task="text-classification", model=str(tmp_path / "model"), train=rows, validation=rows, out=tmp_path / "out",
            start=tmp_path / "chat",
        )  # fmt: skip
