"""Define the verbs that write a settings file: `discover` listens to a broker, `new` is a dialogue."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
from pydantic import SecretStr, ValidationError
from rich.console import Console
from rich.table import Table

from runtime.cli.options import Number, PlainPath, refuse, refusing
from runtime.config.mqtt_names import filter_problem
from runtime.config.mqtt_settings import MqttSettings
from runtime.discovery.plain_topics import propose
from runtime.discovery.proposals import FoundActuator, FoundStream, Proposals
from runtime.discovery.settings_text import Plan, settings_text
from runtime.discovery.topic_samples import NoBroker, listen
from runtime.mqtt import Address

NEW_FILE = PlainPath(dir_okay=False, path_type=Path)


@click.command()
@click.argument("url", default="mqtt://127.0.0.1:1883")
@click.option(
    "--seconds", type=Number(0, 86_400, min_open=True), default=20.0, show_default=True, help="How long to listen."
)
@click.option("--filter", "topic_filter", default="#", show_default=True, help="Topics to listen to.")
@click.option("--out", type=NEW_FILE, help="Settings file to write; default: only list what was found.")
@click.option("--agent", default="home", show_default=True, help="Name of the agent in the file.")
@click.option("--only", multiple=True, metavar="NAME", help="Select only this stream or actuator. Repeat for several.")
@click.option(
    "--actuator",
    "more",
    multiple=True,
    metavar="NAME=COMMAND_TOPIC[,STATE_TOPIC]",
    help="A switch that takes ON and OFF, where none of the conventions names it.",
)
@click.option(
    "--allow", multiple=True, metavar="NAME", help="Propose this device, which was left out because it can cause harm."
)
@click.option("--reward", help="Expression to maximize, such as `-abs(room.temperature - 22)`.")
@click.option("--camera", "cameras", multiple=True, metavar="SOURCE", help="A camera as `reflexd devices` lists it.")
@click.option(
    "--microphone", "microphones", multiple=True, metavar="SOURCE", help="A microphone as `reflexd devices` lists it."
)
@click.option("--username", help="User name for the broker.")
@click.option("--password-env", metavar="NAME", help="Environment variable with the password; the file refers to it.")
@click.option("--yes", is_flag=True, help="Select everything, without questions.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@refusing
def discover(
    url: str,
    seconds: float,
    topic_filter: str,
    out: Path | None,
    agent: str,
    only: tuple[str, ...],
    more: tuple[str, ...],
    allow: tuple[str, ...],
    reward: str | None,
    cameras: tuple[str, ...],
    microphones: tuple[str, ...],
    username: str | None,
    password_env: str | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Listen to the broker URL, list what could be a stream or an actuator, and write settings in shadow mode.

    It understands Home Assistant discovery, Zigbee2MQTT, Tasmota, ESPHome, statestream, plain JSON and numbers. It publishes
    nothing. Example: reflexd discover mqtt://127.0.0.1 --out home.yaml
    """
    address = _address(url, username, password_env)
    if (problem := filter_problem(topic_filter)) is not None:
        raise ValueError(f"--filter {topic_filter}: {problem}")
    try:
        tree = asyncio.run(listen(address, topic_filter, seconds, _progress if sys.stderr.isatty() else _silent))
    except NoBroker as error:
        raise click.ClickException(str(error)) from None
    found = _selected(_with_named(_with_allowed(propose(tree), allow), more), only)
    if as_json:
        click.echo(json.dumps({name: [asdict(each) for each in getattr(found, name)] for name in _SECTIONS}, indent=2))
    else:
        _show(found)
    if out is None:
        return
    interactive = not yes and sys.stdin.isatty()
    if interactive:
        found.actuators = [
            each for each in found.actuators if click.confirm(f"Let the policy move {each.name}?", default=False)
        ]
        reward = reward or click.prompt("Reward expression (empty: people give rewards)", default="") or None
    reference = f"${{env:{password_env}}}" if password_env else None
    plan = Plan(agent, url, found.streams, found.actuators, reward, username=username, password_reference=reference)
    _write(out, replace(plan, cameras=cameras, microphones=microphones))


@click.command()
@click.argument("out", type=NEW_FILE)
@click.option("--agent", prompt="Name of the agent", default="robot", show_default=True, help="Name of the agent.")
@click.option(
    "--mqtt", "url", prompt="Broker", default="embedded://127.0.0.1:1883", show_default=True, help="URL of the broker."
)
@click.option("--sensor", prompt="Topic of a sensor with JSON", default="room/sensor", help="Topic with a JSON object.")
@click.option(
    "--fields", prompt="Its numbers, separated by commas", default="temperature", help="Numbers of the object."
)
@click.option("--switch", prompt="Topic of a switch", default="room/heater/set", help="Topic that takes ON and OFF.")
@click.option(
    "--reward", prompt="Reward expression (empty: people give rewards)", default="", help="Expression to maximize."
)
@refusing
def new(out: Path, agent: str, url: str, sensor: str, fields: str, switch: str, reward: str) -> None:
    """Write a settings file OUT in shadow mode after a short dialogue; every question is also an option.

    Example: reflexd new robot.yaml
    """
    names = tuple(name.strip() for name in fields.split(",") if name.strip())
    stream = FoundStream("sensor", sensor, names, sample="none yet", why="from the dialogue")
    device = switch.rpartition("/")[0] or switch
    actuator = FoundActuator("switch", switch, ("OFF", "ON"), state_topic=f"{device}/state", why="from the dialogue")
    _write(out, Plan(agent, url, [stream], [actuator], reward or None))


