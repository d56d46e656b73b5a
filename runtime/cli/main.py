"""Define the command line: the arguments of each verb, and the part of the program that runs it.

Each verb imports its heavy libraries itself, so that `--help` and `check` answer at once.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
import tempfile
from dataclasses import asdict
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path

import click
import structlog

from runtime.cli.agent_verbs import arm, disarm, explain, mcp, mode, record, replay, sources
from runtime.cli.backup import backup, restore
from runtime.cli.checkpoints import checkpoints
from runtime.cli.discover import discover, new
from runtime.cli.export import export
from runtime.cli.finetune import evaluate, finetune
from runtime.cli.fleet import fleet
from runtime.cli.options import (
    FILE,
    REFUSED,
    SEED,
    AgentName,
    Number,
    Rate,
    load,
    load_or_demo,
    refuse,
    refusing,
    renamed,
    show,
    startable,
    takes_settings,
    with_json,
)
from runtime.cli.service import service
from runtime.cli.train import compare, train
from runtime.process.child import IDLE_BLAS
from runtime.process.foreign_output import end_in_time


class CommandWithExamples(click.Command):
    """A command with examples in its help, each on its own line."""

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog line by line, unwrapped."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write_text("Examples:")
            for line in self.epilog.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")


class Verbs(click.Group):
    """The group of all verbs; an unknown one is answered with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that the arguments name.

        Raises:
            click.UsageError: there is none; the text names the nearest.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            remedy = f"did you mean `reflexd {near[0]}`?" if near else "`reflexd --help` lists all verbs"
            raise click.UsageError(f"there is no verb {args[0]!r}; {remedy}", ctx) from error


def _open_standard_descriptors() -> None:
    """Open the null device as the outputs that this process was started without: a database would become what programs print to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            os.set_inheritable(number, True)
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", closefd=False) if stream is None else stream  # noqa: SIM115
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="reflexd")
def main() -> None:
    """Give a machine reflexes that improve while it runs.

    reflexd reads cameras, microphones, text and telemetry. At every tick one model decides, and a gate checks each action
    before it reaches an actuator over MQTT. A learner trains in the background from rewards and corrections.

    Start with `reflexd demo`. Then copy a file of configs/, edit it, and validate it with `reflexd check FILE`.
    """
    _open_standard_descriptors()
    try:
        Path.cwd()
    except FileNotFoundError:  # libraries would fail with reasons of their own
        raise click.UsageError("the working directory does not exist any more; change to another one") from None
    # verbs that query or show print no log lines; run, demo and plant configure logging again
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    logging.getLogger().addHandler(logging.NullHandler())  # else records of other libraries go to standard error
    for name, value in IDLE_BLAS.items():  # before a verb imports numpy
        os.environ.setdefault(name, value)


@main.command(
    cls=CommandWithExamples, epilog="reflexd run configs/video.yaml\nreflexd run robot.yaml --fault joints=stuck@10s"
)
@takes_settings("none", required=True)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="STREAM=KIND[@START]",
    help="Inject a fault into a stream, for tests: off, stuck, garbage, wrong, slow, delayed or intermittent. "
    "START is in seconds after the start of the agent. Repeat the option for several faults.",
)
@click.option("--verbose", is_flag=True, help="Print the whole log, with one line for every tick.")
def run(config: Path, faults: tuple[str, ...], *, verbose: bool) -> None:
    """Run the daemon with the settings file CONFIG.

    Ctrl-C stops it: the gate sends safe actions, then every process ends. A second Ctrl-C ends it at once. SIGHUP reloads the
    settings.
    """
    sys.exit(_run(config, faults=faults, verbose=verbose))


@main.command(cls=CommandWithExamples, epilog="reflexd demo\nmosquitto_sub -p 1883 -t 'reflexd/demo/decision'")
@click.option("--verbose", is_flag=True, help="Print the whole log, with one line for every tick.")
def demo(*, verbose: bool) -> None:
    """Run the demo: the daemon with a simulated world, and a dashboard on http://127.0.0.1:8080."""
    with as_file(files("configs") / "demo.yaml") as path:
        sys.exit(_run(path, faults=(), verbose=verbose))


