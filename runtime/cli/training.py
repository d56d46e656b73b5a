"""Define the verbs that train: train, compare, finetune, evaluate."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from runtime.cli.options import ANY, FILE, FOLDER, SEED, TaskKinds, refusing, show, with_json
from runtime.config.yaml_core import CoreLoader

if TYPE_CHECKING:
    from learners.gym.comparison import SeedGroup
    from learners.gym.lock_step import TrainSettings
    from learners.model.spec import Algorithm


class Demonstrations(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """A number of scripted episodes, or a file of recorded ones."""

    name = "NUMBER|FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | Path:
        """Return the number, or the path of an existing file."""
        text = str(value)
        if text.isdecimal():
            return int(text)
        if not Path(text).is_file():
            self.fail(f"{text!r} is neither a number of episodes nor a file", param, ctx)
        return Path(text)


@click.command()
@click.argument("environment", metavar="ENV")
@click.option(
    "--steps", type=click.IntRange(min=1), default=20_000, show_default=True, help="Number of environment steps."
)
@click.option("--seed", type=SEED, help="Seed of the environment and of the weights.  [default: 0]")
@click.option(
    "--seeds",
    metavar="LIST",
    help="Several seeds, such as 0-9 or 0,3,7: one process each, at most one on each core, below OUT/seed-N.",
)
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="What runs several seeds: processes here, or tasks of Ray, which needs the extra `fleet`. Each seed has its own environment.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1_000),
    help="Seeds at once, at most the cores. With --engine ray and without --seeds also the number of seeds, from 0.",
)
@click.option("--ray-address", metavar="HOST:PORT", help="A running Ray cluster; default: a local Ray.")
@click.option("--out", type=FOLDER, required=True, help="Folder for results.json, the curve and the checkpoint.")
@click.option(
    "--set",
    "values",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the daemon for this training, such as learner.batch=128 or policy.hidden=[64,64]. Repeat the option.",
)
@click.option(
    "--algorithm",
    type=click.Choice(["auto", "dqn", "sac", "crossq", "xqc"]),
    default="auto",
    show_default=True,
    help="Learning algorithm, as `policy.algorithm` in the settings.",
)
@click.option(
    "--demonstrations",
    type=Demonstrations(),
    default=0,
    show_default=True,
    help="Start from demonstrations: a number of scripted episodes, if the environment has a script, or a file of episodes.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the training in the folder OUT exactly where it was last saved; what has ended is not trained again.",
)
@with_json("results.json, of several seeds their comparison,")
@refusing
def train(
    environment: str,
    steps: int,
    seed: int | None,
    seeds: str | None,
    engine: str,
    workers: int | None,
    ray_address: str | None,
    out: Path,
    values: tuple[str, ...],
    algorithm: Algorithm,
    demonstrations: int | Path,
    resume: bool,  # noqa: FBT001 - as the option
    *,
    as_json: bool,
) -> None:
    """Train a policy on the gymnasium environment ENV, in lock-step: the environment waits for each update.

    `reflexd checkpoints import` makes the resulting checkpoint live in a daemon.

    Example: reflexd train CartPole-v1 --steps 20000 --seed 0 --out runs/cart
    """
    from learners.gym.lock_step import TrainSettings
    from learners.gym.set_values import with_values
    from learners.gym.train import train as train_in
    from learners.gym.train import with_algorithm

    named = _named_values(values)
    if algorithm != "auto" and "policy.algorithm" in named:
        raise ValueError("--algorithm and --set policy.algorithm are the same setting; give one of them")
    if seed is not None and seeds is not None:
        raise ValueError("--seed and --seeds exclude each other; give one of them")
    if ray_address is not None and engine != "ray":
        raise ValueError("--ray-address belongs to --engine ray")
    if engine == "ray" and seeds is None:
        seeds = str(seed) if seed is not None else f"0-{(workers or len(os.sched_getaffinity(0))) - 1}"
    if workers is not None and seeds is None:
        raise ValueError("--workers belongs to several seeds; add --seeds or --engine ray")
    settings = with_values(TrainSettings(), named)
    if seeds is not None:
        shown = (
            demonstrations if isinstance(demonstrations, int) else demonstrations.resolve()
        )  # workers of a cluster run elsewhere
        options = ["--steps", str(steps), "--algorithm", algorithm, "--demonstrations", str(shown)]
        options += [part for value in values for part in ("--set", value)] + (["--resume"] if resume else [])
        where = SeedRuns(engine, workers, ray_address)
        _train_seeds(
            environment, seeds, out, steps, with_algorithm(settings, algorithm), options, where, as_json=as_json
        )
        return
    results = train_in(
        environment,
        steps=steps,
        seed=seed or 0,
        out=out,
        algorithm=algorithm,
        demonstrations=demonstrations,
        settings=settings,
        resume=resume,
    )
    final = results["final"]
    if cut := results["cut_episodes"]:
        click.echo(
            f"{environment}: {cut} episodes of evaluations did not end and were cut; give the environment a time limit",
            err=True,
        )
    lines = [
        f"{environment}: mean return {final['mean']:.1f} ± {final['std']:.1f} over {final['episodes']} episodes; {results['wall_s']:.0f} s; {out}/results.json",
        f"signed with the key {results['key']}; `reflexd checkpoints import {out}` asks for it once",
    ]
    show(results, "\n".join(lines), as_json=as_json)


def _named_values(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of `NAME=VALUE` by name.

    Raises:
        ValueError: a name occurs twice, there is no `=`, or a value is not YAML.
    """
    named: dict[str, Any] = {}
    for text in texts:
        name, value = _named_value(text)
        if name in named:
            raise ValueError(f"--set {name}: given twice; give one value")
        named[name] = value
    return named


