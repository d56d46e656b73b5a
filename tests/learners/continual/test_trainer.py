"""Labels that arrive: the dataset they make, candidates that are promoted or not, and why."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
import soundfile
import tinymodels
import torch
from PIL import Image

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.acceptance import agreement, anchor_confidence, more_needed, paired_bounds, rejection_reason
from learners.continual.candidate_training import (
    GENTLE,
    WEIGH,
    CandidateTrainer,
    TrainedCandidate,
    balanced,
    rehearsal_count,
    replay,
)
from learners.continual.evaluation import sign_test
from learners.continual.label_batch import newest
from learners.continual.labels import Labelled, Labels
from learners.continual.source_ablation import single_source, sources_to_ablate
from learners.continual.trainer import ContinualTrainer
from learners.data_error import DataError
from learners.experience.reader import Reader
from learners.experience.store import Label, Raw, Store, Transition
from learners.finetune.error_analysis.scores import each
from learners.finetune.labelled_files.equal_content import normalized_text
from learners.finetune.trainer import Stopped
from learners.task_kinds import TaskKind
from learners.tasks.base import Prediction
from learners.tasks.task_classes import open_task
from learners.tasks.text_classification import ClassifyText

FIRST, SECOND = {"go": "move", "stop": "halt"}, {"left": "turn", "red": "warn"}
OPTIONS = {"epochs": 20, "learning_rate": 2e-3, "patience": 8}


def publish(store: Store, rows: list[dict[str, str]], source: str = "default", **other: str) -> None:
    """Rows as labels of a source; `other` names labels that are sent instead."""
    for row in rows:
        assert store.add_label(Label("intents", other.get(row["label"], row["label"]), row["text"], source=source))
    assert store.flush()


def online(tmp_path: Path, clock: Callable[[], float] = lambda: 0.0, **finetune: Any) -> ContinualTrainer:
    model = tmp_path / "model"
    if not model.exists():
        tinymodels.bert(model)
    eval_file = tinymodels.held_out(tmp_path / "held.jsonl", 80, FIRST | SECOND)
    settings = TaskSettings(
        kind="text-classification", stream="orders", model=str(model), train="full", eval_file=str(eval_file)
    )
    chosen = {
        "every_s": 10,
        "min_labels": 20,
        "validation_fraction": 0.3,
        "rehearsal_ratio": 1.0,
        "batch": 8,
        "max_metric_drop": 0.02,
        "max_forgetting": 0.05,
    } | finetune
    reader = Reader(tmp_path / "experience")
    return ContinualTrainer(
        "intents", settings, FinetuneSettings(**chosen), tmp_path / "tasks", reader, clock=clock, options=OPTIONS
    )


class Careless(CandidateTrainer):
    """Gives one earlier class up, unless it teaches gently."""

    always = False

    def train(self, *given: Any, gently: bool = False, **other: Any) -> TrainedCandidate:
        trained = super().train(*given, gently=gently, **other)
        if given[0] is not None and (self.always or not gently):
            with torch.no_grad():
                trained.task.model.classifier.bias[trained.task.labels.index("halt")] -= 100.0
        return trained


class Hopeless(Careless):
    """Gives it up every time."""

    always = True


@pytest.mark.parametrize(("kind", "outcome"), [(Careless, "promoted"), (Hopeless, "rejected")])
def test_what_only_forgets_is_trained_once_more_gently(
    tmp_path: Path, store: Store, kind: type[CandidateTrainer], outcome: str
) -> None:
    tuner = online(tmp_path)
    tuner.candidate_trainer = kind(tuner.settings, tuner.finetune, 0, OPTIONS)
    publish(store, tinymodels.orders(60, 1, FIRST))
    assert "tries" not in tuner.run().figures
    publish(store, tinymodels.orders(60, 2, SECOND))
    received = tuner.run()
    assert received.outcome == outcome, received
    assert received.figures["tries"] == 2
    assert received.figures["known_after_first"] <= received.figures["known_before"] - 0.4
    assert (outcome == "rejected") == received.reason.startswith("forgetting")


def with_settings(tuner: ContinualTrainer, tmp_path: Path, **changed: Any) -> ContinualTrainer:
    """The same task after its settings changed and the daemon restarted."""
    return ContinualTrainer(
        tuner.name,
        tuner.settings.model_copy(update=changed),
        tuner.finetune,
        tmp_path / "tasks",
        Reader(tmp_path / "experience"),
        clock=lambda: 0.0,
        options=OPTIONS,
    )


def test_another_model_in_the_settings_learns_every_label(tmp_path: Path, store: Store) -> None:
    """Training from the live version would go on with the old model for ever."""
    tuner = online(tmp_path)
    publish(store, tinymodels.orders(60, 1, FIRST | SECOND))
    assert tuner.run().promoted
    assert not tuner.has_new_labels()
    other = with_settings(tuner, tmp_path, model=str(tinymodels.bert(tmp_path / "other", width=48)))
    assert other.has_new_labels(), "what the old model learned, the new one has to learn"
    received = other.run()
    assert received.promoted, received
    assert received.figures["new_labels"] == 60
    assert received.figures["all_before"] > 0.9, "and it is compared with the live version"
    live = other.versions.live()
    assert live is not None
    assert open_task("text-classification", live.path).model.config.hidden_size == 48
    assert not other.has_new_labels()


def test_labels_that_another_model_cannot_learn_are_not_spent(tmp_path: Path, store: Store) -> None:
    tuner = online(tmp_path)
    publish(store, tinymodels.orders(60, 1, FIRST | SECOND))
    assert tuner.run().promoted
    other = with_settings(tuner, tmp_path, model=str(tinymodels.bert(tmp_path / "other", width=48)))
    other.candidate_trainer = Hopeless(
        other.settings, other.finetune, 0, OPTIONS | {"epochs": 1, "learning_rate": 1e-9}
    )
    publish(store, tinymodels.orders(4, 2, FIRST | SECOND))
    assert other.run().outcome == "rejected"
    assert all(low >= 60 for low, _ in other.state.rejected), "the labels of the promoted version are not marked"


def test_a_task_that_allows_several_labels_by_now_starts_from_the_pretrained_model(
    tmp_path: Path, store: Store
) -> None:
    """A version for one label and examples with several have no metric in common."""
    tuner = online(tmp_path)
    single = open_task("text-classification", tuner.settings.model, labels=("move", "halt"))
    tuner.versions.promote(tuner.versions.add(single, 1))
    held = [{**row, "label": [row["label"]]} for row in tinymodels.orders(60, 3, FIRST)] + [
        {"text": "the a", "label": []}
    ]
    (tmp_path / "several.jsonl").write_bytes(b"\n".join(map(orjson.dumps, held)))
    changed = {"multi_label": True, "eval_file": str(tmp_path / "several.jsonl")}
    several = with_settings(tuner, tmp_path, **changed)
    for row in tinymodels.orders(60, 1, FIRST):
        assert store.add_label(Label("intents", (row["label"],), row["text"]))
    assert store.flush()
    assert several.run().promoted
    live = several.versions.live()
    assert live is not None
    assert open_task("text-classification", live.path).options.multi_label


def test_the_gentle_try_learns_slower(tmp_path: Path, store: Store) -> None:
    tuner = online(tmp_path)
    tuner.candidate_trainer = CandidateTrainer(tuner.settings, tuner.finetune, 0, {"epochs": 1})
    publish(store, tinymodels.orders(60, 1, FIRST))
    parts = tuner.holdout().parts(tuner.labels.all(), [])
    rates = [
        tuner.candidate_trainer.train(None, parts, 0, None, None, gently=gently).settings.learning_rate
        for gently in (False, True)
    ]
    assert rates[1] == GENTLE * rates[0]


def test_waves_are_learned_retained_and_a_poisoned_one_is_refused(tmp_path: Path, store: Store) -> None:
    tuner = online(tmp_path)
    publish(store, tinymodels.orders(60, 1, FIRST))
    first = tuner.run()
    assert first.promoted, first
    assert first.event == "task_promoted"
    assert first.figures["agreement"] >= 0.9, "on the classes of its labels"
    assert 0.4 < first.figures["all_after"] <= 0.5, "half of the file is of classes without labels so far"
    publish(store, tinymodels.orders(60, 2, SECOND))
    second = tuner.run()
    assert second.promoted, second
    assert (second.figures["held_known"], second.figures["held_new"]) == (40, 40)
    assert second.figures["known_after"] >= second.figures["known_before"] - 0.05
    assert second.figures["all_after"] > second.figures["all_before"] + 0.3
    assert second.figures["replayed"] > 0
    live = tuner.versions.live()
    assert live is not None
    assert set(open_task("text-classification", live.path).labels) == {"move", "halt", "turn", "warn"}

    rows = tinymodels.orders(60, 3, FIRST | SECOND)
    labels = np.random.default_rng(0).permutation([row["label"] for row in rows])
    publish(store, [{**row, "label": str(label)} for row, label in zip(rows, labels, strict=True)])
    third = tuner.run()
    assert third.outcome == "rejected"
    assert third.event == "task_rejected"
    assert "labels look like noise" in third.reason
    assert third.fields["labels_agreement_low"] <= third.fields["labels_chance"]
    assert tuner.versions.live() == live
    assert third.blamed == (), "agreement at chance level is no proof against a source: hard cases look the same"
    # what was refused is set aside: the next wave does not replay it
    publish(store, tinymodels.orders(40, 4, FIRST | SECOND))
    fourth = tuner.run()
    assert fourth.promoted, fourth
    assert tuner.versions.rollback() == live
    assert tuner.versions.live() == live


def test_sources_that_lower_the_held_out_metric_are_named_and_the_rest_is_learned(tmp_path: Path, store: Store) -> None:
    tuner = online(tmp_path)
    publish(store, tinymodels.orders(60, 1, FIRST))
    assert tuner.run().promoted
    publish(store, tinymodels.orders(60, 2, FIRST), "anna")
    publish(store, tinymodels.orders(60, 3, FIRST), "paul", move="halt", halt="move")
    verdict = tuner.run()
    assert verdict.promoted, verdict
    (blamed,) = verdict.blamed
    assert (blamed["source"], blamed["kind"], blamed["task"]) == ("label:paul", "labels", "intents")
    assert blamed["held_out_without"] == verdict.figures["all_after"] >= blamed["held_out_with"]
    assert blamed["chance"] <= blamed["alpha"] or blamed["contradicts"]
    store.quarantine("label:paul")
    assert store.flush()
    assert {one.source for one in tuner.labels.all()} == {"default", "anna"}


def test_two_that_lie_together_are_both_named(tmp_path: Path, store: Store) -> None:
    tuner = online(tmp_path)
    publish(store, tinymodels.orders(60, 1, FIRST))
    assert tuner.run().promoted
    publish(store, tinymodels.orders(24, 2, FIRST), "anna")
    for seed, liar in ((3, "paul"), (4, "mark")):
        publish(store, tinymodels.orders(48, seed, FIRST), liar, move="halt", halt="move")
    verdict = tuner.run()
    assert verdict.promoted, verdict
    assert {received["source"] for received in verdict.blamed} == {"label:paul", "label:mark"}


def test_no_source_is_blamed_for_what_chance_explains(tmp_path: Path, store: Store) -> None:
    """A few wrong labels of an honest source cost an example or two of the file: refused, and no source is quarantined."""
    tuner = online(tmp_path)
    publish(store, tinymodels.orders(60, 1, FIRST | SECOND))
    assert tuner.run().promoted
    tuner.finetune = tuner.finetune.model_copy(update={"max_metric_drop": -0.5})  # stricter than anyone can be
    publish(store, tinymodels.orders(60, 2, FIRST | SECOND), "anna")
    verdict = tuner.run()
    assert verdict.outcome == "rejected"
    assert verdict.blamed == ()


def test_suspects_are_the_least_agreeing_and_never_all_there_are() -> None:
    def labels(count: int, source: str) -> list[Labelled]:
        return [Labelled(n, "0", {"n": len(source), "label": "x"}, source) for n in range(count)]

    def agrees(examples: Sequence[dict[str, Any]]) -> float:
        return float(examples[0]["n"])

    assert sources_to_ablate(labels(20, "a"), agrees) == []
    assert sources_to_ablate(labels(20, "a") + labels(20, "bb") + labels(7, "few"), agrees) == [
        ("a",),
        ("bb",),
        ("a", "bb"),
    ]
    assert sources_to_ablate(labels(20, "bb") + labels(20, "a"), agrees) == [("a",), ("bb",)]
    assert single_source(labels(20, "a")) == "a"
    assert single_source(labels(7, "a")) is None
    assert single_source(labels(20, "a") + labels(20, "bb")) is None


def test_the_sign_test_by_hand() -> None:
    # eight examples fell, one rose, three stayed: P(at least 8 of 9) = (9 + 1) / 2^9
    after, before = [0.0] * 8 + [1.0] + [0.5] * 3, [1.0] * 8 + [0.0] + [0.5] * 3
    assert sign_test(after, before) == pytest.approx(10 / 512)
    assert sign_test(before, before) == 1.0


def test_examples_are_scored_one_by_one(tmp_path: Path) -> None:
    tag = open_task("token-classification", tinymodels.bert(tmp_path / "b"), labels=("O", "B-x", "I-x"))
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-x"]}]
    assert each(tag, rows, [Prediction(["O", "O"])]) == [0.5]
    say = open_task("summarization", tinymodels.t5(tmp_path / "t"))
    assert each(say, [{"source": "a", "target": "red cup"}], [Prediction("red cup")]) == [1.0]


def test_one_source_cannot_fill_a_training_run(tmp_path: Path, store: Store) -> None:
    labels = [Labelled(n, "0", {}, source) for n, source in enumerate(["loud", "anna", "loud", "loud", "anna"])]
    assert [one.id for one in newest(labels, 2)] == [1, 2, 3, 4]
    tuner = online(tmp_path, per_source=10, validation_fraction=0.01)
    publish(store, tinymodels.orders(60, 1, FIRST), "loud")
    publish(store, tinymodels.orders(10, 2, FIRST), "anna")
    assert tuner.run().figures["new_labels"] <= 20


def test_a_model_that_answers_before_it_is_tuned_is_what_its_first_version_is_held_against(
    tmp_path: Path, store: Store
) -> None:
    """A chat's selection metric is negative: held against zero no first version would ever pass."""
    rows = [{"messages": [{"role": "user", "content": "what is red ?"}, {"role": "assistant", "content": "stop ."}]}]
    held = tmp_path / "held.jsonl"
    held.write_bytes(orjson.dumps(rows[0]))
    model = str(tinymodels.llama(tmp_path / "llama"))
    settings = TaskSettings(kind="text-generation", stream="orders", model=model, train="full", eval_file=str(held))
    finetune = FinetuneSettings(min_labels=1, validation_fraction=0.01, batch=4)
    options = {"epochs": 20, "learning_rate": 1e-2, "patience": 20}
    one = ContinualTrainer(
        "talk", settings, finetune, tmp_path / "tasks", Reader(tmp_path / "experience"), options=options
    )
    for text in ("is red ?", "red ?", "what red ?", "the red ?"):
        assert store.add_label(Label("talk", "stop .", text))
    assert store.flush()
    verdict = one.run()
    assert verdict.outcome == "inconclusive", "nothing speaks against it, and one held-out dialogue shows little"
    assert "about 7 more held-out labels" in verdict.reason
    assert 0 > verdict.figures["all_after"] > verdict.figures["all_before"]