def _run(path: Path, *, faults: tuple[str, ...], verbose: bool) -> int:
    """Run the daemon: with the console on a terminal, else with a log of JSON lines on standard error."""
    from runtime.console.foreground import has_terminal, run_on_terminal

    if has_terminal() and not verbose:
        return run_on_terminal(path, startable(path), faults=faults)
    loaded = startable(path, lambda: import_module("runtime.supervisor.supervisor"))
    from runtime.supervisor.supervisor import run_daemon

    return run_daemon(path, loaded, faults=faults, verbose=verbose)


@main.command(cls=CommandWithExamples, epilog="reflexd check robot.yaml\nreflexd check --schema > reflexd.schema.json")
@takes_settings("none")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the settings file instead.")
@click.option("--json", "as_json", is_flag=True, help="Print problems and warnings as JSON.")
@click.option("--no-ports", is_flag=True, help="Skip the check that the ports are free.")
@refusing
def check(config: Path | None, *, schema: bool, as_json: bool, no_ports: bool) -> None:
    """Validate CONFIG; exit code 2 with file:line, path and remedy for everything that is wrong."""
    if schema:
        from runtime.config.schema import Config

        click.echo(json.dumps(Config.model_json_schema(), indent=2))
        return
    if config is None:
        raise click.UsageError("CONFIG is missing; name a settings file, or give --schema")
    from runtime.preflight.preflight import problems_and_warnings

    problems, warnings, loaded = problems_and_warnings(config, ports=not no_ports)
    if as_json:
        plain = {"problems": [asdict(p) for p in problems], "warnings": [asdict(w) for w in warnings]}
        click.echo(json.dumps(plain, default=str))
        sys.exit(REFUSED if problems else 0)
    refuse(problems)
    for warning in warnings:
        click.echo(str(warning), err=True)
    assert loaded is not None
    c = loaded.config
    parts = f"{counted(len(c.streams), 'stream')}, {counted(len(c.actuators), 'actuator')}"
    click.echo(f"{config}: good. agent {c.agent}, {parts}, {c.tick.rate_hz:g} Hz, mode {c.mode}")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the devices as JSON.")
def devices(*, as_json: bool) -> None:
    """List the cameras and microphones of this machine, with the value for `source`."""
    from rich.console import Console
    from rich.table import Table

    from runtime.console.status import plain
    from sensors.drivers.device_list import devices as find

    found = find()
    if as_json:
        click.echo(json.dumps(asdict(found), default=str))
        return
    table = Table("kind", "source", "name", "detail")
    for camera in found.cameras:
        place = camera.path if camera.usable else f"{camera.path}: not allowed"
        table.add_row("camera", str(camera.number), plain(camera.name), plain(place, 200))
    for microphone in found.microphones:
        table.add_row(
            "microphone",
            str(microphone.number),
            plain(microphone.name),
            f"{microphone.channels} ch, {microphone.rate_hz:g} Hz",
        )
    Console().print(table)
    for problem in found.problems:
        click.echo(problem, err=True)


@main.command(cls=CommandWithExamples, epilog="reflexd status\nreflexd status robot.yaml --json")
@takes_settings()
@click.option("--json", "as_json", is_flag=True, help="Print the last health message as JSON.")
@click.option(
    "--timeout",
    "timeout_s",
    type=Number(0, 3_600),
    default=12.0,
    show_default=True,
    help="Seconds to wait for an answer.",
)
@refusing
def status(config: Path | None, *, as_json: bool, timeout_s: float) -> None:
    """Print the state of the daemon of CONFIG (default: the demo)."""
    from runtime.console.status import show_status

    sys.exit(show_status(load_or_demo(config), as_json=as_json, timeout_s=timeout_s))


