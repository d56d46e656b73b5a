"""What fine-tuning forgets: tables for an encoder taught one task after another, and for intents that arrive in waves.

    .venv/bin/python tests/benchmarks/bench_forgetting.py [--only encoder|waves|chat] [--per-class 20] [--sentences 600]

encoder: intents (CLINC150, head and encoder), then entities (WNUT 2017) with `full`, `top` and `lora` on the same encoder, then the
old intent head on the new encoder (`after`), then that head alone trained again (`back`). A LoRA adapter can be taken out
again, which loses nothing by construction; measured here is the encoder with the adapter merged.
waves: 300 labelled orders in three waves of five intents each through the daemon's own periodic fine-tuning, with and without
replay, and a fourth wave with shuffled labels.
chat: one answer of the bundled SmolLM2, with its speed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetune_data as data
import torch
from rich.console import Console
from rich.table import Table

from learners import datasets
from learners.config import FinetuneSettings, TaskSettings
from learners.experience import Label, Store
from learners.finetune import Splits, build, measure, tune
from learners.forgetting import transplant
from learners.model.bundled import resolve
from learners.online import Online
from learners.reader import Reader
from learners.tasks.registry import open_task

MINILM = "bundled:minilm-l6"
OPTIONS = {"epochs": 4, "patience": 4}


def per_class(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` of every label."""
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row["label"]] = seen.get(row["label"], 0) + 1
        if seen[row["label"]] <= count:
            kept.append(row)
    return kept


def encoder(out: Path, count: int, sentences: int) -> Table:
    """The table of one encoder and two tasks."""
    train, held, test = (datasets.read(path) for path in data.clinc(out))
    intents = Splits(per_class(train, count), per_class(held, 4), per_class(test, 10))
    task, settings, _ = build("classify", MINILM, intents.train, "full", dict(OPTIONS))
    tuned = tune(task, intents, replace(settings, epochs=8), "full")
    before = measure(tuned.task, intents.test)["accuracy"]
    tuned.task.save(out)
    tags = [datasets.read(path) for path in data.wnut(out)]
    entities = Splits(tags[0][:sentences], tags[1][:300], tags[2])
    table = Table("entities with", "entity F1", "intents before", "after", "lost", "back (head alone)")
    for mode in ("full", "top", "lora"):
        other, settings, _ = build("tag", str(out), entities.train, mode, dict(OPTIONS))
        new = tune(other, entities, settings, mode)
        old = open_task("classify", out)
        transplant(new.task.model, old.model)
        after = measure(old, intents.test)["accuracy"]
        _, again, _ = build("classify", MINILM, intents.train, "frozen", {"epochs": 3})
        back = measure(tune(old, intents, again, "frozen").task, intents.test)["accuracy"]
        f1 = measure(new.task, entities.test)["entity_f1"]
        table.add_row(mode, f"{f1:.4f}", f"{before:.4f}", f"{after:.4f}", f"{before - after:+.4f}", f"{back:.4f}")
    return table


def waves(out: Path) -> Table:
    """The table of four waves, with and without replay."""
    rows = datasets.read(data.clinc(out)[0])
    intents = sorted({row["label"] for row in rows})[:15]
    generator = random.Random(0)
    published = []
    for wave in range(3):
        own = per_class([row for row in rows if row["label"] in intents[wave * 5 : wave * 5 + 5]], 20)
        generator.shuffle(own)
        published.append(own)
    poison = [row for row in rows if row["label"] in intents[:5]][-100:]
    names = [row["label"] for row in poison]
    generator.shuffle(names)
    published.append([{**row, "label": name} for row, name in zip(poison, names, strict=True)])
    test = datasets.read(data.clinc(out)[2])
    table = Table(
        "replay",
        "wave",
        "verdict",
        *(f"test {i + 1}" for i in range(3)),
        "all",
        "new labels",
        "replayed",
        "s",
        "reason",
    )
    for share in (1.0, 0.0):
        folder = out / f"replay-{share:g}"
        store = Store(folder / "experience")
        task = TaskSettings(kind="classify", stream="orders", model=MINILM, train="lora")
        chosen = FinetuneSettings(
            every_s=1,
            min_labels=32,
            replay=share,
            batch=16,
            forget_margin=0.03 if share else 4.0,
            margin=0.0 if share else 4.0,
        )
        tuner = Online("orders", task, chosen, folder / "tasks", Reader(folder / "experience"))
        for number, wave in enumerate(published, 1):
            for row in wave:
                store.add_label(Label("orders", row["label"], row["text"]))
            store.flush()
            verdict = tuner.run()
            live = tuner.versions.live()
            scores = [
                score(live, [row for row in test if row["label"] in intents[i * 5 : i * 5 + 5]]) for i in range(3)
            ]
            figures = verdict.figures
            table.add_row(
                f"{share:g}", str(number) if number < 4 else "shuffled", "promoted" if verdict.promoted else "rejected",
                *(f"{s:.3f}" for s in scores), f"{sum(scores) / 3:.3f}", f"{figures['new_labels']:.0f}", f"{figures['replayed']:.0f}",
                f"{figures['wall_s']:.0f}", verdict.reason,
            )  # fmt: skip
        store.close()
    return table


def score(live: Any, rows: list[dict[str, Any]]) -> float:
    """Accuracy of a version."""
    if live is None:
        return 0.0
    task = open_task("classify", live.path)
    found = task.predict([{"text": row["text"]} for row in rows])
    return sum(p.value == row["label"] for p, row in zip(found, rows, strict=True)) / len(rows)


def chat() -> Table:
    """One real answer."""
    task: Any = open_task(
        "chat", resolve("bundled:smollm2-135m"), max_new_tokens=48, system="You answer in one short sentence."
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
    parser.add_argument("--only", nargs="*", default=["encoder", "waves", "chat"], choices=["encoder", "waves", "chat"])
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--sentences", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=170)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            out = Path(folder) / name
            out.mkdir()
            console.print(
                chat()
                if name == "chat"
                else waves(out)
                if name == "waves"
                else encoder(out, given.per_class, given.sentences)
            )


if __name__ == "__main__":
    main()
