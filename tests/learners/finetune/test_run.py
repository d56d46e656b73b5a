"""From files to a folder with report, card and curves, and back; readers of every kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import peft
import pytest
import tinymodels
from PIL import Image
from rich.console import Console
from transformers import AutoModelForSequenceClassification

from learners.data_error import DataError
from learners.finetune.evaluate import evaluate
from learners.finetune.labelled_files import datasets
from learners.finetune.progress import Bar
from learners.finetune.run import finetune
from learners.finetune.trainer import TrainingProgress

INTENTS = {"go": "move", "stop": "halt", "left": "turn"}


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    counts = {"train": 90, "validation": 30, "test": 30}
    return {
        name: table(tmp_path / f"{name}.csv", tinymodels.orders(n, n + len(name), INTENTS))
        for name, n in counts.items()
    }


def run(tmp_path: Path, files: dict[str, Path], **options: Any) -> dict[str, Any]:
    model = tinymodels.bert(tmp_path / "model")
    chosen = {"epochs": 12, "batch": 16, "learning_rate": 1e-2, "patience": 12, "seed": 1} | options
    return finetune(task="text-classification", model=str(model), out=tmp_path / "out", **files, **chosen)


def test_a_run_leaves_a_folder_that_transformers_and_evaluate_read(tmp_path: Path, files: dict[str, Path]) -> None:
    report = run(tmp_path, files, mode="full", progress=True)
    assert report == orjson.loads((tmp_path / "out" / "report.json").read_bytes())
    named = {"task", "model", "train", "metrics", "trained_parameters", "total_parameters", "epochs", "wall_s"}
    assert named <= set(report)
    assert report["metrics"]["test"]["accuracy"] >= 0.95
    assert report["metrics"]["validation"] == {
        k: v for k, v in report["history"][report["best_epoch"] - 1].items() if k != "loss"
    }
    assert report["trained_parameters"] == report["total_parameters"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert list(model.config.id2label.values()) == ["halt", "move", "turn"]
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| test | {report['metrics']['test']['accuracy']:.4f}" in card
    assert "Not measured: no earlier task was named." in card
    again = evaluate(
        task="text-classification", model=str(tmp_path / "out"), test=files["test"], out=tmp_path / "again"
    )
    assert again["metrics"]["test"] == report["metrics"]["test"]
    assert again["train"] == "full"
    assert (tmp_path / "again" / "report.json").is_file()
    with pytest.raises(ValueError, match="fine-tuned for text-classification"):
        evaluate(task="token-classification", model=str(tmp_path / "out"), test=files["test"])


def test_lora_leaves_merged_weights_an_adapter_and_what_was_forgotten(tmp_path: Path, files: dict[str, Path]) -> None:
    first = run(tmp_path, files, mode="full")
    other = {n: table(tmp_path / f"o{n}.csv", tinymodels.orders(30, 7, {"red": "warm", "blue": "cold"})) for n in files}
    report = finetune(
        task="text-classification", model=str(tmp_path / "out"), out=tmp_path / "second", mode="lora", lora_rank=4, adapter=True,
        earlier=tmp_path / "out", earlier_data=files["test"], epochs=20, batch=8, learning_rate=5e-3, patience=20, **other,
    )  # fmt: skip
    assert report["metrics"]["test"]["accuracy"] >= 0.9
    assert report["forgotten"]["before"] == first["metrics"]["test"]["accuracy"]
    assert report["forgotten"]["lost"] == pytest.approx(report["forgotten"]["before"] - report["forgotten"]["after"])
    assert "accuracy of the earlier task" in (tmp_path / "second" / "README.md").read_text()
    assert report["trained_parameters"] < report["total_parameters"] / 2
    adapter = peft.PeftConfig.from_pretrained(str(tmp_path / "second" / "adapter"))
    assert adapter.r == 4
    stored = AutoModelForSequenceClassification.from_pretrained(tmp_path / "second")
    assert not [name for name, _ in stored.named_parameters() if "lora" in name]


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, files: dict[str, Path]) -> None:
    a = run(tmp_path, files, mode="lora", epochs=2)
    b = run(tmp_path, files, mode="lora", epochs=2, resume=False)
    assert [h["loss"] for h in a["history"]] == [h["loss"] for h in b["history"]]
    c = run(tmp_path, files, mode="lora", epochs=2, seed=2)
    assert [h["loss"] for h in a["history"]] != [h["loss"] for h in c["history"]]


def test_options_no_one_knows_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"unknown options \['speed'\]"):
        run(tmp_path, files, mode="full", speed=3)


def test_the_bar_shows_loss_and_metric() -> None:
    console = Console(width=120, force_terminal=True)
    with console.capture() as shown, Bar("tag full", "f1", console) as tell:
        tell(TrainingProgress(0, 2, 5, 10, 0.5, None))
        tell(TrainingProgress(1, 2, 0, 0, 0.25, 0.75))
    assert "loss 0.2500, f1 0.7500" in shown.get()


def test_columns_and_semeval(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- O\n\nAnna\tB-person\nsings\tO\n\t\nin O\n")
    assert datasets.read(path)[0] == {"tokens": ["Anna", "sings"], "tags": ["B-person", "O"]}
    assert len(datasets.read(path)) == 2
    (tmp_path / "s.txt").write_text('1\t"The <e1>a</e1> of <e2>b</e2>."\nOther\nComment:\n\n')
    assert datasets.read(tmp_path / "s.txt") == [{"text": "The <e1>a</e1> of <e2>b</e2>.", "label": "Other"}]
    path.write_text("lonely\n")
    with pytest.raises(DataError, match=r"a\.conll:1"):
        datasets.read(path)


def test_json_lines_tables_and_splits(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"sentence": "x", "intent": "y"}\n\n{"file": "f.wav", "label": "z"}\n')
    assert datasets.read(lines) == [{"text": "x", "label": "y"}, {"sound": str(tmp_path / "f.wav"), "label": "z"}]
    (tmp_path / "q.tsv").write_text("question\tcontext\tanswer\tstart\nwho\tAnna sang\tAnna\t0\n")
    assert datasets.read(tmp_path / "q.tsv")[0]["answers"] == [{"text": "Anna", "start": 0}]
    both = tmp_path / "b.json"
    both.write_bytes(orjson.dumps({"train": [["hello", "greet"]], "val": [{"text": "a", "label": "b"}]}))
    assert datasets.read(f"{both}#train") == [{"text": "hello", "label": "greet"}]
    assert datasets.read(f"{both}#val") == [{"text": "a", "label": "b"}]
    both.write_bytes(b'[["a", "b"]]')
    assert datasets.read(both) == [{"text": "a", "label": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.jsonl", b"{", r"a\.jsonl:1: not JSON"), ("a.jsonl", b"[]", "an object is wanted"), ("a.csv", b"text\nx\n", "header"),
        ("a.json", b"{", "not JSON"), ("a.json", b'{"x": []}', r"a\.json#x"), ("a.json", b'"x"', "a list of examples"),
        ("a.xls", b"", "is not read"), ("a.jsonl", b"", "no examples"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_reported(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=wanted):
        datasets.read(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        datasets.read(tmp_path / "nothing.csv")


def test_what_a_task_cannot_read_of_any_part_is_named_by_its_place(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.jsonl", tmp_path / "wrong.jsonl"
    right.write_text(
        '{"text": "<e1>go</e1> <e2>left</e2>", "label": "A"}\n{"text": "<e1>a</e1> <e2>b</e2>", "label": "B"}\n'
    )
    wrong.write_text(right.read_text() + '{"text": "go <e2>left</e2>", "label": "A"}\n')
    model = str(tinymodels.bert(tmp_path / "model"))
    for parts in (("train", "validation"), ("validation", "train"), ("test", "train", "validation")):
        files = dict.fromkeys(parts[1:], right) | {parts[0]: wrong}
        with pytest.raises(DataError, match=r"wrong.jsonl:3: exactly one <e1>"):
            finetune(task="relation-extraction", model=model, out=tmp_path / "out", mode="full", epochs=1, **files)
    none = tmp_path / "none.jsonl"
    none.write_text('{"text": "go", "label": []}\n')
    with pytest.raises(DataError, match=r"none.jsonl: no example has a label"):
        finetune(
            task="text-classification", model=model, train=none, validation=none, out=tmp_path / "out", multi_label=True
        )


def test_folders_named_after_classes(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "p" / label).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "p" / label / "1.png")
    (tmp_path / "p" / "cat" / "notes.md").write_text("x")
    found = datasets.read(tmp_path / "p")
    assert [row["label"] for row in found] == ["cat", "dog"]
    assert found[0]["picture"].endswith("cat/1.png")
    (tmp_path / "p" / "dog" / "1.wav").write_bytes(b"")
    with pytest.raises(DataError, match="pictures and sounds together"):
        datasets.read(tmp_path / "p")