def test_it_waits_for_time_and_labels(tmp_path: Path, store: Store) -> None:
    now = 0.0
    tuner = online(tmp_path, clock=lambda: now)
    publish(store, tinymodels.orders(19, 1, FIRST))
    now = 11.0
    assert not tuner.due(), "a label too few"
    publish(store, tinymodels.orders(1, 2, FIRST))
    assert tuner.due()
    with pytest.raises(Stopped):
        tuner.run(stop=lambda: True)
    assert tuner.state.judged == 0, "a stopped run changes nothing"
    assert not tuner.due(), "the pause restarts"


def test_too_few_labels_are_reported(tmp_path: Path, store: Store) -> None:
    tuner = online(tmp_path)
    with pytest.raises(DataError, match="none of its new labels"):
        tuner.run()
    publish(store, [{"text": "go", "label": "move"}])
    with pytest.raises(DataError, match="more are needed"):
        tuner.run()


def test_agreement_by_hand() -> None:
    wanted, found = list("aabb"), list("aaba")
    figures = agreement(wanted, found)
    assert figures["agreement"] == 0.75
    assert figures["chance"] == pytest.approx(0.5 * 0.75 + 0.5 * 0.25)
    # Wilson at z = 1.645, n = 4, p = .75: (.75 + .33825 - 1.645 * sqrt(.046875 + .042281)) / 1.67650
    assert figures["agreement_low"] == pytest.approx(0.3562, abs=2e-4)
    assert agreement(["a"] * 9, ["a"] * 9)["chance"] == 0.5, "one label alone: nothing to confuse"


