"""Define the verbs finetune and evaluate: supervised models from labelled files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from runtime.cli.options import ANY, FOLDER, SEED, Number, TaskKinds, on_ray, refusing, show, with_json


def writing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about generated text to a verb."""
    options = (
        click.option(
            "--output",
            "output_form",
            metavar="JSON",
            help='Form of each generated text: {"choices": [...]}, {"regex": "..."} or {"json_schema": {...}}; or @FILE with it.',
        ),
        click.option("--stop", multiple=True, help="A generated text ends before this. Repeat the option."),
        click.option("--banned", multiple=True, help="A word that no generated text contains. Repeat the option."),
        click.option("--temperature", type=Number(0, 5), help="Above 0: random tokens; default: 0."),
        click.option("--sampling-seed", type=SEED, help="Seed of random tokens; default: 0."),
    )
    for option in reversed(options):
        command = option(command)
    return command


SLICE_HELP = "Divide the held-out examples for the report: COLUMN, COLUMN~PATTERN or length. Repeat the option."


def _augmentations(_context: click.Context, _option: click.Parameter, given: str | None) -> Any:
    """Read `auto`, `none` or names; None where nothing is given."""
    if given in (None, "auto"):
        return given
    return [] if given == "none" else [name.strip() for name in str(given).split(",")]


def _writing_given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, with the form of the output read.

    Raises:
        ValueError: the form cannot be read.
    """
    from learners.output_grammar import read_output

    form = options.pop("output_form")
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if form is not None:
        text = Path(form[1:]).read_text(encoding="utf-8") if form.startswith("@") else form
        given["output"] = read_output(text)
    return given


@click.command()
@click.option("--task", type=TaskKinds(), required=True, help="Kind of task.")
@click.option("--model", required=True, help="Pretrained model: `bundled:NAME`, a transformers id or a folder.")
@click.option("--train", "train_file", type=ANY, required=True, help="Training file or folder.")
@click.option(
    "--validation", type=ANY, required=True, help="File or folder that stops the training and selects the epoch."
)
@click.option("--test", type=ANY, help="File or folder for the final measurement; it does not influence the training.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the model and report.json.")
@click.option(
    "--mode",
    type=click.Choice(["frozen", "top", "lora", "full"]),
    default="lora",
    show_default=True,
    help="Weights to train: head only, head and last layers, head and adapters, or all.",
)
@click.option(
    "--epochs", type=click.IntRange(1), help="Largest number of passes over the data; default: by the kind of task."
)
@click.option("--learning-rate", type=Number(0, min_open=True), help="Default: by the kind of task and --mode.")
@click.option("--batch", type=click.IntRange(1), help="Examples in each update; default: by the kind of task.")
@click.option("--lora-rank", type=click.IntRange(1, 256), help="Rank of the adapters with --mode lora; default: 8.")
@click.option("--multi-label", is_flag=True, default=None, help="Classification: an example can have several labels.")
@click.option(
    "--threshold",
    type=Number(0, 1, min_open=True),
    help="Probability from which one of several labels counts; default: by validation.",
)
@click.option(
    "--max-length", type=click.IntRange(1), help="Tokens in one input of the model; default: by the kind of task."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1, 4_096),
    help="Length limit of generated text, in tokens; default: 64, or what the longest target needs.",
)
@click.option("--language", help="Speech recognition: the language that is spoken, as `en`, for a model of several.")
@click.option(
    "--window-s",
    type=Number(0, 600, min_open=True),
    help="Seconds of sound in one input of the model; default: by the sounds.",
)
@click.option(
    "--tiles",
    type=click.IntRange(1, 16),
    help="Images: rows and columns of tiles that the model reads in addition to the whole image; default: 1 (none).",
)
@click.option(
    "--from",
    "start",
    type=FOLDER,
    help="Folder of another task on the same model: start from its encoder. A second run from the pretrained model measures the gain.",
)
@click.option(
    "--augment",
    callback=_augmentations,
    metavar="NAMES",
    help="How training examples are changed: names separated by commas, `none`, or `auto`. With `auto` each one is on or off by "
    "validation, which trains once more for each. Default: by the kind of task.",
)
@click.option(
    "--unlabelled",
    type=ANY,
    help="Readings without labels: pretraining continues on them first, and is used if validation is better with it.",
)
@click.option("--adapter", is_flag=True, default=None, help="With --mode lora: store the adapter and its base as well.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="Default: adamw.")
@click.option(
    "--patience", type=click.IntRange(1), help="Epochs without a better validation metric after which training stops."
)
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Seed of new weights and of the order of examples."
)
@click.option(
    "--resume/--no-resume", default=True, show_default=True, help="Continue an interrupted run from the folder OUT."
)
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help=SLICE_HELP)
@on_ray(
    "Train in this process, or with several workers on Ray that share each batch.",
    "With --engine ray: workers; default: the cores of this machine.",
)
@writing
@with_json("report.json")
@refusing
def finetune(
    train_file: Path, *, as_json: bool, engine: str, workers: int | None, ray_address: str | None, **options: Any
) -> None:
    """Fine-tune a pretrained model from labelled files: CoNLL columns, CSV, TSV, JSON lines, or one folder for each class.

    Example: reflexd finetune --task token-classification --model bundled:minilm-l6 --train train.conll --validation dev.conll --test test.conll --out runs/ner
    """
    if engine != "ray" and (workers is not None or ray_address is not None):
        raise ValueError("--workers and --ray-address belong to --engine ray")
    _check_model(options["model"])
    given = _writing_given(options)
    if engine == "ray":
        report = _finetune_on_ray(given | {"train": train_file}, workers, ray_address)
    else:
        from learners.finetune.few_labels.finetune import finetune as tune

        report = tune(train=train_file, progress=sys.stderr.isatty(), **given)
    _show_report(report, options["out"], as_json=as_json)


def _show_report(report: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Print the metrics; notes, slices and gains go to standard error."""
    for note in report["notes"]:
        click.echo(note, err=True)
    _echo_slices(report)
    _echo_few_labels(report)
    for split, found in report.get("transfer", {}).items():
        if isinstance(found, dict):
            values = f"{found['from']:.4f}, {found['pretrained']:.4f} from the pretrained model"
            click.echo(f"{split}: {values}, gain {found['gain']:+.4f}", err=True)
    size = f"{report['trained_parameters']:,} of {report['total_parameters']:,} parameters"
    lines = [json.dumps(report["metrics"], indent=2), f"{size}; {report['wall_s']:.0f} s; {out}/report.json"]
    show(report, "\n".join(lines), as_json=as_json)


