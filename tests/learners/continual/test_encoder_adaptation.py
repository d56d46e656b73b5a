"""An encoder is adapted once to stored readings, and used only if the held-out file shows a gain."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import tinymodels
import torch
from PIL import Image
from tinymodels import WORDS

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual import encoder_adaptation as adaptation
from learners.continual.acceptance import forgetting_reason
from learners.continual.encoder_adaptation import AdaptationEvidence, probe_scores
from learners.continual.evaluation import apart_from_new
from learners.continual.trainer import ContinualTrainer
from learners.data_error import DataError
from learners.experience.reader import Reader
from learners.experience.records import Raw
from learners.experience.store import Label, Store
from learners.finetune.example_checks.near_duplicates import NearDuplicates
from learners.finetune.forgetting import backbone
from learners.tasks.base import Prediction
from learners.tasks.task_classes import open_task

INTENTS = {"go": "move", "stop": "halt"}
FUTURE_S = 4e9
"""Stamps that no retention deletes."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "experience")
    yield opened
    opened.close()


def trainer(tmp_path: Path, held: int, **finetune: Any) -> ContinualTrainer:
    """The fine-tuning of a task; without a held-out file for `held=0`. `model`, `kind` and `stream` are settings of the task."""
    own = {name: finetune.pop(name) for name in ("model", "kind", "stream") if name in finetune}
    model = tmp_path / "model"
    if not model.exists():
        tinymodels.bert(model, dropout=0.1)
    file = str(tinymodels.held_out(tmp_path / "held.jsonl", held, INTENTS)) if held else None
    settings = TaskSettings(**{
        "kind": "text-classification", "stream": "orders", "model": str(model), "train": "frozen", "labels": ("move", "halt"),
        "eval_file": file, **own,
    })  # fmt: skip
    chosen = FinetuneSettings(**{"every_s": 10, "min_labels": 20, "batch": 8} | finetune)
    clock = iter(range(0, 10_000, 100))
    return ContinualTrainer(
        "intents",
        settings,
        chosen,
        tmp_path / "tasks",
        Reader(tmp_path / "experience"),
        clock=lambda: float(next(clock)),
    )


def heard(store: Store, texts: list[str]) -> None:
    for number, text in enumerate(texts):
        assert store.add_raw(Raw("orders", FUTURE_S + number, "utf-8", text.encode()))
    assert store.flush()


def test_it_runs_once_when_enough_readings_are_stored(tmp_path: Path, store: Store) -> None:
    one = trainer(tmp_path, 60, adapt=50)
    held = [orjson.loads(line)["text"] for line in (tmp_path / "held.jsonl").read_bytes().splitlines()]
    texts = [row["text"] for row in tinymodels.orders(200, 3, INTENTS) if row["text"] not in held][:40]
    heard(store, texts)
    assert not one.due(), "forty of fifty"
    heard(store, [f" {held[0].upper()} "] * 10)
    assert one.due()
    found = one.adapt()
    assert found["readings"] == 40, "what the file contains is left out"
    assert found["used"] == (found["lower"] > 0.0)
    assert (tmp_path / "tasks" / "intents" / "adapted" / "model").is_dir() == found["used"]
    assert not one.due()
    assert trainer(tmp_path, 60, adapt=50).adaptation_due() is False, "after a restart, too"
    assert trainer(tmp_path, 60).adaptation_due() is False


def test_few_held_out_examples_are_inconclusive(tmp_path: Path, store: Store) -> None:
    one = trainer(tmp_path, 8, adapt=30)
    heard(store, [row["text"] for row in tinymodels.orders(80, 3, INTENTS)])
    found = one.adapt()
    assert not found["used"]
    assert found["reason"].startswith("inconclusive: 8 different examples in the held-out file, and 20 are needed")


def test_a_first_version_starts_from_the_adapted_encoder(tmp_path: Path, store: Store) -> None:
    one = trainer(tmp_path, 60, adapt=50)
    other: Any = open_task("text-classification", tmp_path / "model", labels=("move", "halt"))
    torch.manual_seed(5)
    with torch.no_grad():
        for tensor in backbone(other.model).values():
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.randn_like(tensor))
    one.adaptation._store({"used": True}, other)
    for row in tinymodels.orders(60, 1, INTENTS):
        assert store.add_label(Label("intents", row["label"], row["text"]))
    assert store.flush()
    verdict = one.run()
    assert verdict.version is not None, verdict
    new: Any = open_task("text-classification", one.versions.all()[-1].path)
    for name, tensor in backbone(new.model).items():
        assert torch.equal(tensor, backbone(other.model)[name]), name