@pytest.mark.parametrize(
    ("wanted", "more"),
    [("ab", 1), ("aab", 1), ("aabb", 0), ("abc", 0), ("aa", 1), ("aaa", 0), ("", 0), ("a" * 9 + "b", 3)],
)
def test_labels_that_even_a_candidate_without_a_mistake_needs(wanted: str, more: int) -> None:
    if wanted:
        figures = agreement(list(wanted), list(wanted))
        assert (figures["agreement_low"] > figures["chance"]) == (more == 0)
    assert more_needed(list(wanted)) == more


def test_too_few_held_out_labels_are_inconclusive_and_exclude_no_label(tmp_path: Path, store: Store) -> None:
    tuner = online(tmp_path, validation_fraction=0.01)
    held = tmp_path / "held.jsonl"
    held.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in (
        {"text": "please go now", "label": "move"}, {"text": "please stop now", "label": "halt"})))  # fmt: skip
    publish(store, tinymodels.orders(24, 1, FIRST))
    verdict = tuner.run()
    assert (verdict.outcome, verdict.blamed) == ("inconclusive", ()), verdict
    assert "about 1 more held-out labels" in verdict.reason
    assert tuner.versions.live() is None, "inconclusive is no pass"
    assert tuner.state.rejected == []


def test_refusals_in_their_order() -> None:
    settings = FinetuneSettings(max_metric_drop=0.01, max_forgetting=0.03)
    fine = {
        "agreement": 0.9,
        "agreement_low": 0.8,
        "chance": 0.3,
        "all_before": 0.7,
        "all_after": 0.8,
        "known_before": 0.9,
        "known_after": 0.88,
    }
    assert rejection_reason(fine, settings) is None
    assert "disagrees with the held-out file" in str(rejection_reason(fine | {"agreement_low": 0.2}, settings))
    noise = {"validation_agreement": 0.3, "validation_agreement_low": 0.2, "validation_chance": 0.25}
    assert "labels look like noise" in str(rejection_reason(fine | noise, settings))
    noise = {name.replace("validation", "labels"): value for name, value in noise.items()}
    assert rejection_reason(fine | noise, settings) is None, "hard cases: at chance level, and not shown to be below"
    turned = noise | {"labels_agreement_high": 0.2}
    assert "contradict the live version" in str(rejection_reason(fine | turned, settings))
    assert rejection_reason(fine | {"before_upper": 0.0, "anchor_upper": -0.009}, settings) is None
    assert "worse than the version before" in str(rejection_reason(fine | {"before_upper": -0.02}, settings))
    drifted = {"before_upper": 0.01, "anchor_upper": -0.02, "all_anchor": 0.9}
    assert "worse than the anchor" in str(rejection_reason(fine | drifted, settings))
    assert "fell from" in str(rejection_reason(fine | {"known_after": 0.86}, settings))


