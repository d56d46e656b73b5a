"""Compare named entities learned from long documents with the same sentences one by one, and measure several labels a text.

Documents are 60 sentences of WNUT17 each; a text with several labels joins two or three orders of CLINC150. Both use the default
recipe with `bundled:minilm-l6`. Run `python tests/benchmarks/bench_windows.py --help`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from learners.finetune.build import build
from learners.finetune.labelled_files import datasets
from learners.finetune.labelled_files.splits import Splits
from learners.finetune.report import measure
from learners.finetune.training_phases import tune

SENTENCES, DOCUMENT = 480, 60


def entities(folder: Path, seed: int, model: str) -> None:
    """Print the entity F1 on the development file after training on sentences, and on the documents that join them."""
    files = {path.name: path for path in folder.iterdir()}
    train = next(path for name, path in sorted(files.items()) if "train" in name)
    dev = next(path for name, path in sorted(files.items()) if "dev" in name)
    sentences, validation = list(datasets.read(train))[:SENTENCES], list(datasets.read(dev))[:200]
    documents = [
        {name: [word for row in sentences[at : at + DOCUMENT] for word in row[name]] for name in ("tokens", "tags")}
        for at in range(0, SENTENCES, DOCUMENT)
    ]
    for name, rows in ((f"{len(documents)} documents", documents), (f"{SENTENCES} sentences", sentences)):
        options: dict[str, Any] = {"seed": seed}
        task, settings, _ = build("token-classification", model, sentences, "lora", options)
        windows = sum(len(task.features(row)) for row in rows)
        run = tune(task, Splits(rows, validation), settings, "lora").run
        print(f"{name}: {windows} windows, entity F1 {run.best:.3f} after {len(run.history)} epochs", flush=True)


def several(file: Path, seed: int, model: str, count: int) -> None:
    """Print micro F1 on a test set of texts with two or three of 40 labels."""
    rng = random.Random(seed)
    pool = datasets.read(f"{file}#train")
    names = sorted({row["label"] for row in pool})[:40]
    pool_of_names = [row for row in pool if row["label"] in names]

    def rows(number: int) -> list[dict[str, Any]]:
        picked = [rng.sample(pool_of_names, rng.randint(2, 3)) for _ in range(number)]
        return [
            {"text": ". ".join(row["text"] for row in some), "label": sorted({row["label"] for row in some})}
            for some in picked
        ]

    train, validation, test = rows(count), rows(count // 5), rows(150)
    task, settings, _ = build("text-classification", model, train, "lora", {"multi_label": True, "seed": seed})
    run = tune(task, Splits(train, validation), settings, "lora").run
    figures = measure(task, test)
    print(f"several labels, {count} texts: F1 {figures['f1']:.3f} after {len(run.history)} epochs", flush=True)


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with wnut17 and clinc150")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and texts")
    parser.add_argument("--model", default="bundled:minilm-l6", help="pretrained model")
    parser.add_argument("--texts", type=int, default=300, help="texts with several labels")
    given = parser.parse_args()
    several(given.data / "clinc150" / "data_full.json", given.seed, given.model, given.texts)
    entities(given.data / "wnut17", given.seed, given.model)


if __name__ == "__main__":
    main()
