"""Train on real labels that are wrong for one slice on purpose: the report must name it and refuse a version that the mean would promote.

`speaker`: spoken digits, where all labels of one speaker are shifted by one. `domain`: intents of CLINC150, where all labels of the domain
travel, three of twenty intents, are `travel_alert`. A first version learns from few honest labels, the second one from more labels with the
fault. Run `python tests/benchmarks/bench_slices.py --help`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import finetune_data as data
import torch

from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.continual.acceptance import rejection_reason
from learners.continual.trainer import ContinualTrainer
from learners.experience.reader import Reader
from learners.experience.records import Raw
from learners.experience.store import Label, Store
from learners.experience.transition import Transition
from learners.finetune.labelled_files import datasets
from learners.tasks.inputs.sounds import read_sound
from sensors.codecs.readings import encode_reading
from sensors.readings import Sound

RATE_HZ = 16_000
FIRST_S = 4e9
"""Stamps that no retention deletes."""
TRAVEL = ("book_flight", "car_rental", "travel_alert")
OTHER = (
    "balance", "bill_due", "pay_bill", "pin_change", "routing", "transfer", "alarm", "weather", "recipe", "calories", "oil_change_how",
    "play_music", "translate", "tell_joke", "todo_list", "definition", "spelling",
)  # fmt: skip
HELD = 15
"""Held-out sentences of each intent."""
Rows = list[dict[str, Any]]


def spoken(seed: int, few: int, many: int) -> tuple[Rows, Rows, Rows, str, str]:
    """Return few honest rows, many with the fault, held-out rows, the rule of the slices and the slice with the fault."""
    bad = random.Random(seed).choice(data.SPEAKERS)
    rows: list[Rows] = [[], [], []]
    for path in sorted((data.SHARED / "fsdd" / "recordings").glob("*.wav")):
        digit, speaker, number = path.stem.split("_")
        row = {"sound": str(path), "label": digit, "speaker": speaker}
        if int(number) < 5:
            rows[2].append(row)
        elif int(number) < 5 + few:
            rows[0].append(row)
        elif int(number) < 5 + few + many:
            rows[1].append(row | ({"label": str((int(digit) + 1) % 10)} if speaker == bad else {}))
    return rows[0], rows[1], rows[2], "speaker", bad


def written_orders(seed: int, few: int, many: int) -> tuple[Rows, Rows, Rows, str, str]:
    """Return the same for two domains of intents."""
    train, _, test = (datasets.read(path) for path in data.clinc(Path()))
    generator = random.Random(seed)
    first, second = [], []
    for intent in (*OTHER, *TRAVEL):
        some = generator.sample([dict(row) for row in train if row["label"] == intent], few + many)
        first += some[:few]
        second += [row | ({"label": "travel_alert"} if intent in TRAVEL else {}) for row in some[few:]]
    held = [
        dict(row) | {"domain": "travel" if intent in TRAVEL else "other"}
        for intent in (*OTHER, *TRAVEL)
        for row in [row for row in test if row["label"] == intent][:HELD]
    ]
    return first, second, held, "domain", "travel"


WORLDS: dict[str, tuple[str, str, str, Callable[..., tuple[Rows, Rows, Rows, str, str]]]] = {
    "speaker": ("audio-classification", "microphone", "bundled:whisper-tiny.en", spoken),
    "domain": ("text-classification", "orders", "bundled:minilm-l6", written_orders),
}


def publish(store: Store, rows: Sequence[dict[str, Any]], stream: str, first: int) -> None:
    """Store labels as the agent does."""
    for number, row in enumerate(rows, first):
        if "sound" not in row:
            assert store.add_label(Label("task", row["label"], row["text"]))
            continue
        encoded = encode_reading(Sound(stream, 0.0, number, read_sound(Path(row["sound"])), RATE_HZ))
        assert encoded is not None
        stamp_s, decision = FIRST_S + 10.0 * number, f"d{number}"
        transition = Transition("s", number, decision, stamp_s, "p", ages_s={stream: 0.0})
        assert store.append(transition)
        assert store.add_raw(Raw(stream, stamp_s, *encoded))
        assert store.add_label(Label("task", row["label"], None, decision, streams=(stream,)))
    assert store.flush()


def run(name: str, seed: int, train: Any, few: int, many: int) -> None:
    """Print the verdicts of one world."""
    kind, stream, model, make = WORLDS[name]
    first, second, held, rule, bad = make(seed, few, many)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "held.jsonl").write_text("\n".join(map(json.dumps, held)))
        settings = TaskSettings(
            kind=kind, stream=stream, model=model, train=train, eval_file=str(folder / "held.jsonl")  # type: ignore[arg-type]
        )  # fmt: skip
        finetune = FinetuneSettings(min_labels=2, slices=(rule,), max_forgetting=1.0, rehearsal_ratio=0.0)
        store = Store(folder / "experience")
        trainer = ContinualTrainer(
            "task", settings, finetune, folder / "tasks", Reader(folder / "experience"), seed=seed
        )
        try:
            for wave, rows in enumerate((first, second)):
                publish(store, rows, stream, 10_000 * wave)
                verdict = trainer.run()
                figures = verdict.figures
                mean = {key: value for key, value in figures.items() if key != "slices"}
                print(
                    f"{name}, seed {seed}, version {wave + 1}: {verdict.outcome} ({verdict.reason}); "
                    f"all {figures['all_before']:.3f} to {figures['all_after']:.3f}; by the mean alone: "
                    f"{rejection_reason(mean, finetune) or 'promoted'}",
                    flush=True,
                )
            named = f"slice {rule}={bad} lost" in verdict.reason
            print(f"{name}, seed {seed}: the reason {'names' if named else 'does not name'} {rule}={bad}", flush=True)
        finally:
            store.close()


def main() -> None:
    """Print two verdicts for each world and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(WORLDS), choices=list(WORLDS), help="worlds")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the labels and of the training")
    parser.add_argument("--train", default="frozen", choices=["frozen", "top", "lora", "full"], help="weights to train")
    parser.add_argument("--few", type=int, default=2, help="honest labels of each class (and speaker)")
    parser.add_argument("--many", type=int, default=6, help="labels of each class (and speaker) in the second run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only:
        for seed in given.seeds:
            run(name, seed, given.train, given.few, given.many)


if __name__ == "__main__":
    main()
