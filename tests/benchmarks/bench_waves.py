"""300 labelled orders in three waves of different intents, then a poisoned one: what is learned, retained, rejected; what ticks cost.

    .venv/bin/python tests/benchmarks/bench_waves.py [--daemon] [--seeds 0 1 2] [--replay 1 0] [--folder DIR]

Each wave brings five new intents of CLINC150, twenty orders each; which fifteen is the seed's. The fourth wave brings other orders of the
first wave's intents with their labels shuffled. The held-out file that judges is CLINC150's validation split (20 orders an intent), what
is printed is measured on its test split (30 an intent): neither is ever published.

With `--daemon` everything is real: supervisor, agent, learner and broker; labels go over MQTT, the daemon fine-tunes automatically, a few orders
are asked over MQTT after each wave, and ticks are counted from `decision` messages, while it fine-tunes and while it rests. Without,
the same fine-tuning runs on the same store in this process: a minute a seed. `--replay 0` opens the margins too, to show what would
be forgotten. Seeds of 100 and more are for trying things out.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
import torch
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import finetune_data as data  # noqa: E402 - after the path
import labelling  # noqa: E402 - after the path

from learners.config.learner import ExperienceSettings  # noqa: E402 - after the path
from learners.config.tasks import FinetuneSettings, TaskSettings  # noqa: E402 - after the path
from learners.continual.trainer import ContinualTrainer  # noqa: E402 - after the path
from learners.experience.reader import Reader  # noqa: E402 - after the path
from learners.experience.store import (  # noqa: E402
    Label,
    Store,
)
from learners.finetune.labelled_files import datasets  # noqa: E402 - after the path
from learners.model.encoders.bundled_weights import resolve  # noqa: E402 - after the path
from learners.task_serving.versions import TaskVersionStore  # noqa: E402 - after the path
from learners.tasks.task_classes import open_task  # noqa: E402 - after the path

MINILM = "bundled:minilm-l6"
INTENTS = 5
"""Of a wave."""
PER_INTENT = 20
ASKED = 10
"""Orders of each wave that are asked over MQTT."""
LIMIT_S = 1_500.0
OPEN = {"max_metric_drop": 4.0, "max_forgetting": 4.0}
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Published:
    """What became of a wave: the event's type and data."""

    kind: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a seed publishes, is judged by, and measured on."""

    waves: list[Rows]
    requested: list[Rows]
    """Test orders of each wave."""
    eval_file: Path


def plan(folder: Path, seed: int) -> Plan:
    """Three waves and a shuffled one, the held-out file, and the test orders of the three."""
    train, validation, test = (datasets.read(path) for path in data.clinc(folder))
    generator = random.Random(seed)
    names = generator.sample(sorted({row["label"] for row in train}), 3 * INTENTS)
    waves, requested = [], []
    for at in range(0, len(names), INTENTS):
        own = names[at : at + INTENTS]
        waves.append(some(train, own, 0, PER_INTENT))
        generator.shuffle(waves[-1])
        requested.append([row for row in test if row["label"] in own])
    poison = some(train, names[:INTENTS], PER_INTENT, 2 * PER_INTENT)
    labels = [row["label"] for row in poison]
    generator.shuffle(labels)
    waves.append([{**row, "label": label} for row, label in zip(poison, labels, strict=True)])
    eval_file = folder / "held_out.jsonl"
    eval_file.write_bytes(b"\n".join(orjson.dumps(row) for row in validation if row["label"] in names))
    return Plan(waves, requested, eval_file)


def some(rows: list[dict[str, Any]], names: list[str], first: int, last: int) -> Rows:
    """Examples `first` to `last` of each intent."""
    by_name: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_name[row["label"]].append(row)
    return [row for name in names for row in by_name[name][first:last]]


def score(versions: TaskVersionStore, requested: list[Rows]) -> list[float]:
    """Accuracy of the live version on each wave's test orders."""
    live = versions.live()
    if live is None:
        return [0.0] * len(requested)
    task = open_task("text-classification", live.path)
    return [task.metrics(rows, task.predict([{"text": row["text"]} for row in rows]))["accuracy"] for rows in requested]


class InProcess:
    """The fine-tuning alone."""

    def __init__(self, folder: Path, made: Plan, finetune: dict[str, Any], model: str, seed: int) -> None:
        self.store = Store(folder / "experience", ExperienceSettings.model_validate({}))
        settings = TaskSettings(
            kind="text-classification", stream="orders", model=model, train="lora", eval_file=str(made.eval_file)
        )
        wanted = FinetuneSettings.model_validate({"min_labels": 1, **finetune})
        reader = Reader(folder / "experience")
        self.online = ContinualTrainer("intents", settings, wanted, folder / "tasks", reader, seed=seed)
        self.versions = self.online.versions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def publish(self, rows: Rows) -> Published:
        """Learn a wave."""
        for row in rows:
            self.store.add_label(Label("intents", row["label"], row["text"]))
        self.store.flush()
        verdict = self.online.run()
        return Published(verdict.event, verdict.fields)

    def requested(self, made: Plan, number: int) -> str:
        """Nothing is asked here."""
        return ""

    def ticks(self) -> str:
        """Nothing ticks here."""
        return ""


