"""Fine-tuning on real data, with every split used once for what it is for: prints a table and writes reports.

    .venv/bin/python tests/benchmarks/bench_finetune.py [--only NAME ...] [--out runs/finetune] [--set epochs=3 ...]

Validation chooses the epoch, the test split is measured once at the end. `wanted` is the figure to reach, on test.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import finetune_data as data
import orjson
import torch
from rich.console import Console
from rich.table import Table

from learners.finetune.run import finetune
from learners.model.encoders.bundled_weights import BundledError


@dataclass(frozen=True)
class Case:
    """One run."""

    task: str
    model: str | Callable[[Path], str]
    make: Callable[[Path], tuple[Any, Any, Any]]
    mode: str
    metric: str
    wanted: float | None
    options: dict[str, Any] = field(default_factory=dict)


MINILM, WHISPER, EFFNET = "bundled:minilm-l6", "bundled:whisper-tiny.en", "bundled:efficientnet-lite0"
CASES: dict[str, Case] = {
    "wnut-full": Case("token-classification", MINILM, data.wnut, "full", "entity_f1", 0.44),
    "wnut-lora": Case("token-classification", MINILM, data.wnut, "lora", "entity_f1", 0.42),
    "wnut-bert": Case("token-classification", data.small_bert, data.wnut, "full", "entity_f1", None, {"epochs": 3}),
    "clinc-full": Case("text-classification", MINILM, data.clinc, "full", "accuracy", 0.953),
    "clinc-lora": Case("text-classification", MINILM, data.clinc, "lora", "accuracy", 0.945),
    "clinc-top": Case("text-classification", MINILM, data.clinc, "top", "accuracy", None),
    "clinc-frozen": Case("text-classification", MINILM, data.clinc, "frozen", "accuracy", None),
    "pairs-full": Case("text-pair-classification", MINILM, data.clinc_pairs, "full", "accuracy", 0.93, {"epochs": 2}),
    "pairs-lora": Case("text-pair-classification", MINILM, data.clinc_pairs, "lora", "accuracy", 0.93, {"epochs": 2}),
    "semeval-full": Case("relation-extraction", MINILM, data.semeval, "full", "macro_f1", 0.81),
    "digits-top": Case("audio-classification", WHISPER, data.spoken_digits, "top", "accuracy", 0.985),
    "digits-lora": Case("audio-classification", WHISPER, data.spoken_digits, "lora", "accuracy", 0.985),
    **{
        f"speaker-{name}": Case(
            "audio-classification", WHISPER, data.without(name), "top", "accuracy", 0.93, {"epochs": 4}
        )
        for name in data.SPEAKERS
    },
    "digits-small": Case(
        "audio-classification",
        data.small_whisper,
        data.spoken_digits,
        "full",
        "accuracy",
        None,
        {"epochs": 20, "learning_rate": 5e-4},
    ),
    "stamps-probe": Case("image-classification", EFFNET, data.stamps, "frozen", "accuracy", None, {"augment": ()}),
    "stamps-top": Case("image-classification", EFFNET, data.stamps, "top", "accuracy", 0.870, {"flip": True}),
    "stamps-full": Case("image-classification", EFFNET, data.stamps, "full", "accuracy", 0.870, {"flip": True}),
    **{
        f"stamps-{mode}-{fold}": Case(
            "image-classification", EFFNET, partial(data.stamps, fold=fold), train, "accuracy", None, options
        )
        for fold in range(1, 5)
        for mode, train, options in (
            ("probe", "frozen", {"augment": ()}),
            ("top", "top", {"flip": True}),
            ("full", "full", {"flip": True}),
        )
    },
    "translate": Case("translation", data.tiny_t5, data.orders_translated, "full", "bleu", 90.0, data.T5_OPTIONS),
    "summarize": Case("summarization", data.tiny_t5, data.orders_summarized, "full", "rougeL", 0.9, data.T5_OPTIONS),
    "answer": Case(
        "question-answering", data.tiny_bert, data.order_questions, "full", "exact_match", 0.9, data.SPAN_OPTIONS
    ),
}


def run(name: str, case: Case, out: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Run one case; its report."""
    train, validation, test = case.make(out / "data")
    model = case.model if isinstance(case.model, str) else case.model(out / "models")
    return finetune(
        task=case.task, model=model, train=train, validation=validation, test=test, out=out / name, mode=case.mode,
        progress=sys.stderr.isatty(), **{**case.options, **overrides},
    )  # fmt: skip


def main() -> None:
    """Run what is asked for; a table of all reports there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only show the reports that are there")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    overrides = {key: orjson.loads(value) for key, value in (item.split("=") for item in given.set)}
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.table:
        for name in given.only:
            try:
                report = run(name, CASES[name], given.out, overrides)
            except BundledError as error:  # weights that are not the reviewed ones are not used, and not measured
                print(f"{name}: not measured: {error}", flush=True)
                continue
            metric = CASES[name].metric
            print(
                f"{name}: {metric} {report['metrics']['test'][metric]:.4f} on test, {report['wall_s']:.0f} s",
                flush=True,
            )
    show(given.out)


def show(out: Path) -> None:
    """The table."""
    table = Table("run", "metric", "validation", "test", "wanted", "trained", "epochs", "wall s", "report")
    for name, case in CASES.items():
        path = out / name / "report.json"
        if path.is_file():
            r = orjson.loads(path.read_bytes())
            share = r["trained_parameters"] / r["total_parameters"]
            scores = [f"{r['metrics'][split][case.metric]:.4f}" for split in ("validation", "test")]
            wanted = "" if case.wanted is None else f"{case.wanted:g}"
            table.add_row(
                name,
                case.metric,
                *scores,
                wanted,
                f"{share:.2%}",
                f"{r['best_epoch']}/{r['epochs']}",
                f"{r['wall_s']:.0f}",
                str(path),
            )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
