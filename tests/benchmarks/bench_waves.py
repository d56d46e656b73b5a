"""300 labelled orders over MQTT in three waves of different intents, while the daemon ticks: what is learned, kept, refused.

    .venv/bin/python tests/benchmarks/bench_waves.py [--replay 1.0 0.0] [--per-intent 20] [--folder DIR]

The real supervisor, agent, learner and broker. Each wave brings five new intents of CLINC150; the daemon fine-tunes by itself.
After each, the version that answers on `task/intents` is scored on CLINC150's test split (30 orders an intent, none of them
ever published), and a few orders are asked over MQTT. The fourth wave brings the first wave's intents again, labels shuffled. Ticks are
counted from `decision` messages, while it fine-tunes and while it rests. With `--replay 0` the margins are open, to show
what would be forgotten.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import finetune_data as data  # noqa: E402 - after the path
import labelling  # noqa: E402 - after the path

from learners import datasets  # noqa: E402 - after the path
from learners.tasks.registry import open_task  # noqa: E402 - after the path
from learners.versions import Versions  # noqa: E402 - after the path

MINILM = "bundled:minilm-l6"
INTENTS = 5
"""Of a wave."""
ASKED = 10
"""Orders of each wave that are asked over MQTT."""
LIMIT_S = 1_500.0
Rows = list[dict[str, str]]


def waves(folder: Path, per_intent: int) -> tuple[list[Rows], list[Rows]]:
    """Three waves and a shuffled one, and the test orders of the three."""
    train, _, test = data.clinc(folder)
    rows, held = datasets.read(train), datasets.read(test)
    names = sorted({row["label"] for row in rows})[: 3 * INTENTS]
    generator = random.Random(0)
    published, asked = [], []
    for at in range(0, len(names), INTENTS):
        own = names[at : at + INTENTS]
        published.append(_some(rows, own, 0, per_intent))
        generator.shuffle(published[-1])
        asked.append([row for row in held if row["label"] in own])
    poison = _some(rows, names[:INTENTS], per_intent, 2 * per_intent)
    labels = [row["label"] for row in poison]
    generator.shuffle(labels)
    published.append([{**row, "label": label} for row, label in zip(poison, labels, strict=True)])
    return published, asked


def _some(rows: list[dict[str, Any]], names: list[str], first: int, last: int) -> Rows:
    """Examples `first` to `last` of each intent."""
    by_name: dict[str, Rows] = defaultdict(list)
    for row in rows:
        by_name[row["label"]].append(row)
    return [row for name in names for row in by_name[name][first:last]]


def score(folder: Path, asked: list[Rows]) -> list[float]:
    """Accuracy of the live version on each wave's test orders."""
    live = Versions(folder / "state" / "learner" / "tasks" / "intents").live()
    if live is None:
        return [0.0] * len(asked)
    task = open_task("classify", live.path)
    return [task.metrics(rows, task.predict([{"text": row["text"]} for row in rows]))["accuracy"] for rows in asked]


def run(folder: Path, replay: float, given: argparse.Namespace, table: Table) -> str:
    """All four waves with one share of replay; a line about the ticks."""
    published, asked = waves(folder, given.per_intent)
    margins = {} if replay else {"margin": 4.0, "forget_margin": 4.0}
    made = labelling.settings(
        folder,
        labelling.free_port(),
        given.model,
        finetune={"replay": replay, "min_labels": len(published[0]), **margins},
        learner={"priority": given.priority},
    )
    busy = missed = 0
    with labelling.Daemon(folder, made) as daemon:
        daemon.wait("decision", timeout_s=labelling.START_S)
        start = len(daemon.ticks)
        threading.Event().wait(given.rest_s)
        resting, resting_missed = len(daemon.ticks) - start, daemon.missed(start)
        for number, rows in enumerate(published, 1):
            at = len(daemon.ticks)
            daemon.label(rows)
            told = daemon.event("task_promoted", "task_rejected", "finetune_skipped", timeout_s=LIMIT_S)
            busy, missed = busy + len(daemon.ticks) - at, missed + daemon.missed(at)
            figures = told["data"]
            scores = score(folder, asked)
            live = Versions(folder / "state" / "learner" / "tasks" / "intents").live()
            right = total = 0
            for wave in asked[:number] if live else []:  # without a version the task says nothing
                for row in random.Random(number).sample(wave, ASKED):
                    answer = daemon.ask(row["text"], live.name if live else None)
                    right, total = right + (answer["value"] == row["label"]), total + 1
            table.add_row(
                f"{replay:g}",
                str(number) if number <= len(asked) else "shuffled",
                told["type"].removeprefix("task_"),
                *(f"{s:.3f}" for s in scores),
                f"{sum(scores) / len(scores):.3f}",
                f"{right}/{total}",
                f"{figures.get('replayed', 0):.0f}",
                f"{figures.get('wall_s', 0):.0f}",
                str(figures["reason"]),
            )
    return (
        f"replay {replay:g}: ticks missed {missed} of {busy} while fine-tuning, {resting_missed} of {resting} at rest"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replay", nargs="*", type=float, default=[1.0, 0.0])
    parser.add_argument("--per-intent", type=int, default=20)
    parser.add_argument("--model", default=MINILM)
    parser.add_argument("--rest-s", type=float, default=20.0)
    parser.add_argument("--priority", default="idle", choices=["idle", "nice", "normal"])
    parser.add_argument("--folder", type=Path, help="kept afterwards; default: a temporary one")
    given = parser.parse_args()
    tests = [f"test {i}" for i in (1, 2, 3)]
    table = Table("replay", "wave", "verdict", *tests, "all", "asked", "replayed", "s", "reason")
    console = Console(width=170)
    with tempfile.TemporaryDirectory() as temporary:
        for replay in given.replay:
            folder = (given.folder or Path(temporary)) / f"replay-{replay:g}"
            folder.mkdir(parents=True)
            console.print(run(folder, replay, given, table))
    console.print(table)


if __name__ == "__main__":
    main()