def right(rng: np.random.Generator, before: np.ndarray | None, share: float, stored: float = 0.8) -> np.ndarray:
    """Scores of a version on 400 examples: right on a share of them, most answers as the version before."""
    fresh = (rng.random(400) < share).astype(float)
    return fresh if before is None else np.where(rng.random(400) < stored, before, fresh)


def test_two_hundred_equal_candidates_do_not_wear_the_file_out() -> None:
    settings = FinetuneSettings()
    shown, better = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        live = anchor = right(rng, None, 0.8)
        for question in range(1, 201):
            after = right(rng, live, 0.8)
            if rejection_reason(figures_of(after, live, anchor), settings) is None:
                live = after
                better_than = paired_bounds(after.tolist(), anchor.tolist(), anchor_confidence(question))[0]
                anchor = after if better_than > 0 else anchor
        shown.append(float(live.mean()))
        better.append(rejection_reason(figures_of(right(rng, live, 0.9), live, anchor), settings) is None)
    assert np.mean(shown) == pytest.approx(0.8, abs=0.012)
    assert sum(better) >= 8  # two points better: a fifth of the answers, ten points better each


def figures_of(after: np.ndarray, before: np.ndarray, anchor: np.ndarray) -> dict[str, float]:
    return {
        "all_after": float(after.mean()), "all_before": float(before.mean()), "all_anchor": float(anchor.mean()),
        "before_upper": paired_bounds(after.tolist(), before.tolist())[1],
        "anchor_upper": paired_bounds(after.tolist(), anchor.tolist())[1],
    }  # fmt: skip


