"""A version that is better on the whole and worse for one slice is not promoted, and the report names the slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tinymodels
from pydantic import ValidationError

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.acceptance import rejection_reason
from learners.continual.evaluation import compare_slices
from learners.continual.evaluation_report import read_evaluation
from learners.continual.trainer import ContinualTrainer
from learners.data_error import DataError
from learners.experience.reader import Reader
from learners.experience.store import Label, Store
from learners.finetune.error_analysis import slices as slices_module
from learners.finetune.error_analysis.slices import interval, lost, measure, shown
from learners.finetune.labelled_files.text_files import LocatedExample

FIRST, SECOND = {"go": "move", "stop": "halt"}, {"left": "turn", "red": "warn"}
RULE = "text~(anna)"


def rows(count: int, seed: int, intents: dict[str, str]) -> list[dict[str, str]]:
    """Orders; every second one of the first intents is spoken by anna."""
    found = tinymodels.orders(count, seed, intents)
    spoken = [row for row in found if row["label"] in FIRST.values()]
    for row in spoken[: len(spoken) // 2]:
        row["text"] += " anna"
    return found


def publish(store: Store, examples: list[dict[str, str]]) -> None:
    for row in examples:
        assert store.add_label(Label("intents", row["label"], row["text"]))
    assert store.flush()


def test_labels_that_are_wrong_for_one_speaker_are_found_by_her_slice(tmp_path: Path, store: Store) -> None:
    held = rows(160, 9, FIRST | SECOND)
    (tmp_path / "held.jsonl").write_bytes(b"\n".join(map(orjson.dumps, held)))
    settings = TaskSettings(
        kind="text-classification",
        stream="orders",
        model=str(tinymodels.bert(tmp_path / "model")),
        train="full",
        eval_file=str(tmp_path / "held.jsonl"),
    )
    finetune = FinetuneSettings(
        min_labels=20, batch=8, max_forgetting=1.0, max_confusion=1.0, rehearsal_ratio=0.0, slices=(RULE,)
    )
    options = {"epochs": 20, "learning_rate": 2e-3, "patience": 8}
    tuner = ContinualTrainer(
        "intents", settings, finetune, tmp_path / "tasks", Reader(tmp_path / "experience"), options=options
    )
    publish(store, tinymodels.orders(60, 1, FIRST))
    first = tuner.run()
    assert first.promoted, first
    biased = [row | ({"label": "warn"} if row["text"].endswith("anna") else {}) for row in rows(120, 2, FIRST | SECOND)]
    publish(store, biased)
    second = tuner.run()
    assert second.outcome == "rejected", second.figures["slices"]
    assert second.reason.startswith(f"the slice {RULE}=anna lost: ")
    assert second.figures["all_after"] > second.figures["all_before"] + 0.1
    mean_alone = {name: value for name, value in second.figures.items() if name != "slices"}
    assert rejection_reason(mean_alone, finetune) is None, "the mean alone would have passed"
    assert "slices" not in second.fields
    report = read_evaluation(tmp_path / "tasks" / "intents")
    assert report is not None
    anna = next(one for one in report["slices"] if one["value"] == "anna")
    assert anna["examples"] == 40
    assert anna["metric"] < anna["before"] - 0.3


def examples(count: int, **columns: Any) -> list[LocatedExample]:
    return [LocatedExample({"text": "a b", "label": "x", **columns}, "held.csv", 2 + at) for at in range(count)]


def figures(after: list[float], before: list[float], slices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"all_after": float(np.mean(after)), "all_before": float(np.mean(before)), "slices": slices}


@pytest.mark.parametrize(("rows_of_slice", "loss", "rejected"), [(40, 0.4, True), (19, 1.0, False), (40, 0.05, False)])
def test_only_a_loss_that_is_shown_on_enough_rows_rejects(rows_of_slice: int, loss: float, rejected: bool) -> None:
    held = examples(100, speaker="a") + examples(rows_of_slice, speaker="b")
    before = [0.0] * 50 + [1.0] * (50 + rows_of_slice)
    wrong = round(loss * rows_of_slice)
    after = [1.0] * 100 + [0.0] * wrong + [1.0] * (rows_of_slice - wrong)
    slices = compare_slices(measure(["speaker"], held, after), after, before)
    reason = rejection_reason(figures(after, before, slices), FinetuneSettings())
    assert (reason is not None) == rejected
    assert not rejected or str(reason).startswith("the slice speaker=b lost: 0.600 after 1.000 on its 40 held-out rows")


def test_equal_versions_are_seldom_rejected_by_many_slices() -> None:
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        held = [example for at in range(20) for example in examples(30, camera=at)]
        before = (generator.random(600) < 0.85).astype(float)
        after = np.where(generator.random(600) < 0.2, (generator.random(600) < 0.85).astype(float), before)
        slices = compare_slices(measure(["camera"], held, after.tolist()), after.tolist(), before.tolist())
        rejected += bool(lost(slices, 0.0))
    assert rejected <= 200 * 0.025 + 3 * (200 * 0.025) ** 0.5


def test_columns_patterns_and_lengths_divide() -> None:
    held = [
        LocatedExample({"text": "one two", "label": "x", "lang": "de"}, "h.csv", 2),
        LocatedExample({"text": " ".join("abcdefgh"), "label": "x", "lang": "en"}, "h.csv", 3),
        LocatedExample({"sound": "fsdd/7_jackson_3.wav", "label": "7"}, "h.csv", 4),
    ]
    found = measure(["lang", "length", "file~_([a-z]+)_", "label~\\d"], held, [1.0, 0.0, 1.0])
    assert [(one.name, one.examples, one.metric) for one, _ in found] == [
        ("lang=(none)", 1, 1.0), ("lang=de", 1, 1.0), ("lang=en", 1, 0.0),
        ("length=(none)", 1, 1.0), ("length=1 to 5 words", 1, 1.0), ("length=6 to 12 words", 1, 0.0),
        ("file~_([a-z]+)_=(none)", 2, 0.5), ("file~_([a-z]+)_=jackson", 1, 1.0), ("label~\\d=(other)", 2, 0.5), ("label~\\d=7", 1, 1.0),
    ]  # fmt: skip
    with pytest.raises(
        DataError, match=r"no held-out example has 'camera', only label, lang, sound, text; correct the slice"
    ):
        measure(["camera"], held, [1.0, 0.0, 1.0])


def test_intervals_are_wilsons_and_students() -> None:
    assert interval([1.0] * 9 + [0.0]) == pytest.approx((0.596, 0.982), abs=1e-3)  # Wilson 1927
    assert interval([0.5, 0.7, 0.9]) == pytest.approx(
        (0.7 - 4.303 * 0.2 / 3**0.5, 0.7 + 4.303 * 0.2 / 3**0.5), abs=1e-3
    )


@pytest.mark.parametrize(
    ("rule", "reason"), [("~a", "neither COLUMN"), ("a~", "neither COLUMN"), ("a~(", "no regular expression")]
)
def test_slices_that_cannot_be_read_are_refused_by_the_settings(rule: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        FinetuneSettings(slices=(rule,))


def test_a_slice_that_is_given_twice_is_refused_by_the_settings() -> None:
    with pytest.raises(ValidationError, match="given twice"):
        FinetuneSettings(slices=("speaker", "length", " speaker"))


def test_slices_of_the_same_rows_share_their_confidence() -> None:
    held = examples(100, speaker="a") + examples(40, speaker="b")
    before, after = [1.0] * 140, [1.0] * 133 + [0.0] * 7
    bounds = [
        min(one["difference_high"] for one in compare_slices(measure(rules, held, after), after, before))
        for rules in (["speaker"], ["speaker", "speaker~(.*)", "speaker~(.)"])
    ]
    assert bounds[0] == bounds[1]


def test_rows_without_the_column_and_answers_without_a_score_are_judged() -> None:
    held = examples(60) + examples(100, speaker="a")
    before, after = [1.0] * 160, [float("nan")] * 60 + [1.0] * 100
    slices = compare_slices(measure(["speaker"], held, after), after, before)
    assert [one["value"] for one in lost(slices, 0.03)] == ["(none)"]
    assert slices[1]["metric"] == 0.0


def test_every_value_is_judged_and_a_report_shows_the_largest_and_the_lost() -> None:
    held = [example for at in range(150) for example in examples(21, speaker=f"v{at:03d}")]
    before = [1.0] * len(held)
    after = [0.0 if example["speaker"] == "v120" else 1.0 for example in held]
    slices = compare_slices(measure(["speaker"], held, after), after, before)
    assert [one["value"] for one in lost(slices, 0.03)] == ["v120"]
    assert [one["value"] for one in shown(slices, 0.03)] == [f"v{at:03d}" for at in (*range(100), 120)]


@pytest.mark.parametrize(("slices", "labels"), [(("camera",), ("move",)), ((), ("unknown",))])
def test_what_cannot_be_judged_or_learned_waits_for_more_labels(
    tmp_path: Path, store: Store, slices: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    (tmp_path / "held.jsonl").write_bytes(b"\n".join(map(orjson.dumps, tinymodels.orders(20, 9, FIRST))))
    settings = TaskSettings(
        kind="text-classification", stream="orders", model=str(tinymodels.bert(tmp_path / "model")),
        eval_file=str(tmp_path / "held.jsonl"), labels=("move", "halt"),
    )  # fmt: skip
    finetune = FinetuneSettings(min_labels=4, every_s=60, slices=slices)
    now = [0.0]
    tuner = ContinualTrainer(
        "intents", settings, finetune, tmp_path / "tasks", Reader(tmp_path / "experience"), clock=lambda: now[0]
    )
    publish(store, [{"text": f"go {at}", "label": labels[0]} for at in range(4)])
    now[0] += 61
    assert tuner.due()
    with pytest.raises(DataError, match="camera" if slices else "none of its new labels is usable"):
        tuner.run()
    now[0] += 61
    assert not tuner.due()
    publish(store, [{"text": f"stop {at}", "label": labels[0]} for at in range(4)])
    assert tuner.due()


def test_a_pattern_that_searches_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices_module, "MOST_S", 0.05)
    held = [LocatedExample({"text": "a" * 60 + "!", "label": "x"}, "held.csv", 2)]
    with pytest.raises(DataError, match="write a pattern without nested repetition"):
        measure([r"text~^(a|aa|a\w)+$"], held, [1.0])