@main.command(cls=CommandWithExamples, epilog="reflexd link\nreflexd link robot.yaml")
@takes_settings()
@with_json("the link")
@refusing
def link(config: Path | None, *, as_json: bool) -> None:
    """Print a link that signs one browser in to the page of CONFIG (default: the demo), once, within an hour."""
    import time

    from runtime.dashboard.access.login_link import create_link

    settings = load_or_demo(config).config
    if settings.dashboard is None:
        raise ValueError("dashboard: there is no page; add `dashboard: {}` to the settings")
    found = create_link(settings.state_dir, settings.dashboard.listen, time.time())
    show({"link": found}, found, as_json=as_json)


@main.command()
@takes_settings()
def top(config: Path | None) -> None:
    """Show the state of the daemon of CONFIG (default: the demo) in the terminal, updated until Ctrl-C."""
    from runtime.console.status import watch

    sys.exit(watch(load_or_demo(config)))


@main.command(
    cls=CommandWithExamples,
    epilog="reflexd plant CartPole-v1 --config > cart.yaml\nreflexd plant CartPole-v1 --settings cart.yaml",
)
@click.argument("environment", metavar="ENV")
@click.option(
    "--agent", type=AgentName(), default="demo", show_default=True, help="Name of the agent that controls the plant."
)
@click.option("--mqtt", "url", default="mqtt://127.0.0.1:1883", show_default=True, help="URL of the broker.")
@click.option(
    "--settings", type=FILE, help="Settings file that names agent, broker and login, instead of both options."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the environment.")
@click.option(
    "--rate", "rate_hz", default=None, type=Rate(), help="Steps per second; default: the environment's own rate."
)
@click.option(
    "--config", "as_config", is_flag=True, help="Print a settings file for an agent that controls ENV, and exit."
)
@refusing
def plant(
    environment: str,
    agent: str,
    url: str,
    settings: Path | None,
    seed: int,
    rate_hz: float | None,
    *,
    as_config: bool,
) -> None:
    """Run the gymnasium environment ENV, or the demo's `panorama`, as a simulated device behind the broker, in real time."""
    from runtime.plant import broker, print_config, run_plant

    if as_config:
        print_config(environment, agent, url, rate_hz)
        return
    config = load(settings).config if settings is not None else None
    mqtt = broker(url) if config is None else config.mqtt
    run_plant(environment, agent=agent if config is None else config.agent, mqtt=mqtt, seed=seed, rate_hz=rate_hz)


@main.command(cls=CommandWithExamples, epilog="reflexd prepare robot.yaml")
@takes_settings()
@with_json("the backend of each model")
@refusing
def prepare(config: Path | None, *, as_json: bool) -> None:
    """Convert and measure the models of CONFIG (default: the demo), so that the first start is fast.

    The results are stored in the user's cache. The verb does not write to `state_dir`.
    """
    from learners.checkpoints.store import open_checkpoints
    from runtime.inference.build import build_engine

    settings = load_or_demo(config).config
    with tempfile.TemporaryDirectory() as folder:
        settings = settings.model_copy(update={"state_dir": Path(folder)})
        engine = build_engine(settings, open_checkpoints(settings.state_dir, settings.promotion))
        engine.close()
    backends = {name: f"{one.backend} {one.precision}" for name, one in sorted(engine.choices.items())}
    text = ", ".join(f"{name} on {backend}" for name, backend in backends.items()) or "nothing to convert"
    show({"runtime": engine.runtime, "backends": backends}, f"prepared: {text}", as_json=as_json)


for _command in (
    discover,
    new,
    arm,
    disarm,
    mode,
    train,
    finetune,
    compare,
    evaluate,
    explain,
    record,
    replay,
    sources,
    mcp,
    service,
    fleet,
    checkpoints,
    export,
    backup,
    restore,
):
    main.add_command(_command)
main.add_command(renamed("release", "reflexd sources release NAME"))

if __name__ == "__main__":
    main()


def program() -> None:
    """Run the command line as a process, which ends soon although foreign code left threads running."""
    try:
        main()
    except SystemExit as ended:
        end_in_time(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
