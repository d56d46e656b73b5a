"""The command line: what each verb takes, and which part of the program does it.

Heavy imports wait until the verb that needs them, so that `--help` and `check` answer at once.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import click
import structlog

from runtime.cli.checkpoints import checkpoints
from runtime.cli.export import export
from runtime.cli.options import FILE, load, load_or_demo, refuse, refusing, renamed, startable
from runtime.cli.ports import busy_ports
from runtime.cli.service import service
from runtime.cli.session import explain, record, replay, sources
from runtime.cli.training import evaluate, finetune, train


class Examples(click.Command):
    """A command whose help shows examples as they are typed."""

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The epilog line by line, unwrapped."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write_text("Examples:")
            for line in self.epilog.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="reflexd")
def main() -> None:
    """Reflexd gives a machine reflexes that it keeps learning.

    It watches cameras, microphones, text and telemetry, fuses them in one model at every tick, acts over MQTT, and learns in
    the background from rewards and corrections.

    Start with `reflexd demo`, then copy a file of configs/ and `reflexd check` it.
    """
    # verbs that ask or show keep their output clean; run, demo and plant set logging up anew
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


@main.command(cls=Examples, epilog="reflexd run configs/video.yaml\nreflexd run robot.yaml --fault joints=stuck@10s")
@click.argument("config", type=FILE)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="STREAM=KIND[@START]",
    help="Break a stream on purpose: off, stuck, garbage, wrong, slow, delayed, intermittent.",
)
@click.option("--verbose", is_flag=True, help="One log line for every tick.")
def run(config: Path, faults: tuple[str, ...], *, verbose: bool) -> None:
    """Run the daemon on CONFIG until Ctrl-C; a second Ctrl-C forces."""
    from runtime.supervisor.supervisor import run_daemon

    loaded = startable(config)
    sys.exit(run_daemon(config, loaded, faults=faults, verbose=verbose))


@main.command(cls=Examples, epilog="reflexd demo\nmosquitto_sub -p 1883 -t 'reflexd/demo/decision'")
@click.option("--verbose", is_flag=True, help="One log line for every tick.")
def demo(*, verbose: bool) -> None:
    """Run the demo with its simulated world; the page is on http://127.0.0.1:8080."""
    from runtime.supervisor.supervisor import run_daemon

    with as_file(files("configs") / "demo.yaml") as path:
        loaded = startable(path)
        sys.exit(run_daemon(path, loaded, faults=(), verbose=verbose))


@main.command(cls=Examples, epilog="reflexd check robot.yaml\nreflexd check --schema > reflexd.schema.json")
@click.argument("config", type=FILE, required=False)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a settings file.")
@refusing
def check(config: Path | None, *, schema: bool) -> None:
    """Validate CONFIG; exit code 2 with file:line, path and remedy for everything that is wrong."""
    if schema:
        from runtime.config.schema import Config

        click.echo(json.dumps(Config.model_json_schema(), indent=2))
        return
    if config is None:
        raise click.UsageError("name a settings file, or --schema")
    from runtime.cli.preflight import preflight
    from runtime.config.lint import lint

    loaded = load(config)
    refuse(preflight(config, loaded))
    c = loaded.config
    for warning in [*lint(config, loaded), *busy_ports(config, loaded)]:
        click.echo(str(warning), err=True)
    click.echo(
        f"{config}: good. agent {c.agent}, {len(c.streams)} streams, {len(c.actuators)} actuators, {c.tick.rate_hz:g} Hz, mode {c.mode}"
    )


@main.command()
def devices() -> None:
    """List the cameras and microphones found."""
    from rich.console import Console
    from rich.table import Table

    from sensors.drivers.discovery import devices as find

    found = find()
    table = Table("kind", "source", "name", "detail")
    for camera in found.cameras:
        table.add_row(
            "camera", str(camera.number), camera.name, camera.path if camera.usable else f"{camera.path}: not allowed"
        )
    for microphone in found.microphones:
        table.add_row(
            "microphone",
            str(microphone.number),
            microphone.name,
            f"{microphone.channels} ch, {microphone.rate_hz:g} Hz",
        )
    Console().print(table)
    for problem in found.problems:
        click.echo(problem, err=True)


@main.command(cls=Examples, epilog="reflexd status\nreflexd status robot.yaml --json")
@click.argument("config", type=FILE, required=False)
@click.option("--json", "as_json", is_flag=True, help="The last health message as JSON.")
@click.option("--timeout", "timeout_s", default=12.0, show_default=True, help="Seconds to wait for an answer.")
@refusing
def status(config: Path | None, *, as_json: bool, timeout_s: float) -> None:
    """Say once how the daemon of CONFIG (default: the demo) is."""
    from runtime.cli.status import show_status

    sys.exit(show_status(load_or_demo(config), as_json=as_json, timeout_s=timeout_s))


@main.command()
@click.argument("config", type=FILE, required=False)
def top(config: Path | None) -> None:
    """Watch the daemon of CONFIG (default: the demo) in the terminal."""
    from runtime.cli.status import watch

    sys.exit(watch(load_or_demo(config)))


@main.command(
    cls=Examples,
    epilog="reflexd plant CartPole-v1 --config > cart.yaml\nreflexd plant CartPole-v1 --settings cart.yaml",
)
@click.argument("environment", metavar="ENV")
@click.option("--agent", default="demo", show_default=True, help="The agent whose topics to use.")
@click.option("--mqtt", "url", default="mqtt://127.0.0.1:1883", show_default=True, help="The broker.")
@click.option("--settings", type=FILE, help="Instead of both: a settings file, for its agent, broker and login.")
@click.option("--seed", default=0, show_default=True)
@click.option("--rate", "rate_hz", default=None, type=float, help="Steps a second; default: the environment's own.")
@click.option(
    "--config", "as_config", is_flag=True, help="Print the settings file for an agent that controls ENV, and end."
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
    """Put a gymnasium environment, or the demo's `panorama`, behind the broker as a device, in real time."""
    from runtime.plant import broker, print_config, run_plant

    if as_config:
        print_config(environment, agent, url, rate_hz)
        return
    config = load(settings).config if settings is not None else None
    mqtt = broker(url) if config is None else config.mqtt
    run_plant(environment, agent=agent if config is None else config.agent, mqtt=mqtt, seed=seed, rate_hz=rate_hz)


@main.command(cls=Examples, epilog="reflexd prepare robot.yaml")
@click.argument("config", type=FILE, required=False)
@refusing
def prepare(config: Path | None) -> None:
    """Convert and measure the models of CONFIG (default: the demo) now, so that the first start need not.

    The results go to the user's cache. The daemon's own state is not begun.
    """
    from learners.checkpoints.store import open_checkpoints
    from runtime.inference.build import build_engine

    settings = load_or_demo(config).config
    with tempfile.TemporaryDirectory() as folder:
        settings = settings.model_copy(update={"state_dir": Path(folder)})
        build_engine(settings, open_checkpoints(settings.state_dir, settings.promotion)).close()


for _command in (train, finetune, evaluate, explain, record, replay, sources, service, checkpoints, export):
    main.add_command(_command)
main.add_command(renamed("release", "reflexd sources release NAME"))

if __name__ == "__main__":
    main()