class Running:
    """The real daemon."""

    def __init__(self, folder: Path, made: Plan, finetune: dict[str, Any], given: argparse.Namespace) -> None:
        self.model = given.model
        task = {
            "kind": "text-classification",
            "stream": "orders",
            "model": given.model,
            "train": "lora",
            "eval_file": str(made.eval_file),
        }
        settings = labelling.settings(
            folder,
            labelling.free_port(),
            given.model,
            tasks={"intents": task},
            finetune={"min_labels": len(made.waves[0]), **finetune},
            learner={"priority": given.priority},
        )
        self.versions = TaskVersionStore(folder / "state" / "learner" / "tasks" / "intents")
        self.busy = self.missed = self.resting = self.resting_missed = 0
        self.rest_s = given.rest_s
        self.daemon = labelling.Daemon(folder, settings)

    def __enter__(self) -> Self:
        daemon = self.daemon
        daemon.wait("decision", timeout_s=labelling.START_S)
        start = len(daemon.ticks)
        threading.Event().wait(self.rest_s)
        self.resting, self.resting_missed = len(daemon.ticks) - start, daemon.missed(start)
        return self

    def __exit__(self, *details: object) -> None:
        self.daemon.__exit__(*details)

    def publish(self, rows: Rows) -> Published:
        """Publish a wave and wait for what comes of it."""
        at = len(self.daemon.ticks)
        self.daemon.label(rows)
        published = self.daemon.event(
            "task_promoted", "task_rejected", "task_awaiting_approval", "finetune_skipped", timeout_s=LIMIT_S
        )
        self.busy, self.missed = self.busy + len(self.daemon.ticks) - at, self.missed + self.daemon.missed(at)
        return Published(published["type"], published["data"])

    def requested(self, made: Plan, number: int) -> str:
        """How many of a few orders are answered rightly on `task/intents`."""
        live, right, total = self.versions.live(), 0, 0
        for wave in made.requested[:number] if live else []:  # without a version the task says nothing
            for row in random.Random(number).sample(wave, ASKED):
                answer = self.daemon.ask(row["text"], live.name if live else None)
                right, total = right + (answer["value"] == row["label"]), total + 1
        return f"{right}/{total}"

    def ticks(self) -> str:
        """Ticks left out."""
        return (
            f"ticks missed: {self.missed} of {self.busy} while fine-tuning, "
            f"{self.resting_missed} of {self.resting} at rest"
        )


def without_pooling(folder: Path) -> str:
    """MiniLM without what says that it was trained by the mean of its tokens: its classifier reads the first one."""
    shutil.copytree(resolve(MINILM), folder, ignore=shutil.ignore_patterns("sentence.json"))
    return str(folder)


def run(folder: Path, seed: int, replay: float | None, given: argparse.Namespace) -> Iterator[list[str]]:
    """All four waves with one share of replay; a row each."""
    made = plan(folder, seed)
    finetune: dict[str, Any] = {} if replay is None else {"rehearsal_ratio": replay}
    finetune |= {} if replay != 0 else OPEN
    finetune |= {key: orjson.loads(value) for key, value in (item.split("=") for item in given.set)}
    world = (
        Running(folder, made, finetune, given) if given.daemon else InProcess(folder, made, finetune, given.model, seed)
    )
    waves = {str(number): rows for number, rows in enumerate(made.waves[:-1], 1)} | {"shuffled": made.waves[-1]}
    if given.joint:
        waves = {"at once": [row for wave in made.waves[:-1] for row in wave]}
    with world:
        for number, (name, rows) in enumerate(waves.items(), 1):
            published = world.publish(rows)
            scores, figures = score(world.versions, made.requested), published.figures
            yield [
                str(seed),
                "default" if replay is None else f"{replay:g}",
                name,
                published.kind.removeprefix("task_"),
                *(f"{s:.3f}" for s in scores),
                f"{sum(scores) / len(scores):.3f}",
                world.requested(made, number),
                *(f"{figures.get(name, 1):.0f}" for name in ("trained_on", "replayed", "epochs", "tries", "wall_s")),
                str(figures["reason"]),
            ]
        ticks = world.ticks()
    if ticks:
        yield [str(seed), "default" if replay is None else f"{replay:g}", "ticks", *[""] * 11, ticks]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", action="store_true")
    parser.add_argument(
        "--joint",
        action="store_true",
        help="all three waves at once: what fifteen intents come to where none is forgotten",
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument(
        "--replay", nargs="*", type=float, default=[None, 0.0], help="default: the settings' own, and none"
    )
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--first-token", action="store_true", help="MiniLM without its mean pooling, to compare")
    parser.add_argument("--rest-s", type=float, default=20.0)
    parser.add_argument("--priority", default="idle", choices=["idle", "nice", "normal"])
    parser.add_argument("--set", nargs="*", default=[], metavar="FINETUNE=VALUE")
    parser.add_argument("--folder", type=Path, help="stays afterwards; default: a temporary one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    heads = [
        "seed",
        "replay",
        "wave",
        "verdict",
        "test 1",
        "test 2",
        "test 3",
        "all",
        "asked",
        "new",
        "again",
        "epochs",
        "tries",
        "s",
        "reason",
    ]
    table, console = Table(*heads), Console(width=190)
    print(" | ".join(heads), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        if given.first_token:
            given.model = without_pooling(Path(temporary) / "first-token")
        for seed in given.seeds:
            for replay in given.replay:
                folder = (given.folder or Path(temporary)) / f"seed-{seed}-replay-{replay}"
                folder.mkdir(parents=True)
                for row in run(folder, seed, replay, given):
                    print(" | ".join(row), flush=True)
                    table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