def test_losses_that_are_too_small_to_be_shown_do_not_add_up() -> None:
    settings = FinetuneSettings()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        live = anchor = right(rng, None, 0.8)
        for _ in range(100):
            after = right(rng, live, float(live.mean()) - 0.05)
            live = after if rejection_reason(figures_of(after, live, anchor), settings) is None else live
        assert live.mean() > anchor.mean() - 0.12


def test_replay_takes_labels_evenly() -> None:
    rows = [{"text": str(i), "label": "many"} for i in range(30)] + [
        {"text": f"f{i}", "label": "few"} for i in range(3)
    ]
    picked = replay(rows, 8, 0)
    assert [row["label"] for row in picked].count("few") == 3
    assert len(picked) == 8
    assert len(replay(rows, 99, 0)) == 33
    assert replay(rows, 0, 0) == []


def test_every_earlier_class_is_rehearsed_as_much_as_a_new_one_is_trained() -> None:
    new = [{"label": label} for label in "ab" for _ in range(8)]
    known = [{"label": label} for label in "cdef" for _ in range(20)]
    assert rehearsal_count(new, known, 1.0) == 4 * 8
    assert rehearsal_count(new, known, 0.5) == 4 * 4
    assert rehearsal_count([{"source": "x"}] * 6, [{"source": "y"}] * 40, 1.0) == 6, (
        "no classes: as many as the new ones"
    )
    assert rehearsal_count(new, [], 1.0) == 0


