"""Define the verbs that ask, command or serve a running agent, or decide its recordings again: arm, disarm, mode, explain, sources, record, replay, mcp."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from runtime.cli.options import FILE, load_or_demo, refusing, show, takes_settings, with_json
from runtime.mqtt.rpc import EXPLAIN_S, Answer

BAR = 24
MOST_SHOWN = 2_000
"""Characters of a line: actions are whatever words the settings have."""


def picture(answer: Answer) -> None:
    """Print an explanation as bars."""
    from runtime.console.status import plain

    console = Console()

    def say(line: str) -> None:
        console.print(plain(line, MOST_SHOWN))

    say(
        f"decision {answer['decision']}  policy {answer['policy']}  reward {answer['reward']:.3f}  value {answer['value']:.3f}"
    )
    for name, part in answer["parts"].items():
        console.print()
        say(
            f"{name} = {part['action']}  {verdict(answer, name)}, p {answer['probabilities'].get(name, 0):.3f}; {part['score_kind']} {part['score']:.3f}, usual {part['baseline']:.3f}"
        )
        table = Table("stream", "part", "", "age ms", box=None)
        largest = max((abs(value) for value in part["streams"].values()), default=0.0) or 1.0
        for stream, value in sorted(part["streams"].items(), key=lambda item: -abs(item[1])):
            bar = "█" * round(abs(value) / largest * BAR)
            age = "missing" if stream in answer["missing"] else str(answer["ages_ms"].get(stream))
            table.add_row(plain(stream), f"{value:+.4f}", f"[{'green' if value >= 0 else 'red'}]{bar}[/]", age)
        console.print(table)
    console.print()
    say("lineage: " + " < ".join(answer["lineage"]))
    for note in answer["notes"]:
        say(f"note: {note}")


def verdict(answer: Answer, actuator: str) -> str:
    """Return who acted at a decision, and what became of the policy's proposal if it was another one or was refused."""
    words = f"by {answer['by'].get(actuator, 'none')}" if actuator in answer["actions"] else "proposed, not executed"
    proposed = answer["proposed"].get(actuator)
    if actuator in answer["actions"] and proposed not in (None, answer["actions"][actuator]):
        words += f", proposed {proposed}"
    rule = answer["refused"].get(actuator)
    return words if rule is None else f"{words}, refused: {rule}"


@click.command()
@click.argument("decision")
@takes_settings()
@with_json("the explanation")
@refusing
def explain(decision: str, config: Path | None, *, as_json: bool) -> None:
    """Explain DECISION (an id of the topic `decision`): contribution and age of each stream, policy version, gate verdict.

    Example: reflexd explain 3f9c1a2b7d4e-1042
    """
    answer = _answer(config, "explain", {"decision": decision}, timeout_s=EXPLAIN_S)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        picture(answer)


@click.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@takes_settings()
@with_json("the answer")
@refusing
def record(state: str, config: Path | None, *, as_json: bool) -> None:
    """Start or end a recording (MCAP) of all readings and decisions in the running daemon.

    Example: reflexd record on; reflexd record off
    """
    answer = _answer(config, "record", {"on": state == "on"})
    show(answer, _recorded(answer, is_on=state == "on"), as_json=as_json)


def _recorded(answer: Answer, *, is_on: bool) -> str:
    """Return what a recording became, for a person."""
    if "path" not in answer:
        return "no recording is under way"
    if is_on:
        return f"recording to {answer['path']}"
    return f"{answer['path']}: {answer['written']} messages in {answer['files']} files, {answer['dropped']} dropped"


def _answer(config: Path | None, verb: str, body: dict[str, Any], **options: float) -> Answer:
    """Send a request and return the answer's data; without an answer the program ends with its reason."""
    from runtime.console.client import NoAnswer, send_request

    try:
        return send_request(load_or_demo(config), verb, body, **options)
    except NoAnswer as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.argument("mode", type=click.Choice(["shadow", "assist", "autonomous"]))
@takes_settings()
@with_json("the answer")
@refusing
def mode(mode: str, config: Path | None, *, as_json: bool) -> None:
    """Switch the running daemon to MODE: shadow decides, assist proposes, autonomous acts.

    Example: reflexd mode autonomous --config home.yaml
    """
    answer = _answer(config, "mode", {"mode": mode})
    show(answer, ", ".join(f"{name}: {now}" for name, now in answer["modes"].items()), as_json=as_json)


