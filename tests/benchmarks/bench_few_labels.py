"""Fine-tune MiniLM with few labels of CLINC150: plain, with each augmentation, and from an encoder that its own texts adapted.

Each version of a seed has the same labels, validation and test sentences. The figure is accuracy on test; gains are paired by seed.
The unlabelled texts are the training sentences of all intents. Run `python tests/benchmarks/bench_few_labels.py --help`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import finetune_data as data
import numpy as np
import torch

from learners.finetune.few_labels.finetune import finetune
from learners.finetune.labelled_files import datasets

MODEL = "bundled:minilm-l6"
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"augment": []},
    "token_dropout": {"augment": ["token_dropout"]},
    "synonyms": {"augment": ["synonyms"]},
    "mixup": {"augment": ["mixup"]},
    "all": {"augment": ["token_dropout", "synonyms", "mixup"]},
    "adapted": {"augment": []},
}


def sample(rows: Sequence[dict[str, Any]], intents: Sequence[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` random sentences of each intent."""
    by_intent = defaultdict(list)
    for row in rows:
        by_intent[row["label"]].append(row)
    generator = random.Random(seed)
    return [row for intent in intents for row in generator.sample(by_intent[intent], count)]


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as JSON lines."""
    path.write_text("\n".join(json.dumps(dict(row)) for row in rows))
    return str(path)


def main() -> None:
    """Print one line for each seed and version, then the gains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="of the labels and of the training"
    )
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), help="versions")
    parser.add_argument("--per-class", type=int, default=10, help="training sentences of each intent")
    parser.add_argument("--intents", type=int, default=150, help="number of intents")
    parser.add_argument(
        "--tested", type=int, default=10, help="validation and test sentences of each intent, at most 20"
    )
    parser.add_argument("--unlabelled", type=int, default=15_000, help="unlabelled sentences")
    parser.add_argument("--epochs", type=int, default=10, help="largest number of epochs")
    parser.add_argument("--mode", default="lora", choices=["top", "lora", "full"], help="weights to train")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: dict[str, dict[int, float]] = {name: {} for name in given.arms}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        train, held, test = (datasets.read(path) for path in data.clinc(out))
        for seed in given.seeds:
            intents = random.Random(0).sample(sorted({row["label"] for row in train}), given.intents)
            labels = written(out / "train.jsonl", sample(train, intents, given.per_class, seed))
            validation = written(out / "validation.jsonl", sample(held, intents, given.tested, seed))
            tested = written(out / "test.jsonl", sample(test, intents, given.tested, 0))
            texts = [{"text": row["text"], "label": "none"} for row in train]
            texts = random.Random(seed).sample(texts, min(given.unlabelled, len(texts)))
            unlabelled = written(out / "unlabelled.jsonl", texts)
            for name in given.arms:
                started_s = time.monotonic()
                more = {"unlabelled": unlabelled} if name == "adapted" else {}
                report = finetune(
                    task="text-classification", model=MODEL, train=labels, validation=validation, test=tested,
                    out=out / "run", mode=given.mode, seed=seed, resume=False, epochs=given.epochs, patience=given.epochs,
                    **ARMS[name], **more,
                )  # fmt: skip
                # of the adapted encoder, whatever validation says of it
                accuracy = report["adaptation"]["test"]["adapted"] if more else report["metrics"]["test"]["accuracy"]
                found[name][seed] = accuracy
                took_s = time.monotonic() - started_s
                print(f"seed {seed}, {name}: accuracy {accuracy:.4f} on test, {took_s:.0f} s", flush=True)
    for name, scores in found.items():
        if "plain" not in found or name == "plain":
            continue
        gains = np.array([scores[seed] - found["plain"][seed] for seed in scores])
        error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else float("nan")
        print(f"{name}: gain {gains.mean():+.4f} (error {error:.4f}), by seed {np.round(gains, 4).tolist()}")


if __name__ == "__main__":
    main()
