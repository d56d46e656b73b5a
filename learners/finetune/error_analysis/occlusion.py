"""Explain errors by occlusion: which words, picture areas or seconds a wrong answer depends on (Zeiler and Fergus 2014).

A part is hidden, and the model answers again. The more the probability of its wrong answer falls, the more the part decided. It needs no
gradient, so it is the same for every architecture. Used by `reflexd evaluate --explain`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learners.data_error import DataError
from learners.task_kinds import KINDS
from learners.tasks.base import EncodedMedia, Example, Prediction, Task, without_target
from learners.tasks.inputs.pictures import read_picture
from learners.tasks.inputs.sounds import read_sound

GRID = 6
"""Rows and columns of areas of a picture."""
PARTS = 12
"""Parts of a sound."""
MOST_WORDS = 200
"""Words of a text that are hidden one by one."""
SHOWN = 8
"""Parts of an error in the report."""
RATE_HZ = 16_000


def explain_errors(
    task: Task, examples: Sequence[Example], found: Sequence[Prediction], count: int
) -> list[dict[str, Any]]:
    """Explain the wrong answers of which the task is most certain.

    Args:
        task: a classification with one label for an example.
        examples: with their labels.
        found: the answer to each.
        count: of errors to explain.

    Returns:
        For each error its place, what is right, the answer with its probability, and the parts with the fall of that probability
        when they are hidden.

    Raises:
        ValueError: the task is no classification.
    """
    if KINDS[task.kind].output != "label" or task.options.multi_label:
        raise ValueError(f"explain: {task.kind} does not answer with one label; leave --explain out")
    wrong = [
        (prediction, example)
        for example, prediction in zip(examples, found, strict=True)
        if isinstance(example.get("label"), str) and prediction.value != example["label"]
    ]
    wrong.sort(key=lambda each: -(each[0].confidence or 0.0))
    return [_explained(task, example, prediction) for prediction, example in wrong[:count]]


def _explained(task: Task, example: Example, prediction: Prediction) -> dict[str, Any]:
    answer = str(prediction.value)
    parts = list(_hidden(example))
    probability = prediction.probabilities.get(answer, prediction.confidence or 0.0)
    found = _answers(task, [hidden for _, hidden in parts])
    falls = [probability - one.probabilities.get(answer, 0.0) for one in found]
    order = sorted(range(len(parts)), key=lambda at: -falls[at])
    return {
        "where": getattr(example, "where", ""),
        "is": example["label"],
        "predicted": answer,
        "probability": probability,
        "decided": [{"part": parts[at][0], "fall": falls[at]} for at in order[:SHOWN] if falls[at] > 0],
    }


def _answers(task: Task, hidden: Sequence[Example]) -> list[Prediction]:
    """Return the answers to examples with a hidden part; one that cannot be read any more, such as without a mark, has none."""
    found = []
    for example in hidden:
        try:
            found += task.predict([example])
        except DataError:
            found.append(Prediction(None))
    return found


def _hidden(example: Example) -> Iterator[tuple[Any, Example]]:
    """Yield each part of an example with the example that lacks it."""
    plain = without_target(example)
    if "picture" in plain:
        yield from _areas(plain)
    elif "sound" in plain:
        yield from _seconds(plain)
    else:
        for name in ("text", "text_pair"):
            words = str(plain.get(name, "")).split()
            for at in range(min(len(words), MOST_WORDS)):
                yield words[at], {**plain, name: " ".join(words[:at] + words[at + 1 :])}


def _areas(example: dict[str, Any]) -> Iterator[tuple[list[float], Example]]:
    """Yield the areas of a picture, as shares [left, top, right, bottom], each filled with the mean colour."""
    picture = example["picture"]
    if isinstance(picture, EncodedMedia):
        picture = picture.decode()["picture"]
    pixels_YXC = np.asarray(read_picture(Path(picture)) if isinstance(picture, str | Path) else picture)
    mean_C = pixels_YXC.mean(axis=(0, 1)).astype(pixels_YXC.dtype)
    rows, columns = (np.linspace(0, size, GRID + 1).astype(int) for size in pixels_YXC.shape[:2])
    for row in range(GRID):
        for column in range(GRID):
            changed_YXC = pixels_YXC.copy()
            changed_YXC[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = mean_C
            area = [round(value / GRID, 3) for value in (column, row, column + 1, row + 1)]
            yield area, {**example, "picture": changed_YXC}


def _seconds(example: dict[str, Any]) -> Iterator[tuple[list[float], Example]]:
    """Yield the parts of a sound, as seconds [from, to], each silent."""
    sound, rate_hz = example["sound"], example.get("rate_hz", RATE_HZ)
    if isinstance(sound, EncodedMedia):
        decoded = sound.decode()
        sound, rate_hz = decoded["sound"], decoded["rate_hz"]
    elif isinstance(sound, str | Path):
        sound, rate_hz = read_sound(Path(sound)), RATE_HZ
    samples_N = np.asarray(sound)
    ends = np.linspace(0, len(samples_N), PARTS + 1).astype(int)
    for start, stop in itertools.pairwise(ends):
        changed_N = samples_N.copy()
        changed_N[start:stop] = 0
        yield [round(start / rate_hz, 3), round(stop / rate_hz, 3)], {**example, "sound": changed_N, "rate_hz": rate_hz}