def _finetune_on_ray(given: dict[str, Any], workers: int | None, address: str | None) -> dict[str, Any]:
    """Fine-tune with several workers on Ray; return the report.

    Raises:
        ValueError: what was asked for trains several versions; or as `finetune_on_ray`.
    """
    from learners.finetune.progress import Bar
    from learners.finetune.trainer import TrainingProgress
    from runtime.cli.on_ray.finetuning import finetune_on_ray

    if given.get("augment") == "auto" or "unlabelled" in given:
        raise ValueError("--augment auto and --unlabelled train several versions; use --engine process")
    call = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in given.items()}
    if Path(call["model"]).exists():
        call["model"] = str(Path(call["model"]).resolve())
    workers = workers or len(os.sched_getaffinity(0))

    def note(text: str) -> None:
        click.echo(text, err=True)

    if not sys.stderr.isatty():
        return finetune_on_ray(call, workers=workers, address=address, on_progress=lambda _: None, note=note)
    with Bar(f"{call['task']} {call['mode']}, {workers} workers", "score") as bar:

        def show_progress(fields: dict[str, Any]) -> None:
            bar(TrainingProgress(**fields))

        return finetune_on_ray(call, workers=workers, address=address, on_progress=show_progress, note=note)


@click.command()
@click.option("--task", type=TaskKinds(), required=True, help="Kind of task.")
@click.option("--model", required=True, help="Folder of a fine-tuned model.")
@click.option("--test", type=ANY, required=True, help="Labelled file or folder.")
@click.option("--out", type=FOLDER, help="Folder for report.json; default: no report.")
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help=SLICE_HELP)
@click.option(
    "--explain",
    type=click.IntRange(min=1),
    metavar="N",
    help="Show for the N wrong answers that the model is most certain of which words, picture areas or seconds decided.",
)
@click.option("--language", help="Speech recognition: the language that is spoken; default: that of the folder.")
@writing
@with_json("the whole report")
@refusing
def evaluate(task: str, model: str, test: Path, out: Path | None, *, as_json: bool, **options: Any) -> None:
    """Measure a fine-tuned model on a labelled file, and print the metrics as JSON.

    Slices and explained errors go to standard error, and with --out to report.json.
    """
    _check_model(model)
    from learners.finetune.evaluate import evaluate as measure

    report = measure(task=task, model=model, test=test, out=out, **_writing_given(options))
    for note in report["notes"]:
        click.echo(note, err=True)
    _echo_slices(report)
    for error in report.get("errors", ()):
        decided = ", ".join(f"{part['part']} ({part['fall']:+.2f})" for part in error["decided"]) or "no single part"
        sure = f"{error['predicted']} ({error['probability']:.2f}), not {error['is']}"
        click.echo(f"{error['where']}: {sure}; decided by {decided}", err=True)
    show(report, json.dumps(report["metrics"], indent=2), as_json=as_json)


def _check_model(model: str) -> None:
    """Refuse a model that cannot be opened, before the libraries are loaded that would try to download it.

    Raises:
        ValueError: with the reason and the remedy.
    """
    from learners.model.encoders.bundled_packages import unavailable

    if (problem := unavailable(model)) is not None:
        raise ValueError(problem)


def _echo_few_labels(report: dict[str, Any]) -> None:
    """Print what validation selected to standard error, with the gains."""
    for name in ("adaptation", "augmentation"):
        if (part := report.get(name)) is None:
            continue
        used = part["used"] if isinstance(part["used"], list) else [part["objective"]] * part["used"]
        click.echo(f"{name}: {', '.join(used) or 'none'} is used", err=True)
        for one in part.get("tried", ()):
            click.echo(
                f"  validation, {' and '.join(one['names'])}: {one['score']:.4f}, gain {one['gain']:+.4f} (error {one['error']:.4f})",
                err=True,
            )
        for split in ("validation", "test"):
            if split in part:
                click.echo(f"  {split}: gain {part[split]['gain']:+.4f} (error {part[split]['error']:.4f})", err=True)


def _echo_slices(report: dict[str, Any]) -> None:
    """Print the slices of a report to standard error."""
    from learners.finetune.error_analysis.slices import describe

    for split, slices in report["slices"].items():
        for line in describe(slices):
            click.echo(f"{split}: {line}", err=True)