def test_new_and_earlier_labels_weigh_alike_when_the_epoch_is_chosen() -> None:
    tried = [{"text": "new", "label": "a"}] * 4
    for count in (1, 4, 9, 1_000):
        stored = [{"text": str(i), "label": "b"} for i in range(count)]
        rows = balanced(tried, stored, 0)
        new = sum(row["text"] == "new" for row in rows)
        assert 0.4 <= new / len(rows) <= 0.6
        assert len(rows) <= 2 * WEIGH * len(tried) + len(tried)
    assert balanced(tried, [], 0) == tried
    assert balanced([], tried, 0) == tried


def test_held_out_depends_on_the_text_alone_and_corrections_replace(tmp_path: Path, store: Store) -> None:
    publish(
        store,
        [*tinymodels.orders(200, 1, FIRST), {"text": "the go", "label": "move"}, {"text": "the go", "label": "halt"}],
    )
    settings = TaskSettings(kind="text-classification", model="x", stream="orders")
    found = Labels("intents", settings, Reader(tmp_path / "experience")).all()
    assert len({one.key for one in found}) == len(found)
    assert found[-1].example == {"text": "the go", "label": "halt"}
    share = sum(one.held(0.3) for one in found) / len(found)
    assert 0.15 < share < 0.45
    assert all(one.held(0.3) for one in found if one.held(0.2)), "a larger part contains the smaller"


def label(decision: str | None = None, text: str | None = None, given: str | tuple[str, ...] = "a") -> Label:
    return Label("t", given, text, decision)