_SECTIONS = ("streams", "actuators", "left_out")


def _address(url: str, username: str | None, password_env: str | None) -> Address:
    if password_env is not None and password_env not in os.environ:
        raise ValueError(f"--password-env: the environment variable {password_env} is not set")
    password = SecretStr(os.environ[password_env]) if password_env is not None else None
    try:
        settings = MqttSettings(url=url, username=username, password=password)
    except ValidationError as error:
        problems = "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in error.errors())
        raise ValueError(f"URL: {problems}") from None
    return Address.of(settings, "request")


def _progress(left_s: float, topics: int) -> None:
    click.echo(f"\rlistening, {left_s:.0f} s left, {topics} topics ", nl=False, err=True)


def _silent(_left_s: float, _topics: int) -> None:
    """Show no progress without a terminal."""


def _with_named(found: Proposals, more: Sequence[str]) -> Proposals:
    for each in more:
        name, equals, topics = each.partition("=")
        command, _, state = topics.partition(",")
        found.actuators = [known for known in found.actuators if known.topic != command]  # a person knows better
        taken = {stream.name for stream in found.streams} | {known.name for known in found.actuators}
        if not equals or not command or name in taken or found.plain(name) != name:
            raise ValueError(
                f"--actuator {each}: write NAME=COMMAND_TOPIC or NAME=COMMAND_TOPIC,STATE_TOPIC with a new name"
            )
        found.actuators.append(
            FoundActuator(name, command, ("OFF", "ON"), state_topic=state or None, why="named by --actuator")
        )
    return found


def _with_allowed(found: Proposals, names: Sequence[str]) -> Proposals:
    harmful = {each.name: each for left in found.left_out if (each := left.actuator) is not None}
    if unknown := sorted(set(names) - harmful.keys()):
        there = ", ".join(harmful) or "none"
        raise ValueError(f"--allow {', '.join(unknown)}: no such device was left out; there are {there}")
    found.actuators += [each for name, each in harmful.items() if name in names]
    found.left_out = [left for left in found.left_out if left.actuator is None or left.actuator.name not in names]
    return found


def _selected(found: Proposals, only: Sequence[str]) -> Proposals:
    names = {stream.name for stream in found.streams} | {actuator.name for actuator in found.actuators}
    if unknown := sorted(set(only) - names):
        raise ValueError(f"--only: {', '.join(unknown)} was not found; there are {', '.join(sorted(names)) or 'none'}")
    if only:
        found.streams = [each for each in found.streams if each.name in only]
        found.actuators = [each for each in found.actuators if each.name in only]
    return found


MOST_SHOWN = 300
"""Characters of a cell: topics and samples are whatever a device publishes."""


def _show(found: Proposals) -> None:
    from runtime.console.status import plain

    console = Console()
    table = Table("stream", "topic", "fields", "every s", "found by", "sample", box=None)
    for stream in found.streams:
        often = "once" if stream.longest_s is None else f"{stream.longest_s:.1f}"
        cells = (stream.name, stream.topic, ", ".join(stream.fields), often, stream.why, stream.sample[:40])
        table.add_row(*(plain(cell, MOST_SHOWN) for cell in cells))
    console.print(table)
    table = Table("actuator", "topic", "choices", "reports on", "found by", box=None)
    for each in found.actuators:
        row = (each.name, each.topic, ", ".join(each.choices), each.state_topic or "nothing", each.why)
        table.add_row(*(plain(cell, MOST_SHOWN) for cell in row))
    console.print(table)
    if found.left_out:
        table = Table("left out", "why", box=None)
        for left in found.left_out[:40]:
            table.add_row(plain(left.topic, MOST_SHOWN), plain(left.why, MOST_SHOWN))
        console.print(table)


def _write(out: Path, plan: Plan) -> None:
    """Write the file if `reflexd check` accepts it.

    Raises:
        ValueError: nothing to sense or to move, or the file is there.
    """
    from runtime.preflight.preflight import problems_and_warnings

    if out.exists():
        raise ValueError(f"{out} exists already; name a new file")
    if not plan.streams and not plan.cameras and not plan.microphones:
        raise ValueError("no stream was found; listen longer with --seconds, or add --camera SOURCE")
    if not plan.actuators:
        raise ValueError("no actuator was chosen; name one with --actuator NAME=COMMAND_TOPIC,STATE_TOPIC")
    text = settings_text(plan)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / out.name
        draft.write_text(text, encoding="utf-8")
        problems, warnings, _ = problems_and_warnings(draft, ports=False)
        refuse([replace(problem, file=out) for problem in problems])
    out.write_text(text, encoding="utf-8")
    for warning in warnings:
        click.echo(str(replace(warning, file=out)), err=True)
    click.echo(f"written: {out}, mode shadow. Read it, then: reflexd run {out}")
