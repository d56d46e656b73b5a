"""Define the verbs train and compare: policies on gymnasium environments, and their seeds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from actuators.sim.call_limit import CALL_S
from runtime.cli.options import FILE, FOLDER, SEED, Number, on_ray, refusing, show, with_json
from runtime.config.yaml_core import CoreLoader
from runtime.process.foreign_output import foreign_output

if TYPE_CHECKING:
    from learners.gym.comparison import SeedGroup
    from learners.gym.environment_pool import EnvironmentPool
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
@on_ray(
    "What runs several seeds: processes here, or tasks of Ray, which needs the extra `fleet`. Each seed has its own environment.",
    "Seeds at once, at most the cores. With --engine ray and without --seeds also the number of seeds, from 0.",
)
@click.option(
    "--envs",
    type=click.IntRange(2, 1_024),
    help="With --engine ray: one seed with several environments, which --workers processes step while the policy is updated.",
)
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
@click.option(
    "--call-limit",
    "call_limit_s",
    type=Number(0, 86_400),
    default=CALL_S,
    show_default=True,
    help="Seconds that one call of the environment may take (import, make, reset, step); 0: any time.",
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
    envs: int | None,
    out: Path,
    values: tuple[str, ...],
    algorithm: Algorithm,
    demonstrations: int | Path,
    resume: bool,  # noqa: FBT001 - as the option
    call_limit_s: float,
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

    out = out.absolute()  # an environment may change the working directory
    named = _named_values(values)
    if algorithm != "auto" and "policy.algorithm" in named:
        raise ValueError("--algorithm and --set policy.algorithm are the same setting; give one of them")
    where = SeedRuns(engine, workers, ray_address)
    if envs is None:
        seeds = _several_seeds(seed, seeds, where)
    elif engine != "ray" or seeds is not None or resume:
        raise ValueError("--envs belongs to --engine ray and one seed, and is not resumed")
    settings = with_values(TrainSettings(), named)
    if seeds is not None:
        shown = (
            demonstrations if isinstance(demonstrations, int) else demonstrations.resolve()
        )  # workers of a cluster run elsewhere
        options = ["--steps", str(steps), "--algorithm", algorithm, "--demonstrations", str(shown)]
        options += [part for value in values for part in ("--set", value)] + (["--resume"] if resume else [])
        options += ["--call-limit", f"{call_limit_s:g}"]
        _train_seeds(
            environment, seeds, out, steps, with_algorithm(settings, algorithm), options, where, as_json=as_json
        )
        return
    with foreign_output(), _pool(environment, seed or 0, envs, where, call_limit_s) as pool:
        results = train_in(
            environment,
            steps=steps,
            seed=seed or 0,
            out=out,
            algorithm=algorithm,
            demonstrations=demonstrations,
            settings=settings,
            resume=resume,
            call_limit_s=call_limit_s,
            pool=pool,
        )
    _show_results(environment, results, out, as_json=as_json)


@contextmanager
def _pool(
    environment: str, seed: int, count: int | None, where: SeedRuns, limit_s: float
) -> Iterator[EnvironmentPool | None]:
    """Give the environments of a training on Ray; None where it has one, here.

    Raises:
        ValueError: there is no such environment, or Ray is not installed.
        ConnectionError: no cluster answers.
    """
    if count is None:
        yield None
        return
    from actuators.sim.gym_env import find
    from learners.gym.environment_pool import RayEnvironments
    from runtime.process.ray_cluster import start_ray

    find(environment, limit_s)
    cores = len(os.sched_getaffinity(0))
    ray = start_ray(where.ray_address, min(where.workers or cores, cores, count), "reflexd-train", log_to_driver=False)
    try:
        most = max(1, int(ray.cluster_resources().get("CPU", 1)))
        workers = min(where.workers or most, most, count)
        yield RayEnvironments(ray, environment, seed, count=count, workers=workers, limit_s=limit_s)
    finally:
        ray.shutdown()


def _several_seeds(seed: int | None, seeds: str | None, where: SeedRuns) -> str | None:
    """Return the list of seeds where several are trained; None for one.

    Raises:
        ValueError: options contradict each other.
    """
    if seed is not None and seeds is not None:
        raise ValueError("--seed and --seeds exclude each other; give one of them")
    if where.ray_address is not None and where.engine != "ray":
        raise ValueError("--ray-address belongs to --engine ray")
    if where.engine == "ray" and seeds is None:
        seeds = str(seed) if seed is not None else f"0-{(where.workers or len(os.sched_getaffinity(0))) - 1}"
    if where.workers is not None and seeds is None:
        raise ValueError("--workers belongs to several seeds; add --seeds or --engine ray")
    return seeds


def _show_results(environment: str, results: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Print what a training of one seed reached, and what its evaluations lack."""
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
    """`process` or `ray`."""
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
        from runtime.cli.on_ray.seeds import train_on_ray

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
@click.option("--least", type=Number(), help="Final mean return below which a seed counts as failed.")
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
