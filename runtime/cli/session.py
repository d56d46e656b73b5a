"""Define the verbs that send a request to a running agent or read its recordings: explain, record, sources, replay."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from runtime.cli.options import FILE, load_or_demo, refusing, takes_settings
from runtime.mqtt.rpc import Answer

BAR = 24


def picture(answer: Answer) -> None:
    """Print an explanation as bars."""
    console = Console()
    console.print(
        f"decision {answer['decision']}  policy {answer['policy']}  reward {answer['reward']:.3f}  value {answer['value']:.3f}"
    )
    for name, part in answer["parts"].items():
        by = answer["by"].get(name, "none")
        console.print(
            f"\n{name} = {answer['actions'].get(name)}  by {by}, p {answer['probabilities'].get(name, 0):.3f}; {part['score_kind']} {part['score']:.3f}, usual {part['baseline']:.3f}"
        )
        table = Table("stream", "part", "", "age ms", box=None)
        largest = max((abs(value) for value in part["streams"].values()), default=0.0) or 1.0
        for stream, value in sorted(part["streams"].items(), key=lambda item: -abs(item[1])):
            bar = "█" * round(abs(value) / largest * BAR)
            age = "missing" if stream in answer["missing"] else str(answer["ages_ms"].get(stream))
            table.add_row(stream, f"{value:+.4f}", f"[{'green' if value >= 0 else 'red'}]{bar}[/]", age)
        console.print(table)
    console.print("\nlineage: " + " < ".join(answer["lineage"]))


@click.command()
@click.argument("decision")
@takes_settings()
@click.option("--json", "as_json", is_flag=True, help="Print the explanation as JSON.")
@refusing
def explain(decision: str, config: Path | None, *, as_json: bool) -> None:
    """Explain DECISION (an id of the topic `decision`): contribution and age of each stream, policy version, gate verdict.

    Example: reflexd explain 3f9c1a2b7d4e-1042
    """
    from runtime.console.client import NoAnswer, send_request

    try:
        answer = send_request(load_or_demo(config), "explain", {"decision": decision})
    except NoAnswer as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        picture(answer)


@click.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@takes_settings()
@refusing
def record(state: str, config: Path | None) -> None:
    """Start or end a recording (MCAP) of all readings and decisions in the running daemon.

    Example: reflexd record on; reflexd record off
    """
    from runtime.console.client import NoAnswer, send_request

    try:
        answer = send_request(load_or_demo(config), "record", {"on": state == "on"})
    except NoAnswer as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(answer))


def _request(config: Path | None, verb: str, body: dict[str, Any]) -> None:
    """Send a request and print the answer's data as JSON."""
    from runtime.console.client import NoAnswer, send_request

    try:
        answer = send_request(load_or_demo(config), verb, body)
    except NoAnswer as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(answer))


@click.command()
@click.argument("mode", type=click.Choice(["shadow", "assist", "autonomous"]))
@takes_settings()
@refusing
def mode(mode: str, config: Path | None) -> None:
    """Switch the running daemon to MODE: shadow decides, assist proposes, autonomous acts.

    Example: reflexd mode autonomous --config home.yaml
    """
    _request(config, "mode", {"mode": mode})


@click.command()
@takes_settings()
@refusing
def arm(config: Path | None) -> None:
    """Let the policy of the running daemon act.

    Example: reflexd arm --config home.yaml
    """
    _request(config, "arm", {})


@click.command()
@takes_settings()
@refusing
def disarm(config: Path | None) -> None:
    """Keep the policy of the running daemon from acting until someone arms it.

    Example: reflexd disarm --config home.yaml
    """
    _request(config, "disarm", {})


@click.group()
def sources() -> None:
    """Manage the sources of rewards and labels in the running daemon."""


@sources.command()
@click.argument("source")
@takes_settings()
@refusing
def release(source: str, config: Path | None) -> None:
    """Release a quarantined SOURCE of rewards (or label:SOURCE); the daemon uses its data again and stops checking it.

    Example: reflexd sources release button-3
    """
    from runtime.console.client import NoAnswer, send_request

    try:
        answer = send_request(load_or_demo(config), "release", {"source": source})
    except NoAnswer as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(answer))


@click.command()
@click.argument("file", type=FILE)
@takes_settings("the demo's")
@click.option("--policy", help="Decide with this version instead, and list the decisions that differ.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@refusing
def replay(file: Path, config: Path | None, policy: str | None, *, as_json: bool) -> None:
    """Repeat the decisions of a recording with the policy versions that made them, and compare each one.

    Exit code 0 if all decisions are equal, else 1. With --policy, the exit code is 0.
    """
    from runtime.recording.replay import replay_file

    report = replay_file(file, load_or_demo(config).config, policy=policy, progress=sys.stderr.isatty())
    click.echo(json.dumps(report.body()) if as_json else report.text())
    sys.exit(0 if report.same or policy else 1)
