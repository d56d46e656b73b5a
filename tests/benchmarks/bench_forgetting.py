"""What fine-tuning forgets, when an encoder learns one task after another; labels in waves are bench_waves.py's.

    .venv/bin/python tests/benchmarks/bench_forgetting.py [--only encoder|chat] [--per-class 20] [--sentences 600] [--tested 10]

encoder: intents (CLINC150, head and encoder), then entities (WNUT 2017) with `full`, `top` and `lora` on the same encoder, then the
old intent head on the new encoder (`after`), then that head alone trained again (`back`). A LoRA adapter can be taken out
again, which loses nothing by construction; measured here is the encoder with the adapter merged.
chat: one answer of the bundled SmolLM2, with its speed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetune_data as data
import torch
from rich.console import Console
from rich.table import Table

from learners.finetune.build import build
from learners.finetune.forgetting import transplant
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.report import measure
from learners.finetune.training_phases import tune
from learners.model.encoders.bundled_weights import resolve
from learners.tasks.task_classes import open_task

MINILM = "bundled:minilm-l6"
SENTENCES = 130
"""Of the test split for each tested example of a class; ten times that are all."""
OPTIONS = {"epochs": 4, "patience": 4}


def per_class(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` of every label."""
    seen: dict[str, int] = {}
    chosen = []
    for row in rows:
        seen[row["label"]] = seen.get(row["label"], 0) + 1
        if seen[row["label"]] <= count:
            chosen.append(row)
    return chosen


def encoder(out: Path, count: int, sentences: int, tested: int) -> Table:
    """The table of one encoder and two tasks."""
    train, held, test = (datasets.read(path) for path in data.clinc(out))
    intents = Splits(per_class(train, count), per_class(held, min(4, tested)), per_class(test, tested))
    task, settings, _ = build("text-classification", MINILM, intents.train, "full", dict(OPTIONS))
    tuned = tune(task, intents, replace(settings, epochs=8), "full")
    before = measure(tuned.task, intents.test)["accuracy"]
    tuned.task.save(out)
    tags = [datasets.read(path) for path in data.wnut(out)]
    entities = Splits(tags[0][:sentences], tags[1][: 30 * tested], tags[2][: SENTENCES * tested])
    table = Table("entities with", "entity F1", "intents before", "after", "lost", "back (head alone)")
    for mode in ("full", "top", "lora"):
        other, settings, _ = build("token-classification", str(out), entities.train, mode, dict(OPTIONS))
        new = tune(other, entities, settings, mode)
        old = open_task("text-classification", out)
        transplant(new.task.model, old.model)
        after = measure(old, intents.test)["accuracy"]
        _, again, _ = build("text-classification", MINILM, intents.train, "frozen", {"epochs": 3})
        back = measure(tune(old, intents, again, "frozen").task, intents.test)["accuracy"]
        f1 = measure(new.task, entities.test)["entity_f1"]
        table.add_row(mode, f"{f1:.4f}", f"{before:.4f}", f"{after:.4f}", f"{before - after:+.4f}", f"{back:.4f}")
    return table


def chat() -> Table:
    """One real answer."""
    task: Any = open_task(
        "text-generation",
        resolve("bundled:smollm2-135m"),
        max_new_tokens=48,
        system="You answer in one short sentence.",
    )
    start = time.monotonic()
    first = 0.0
    pieces = []
    for piece in task.stream([{"role": "user", "content": "What is the capital of France?"}]):
        first = first or time.monotonic() - start
        pieces.append(piece)
    wall = time.monotonic() - start
    table = Table("answer", "pieces", "first after s", "pieces a second")
    table.add_row("".join(pieces), str(len(pieces)), f"{first:.2f}", f"{len(pieces) / wall:.1f}")
    return table


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=["encoder", "chat"], choices=["encoder", "chat"])
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--sentences", type=int, default=600)
    parser.add_argument("--tested", type=int, default=10, help="examples of each class that are tested")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=170)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            out = Path(folder) / name
            out.mkdir()
            console.print(chat() if name == "chat" else encoder(out, given.per_class, given.sentences, given.tested))


if __name__ == "__main__":
    main()
