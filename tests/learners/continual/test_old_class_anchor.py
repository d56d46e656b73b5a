"""What many waves lose of old classes together is compared with the best version, not wave by wave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import tinymodels

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.acceptance import forgetting_reason, rejection_reason
from learners.continual.evaluation import known_classes
from learners.continual.old_class_anchor import AnchoredRow, OldClassAnchors, figures_of, row_key, scores_of
from learners.continual.trainer import ContinualTrainer
from learners.continual.trainer_state import TrainerState
from learners.experience.reader import Reader
from learners.experience.store import Label, Store
from learners.tasks.base import Prediction, Task
from learners.tasks.task_classes import open_task

SETTINGS = FinetuneSettings(max_forgetting=0.05, max_confusion=0.1)
ROWS = [{"text": f"{name} {number}", "label": name} for name in "abcdef" for number in range(40)]


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Task]:
    """A task for each number of classes: ab, abc and so on."""
    source = tinymodels.bert(tmp_path / "m")
    return {"abcdef"[:n]: open_task("text-classification", source, labels=tuple("abcdef"[:n])) for n in range(2, 7)}


def answers(known: str, rows: list[dict[str, Any]], wrong: int, newer: int = 0) -> list[Prediction]:
    """Right answers, but for the first `wrong` examples of class a, which go to b, and the next `newer`, which go to the newest class."""
    found = []
    for row in rows:
        number = int(row["text"].split()[1])
        lost = row["label"] == "a" and number < wrong
        taken = row["label"] == "a" and wrong <= number < wrong + newer
        answer = "b" if lost else known[-1] if taken else row["label"]
        chances = dict.fromkeys(known, 0.0) | {row["label"]: 0.3} | {answer: 0.7}
        found.append(Prediction(answer, 0.7, chances))
    return found


def wave(
    anchors: OldClassAnchors, tasks: dict[str, Task], known: str, wrong: tuple[int, int], newer: int = 0
) -> tuple[dict[str, Any], dict[str, AnchoredRow]]:
    """Compare a candidate that knows one class more with the anchors; `wrong` is before and after."""
    before = known[:-1]
    rows = [row for row in ROWS if row["label"] in before]
    old, found = answers(before, rows, wrong[0]), answers(known, rows, wrong[1], newer)
    compared = anchors.compare(rows, tasks[known], found, tasks[before], old)
    return figures_of(compared), compared


def went_live(anchors: OldClassAnchors, task: Task, compared: dict[str, AnchoredRow], wrong: int) -> OldClassAnchors:
    known = "".join(task.labels)
    rows = [row for row in ROWS if row["label"] in known]
    right = [float(one.value == row["label"]) for one, row in zip(answers(known, rows, wrong), rows, strict=True)]
    return anchors.promoted(
        f"v{len(known)}", task, compared, scores_of(task, ROWS, [*right, *[0.0] * (len(ROWS) - len(right))]), 0.975
    )


def test_small_losses_of_many_waves_add_up_to_a_rejection(tasks: dict[str, Task]) -> None:
    """Each wave loses three of the examples that the one before knew: below the margin every time, and above it together."""
    anchors = went_live(OldClassAnchors(), tasks["ab"], {}, 0)
    verdicts = []
    for number, known in enumerate(("abc", "abcd", "abcde", "abcdef"), 1):
        figures, compared = wave(anchors, tasks, known, (3 * (number - 1), 3 * number))
        before, after = (1.0 - 3 * lost / (40 * len(known[:-1])) for lost in (number - 1, number))
        wavewise = {"known_before": before, "known_after": after, "known_among_after": after}
        assert forgetting_reason(wavewise, SETTINGS) is None, "compared with the wave before, no wave is rejected"
        verdicts.append(forgetting_reason(wavewise | figures, SETTINGS))
        anchors = went_live(anchors, tasks[known], compared, 3 * number)
    assert verdicts[:1] == [None]
    assert any(verdicts), verdicts
    figures, _ = wave(anchors, tasks, "abcdef", (12, 12))
    assert figures["old_anchor"] == 1.0, "the first version's score is what counts"


def test_honest_waves_are_never_rejected_by_the_anchor(tasks: dict[str, Task]) -> None:
    anchors = went_live(OldClassAnchors(), tasks["ab"], {}, 2)
    for known in ("abc", "abcd", "abcde", "abcdef"):
        figures, compared = wave(anchors, tasks, known, (2, 2), newer=1)
        plain = {"known_before": 0.95, "known_after": 0.94, "known_among_after": 0.95, "confused_with_new": 0.0}
        assert rejection_reason(plain | figures, SETTINGS) is None, figures
        anchors = went_live(anchors, tasks[known], compared, 2)


def test_what_is_lost_of_one_group_does_not_hide_behind_the_others(tasks: dict[str, Task]) -> None:
    anchors = went_live(OldClassAnchors(), tasks["ab"], {}, 0)
    for known in ("abc", "abcd", "abcde"):
        anchors = went_live(anchors, tasks[known], wave(anchors, tasks, known, (0, 0))[1], 0)
    figures, _ = wave(anchors, tasks, "abcdef", (0, 19))
    assert figures["old_after"] > figures["old_anchor"] - 0.1, "the mean over all old classes"
    settings = SETTINGS.model_copy(update={"max_forgetting": 0.1})
    reason = forgetting_reason({"known_before": 1.0, "known_after": 1.0, **figures}, settings)
    assert reason is not None
    assert reason.startswith("forgetting: a group of old classes lost at least")


def test_a_class_that_goes_to_later_ones_little_by_little_is_confusion(tasks: dict[str, Task]) -> None:
    anchors = went_live(OldClassAnchors(), tasks["ab"], {}, 0)
    figures, compared = wave(anchors, tasks, "abc", (0, 0), newer=20)
    assert figures["old_newer"] == 0.25
    assert figures["old_after"] == 1.0, "among a and b it is still told apart"
    reason = forgetting_reason(
        {"known_before": 1.0, "known_after": 0.75, "known_among_after": 1.0, **figures}, SETTINGS
    )
    assert re.fullmatch(
        r"confusion: at least 17\.\d% of old classes are taken for classes that came after them", str(reason)
    )
    assert sum(one.newer for one in compared.values()) == 20


def test_a_better_version_becomes_the_anchor_and_a_person_starts_over(tasks: dict[str, Task]) -> None:
    anchors = went_live(OldClassAnchors(), tasks["ab"], {}, 20)
    _, compared = wave(anchors, tasks, "abc", (20, 0))
    anchors = went_live(anchors, tasks["abc"], compared, 0)
    figures, _ = wave(anchors, tasks, "abcd", (0, 0))
    assert figures["old_anchor"] == 1.0
    stored = TrainerState.of(orjson.loads(orjson.dumps({"old_classes": {
        "version": anchors.version, "groups": anchors.groups, "rows": anchors.rows}})))  # fmt: skip
    assert stored.old_classes == anchors
    assert anchors.of_version("v3") is anchors
    assert anchors.of_version("v2").rows == {}, "a person has promoted or rolled back"
    assert row_key({"text": " A ", "label": "x"}) == row_key({"text": "a", "label": "x"})
    assert row_key({"text": "a", "label": "y"}) != row_key({"text": "a", "label": "x"})


def test_declared_labels_are_known_once_an_example_was_learned(tmp_path: Path, store: Store) -> None:
    """Four labels are declared. The first wave has two of them, so the second wave's two are new, and nothing of them can be forgotten."""
    first, second = {"go": "move", "stop": "halt"}, {"left": "turn", "red": "warn"}
    settings = TaskSettings(
        kind="text-classification", stream="orders", model=str(tinymodels.bert(tmp_path / "model")), train="full",
        labels=("move", "halt", "turn", "warn"), eval_file=str(tinymodels.held_out(tmp_path / "h.jsonl", 80, first | second)),
    )  # fmt: skip
    chosen = FinetuneSettings(
        min_labels=20, validation_fraction=0.3, batch=8, max_metric_drop=0.02, max_forgetting=0.05
    )
    tuner = ContinualTrainer(
        "intents", settings, chosen, tmp_path / "tasks", Reader(tmp_path / "experience"),
        options={"epochs": 20, "learning_rate": 2e-3, "patience": 8},
    )  # fmt: skip
    for wave_number, intents in enumerate((first, second)):
        for row in tinymodels.orders(60, wave_number + 1, intents):
            assert store.add_label(Label("intents", row["label"], row["text"]))
        assert store.flush()
        verdict = tuner.run()
        assert verdict.promoted, verdict
        live = tuner.versions.live()
        assert live is not None
        task = open_task("text-classification", live.path)
        assert task.labels == ("move", "halt", "turn", "warn")
        assert known_classes(task) == {*first.values()} | ({*second.values()} if wave_number else set())
        if wave_number:
            assert (verdict.figures["held_known"], verdict.figures["held_new"]) == (40, 40)
            assert "confused_with_new" in verdict.figures
            assert verdict.figures["old_anchor"] >= 0.9
    assert tuner.state.old_classes.version == live.name
    assert len(tuner.state.old_classes.groups) == 2
