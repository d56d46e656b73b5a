"""Rule-made dialogues: the last answer names words of the user from two turns, so only a model that reads both is exact."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from learners.finetune.labelled_files.splits import Splits
from learners.finetune.trainer import TrainerSettings
from learners.finetune.training_phases import tune
from learners.tasks.text_generation import Chat

ACTIONS = ("go", "stop", "works", "is")
COLOURS = ("red", "green", "blue")
PLACES = ("left", "right", "up", "down")


def dialogues() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return dialogues to train on, and a quarter with combinations of action, colour and place that none of those has."""
    found = [
        {
            "messages": [
                {"role": "user", "content": f"please {action} {colour}"},
                {"role": "assistant", "content": "what now ?"},
                {"role": "user", "content": f"the {place}"},
                {"role": "assistant", "content": f"{action} {colour} {place}"},
            ]
        }
        for action, colour, place in itertools.product(ACTIONS, COLOURS, PLACES)
    ]
    random.Random(0).shuffle(found)
    return found[12:], found[:12]


def measure(task: Chat, held: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the perplexity of all answers, the share of slots that the last answer names rightly, and of answers with all of them."""
    right: list[list[bool]] = []
    for row in held:
        answer = "".join(task.stream(row["messages"][:-1])).split()
        wanted = row["messages"][-1]["content"].split()
        right.append([a == b for a, b in itertools.zip_longest(answer, wanted)])
    slots = [one for row in right for one in row]
    return {
        "perplexity": task.metrics(held, task.predict(held))["perplexity"],
        "slots": sum(slots) / len(slots),
        "exact": sum(map(all, right)) / len(right),
    }


def learn(task: Chat, epochs: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Fine-tune on the dialogues; return the figures of the held-out ones before and after."""
    train, held = dialogues()
    before = measure(task, held)
    settings = TrainerSettings(epochs=epochs, batch=12, learning_rate=1e-2, patience=epochs, seed=seed)
    tune(task, Splits(train, held), settings, "full")
    return {"before": before, "after": measure(task, held)}
