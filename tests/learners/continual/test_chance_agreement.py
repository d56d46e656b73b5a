"""Chance in every kind of task: constant and shuffled answers are at chance, good ones above it, and noise is not promoted."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import noise
import pytest

from learners.continual.chance_agreement import FEWEST, compare_with_chance
from learners.continual.evaluation import more_held_out_needed
from learners.tasks.base import Prediction

WORDS = noise.WORDS


def task(kind: str) -> Any:
    return SimpleNamespace(kind=kind)


def judged(kind: str, examples: list[dict[str, Any]], values: list[Any]) -> bool:
    """Whether the answers are better than chance."""
    figures = compare_with_chance(task(kind), examples, [Prediction(value) for value in values])
    assert 0 <= figures["chance"] <= 1
    return figures["agreement_low"] > figures["chance"]


def cases(kind: str) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Sixty examples, and answers by name."""
    rng = random.Random(kind)
    examples = [noise.example(kind, rng, noise=False)[2] for _ in range(60)]
    if kind == "several":
        right = [row["label"] for row in examples]
        common = ["a", "green"]
    elif kind == "token-classification":
        right = [row["tags"] for row in examples]
        common = ["O"] * 6
    elif kind == "question-answering":
        right = [row["answers"][0]["text"] for row in examples]
        return examples, {
            "right": right,
            "shuffled": [rng.choice(row["context"].split()) for row in examples],
            "often wrong": [w if i % 3 else row["context"].split()[0] for i, (w, row) in enumerate(zip(right, examples, strict=True))],
        }  # fmt: skip
    else:
        right = [row["target"] for row in examples]
        common = max(right, key=right.count)
    shuffled = rng.sample(right, len(right))
    mixed = [w if i % 3 else s for i, (w, s) in enumerate(zip(right, shuffled, strict=True))]
    return examples, {"right": right, "shuffled": shuffled, "constant": [common] * 60, "often wrong": mixed}


@pytest.mark.parametrize("kind", ["several", "token-classification", "question-answering", "translation"])
def test_constant_and_shuffled_answers_are_at_chance(kind: str) -> None:
    examples, answers = cases(kind)
    of = "text-classification" if kind == "several" else kind
    found = {name: judged(of, examples, values) for name, values in answers.items()}
    assert found == {name: name in ("right", "often wrong") for name in answers}
    few = compare_with_chance(task(of), examples[: FEWEST - 1], [Prediction(v) for v in answers["right"][: FEWEST - 1]])
    assert few == {}


@pytest.mark.parametrize("kind", ["token-classification", "question-answering", "translation"])
def test_too_few_held_out_examples_show_nothing(kind: str) -> None:
    """A candidate that no test could reject is not promoted: the trainer calls it inconclusive."""
    examples, _ = cases(kind)
    assert more_held_out_needed(task(kind), examples[:5], ()) == FEWEST - 5
    assert more_held_out_needed(task(kind), examples[:FEWEST], ()) == 0
    if kind == "token-classification":
        assert more_held_out_needed(task(kind), examples, ("no such class",)) == FEWEST


@pytest.mark.parametrize(
    "kind",
    [
        "several",
        "token-classification",
        "question-answering",
        "text-generation",
        "text-pair-classification",
        "automatic-speech-recognition",
    ],
)
def test_a_first_version_learned_from_noise_is_rejected(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(noise.OPTIONS, "epochs", 4)
    verdict = noise.first_version(tmp_path, kind, 0, noise=True, labels=80)
    assert verdict.outcome == "rejected", verdict
    assert "chance" in verdict.reason or "disagrees" in verdict.reason


def test_a_first_version_learned_from_honest_tags_is_promoted(tmp_path: Path) -> None:
    verdict = noise.first_version(tmp_path, "token-classification", 0, noise=False, labels=120)
    assert verdict.promoted, verdict
    assert verdict.figures["agreement_low"] > verdict.figures["chance"]