def test_a_probe_scores_what_the_encoder_knows_and_leaves_the_head(tmp_path: Path) -> None:
    task: Any = open_task("text-classification", tinymodels.bert(tmp_path / "m"), labels=("move", "halt"))
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    rows = [{"text": word, "label": INTENTS[word.split()[0]]} for word in ("go go go go", "stop stop stop stop") * 30]
    assert probe_scores(task, rows, 0) == [1.0] * 60
    blind = [row | {"text": "the"} for row in rows]
    assert sum(probe_scores(task, blind, 0)) < 40
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())


def test_confusion_with_new_classes_is_counted_apart_from_forgetting(tmp_path: Path) -> None:
    task = open_task("text-classification", tinymodels.bert(tmp_path / "m"), labels=("a", "b", "new"))
    rows = [{"text": "x", "label": label} for label in "aaabbb"]
    chances = [(0.5, 0.1, 0.4), (0.3, 0.1, 0.6), (0.2, 0.7, 0.1), (0.1, 0.8, 0.1), (0.1, 0.4, 0.5), (0.2, 0.8, 0.0)]
    found = [Prediction("ab+"[max(range(3), key=c.__getitem__)].replace("+", "new"), 1.0, dict(zip(("a", "b", "new"), c, strict=True)))
             for c in chances]  # fmt: skip
    figures = apart_from_new(task, rows, found, {"a", "b"})
    assert figures == {
        "known_among_after": pytest.approx(5 / 6), "confused_with_new": pytest.approx(2 / 6),
        "confused_class": "a", "confused_class_low": pytest.approx(1 - 0.975 ** (1 / 3)),
    }  # fmt: skip
    settings = FinetuneSettings(max_forgetting=0.05, max_confusion=0.4)
    assert forgetting_reason({"known_before": 0.85, "known_after": 0.5, **figures}, settings) is None
    strict = settings.model_copy(update={"max_confusion": 0.3})
    reason = forgetting_reason({"known_before": 0.85, "known_after": 0.5, **figures}, strict)
    assert (
        reason
        == "confusion: 33.3% of the known classes are taken for new ones; among known classes the metric is 0.833"
    )
    worse = forgetting_reason({"known_before": 0.95, "known_after": 0.5, **figures}, settings)
    assert worse == "forgetting: metric on known classes fell from 0.950 to 0.833; 33.3% are taken for new classes"


def test_a_known_class_that_goes_to_a_new_one_rejects_the_version_though_it_is_a_small_share(tmp_path: Path) -> None:
    known = [f"k{n}" for n in range(12)]
    task = open_task("text-classification", tinymodels.bert(tmp_path / "m"), labels=(*known, "new"))
    rows = [{"text": "x", "label": name} for name in known for _ in range(10)]

    def figures(taken: dict[str, int]) -> dict[str, Any]:
        left, found = dict(taken), []
        for row in rows:
            left[row["label"]] = left.get(row["label"], 0) - 1
            answer = "new" if left[row["label"]] >= 0 else row["label"]
            chances = dict.fromkeys((*known, "new"), 0.0) | {row["label"]: 0.4, answer: 0.6}
            found.append(Prediction(answer, 0.6, chances))
        return {"known_before": 1.0, "known_after": 0.9, **apart_from_new(task, rows, found, set(known))}

    settings = FinetuneSettings(max_confusion=0.1)
    assert "of the known class k3 are taken for new ones" in str(forgetting_reason(figures({"k3": 10}), settings))
    assert forgetting_reason(figures({"k3": 3}), settings) is None
    assert forgetting_reason(figures(dict.fromkeys(known, 1)), settings) is None


def test_an_adapted_encoder_belongs_to_its_model_and_its_settings(tmp_path: Path, store: Store) -> None:
    one = trainer(tmp_path, 60, adapt=50)
    heard(store, [row["text"] for row in tinymodels.orders(50, 3, INTENTS)])
    one.adaptation._store({"used": True}, one.adaptation._open([]))
    assert one.adaptation.encoder() == tmp_path / "tasks" / "intents" / "adapted" / "model"
    assert not one.due()
    assert trainer(tmp_path, 60).adaptation.encoder() is None, "adaptation is no longer asked for"
    assert trainer(tmp_path, 60, adapt=40).adaptation.encoder() is None, "from another number of readings"
    assert trainer(tmp_path, 60, adapt=50, stream="other").adaptation.encoder() is None
    other = trainer(tmp_path, 60, adapt=50, model=str(tinymodels.bert(tmp_path / "wide", width=64)))
    assert other.adaptation.encoder() is None, "of another model, even of the same architecture"
    assert other.due(), "it is adapted in its turn"
    gone = trainer(tmp_path, 60, adapt=50, model="no/such-model")
    assert not gone.due(), "a fine-tune reports that the model is not there; the learner goes on"
    tinymodels.bert(tmp_path / "model", width=64)
    again = trainer(tmp_path, 60, adapt=50)
    assert again.adaptation.encoder() is None, "the folder has the same name and other weights"
    for row in tinymodels.orders(60, 1, INTENTS):
        assert store.add_label(Label("intents", row["label"], row["text"]))
    assert store.flush()
    assert again.run().version is not None, "the old encoder would not fit"