@pytest.mark.parametrize(
    "kind",
    [
        "text-classification",
        "token-classification",
        "translation",
        "question-answering",
        "text-generation",
        "text-pair-classification",
        "relation-extraction",
    ],
)
def test_texts_become_examples_of_every_kind(tmp_path: Path, store: Store, kind: str) -> None:
    texts = {
        "question-answering": '{"question": "q", "context": "a b"}',
        "text-pair-classification": '{"text": "p", "text_pair": "a b"}',
        "relation-extraction": "<e1>x</e1> <e2>y</e2>",
    }
    given = ("O", "B-x") if kind == "token-classification" else "a"
    store.add_label(label(text=texts.get(kind, "one two"), given=given))
    store.add_label(
        label(text="only", given="bad") if kind == "token-classification" else label(text=None, decision="gone")
    )
    assert store.flush()
    labels = Labels("t", TaskSettings(kind=kind, model="m", stream="s"), Reader(tmp_path / "experience"))
    wanted = {
        "text-classification": {"text": "one two", "label": "a"}, "token-classification": {"tokens": ["one", "two"], "tags": ["O", "B-x"]},
        "translation": {"source": "one two", "target": "a"}, "question-answering": {"question": "q", "context": "a b", "answers": [{"text": "a"}]},
        "text-generation": {"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "a"}]},
        "text-pair-classification": {"text": "p", "text_pair": "a b", "label": "a"},
        "relation-extraction": {"text": "<e1>x</e1> <e2>y</e2>", "label": "a"},
    }  # fmt: skip
    assert [one.example for one in labels.all()] == [wanted[kind]]
    assert labels.skipped == ({"unusable": 1} if kind == "token-classification" else {"unknown_decision": 1})


PAIR, ASKED = '{"text": "p", "text_pair": "a b"}', '{"question": "q", "context": "a b"}'


@pytest.mark.parametrize(
    ("kind", "text", "given"),
    [
        ("question-answering", ASKED, "elsewhere"),
        ("question-answering", ASKED, ("a", "b")),
        ("question-answering", "no object", "a"),
        ("relation-extraction", "no marks", "a"),
        ("relation-extraction", "<e1>x</e1> <e1>y</e1>", "a"),
        ("token-classification", "one two", ("O", "person")),
        ("token-classification", "one two", ("O",)),
        ("token-classification", "one two", "O"),
        ("text-classification", "one two", ("a", "b")),
        ("text-classification", "one two", ()),
        ("text-classification", "one two", " "),
        ("text-classification", " ", "a"),
        ("text-pair-classification", PAIR, ("a", "b")),
        ("translation", "one two", ""),
        ("summarization", "one two", ("a",)),
        ("text-generation", "one two", ("a", "b")),
    ],
)
def test_a_label_that_no_model_could_learn_from_is_counted_and_left_out(
    tmp_path: Path, store: Store, kind: TaskKind, text: str, given: Any
) -> None:
    """One message of a client must not end the fine-tune of all other labels."""
    store.add_label(label(text=text, given=given))
    assert store.flush()
    labels = Labels("t", TaskSettings(kind=kind, model="m", stream="s"), Reader(tmp_path / "experience"))
    assert labels.all() == []
    assert labels.skipped == {"unusable": 1}


def test_labels_of_other_forms_become_those_of_their_task(tmp_path: Path, store: Store) -> None:
    """Tags of any scheme are IOB2, one class in a list is the class, and no answer is one."""
    forms: tuple[tuple[TaskKind, str, Any, str, Any], ...] = (
        ("token-classification", "a b c", ("S-x", "I-x", "e-x"), "tags", ["B-x", "B-x", "I-x"]),
        ("text-classification", "one", ("a",), "label", "a"),
        ("question-answering", ASKED, "", "answers", []),
    )
    for kind, text, given, _, _ in forms:
        store.add_label(Label(kind, given, text))
    assert store.flush()
    for kind, _, _, field, wanted in forms:
        settings = TaskSettings(kind=kind, model="m", stream="s")
        (one,) = Labels(kind, settings, Reader(tmp_path / "experience")).all()
        assert one.example[field] == wanted


def test_a_decision_refers_to_its_recorded_reading(tmp_path: Path, store: Store) -> None:
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 6), (200, 10, 10)).save(picture, "PNG")
    soundfile.write(sound, np.zeros(800, np.float32), 16_000, format="FLAC")
    stored = {
        "see": ("png", picture.getvalue()),
        "hear": ("flac", sound.getvalue()),
        "read": ("utf-8", b"go now"),
        "odd": ("tiff", b"x"),
    }
    for i, (stream, (encoding, data)) in enumerate(stored.items()):
        store.append(Transition("s", i, f"d{i}", 100.0 + i, "p", ages_s={stream: 0.2}))
        store.add_raw(Raw(stream, 100.0 + i, encoding, data))
        store.add_label(Label(stream, "a", None, f"d{i}"))
    store.add_label(Label("see", "a", None, "d1"))
    store.add_label(Label("see", "other", "x"))
    store.add_label(Label("hear", "a", "a text where a sound is labelled"))
    assert store.flush()
    found = {}
    kinds: dict[str, TaskKind] = {"see": "image-classification", "hear": "audio-classification"}
    for stream in stored:
        labels = Labels(
            stream,
            TaskSettings(kind=kinds.get(stream, "text-classification"), model="m", stream=stream, labels=("a",)),
            Reader(tmp_path / "experience"),
        )
        found[stream] = [one.example for one in labels.all()]
        if stream == "see":
            assert labels.skipped == {"reading_gone": 1, "unknown_label": 1}
    assert found["see"][0]["picture"].decode()["picture"].shape == (6, 8, 3)
    assert len(found["hear"]) == 1
    assert found["hear"][0]["sound"].decode()["sound"].shape == (800,)
    assert found["read"] == [{"text": "go now", "label": "a"}]
    assert found["odd"] == []


