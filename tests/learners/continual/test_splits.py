"""What judges a fine-tune is a file that no client can change; a part of the labels only chooses the epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import tinymodels

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.labels import Labelled
from learners.continual.splits import Holdout, classes
from learners.continual.trainer import ContinualTrainer
from learners.data_error import DataError
from learners.experience.reader import Reader
from learners.experience.store import Label, Store
from learners.finetune.labelled_files.equal_content import normalized_text
from learners.tasks.task_classes import open_task

INTENTS = {"go": "move", "stop": "halt"}
FLIPPED = {"move": "halt", "halt": "move"}


def tuner(tmp_path: Path, eval_file: Path | None, **finetune: Any) -> ContinualTrainer:
    model = tmp_path / "model"
    if not model.exists():
        tinymodels.bert(model)
    settings = TaskSettings(
        kind="text-classification",
        stream="orders",
        model=str(model),
        train="full",
        eval_file=None if eval_file is None else str(eval_file),
    )
    chosen = FinetuneSettings(
        **({"min_labels": 20, "every_s": 1, "validation_fraction": 0.3, "rehearsal_ratio": 0.0, "batch": 8} | finetune)
    )
    options = {"epochs": 20, "learning_rate": 2e-3, "patience": 8}
    reader = Reader(tmp_path / "experience")
    return ContinualTrainer(
        "intents",
        settings,
        chosen,
        tmp_path / "tasks",
        reader,
        options=options,
        clock=iter(range(9_999, 10**9, 9_999)).__next__,
    )


def publish(store: Store, rows: list[dict[str, str]], source: str = "anna", *, flipped: bool = False) -> None:
    for row in rows:
        label = FLIPPED[row["label"]] if flipped else row["label"]
        assert store.add_label(Label("intents", label, row["text"], source=source))
    assert store.flush()


def test_a_source_that_tries_to_shape_what_judges_cannot_reach_it(tmp_path: Path, store: Store) -> None:
    """The attack: every known text is sent again with the other label, as a correction, together with the held-out texts."""
    one = tuner(tmp_path, tinymodels.held_out(tmp_path / "held.jsonl", 30, INTENTS))
    honest = tinymodels.orders(60, 1, INTENTS)
    publish(store, honest)
    first = one.run()
    assert first.promoted, first
    assert first.fields["held_out"] == "file"
    assert (first.figures["held_new"], first.figures["held_known"]) == (30, 0)
    assert first.figures["all_after"] >= 0.9

    publish(store, [*honest, *tinymodels.orders(30, 9, INTENTS)], "mallory", flipped=True)
    live = one.versions.live()
    verdict = one.run()
    assert verdict.outcome == "rejected", verdict
    assert verdict.figures["all_after"] < verdict.figures["all_before"]
    assert (verdict.figures["held_new"], verdict.figures["held_known"]) == (0, 30)
    assert one.holdout().examples == tinymodels.orders(30, 9, INTENTS)
    assert one.versions.live() == live
    assert [received["source"] for received in verdict.blamed] == ["label:mallory"]


def test_without_a_file_nothing_is_known_and_a_person_decides(tmp_path: Path, store: Store) -> None:
    """However well it does on labels that came over MQTT: those never give a verdict."""
    one = tuner(tmp_path, None)
    publish(store, tinymodels.orders(60, 1, INTENTS))
    verdict = one.run()
    assert (verdict.outcome, verdict.event, verdict.promoted) == ("inconclusive", "task_awaiting_approval", False)
    assert verdict.reason.startswith(
        "inconclusive: no held-out file; name one under tasks.intents.eval_file, or promote it"
    )
    assert verdict.fields["held_out"] == "none"
    assert verdict.figures["validation"] >= 0.9
    assert verdict.figures["validation_labels"] > 5
    assert not {name for name in verdict.figures if name.endswith(("_after", "_before")) or name == "agreement"}
    assert one.versions.live() is None
    assert not one.due(), "what was tried is not tried again automatically"

    publish(store, tinymodels.orders(20, 2, INTENTS))
    assert one.due()
    second = one.run()
    assert second.figures["new_labels"] > verdict.figures["new_labels"], "nothing that waits is forgotten"
    waiting = {version.name: version for version in one.versions.all()}
    assert set(waiting) == {verdict.version, second.version}
    one.versions.promote(waiting[str(second.version)])
    assert one.versions.rollback() is None, "the other one was never live"
    assert (
        open_task("text-classification", waiting[str(second.version)].path).predict([{"text": "please stop"}])[0].value
        == "halt"
    )
    assert not one.due()
    with pytest.raises(DataError, match="none of its new labels"):
        one.run()  # the version that a person promoted has learned them

    publish(store, tinymodels.orders(20, 3, INTENTS))
    third = one.run()
    assert third.figures["new_labels"] <= 20


def test_poison_without_a_file_is_not_promoted_automatically(tmp_path: Path, store: Store) -> None:
    one = tuner(tmp_path, None)
    publish(store, tinymodels.orders(60, 1, INTENTS), "mallory", flipped=True)
    verdict = one.run()
    assert verdict.outcome == "inconclusive", "labels that agree with each other are no evidence"
    assert verdict.figures["validation"] >= 0.9
    assert one.versions.live() is None
    assert verdict.blamed == ()


def test_a_version_says_what_it_learned_from(tmp_path: Path, store: Store) -> None:
    one = tuner(tmp_path, tinymodels.held_out(tmp_path / "held.jsonl", 20, INTENTS))
    publish(store, tinymodels.orders(40, 1, INTENTS))
    one.run()
    publish(store, tinymodels.orders(40, 2, INTENTS))
    verdict = one.run()
    version = one.versions.all()[-1]
    assert version.name == verdict.version
    report = orjson.loads((version.path / "report.json").read_bytes())
    assert report["metrics"]["held-out file"] == {"accuracy": verdict.figures["all_after"]}
    assert report["forgotten"]["before"] == verdict.figures["known_before"]
    assert report["last_label"] == one.state.judged
    card = (version.path / "README.md").read_text()
    assert "accuracy of the earlier task (text-classification, 20 examples)" in card
    assert "| held-out | the operator's file (20) |" in card


def test_labels_apart_where_a_file_judges() -> None:
    holdout = Holdout(0.25, ({"text": "Stop  NOW", "label": "halt"}, {"text": "go", "label": "move"}))
    texts = {"run": "move", "stop now": "halt", "stop": "halt", "sing": "song", "walk": "move"}
    labels = [
        Labelled(n, f"{n * 4:x}" + "0" * 15, {"text": text, "label": name})
        for n, (text, name) in enumerate(texts.items())
        if n * 4 < 16
    ]
    parts = holdout.parts(labels[1:], labels[:1])
    assert [row["text"] for row in parts.new] == ["stop"], "not what the file says, not what it says nothing of"
    assert (parts.known, [row["text"] for row in parts.validation]) == ([], ["run"])
    assert parts.uncovered == ("song",)
    assert holdout.apart(None) == (holdout.examples, [])
    assert holdout.apart({"move"}) == ([holdout.examples[0]], [holdout.examples[1]])


def test_labels_apart_where_nothing_judges() -> None:
    labels = [Labelled(n, f"{n}" + "0" * 15, {"text": str(n), "label": "x"}) for n in range(8)]
    parts = Holdout(0.25).parts(labels[2:], labels[:2])
    assert [row["text"] for row in parts.validation] == ["2", "3", "0", "1"]
    assert [row["text"] for row in parts.new] == ["4", "5", "6", "7"]
    assert (parts.known, parts.uncovered) == ([], ())
    assert Holdout(0.25).origin == "none"
    assert Holdout(0.25).examples == []


def test_what_an_example_says_and_is() -> None:
    assert normalized_text({"tokens": ["New", "York"]}) == normalized_text({"text": " new york "}) == "new york"
    assert (
        normalized_text({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]})
        == "hi"
    )
    assert normalized_text({"picture": "a.png"}) == ""
    assert classes({"label": "a"}) == {"a"}
    assert classes({"label": ["a", "b"]}) == {"a", "b"}
    assert classes({"tags": ["O", "B-x", "I-x"]}) == {"O", "x"}
    assert classes({"source": "a", "target": "b"}) == frozenset()


def test_a_file_that_is_not_there_is_reported_and_nothing_is_judged(tmp_path: Path, store: Store) -> None:
    publish(store, tinymodels.orders(30, 1, INTENTS))
    one = tuner(tmp_path, tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        one.run()
    assert one.state.judged == 0
    only = tuner(tmp_path, tinymodels.held_out(tmp_path / "other.jsonl", 9, {"red": "warn"}))
    with pytest.raises(DataError, match=r"no example of \['halt', 'move'\]"):
        only.run()


def test_an_eval_file_of_another_task_is_refused_by_line(tmp_path: Path) -> None:
    file = tmp_path / "eval.csv"
    file.write_text("text,sentiment\ngo,move\n")
    with pytest.raises(DataError, match=r"eval\.csv:1: no column `label`"):
        Holdout.of(str(file), 0.2, "text-classification")
    file.write_text("text,label\ngo,move\n")
    assert Holdout.of(str(file), 0.2, "text-classification").examples == [{"text": "go", "label": "move"}]
    with pytest.raises(DataError, match=r"eval\.csv:1: no column `tokens` or `text`|no column `tags`"):
        Holdout.of(str(file), 0.2, "token-classification")