def test_one_unfit_reading_is_counted_named_and_skipped(tmp_path: Path, store: Store) -> None:
    """A stream was of another kind before: a picture and broken bytes are among the texts, as texts are among pictures."""
    one = trainer(tmp_path, 60, adapt=42)
    heard(store, [row["text"] for row in tinymodels.orders(40, 3, INTENTS)])
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    for number, data in enumerate((png.getvalue(), b"no picture")):
        assert store.add_raw(Raw("orders", FUTURE_S + 100 + number, "png", data))
    assert store.flush()
    assert one.due()
    found = one.adapt()
    assert (found["unreadable"], found["objective"]) == (2, "contrastive")
    assert found["unreadable_reason"].endswith("DataError: text-classification reads a text, not a png")
    assert found["readings"] + 2 <= 42
    pictures = trainer(tmp_path, 60, adapt=42, kind="image-classification",
                       model=str(tinymodels.efficientnet(tmp_path / "e")))  # fmt: skip
    readings, unreadable, named = pictures.adaptation._readings(AdaptationEvidence("labels", [], [], NearDuplicates()))
    assert (len(readings), unreadable) == (1, 41)
    assert "reads a picture" in named or "cannot be decoded" in named


def test_without_a_held_out_file_labels_test_the_encoder_over_several_waves(tmp_path: Path, store: Store) -> None:
    one = trainer(tmp_path, 0, adapt=30)
    heard(store, [row["text"] for row in tinymodels.orders(60, 3, INTENTS)])
    assert not one.due(), "nothing could say whether it helps"
    waves: list[tuple[bool, str]] = []
    for wave in range(4):
        for row in tinymodels.orders(24, 10 + wave, INTENTS):
            assert store.add_label(Label("intents", row["label"], row["text"]))
        assert store.flush()
        assert one.due(), wave
        adapts = one.adaptation_due()
        if adapts:
            assert one.adapt()["reason"] in {"no gain is shown on the labels", "better on the labels"}
            assert not one.adaptation_due()
        waves.append((adapts, one.run().outcome))
    outcomes = [outcome for _, outcome in waves]
    assert outcomes == ["inconclusive"] * 4, "each wave trains; a person approves"
    assert [adapts for adapts, _ in waves] == [True, True, False, True], "at 24, 48 and 96 labels"


def test_moments_of_one_scene_are_on_one_side_of_the_test(tmp_path: Path) -> None:
    task: Any = open_task("text-classification", tinymodels.bert(tmp_path / "m"), labels=("move", "halt"))
    rows = [{"text": text, "label": label} for text in WORDS[:20] for label in ("move",)]
    rows += [{"text": f"{row['text']} now", "label": "halt"} for row in rows]
    scenes = [str(number // 2 % 10) for number in range(len(rows))]
    seen: list[set[str]] = []
    predict, fit = adaptation.predict, adaptation.fit_head

    def fitted(task: Any, some: Any) -> float | None:
        seen.append({row["text"] for row in some})
        return fit(task, some)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "fit_head", fitted)
        assert len(probe_scores(task, rows, 0, scenes)) == 40
    assert predict is adaptation.predict
    for texts in seen:
        assert all((row["text"] in texts) == (other["text"] in texts)
                   for row, scene in zip(rows, scenes, strict=True)
                   for other, same in zip(rows, scenes, strict=True) if scene == same)  # fmt: skip


def test_a_decoder_is_probed_by_a_head_that_was_fitted(tmp_path: Path) -> None:
    task: Any = open_task("text-classification", tinymodels.llama(tmp_path / "l"), labels=("move", "halt"))
    rows = [{"text": word, "label": INTENTS[word.split()[0]]} for word in ("go go go go", "stop stop stop") * 30]
    assert probe_scores(task, rows, 0) == [1.0] * 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "fit_head", lambda *_: None)
        with pytest.raises(DataError, match=r"llama: no head can be fitted to its encoder; set finetune.adapt to 0"):
            probe_scores(task, rows, 0)
