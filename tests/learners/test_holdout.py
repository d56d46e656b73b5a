"""What judges a fine-tune: a file that nobody can reach from outside, or a part of the labels."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import tinymodels

from learners.config import FinetuneSettings, TaskSettings
from learners.experience import Label, Store
from learners.holdout import Holdout, said
from learners.labels import Labelled
from learners.online import Online
from learners.reader import Reader
from learners.tasks.base import DataError

INTENTS = {"go": "move", "stop": "halt"}
FLIPPED = {"move": "halt", "halt": "move"}


def held_file(tmp_path: Path) -> Path:
    """Thirty examples of the operator's."""
    path = tmp_path / "held.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in tinymodels.orders(30, 9, INTENTS)))
    return path


def tuner(tmp_path: Path, heldout: Path | None, folder: str = "tasks") -> Online:
    model = tmp_path / "model"
    if not model.exists():
        tinymodels.bert(model)
    settings = TaskSettings(
        kind="classify",
        stream="orders",
        model=str(model),
        train="full",
        heldout=None if heldout is None else str(heldout),
    )
    finetune = FinetuneSettings(min_labels=20, holdout=0.3, replay=0.0, batch=8)
    options = {"epochs": 30, "learning_rate": 1e-3, "patience": 20}
    reader = Reader(tmp_path / "experience")
    return Online("intents", settings, finetune, tmp_path / folder, reader, options=options)


def publish(store: Store, rows: list[dict[str, str]], source: str = "anna", *, flipped: bool = False) -> None:
    for row in rows:
        label = FLIPPED[row["label"]] if flipped else row["label"]
        assert store.add_label(Label("intents", label, row["text"], source=source))
    assert store.flush()


def test_a_source_that_tries_to_shape_what_judges_cannot_reach_a_file(tmp_path: Path, store: Store) -> None:
    """The attack: every known text is sent again with the other label, as a correction, together with the held-out texts."""
    unguarded, guarded = tuner(tmp_path, None, "a"), tuner(tmp_path, held_file(tmp_path), "b")
    honest = tinymodels.orders(60, 1, INTENTS)
    publish(store, honest)
    first = guarded.run()
    assert first.promoted, first
    assert first.fields["held_out"] == "file"
    assert first.figures["held_new"] == 30
    assert first.figures["all_after"] >= 0.9

    before, shaped = guarded.held_out(), unguarded.held_out()
    assert {(row["text"], row["label"]) for row in shaped} <= {(row["text"], row["label"]) for row in honest}
    publish(store, [*honest, *tinymodels.orders(30, 9, INTENTS)], "mallory", flipped=True)
    live = guarded.versions.live()
    verdict = guarded.run()
    assert not verdict.promoted, verdict
    assert verdict.figures["all_after"] < verdict.figures["all_before"]
    assert guarded.held_out() == before == tinymodels.orders(30, 9, INTENTS)
    assert guarded.versions.live() == live
    # labels alone cannot tell a correction from an attack, and what judges there now says the opposite
    assert {row["text"]: FLIPPED[row["label"]] for row in shaped}.items() <= {
        row["text"]: row["label"] for row in unguarded.held_out()
    }.items()


def test_with_a_file_every_label_trains_but_those_that_say_what_it_says() -> None:
    holdout = Holdout(0.5, ({"text": "Stop  NOW", "label": "halt"},))
    labels = [Labelled(n, "0", {"text": text, "label": "x"}) for n, text in enumerate(("go", "stop now", "stop"))]
    parts = holdout.parts(labels, labels[:2])
    assert [row["text"] for row in parts.train_new] == ["go", "stop"]
    assert [row["text"] for row in parts.train_known] == ["go"]
    assert (parts.held_new, parts.held_known) == ([{"text": "Stop  NOW", "label": "halt"}], [])
    assert holdout.examples(labels) == parts.held_new


def test_without_a_file_a_part_of_the_labels_judges() -> None:
    labels = [Labelled(n, f"{n}" + "0" * 15, {"text": str(n), "label": "x"}) for n in range(8)]
    parts = Holdout(0.25).parts(labels[4:], labels[:4])
    assert [row["text"] for row in parts.held_known] == ["0", "1", "2", "3"]
    assert parts.held_new == []
    assert Holdout(0.25).origin == "labels"


def test_what_an_example_says() -> None:
    assert said({"tokens": ["New", "York"]}) == said({"text": " new york "}) == "new york"
    assert said({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}) == "hi"
    assert said({"picture": "a.png"}) == ""


def test_a_file_that_is_not_there_is_said_and_nothing_is_judged(tmp_path: Path, store: Store) -> None:
    publish(store, tinymodels.orders(30, 1, INTENTS))
    one = tuner(tmp_path, tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        one.run()
    assert one.memory.judged == 0