@click.command()
@takes_settings()
@with_json("the answer")
@refusing
def arm(config: Path | None, *, as_json: bool) -> None:
    """Let the policy of the running daemon act.

    Example: reflexd arm --config home.yaml
    """
    answer = _answer(config, "arm", {})
    waits = f"not armed yet; it waits for: {'; '.join(answer['waiting_for'])}"
    show(answer, "armed" if answer["armed"] else waits, as_json=as_json)


@click.command()
@takes_settings()
@with_json("the answer")
@refusing
def disarm(config: Path | None, *, as_json: bool) -> None:
    """Keep the policy of the running daemon from acting until someone arms it.

    Example: reflexd disarm --config home.yaml
    """
    show(_answer(config, "disarm", {}), "disarmed", as_json=as_json)


@click.group()
def sources() -> None:
    """Manage the sources of rewards and labels in the running daemon."""


@sources.command()
@click.argument("source")
@takes_settings()
@with_json("the answer")
@refusing
def release(source: str, config: Path | None, *, as_json: bool) -> None:
    """Release a quarantined SOURCE of rewards (or label:SOURCE); the daemon uses its data again and stops checking it.

    Example: reflexd sources release button-3
    """
    if not source.strip():
        raise click.BadParameter(
            "it is empty; name a source that `reflexd status` shows as quarantined", param_hint="SOURCE"
        )
    show(
        _answer(config, "release", {"source": source}), f"{source} is released: its data counts again", as_json=as_json
    )


@click.command()
@click.argument("file", type=FILE)
@takes_settings("the demo's")
@click.option("--policy", help="Decide with this version instead, and list the decisions that differ.")
@with_json("the report")
@refusing
def replay(file: Path, config: Path | None, policy: str | None, *, as_json: bool) -> None:
    """Repeat the decisions of a recording with the policy versions that made them, and compare each one.

    Exit code 0 if all decisions are equal, else 1. With --policy, the exit code is 0.
    """
    from runtime.recording.replay import replay_file

    report = replay_file(file, load_or_demo(config).config, policy=policy, progress=sys.stderr.isatty())
    click.echo(json.dumps(report.body()) if as_json else report.text())
    sys.exit(0 if report.same or policy else 1)


class ListenAddress(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """HOST:PORT on which a server listens."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return host and port; anything else ends the program with exit code 2."""
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:
            self.fail(f"{value!r} is not an address; write HOST:PORT, such as 127.0.0.1:8765", param, ctx)
        return host.strip("[]"), int(port)


@click.command()
@takes_settings()
@click.option(
    "--http", "listen", type=ListenAddress(), help="Serve http://HOST:PORT/mcp instead of standard input and output."
)
@refusing
def mcp(config: Path | None, *, listen: tuple[str, int] | None) -> None:
    """Serve the running daemon of CONFIG (default: the demo) as tools for a language model, over MCP.

    A viewer may call status, streams, decisions, events, explain, goals, checkpoints and stop. An operator may also call arm,
    disarm, mode, override, end_override, set_goal, promote and rollback. The gate decides what becomes of each.

    On standard input and output, the client is a viewer unless the environment variable REFLEXD_TOKEN has the operator's token
    of the page. With --http, every request needs `Authorization: Bearer TOKEN`, with the token of a viewer or of the operator.

    Examples: reflexd mcp home.yaml; reflexd mcp home.yaml --http 127.0.0.1:8765; REFLEXD_TOKEN=... reflexd mcp home.yaml
    """
    try:
        from runtime.mcp_server.roles import TOKEN_VARIABLE, access_of, role_of_process
        from runtime.mcp_server.server import serve_http, serve_stdio
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is not installed; install reflexd[mcp]") from None
    settings = load_or_demo(config).config
    with suppress(KeyboardInterrupt):
        if listen is None:
            role = role_of_process(settings, os.environ.get(TOKEN_VARIABLE))
            click.echo(f"reflexd mcp: tools of {settings.agent} on standard input and output, as {role}", err=True)
            asyncio.run(serve_stdio(settings, role))
            return
        tokens = access_of(settings)
        with socket.create_server(listen, family=socket.AF_INET6 if ":" in listen[0] else socket.AF_INET) as listening:
            host, port = listening.getsockname()[:2]
            click.echo(f"reflexd mcp: tools of {settings.agent} on http://{host}:{port}/mcp", err=True)
            asyncio.run(serve_http(settings, tokens, listening))