def _named_value(text: str) -> tuple[str, Any]:
    """Return name and value of `NAME=VALUE`; the value is YAML.

    Raises:
        ValueError: there is no `=`, or the value is not YAML.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set {text}: write NAME=VALUE, for example learner.batch=128")
    try:
        return name.strip(), yaml.load(value, Loader=CoreLoader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else " ".join(str(error).split())
        raise ValueError(f"--set {text}: the value is not YAML: {problem}") from None


@dataclass(frozen=True, slots=True)
class SeedRuns:
    """Where several seeds are trained."""

    engine: str
    """`processes` or `ray`."""
    workers: int | None
    """Seeds at once; None for one on each core."""
    ray_address: str | None
    """Of a running cluster."""


def _train_seeds(
    environment: str,
    seeds: str,
    out: Path,
    steps: int,
    settings: TrainSettings,
    options: list[str],
    where: SeedRuns,
    *,
    as_json: bool,
) -> None:
    """Train every seed in a process of its own, here or on Ray, and print their comparison; exit code 1 if a seed failed."""
    from learners.gym.comparison import grouped, read_one
    from learners.gym.results_file import NAME, write_failed, write_not_ended
    from learners.gym.seeds import parse, train_seeds

    folders = {seed: out / f"seed-{seed}" for seed in parse(seeds)}

    def prepare() -> None:
        for seed, folder in folders.items():
            if "--resume" not in options or not (folder / NAME).exists():
                write_not_ended(folder, environment, steps, seed, settings)

    def words(seed: int) -> list[str]:
        return ["train", environment, "--seed", str(seed), *options]

    def command(seed: int) -> list[str]:
        return [sys.executable, "-m", "runtime.cli", *words(seed), "--out", str(folders[seed])]

    def report(seed: int, code: int, line: str) -> None:
        if code:
            write_failed(folders[seed], f"exit code {code}: {line}")
        click.echo(f"seed {seed}: {'done' if code == 0 else f'failed with exit code {code}: {line}'}", err=True)

    if where.engine == "ray":
        from runtime.cli.ray_seeds import train_on_ray

        failed = train_on_ray(
            folders,
            words,
            report,
            lambda text: click.echo(text, err=True),
            workers=where.workers,
            address=where.ray_address,
            ready=prepare,
        )
    else:
        prepare()
        failed = train_seeds(list(folders), command, lambda seed: folders[seed] / "log", report, where.workers)
    found = grouped((out.resolve(), read_one(folder / NAME)) for folder in folders.values())
    _show_groups(found, None, as_json=as_json)
    if failed:
        raise SystemExit(1)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=FOLDER)
@click.option("--least", type=float, help="Final mean return below which a seed counts as failed.")
@click.option("--plot", type=FILE, help="PNG with the learning curves.")
@with_json("the comparison")
@refusing
def compare(folders: tuple[Path, ...], least: float | None, plot: Path | None, *, as_json: bool) -> None:
    """Compare trainings over their seeds: mean, interquartile mean with a 95 % bootstrap interval, and failed seeds.

    Each DIR is an output folder of `reflexd train`, or a folder of such folders.

    Example: reflexd compare runs/before runs/after --least 450 --plot curves.png
    """
    from learners.gym.comparison import groups
    from learners.gym.comparison import plot as draw

    compared = groups(folders)
    _show_groups(compared, least, as_json=as_json)
    if plot is not None:
        draw(plot, compared)
        click.echo(f"plot: {plot}", err=as_json)


def _show_groups(compared: Sequence[SeedGroup], least: float | None, *, as_json: bool) -> None:
    """Print a line for each group of trainings, or all of them as JSON."""
    body = {"groups": [group.facts(least) for group in compared]}
    show(body, "\n".join(group.row(least) for group in compared), as_json=as_json)


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
        click.option("--temperature", type=click.FloatRange(0, 5), help="Above 0: random tokens; default: 0."),
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
@click.option("--epochs", type=int, help="Largest number of passes over the data; default: by the kind of task.")
@click.option("--learning-rate", type=float, help="Default: by the kind of task and --mode.")
@click.option("--batch", type=int, help="Examples in each update; default: by the kind of task.")
@click.option("--lora-rank", type=int, help="Rank of the adapters with --mode lora; default: 8.")
@click.option("--multi-label", is_flag=True, default=None, help="Classification: an example can have several labels.")
@click.option(
    "--threshold", type=float, help="Probability from which one of several labels counts; default: by validation."
)
@click.option("--max-length", type=int, help="Tokens in one input of the model; default: by the kind of task.")
@click.option(
    "--max-new-tokens",
    type=int,
    help="Length limit of generated text, in tokens; default: 64, or what the longest target needs.",
)
@click.option("--language", help="Speech recognition: the language that is spoken, as `en`, for a model of several.")
@click.option("--window-s", type=float, help="Seconds of sound in one input of the model; default: by the sounds.")
@click.option(
    "--tiles",
    type=int,
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
@click.option("--patience", type=int, help="Epochs without a better validation metric after which training stops.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Seed of new weights and of the order of examples."
)
@click.option(
    "--resume/--no-resume", default=True, show_default=True, help="Continue an interrupted run from the folder OUT."
)
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help=SLICE_HELP)
@writing
@with_json("report.json")
@refusing
def finetune(train_file: Path, *, as_json: bool, **options: Any) -> None:
    """Fine-tune a pretrained model from labelled files: CoNLL columns, CSV, TSV, JSON lines, or one folder for each class.

    Example: reflexd finetune --task token-classification --model bundled:minilm-l6 --train train.conll --validation dev.conll --test test.conll --out runs/ner
    """
    from learners.finetune.few_labels.files import finetune as tune

    positive = (
        "epochs",
        "batch",
        "lora_rank",
        "patience",
        "learning_rate",
        "max_length",
        "max_new_tokens",
        "window_s",
        "tiles",
        "threshold",
    )
    for name in positive:
        if (value := options[name]) is not None and not 0 < value < float("inf"):
            raise click.BadParameter(f"{value} is not above zero", param_hint=f"--{name.replace('_', '-')}")
    given = _writing_given(options)
    report = tune(train=train_file, progress=sys.stderr.isatty(), **given)
    for note in report["notes"]:
        click.echo(note, err=True)
    _echo_slices(report)
    _echo_few_labels(report)
    for split, found in report.get("transfer", {}).items():
        if isinstance(found, dict):
            values = f"{found['from']:.4f}, {found['pretrained']:.4f} from the pretrained model"
            click.echo(f"{split}: {values}, gain {found['gain']:+.4f}", err=True)
    size = f"{report['trained_parameters']:,} of {report['total_parameters']:,} parameters"
    lines = [json.dumps(report["metrics"], indent=2), f"{size}; {report['wall_s']:.0f} s; {options['out']}/report.json"]
    show(report, "\n".join(lines), as_json=as_json)


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
    from learners.finetune.run import evaluate as measure

    report = measure(task=task, model=model, test=test, out=out, **_writing_given(options))
    _echo_slices(report)
    for error in report.get("errors", ()):
        decided = ", ".join(f"{part['part']} ({part['fall']:+.2f})" for part in error["decided"]) or "no single part"
        sure = f"{error['predicted']} ({error['probability']:.2f}), not {error['is']}"
        click.echo(f"{error['where']}: {sure}; decided by {decided}", err=True)
    show(report, json.dumps(report["metrics"], indent=2), as_json=as_json)


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
