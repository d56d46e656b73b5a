"""What the parts of a run have in common is reported."""

from __future__ import annotations

import numpy as np

from learners.finetune.labelled_files.splits import Splits, repeats

PATHS = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}


def test_examples_that_are_in_two_parts_or_have_several_labels_are_named() -> None:
    train = [{"text": "Go  left", "label": "a"}, {"text": "stop", "label": "b"}, {"text": "stop", "label": "a"}]
    validation = [{"text": "go left", "label": "a"}, {"text": "up", "label": "b"}]
    test = [{"text": "GO LEFT", "label": "b"}, {"text": "down", "label": "a"}, {"text": "down", "label": "a"}]
    assert repeats(Splits(train, validation, test), PATHS) == [
        "train.csv: 1 contents are there with different labels: at most one of each is right",
        "dev.csv: 1 of 2 examples are in train.csv, too: its figures are too good",
        "test.csv: 1 of 3 examples are in train.csv, too: its figures are too good",
        "test.csv: 1 of 3 examples are in dev.csv, too: its figures are too good",
    ]


def test_equal_examples_of_every_kind_are_found_by_what_a_model_reads_of_them() -> None:
    sound = np.arange(8, dtype=np.float32)
    spoken = [{"sound": sound, "text": "go"}, {"sound": sound + 1, "text": "go"}]
    assert repeats(Splits(spoken[:1], spoken[1:]), PATHS) == [], "two people say the same words"
    assert len(repeats(Splits(spoken, [{"sound": sound.copy(), "text": "went"}]), PATHS)) == 1
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert (
        len(repeats(Splits([{"picture": pixels, "label": "x"}], [{"picture": pixels.copy(), "label": "x"}]), PATHS))
        == 1
    )
    accents = [{"text": "Cafe\u0301", "label": "x"}], [{"text": "caf\u00e9", "label": "x"}]
    assert len(repeats(Splits(*accents), PATHS)) == 1
    several = [{"text": "a", "label": ["x", "y"]}, {"text": "a", "label": ["y", "x"]}]
    assert repeats(Splits(several, []), PATHS) == []
    tagged = [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
    assert len(repeats(Splits(tagged, []), PATHS)) == 1
    translated = [{"source": "a", "target": "x"}, {"source": "a", "target": "y"}]
    assert repeats(Splits(translated, []), PATHS) == [], "several translations are right"