def test_a_label_of_a_decision_finds_question_and_context(tmp_path: Path, store: Store) -> None:
    """The context came earlier than the question; without it the label is counted."""
    store.append(Transition("s", 0, "d0", 100.0, "p", ages_s={"page": 0.1}))
    store.add_raw(Raw("page", 100.0, "utf-8", b"anna works in Paris"))
    store.append(Transition("s", 1, "d1", 101.0, "p", ages_s={"page": 1.1, "asked": 0.1}))
    store.append(Transition("s", 2, "d2", 103.0, "p", ages_s={"asked": 0.1}))
    for number in (1, 2):
        store.add_raw(Raw("asked", 99.0 + 2 * number, "utf-8", b"where"))
        store.add_label(label(decision=f"d{number}", given="Paris"))
    assert store.flush()
    settings = TaskSettings(kind="question-answering", model="m", stream="asked", context="page")
    labels = Labels("t", settings, Reader(tmp_path / "experience"))
    answers = [{"text": "Paris"}]
    assert [one.example for one in labels.all()] == [
        {"question": "where", "context": "anna works in Paris", "answers": answers}
    ]
    assert labels.skipped == {"reading_gone": 1}


def test_one_unfit_label_is_counted_named_and_skipped(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model fails on one text: among the new labels, then among the earlier ones. Everything else trains."""
    features = ClassifyText.features

    def fragile(self: ClassifyText, example: Any, **given: Any) -> Any:
        if "broken" in str(example.get("text")):
            raise RuntimeError("kernel size greater than input size")
        return features(self, example, **given)

    monkeypatch.setattr(ClassifyText, "features", fragile)
    tuner = online(tmp_path, validation_fraction=0.3)
    broken = [{"text": f"broken {number}", "label": "move"} for number in range(3)]
    publish(store, [*tinymodels.orders(60, 1, FIRST), *broken])
    first = tuner.run()
    assert first.promoted, first
    assert first.figures["skipped_unreadable"] == 3
    assert first.figures["skipped_unreadable_reason"] == "RuntimeError: kernel size greater than input size"
    assert not tuner.has_new_labels(), "the last one is unfit, and is not waited for"
    publish(store, tinymodels.orders(60, 2, SECOND))
    second = tuner.run()
    assert second.promoted, second
    publish(store, broken)
    with pytest.raises(DataError, match="3 cannot be read: RuntimeError: kernel size"):
        tuner.run()


def test_validation_counts_a_text_once_and_puts_its_copies_on_its_side(tmp_path: Path, store: Store) -> None:
    tuner = online(tmp_path, augment=("auto",))
    rows = tinymodels.orders(30, 1, FIRST)
    publish(store, [*rows, *({**row, "text": f" {row['text'].upper()} "} for row in rows)])
    parts = tuner.holdout().parts(tuner.labels.all(), [])
    sides = [{normalized_text(row) for row in some} for some in (parts.new, parts.tried)]
    assert not sides[0] & sides[1]
    assert len(parts.tried) > len(sides[1]), "copies are there"
    compared: list[int] = []

    def train(some: tuple[str, ...] | None) -> Any:
        task = open_task("text-classification", tmp_path / "model", labels=("move", "halt"))
        monkey.setattr(task, "predict", lambda given: compared.append(len(given)) or [Prediction("move")] * len(given))
        return SimpleNamespace(task=task), None

    with pytest.MonkeyPatch.context() as monkey:
        tuner.candidate_trainer._augmented(train, parts.tried * 3)
    assert set(compared) == {len(sides[1])}
