"""Few labels go further where validation says so, and the report has the gains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tinymodels
import torch
from transformers import BertForMaskedLM

from learners.data_error import DataError
from learners.files import DRAFT
from learners.finetune.few_labels.comparison import PairedGain, choose
from learners.finetune.few_labels.continued_pretraining import adapt, can_adapt
from learners.finetune.few_labels.finetune import finetune, without_held
from learners.finetune.labelled_files.equal_content import content_key, distinct
from learners.finetune.trainer import Stopped, Trainer
from learners.tasks.layers.heads import output_layer
from learners.tasks.task_classes import open_task

INTENTS = {"go": "move", "stop": "halt", "left": "turn"}


def written(path: Path, count: int, seed: int, *, labels: bool = True) -> str:
    rows: list[dict[str, str]] = tinymodels.orders(count, seed, INTENTS)
    path.write_bytes(b"\n".join(orjson.dumps(row if labels else {"text": row["text"]}) for row in rows))
    return str(path)


def test_the_gain_is_paired_and_must_exceed_its_error() -> None:
    found = PairedGain.of([1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    assert found.gain == 0.5
    assert found.error == pytest.approx(np.std([1, 0, 1, 0], ddof=1) / 2)
    assert found.is_better
    assert not PairedGain.of([1.0] * 4, [1.0] * 4).is_better
    assert not PairedGain.of([1.0], [0.0]).is_better, "one example says nothing"


def test_a_row_that_is_there_ten_times_is_one_piece_of_evidence() -> None:
    """One lucky example of four: its gain is no gain, however often the row is there."""
    once = PairedGain.of([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    assert not once.is_better
    assert PairedGain.of([1.0] * 10 + [1.0, 0.0, 0.0], [0.0] * 10 + [1.0, 0.0, 0.0]).is_better, (
        "as rows, it looks like one"
    )
    weighted = PairedGain.of([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [10.0, 1.0, 1.0, 1.0])
    assert weighted.gain == pytest.approx(10 / 13)
    assert weighted.error > weighted.gain / 4
    equal = PairedGain.of([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [3.0] * 4)
    assert (equal.gain, equal.error) == pytest.approx((once.gain, once.error))
    rows = [{"text": text} for text in ("Go", " go ", "stop", "GO", "left")]
    found, times = distinct(rows, {content_key({"text": "LEFT"})})
    assert ([row["text"] for row in found], times) == (["Go", "stop"], [3.0, 1.0])


@pytest.mark.parametrize(
    ("gains", "used"),
    [
        ({"a": 8, "b": -3, "c": 5, "a c": 12}, ("a", "c")),
        ({"a": 8, "b": 0, "c": 5, "a c": 6}, ("a",)),
        ({"a": -1, "b": 0, "c": -2}, ()),
    ],
)
def test_what_gains_is_on_and_together_only_if_that_gains_more(gains: dict[str, int], used: tuple[str, ...]) -> None:
    def scores(names: tuple[str, ...]) -> list[float]:
        right = 40 + gains.get(" ".join(names), 0)
        return [1.0] * right + [0.0] * (80 - right)

    trained: list[tuple[str, ...]] = []
    chosen = choose(["a", "b", "c"], lambda names: trained.append(names) or names, scores)  # type: ignore[func-returns-value]
    assert chosen.used == chosen.trained == used
    assert [one["names"] for one in chosen.tried if one["on"]] == ([list(used)] if used else [])
    assert trained[0] == chosen.plain == ()
    assert ("b",) in trained


def test_views_of_one_reading_come_closer_than_those_of_others(tmp_path: Path) -> None:
    source = tinymodels.bert(tmp_path / "m", dropout=0.1)
    task: Any = open_task("text-classification", source, labels=("a", "b"))
    readings = tinymodels.orders(120, 1, INTENTS)
    head = {n: p.clone() for n, p in task.model.get_submodule(output_layer(task.model)).named_parameters()}
    before = copy.deepcopy(task.model.state_dict())
    made = adapt(task, [*readings, {"label": "no text"}], passes=20, seed=3)
    assert (made.objective, made.readings, made.unreadable) == ("contrastive", 120, 1)
    assert made.losses[-1] < made.losses[0]
    assert task.options.augment is None
    assert not task.model.training
    assert all(p.requires_grad for p in task.model.parameters())
    for name, parameter in task.model.get_submodule(output_layer(task.model)).named_parameters():
        assert torch.equal(parameter, head[name]), "the head is not what is adapted"
    assert any(not torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    again: Any = open_task("text-classification", source, labels=("a", "b"))
    again.model.load_state_dict(before)
    assert adapt(again, readings, passes=20, seed=3).losses == made.losses, "the same seed, the same encoder"
    with pytest.raises(DataError, match="7 of 7 readings can be used"):
        adapt(task, readings[:7])
    with pytest.raises(Stopped):
        adapt(task, readings, stop=lambda: True)


def test_a_masked_model_goes_on_with_masked_predictions(tmp_path: Path) -> None:
    source = tinymodels.bert(tmp_path / "m", ["[MASK]", *tinymodels.WORDS])
    plain: Any = open_task("text-classification", source, labels=("a", "b"))
    plain.processor.add_special_tokens({"mask_token": "[MASK]"})
    torch.manual_seed(0)
    BertForMaskedLM(plain.model.config).save_pretrained(tmp_path / "masked")
    plain.processor.save_pretrained(tmp_path / "masked")
    task: Any = open_task("text-classification", tmp_path / "masked", labels=("a", "b"))
    word = task.model.get_input_embeddings().weight.detach().clone()
    made = adapt(task, tinymodels.orders(128, 1, INTENTS), passes=20)
    assert made.objective == "masked"
    assert made.losses[-1] < made.losses[0] - 0.01
    assert not torch.equal(word, task.model.get_input_embeddings().weight)


def test_pictures_and_sounds_adapt_by_views_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shown = [{"picture": generator.integers(0, 255, (32, 32, 3), np.uint8)} for _ in range(10)]
    task: Any = open_task("image-classification", tinymodels.efficientnet(tmp_path / "e"), labels=("a", "b"))
    assert adapt(task, shown).objective == "contrastive"
    heard = [{"sound": generator.standard_normal(4_000).astype(np.float32)} for _ in range(8)]
    task = open_task("audio-classification", tinymodels.whisper(tmp_path / "w"), labels=("a", "b"), window_s=1.0)
    assert adapt(task, heard).readings == 8
    assert not can_adapt("translation")
    assert not can_adapt("automatic-speech-recognition")
    assert can_adapt("text-pair-classification")


def test_the_report_says_what_validation_selected_and_what_it_gains(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "task": "text-classification", "model": str(tinymodels.bert(tmp_path / "model", dropout=0.1)), "mode": "full",
        "train": written(tmp_path / "a.jsonl", 24, 1), "validation": written(tmp_path / "b.jsonl", 40, 2),
        "test": written(tmp_path / "c.jsonl", 40, 3), "epochs": 4, "batch": 8, "learning_rate": 3e-3,
    }  # fmt: skip
    unlabelled = written(tmp_path / "u.jsonl", 80, 4, labels=False)
    report = finetune(**common, out=tmp_path / "out", augment="auto", unlabelled=unlabelled)
    found, adapted = report["augmentation"], report["adaptation"]
    assert [one["names"] for one in found["tried"]][:3] == [["token_dropout"], ["synonyms"], ["mixup"]]
    assert found["validation"]["gain"] >= 0.0
    assert adapted["readings"] == 80
    assert adapted["used"] == (adapted["validation"]["gain"] > adapted["validation"]["error"])
    assert report["metrics"]["test"]["accuracy"] == pytest.approx(found["test"]["used"])
    saved = orjson.loads((tmp_path / "out" / "task.json").read_bytes())
    assert saved["options"]["augment"] == found["used"]
    assert not list((tmp_path / "out").glob("state*"))
    plain = finetune(**common, out=tmp_path / "plain")
    assert plain["metrics"]["test"]["accuracy"] == pytest.approx(adapted["test"]["pretrained"])


def test_unlabelled_rows_of_validation_and_test_are_left_out(tmp_path: Path) -> None:
    held = [{"text": "go left", "label": "move"}, {"text": "stop", "label": "halt"}]
    found = without_held([{"text": " GO  left"}, {"text": "go right"}, {"text": "Stop", "label": "x"}], held)
    assert found == [{"text": "go right"}]
    with pytest.raises(DataError, match="validation and test contain all 1 readings"):
        without_held([{"text": "STOP"}], held)
    generator = np.random.default_rng(0)
    shown = [generator.integers(0, 255, (48, 48, 3), np.uint8) for _ in range(3)]
    noisy = np.clip(shown[0].astype(int) + generator.integers(-3, 4, shown[0].shape), 0, 255).astype(np.uint8)
    pictures = without_held(
        [{"picture": noisy}, {"picture": shown[2]}, {"picture": tmp_path / "none.png"}],
        [{"picture": shown[0], "label": "a"}, {"picture": shown[1], "label": "b"}],
    )
    assert [one["picture"] is noisy for one in pictures] == [False, False], (
        "nearly equal ones, too; broken ones are counted later"
    )


def test_a_row_that_trains_does_not_select(tmp_path: Path) -> None:
    rows = written(tmp_path / "a.jsonl", 12, 1)
    common: dict[str, Any] = {
        "task": "text-classification", "model": str(tinymodels.bert(tmp_path / "m")), "mode": "frozen", "train": rows,
        "epochs": 1, "batch": 8, "augment": "auto",
    }  # fmt: skip
    with pytest.raises(DataError, match="validation: every row is one that is trained on"):
        finetune(**common, validation=rows, out=tmp_path / "out")
    both = tmp_path / "both.jsonl"
    other = Path(written(tmp_path / "b.jsonl", 10, 2)).read_bytes()
    both.write_bytes(b"\n".join([Path(rows).read_bytes(), other, other]))
    report = finetune(**common, validation=both, out=tmp_path / "out")
    assert report["selection"]["rows"] <= 10
    assert report["selection"]["rows"] + report["selection"]["repeated_or_trained_on"] == 32


def test_no_resume_starts_every_version_over(tmp_path: Path) -> None:
    """A killed run left the states of its versions; `--no-resume` must not go on with them, and leaves folders of others alone."""
    out = tmp_path / "out"
    common: dict[str, Any] = {
        "task": "text-classification", "model": str(tinymodels.bert(tmp_path / "m")), "mode": "full", "out": out,
        "train": written(tmp_path / "a.jsonl", 24, 1), "validation": written(tmp_path / "b.jsonl", 20, 2),
        "epochs": 2, "batch": 8, "augment": "auto",
    }  # fmt: skip
    steps: list[str] = []
    step = Trainer._step

    def counted(self: Trainer, *given: Any) -> float:
        steps.append(self._state.folder.name if self._state is not None else "")
        if len(steps) == killed:
            raise KeyboardInterrupt
        return step(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", counted)
        killed = 9  # the first version is whole, the second has begun
        with pytest.raises(KeyboardInterrupt):
            finetune(**common)
        (out / "state-of-the-art").mkdir()
        (out / "state-of-the-art" / "notes.txt").write_text("mine")
        assert (out / "state-pretrained" / "state.json").is_file()
        (out / "state-pretrained" / f"{DRAFT}now-3.safetensors.0a").write_bytes(b"half")
        (out / "state-pretrained-mixup").mkdir()
        (out / "state-pretrained-mixup" / f"{DRAFT}now-1.safetensors.0b").write_bytes(b"half")
        killed = 0
        steps.clear()
        finetune(**common, resume=False)
    assert steps.count("state-pretrained") == 6, "three batches in two epochs, from the start"
    assert sorted(path.name for path in out.glob("state*")) == ["state-of-the-art"]
    assert (out / "state-of-the-art" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"augment": ["crops"]}, "text-classification has token_dropout, synonyms, mixup"),
        ({"augment": "auto", "adapter": True, "mode": "lora"}, "adapter: not together"),
        ({"unlabelled": "no.csv"}, "no such file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_trains(tmp_path: Path, given: dict[str, Any], match: str) -> None:
    rows = written(tmp_path / "a.jsonl", 12, 1)
    with pytest.raises(ValueError, match=match):
        finetune(
            task="text-classification", model=str(tinymodels.bert(tmp_path / "m")), train=rows, validation=rows,
            out=tmp_path / "out", **given,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
