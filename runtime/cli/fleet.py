"""Define the verbs of `reflexd fleet`, for the server of a fleet."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.cli.checkpoints import ask_to_trust, checked
from runtime.cli.options import FILE, FOLDER, AgentName, InvalidInput, Number, refusing, show, with_json

if TYPE_CHECKING:
    from runtime.fleet.topics import GroupLearnerReport

MAX_REASON = 500
"""Characters of a cell: an agent writes its report, and the terminal must not obey it."""
FLEET_FILE = click.argument("settings", metavar="FLEET.yaml", type=FILE)


@click.group()
def fleet() -> None:
    """Run and look at the server of a fleet: many agents that send their experience to one place.

    FLEET.yaml names group, broker and data folder; configs/fleet/fleet.yaml is an example.
    """


@fleet.command()
@FLEET_FILE
@refusing
def serve(settings: Path) -> None:
    """Run broker and ingests of FLEET.yaml until Ctrl-C. Needs the extra `fleet` (Ray and pyarrow)."""
    from runtime.fleet.server_settings import load_fleet

    loaded = load_fleet(settings)
    from runtime.fleet.serve import run_server

    sys.exit(run_server(loaded))


@fleet.command()
@FLEET_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@refusing
def status(settings: Path, *, as_json: bool) -> None:
    """Print what the ingests of FLEET.yaml stored, and how many agents are online."""
    from runtime.fleet.reports import collect
    from runtime.fleet.server_settings import load_fleet

    found = asyncio.run(collect(load_fleet(settings)))
    if as_json:
        learner = {} if found.learner is None else {"learner": found.learner.model_dump()}
        click.echo(json.dumps({**{name: report.model_dump() for name, report in found.ingests.items()}, **learner}))
        return
    online = sum(report.state == "online" for report in found.agents.values())
    click.echo(f"agents: {online} online of {len(found.agents)}")
    for name, report in sorted(found.ingests.items()):
        counts = ", ".join(f"{key} {value}" for key, value in sorted(report.counts.items()))
        click.echo(f"{name}: {report.state}; {counts or 'nothing stored yet'}")
    if found.learner is not None:
        _say_learner(found.learner)


@fleet.command()
@FLEET_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@refusing
def agents(settings: Path, *, as_json: bool) -> None:
    """List the agents of FLEET.yaml: state, backlog, live version, and why rows are set apart."""
    from runtime.fleet.reports import collect
    from runtime.fleet.server_settings import load_fleet

    found = asyncio.run(collect(load_fleet(settings))).agents
    if as_json:
        click.echo(json.dumps({name: report.model_dump() for name, report in found.items()}))
        return
    from rich.console import Console
    from rich.table import Table

    from runtime.console.status import plain

    table = Table("agent", "uplink", "agent's state", "backlog", "drawn", "policy", "fleet version", "apart")
    for name, report in sorted(found.items()):
        drawn = "" if report.sampling_probability is None else f"{report.sampling_probability:.3g}"
        backlog = "" if report.backlog_rows is None else str(report.backlog_rows)
        version = "" if report.fleet_version is None else str(report.fleet_version)
        cells = (
            name,
            report.state,
            report.daemon_state or "",
            backlog,
            drawn,
            report.policy or "",
            version,
            report.apart or "",
        )
        table.add_row(*(plain(cell, MAX_REASON) for cell in cells))
    Console().print(table)


@fleet.command()
@FLEET_FILE
@click.option("--listen", default="127.0.0.1:8090", show_default=True, metavar="HOST:PORT", help="Address of the page.")
@click.option("--metrics", metavar="HOST:PORT", help="Address of Prometheus metrics, without a login; default: none.")
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="Further host name under which the page answers.")
@refusing
def page(settings: Path, listen: str, metrics: str | None, hosts: tuple[str, ...]) -> None:
    """Serve a page with every agent of FLEET.yaml, from the broker's retained reports, until Ctrl-C.

    The token of an operator is in `page-token` of the data folder, that of a viewer in `page-viewer-token`. Operators may stop agents,
    roll back and pause waves.
    """
    from runtime.fleet.group_page import run_page
    from runtime.fleet.server_settings import load_fleet
    from runtime.process import log as process_log

    process_log.configure()  # what an operator did on the page is logged

    names = frozenset(("localhost", "127.0.0.1", "[::1]", listen.rpartition(":")[0], *hosts))
    asyncio.run(run_page(load_fleet(settings), listen, metrics, names))


@fleet.command()
@FLEET_FILE
@click.argument("name", type=AgentName())
@with_json("the settings of the device and the files of the broker")
@refusing
def enroll(settings: Path, name: str, *, as_json: bool) -> None:
    """Make a user at the broker for the agent NAME, and print the settings of its device. The password is shown once."""
    from runtime.fleet.enrollment import enroll as make
    from runtime.fleet.policy_publisher import PolicyPublisher
    from runtime.fleet.server_settings import load_fleet

    loaded = load_fleet(settings)
    made = make(loaded, name, PolicyPublisher(loaded).key_file())
    notes = (
        "# key: copy this file to the device, and name it there",
        f"# for mosquitto.conf: password_file {made.passwords}, acl_file {made.acl}; then reload mosquitto",
    )
    body = {"settings": made.settings, "passwords": made.passwords, "acl": made.acl}
    show(body, made.settings + "\n".join(notes), as_json=as_json)


SHARE = click.option(
    "--share",
    type=Number(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the agents that try it: the wave.",
)


@fleet.command()
@FLEET_FILE
@click.argument("directory", type=FOLDER, required=False)
@click.option("--key", help="Fingerprint, or file of the public key, that signed DIRECTORY.")
@SHARE
@with_json("the published version")
@refusing
def publish(settings: Path, directory: Path | None, key: str | None, share: float, *, as_json: bool) -> None:
    """Publish the checkpoint in DIRECTORY to the group; without it, the version in force again, to widen a wave.

    Each agent examines it as a candidate of its own: promotion steps, experiment, guard.
    """
    from runtime.fleet.policy_publisher import PolicyPublisher
    from runtime.fleet.server_settings import load_fleet

    publisher = PolicyPublisher(load_fleet(settings))
    if directory is not None:
        checked(lambda: publisher.add(directory, key, ask_to_trust))
    policy = checked(lambda: asyncio.run(publisher.publish(share)))
    show(
        {"version": policy.version, "share": policy.share, "group": policy.group, "counter": policy.counter},
        f"{policy.version} is published to {policy.share:.0%} of {policy.group} as number {policy.counter}",
        as_json=as_json,
    )


@fleet.command()
@FLEET_FILE
@SHARE
@click.option(
    "--force", is_flag=True, help="Return to the newest earlier version, also where it never passed its waves."
)
@with_json("the version that the group returns to")
@refusing
def rollback(settings: Path, share: float, *, force: bool, as_json: bool) -> None:
    """Take the published version out for good, and publish the newest earlier one that passed. Repeat it where the broker did not answer.

    Passed are versions that went through all of their waves. Without one, the version is only withdrawn, and no agent tries any. A
    version that a person published and that never passed is named; --force returns to it.
    """
    from runtime.fleet.policy_publisher import PolicyPublisher, rollback_in_words
    from runtime.fleet.server_settings import load_fleet

    publisher = PolicyPublisher(load_fleet(settings))
    policy = checked(lambda: asyncio.run(publisher.roll_back(share, force=force)))
    text = rollback_in_words(publisher, policy)
    show({"version": policy.version, "text": text}, text, as_json=as_json)


@fleet.command()
@FLEET_FILE
@click.argument("name", type=AgentName(), required=False)
@click.option("--all", "everyone", is_flag=True, help="Stop every agent of the group.")
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON.")
@refusing
def stop(settings: Path, name: str | None, *, everyone: bool, as_json: bool) -> None:
    """Engage the software stop of the agent NAME, or of all with --all, and print what each of them answers.

    Only a person at the agent releases it. The exit code is 1 where an agent did not answer that it is stopped. It is no emergency
    stop.
    """
    from runtime.console.status import plain
    from runtime.fleet.reports import stop_agents
    from runtime.fleet.server_settings import load_fleet
    from runtime.mqtt import MqttLost

    if (name is None) != everyone:
        raise InvalidInput("name one agent, or write --all for every agent of the group")
    loaded = load_fleet(settings)
    try:
        answers = asyncio.run(stop_agents(loaded, name, "reflexd fleet stop"))
    except MqttLost as error:
        raise click.ClickException(f"no stop was sent: {error}") from None
    if as_json:
        click.echo(json.dumps({agent: each.model_dump() for agent, each in answers.items()}))
    else:
        for agent, each in answers.items():
            click.echo(plain(f"{agent}: {each.in_words()}", MAX_REASON))
    if not answers:
        raise click.ClickException(f"no agent of {loaded.group} has ever reported, and none answered")
    if any(each.outcome != "stopped" for each in answers.values()):
        sys.exit(1)


@fleet.command("pause-wave")
@FLEET_FILE
@click.option("--resume", is_flag=True, help="Let waves begin and go on again.")
@with_json("whether waves are paused")
@refusing
def pause_wave(settings: Path, *, resume: bool, as_json: bool) -> None:
    """Let no wave of FLEET.yaml begin or go on until --resume. A wave that must stop stops all the same."""
    from learners.files import private_folder
    from runtime.fleet.server_settings import load_fleet
    from runtime.fleet.wave_runner import PAUSED

    loaded = load_fleet(settings)
    path = loaded.data / loaded.group / PAUSED
    private_folder(path.parent)
    if resume:
        path.unlink(missing_ok=True)
    else:
        path.touch()
    text = f"waves of {loaded.group} are {'not paused' if resume else 'paused'}"
    show({"group": loaded.group, "paused": not resume}, text, as_json=as_json)


@fleet.command()
@FLEET_FILE
@click.argument("name", type=AgentName())
@with_json("the agent and its group")
@refusing
def readmit(settings: Path, name: str, *, as_json: bool) -> None:
    """Let the rows of the agent NAME train again, from its first one on disk; it was excluded because its rows looked false."""
    from runtime.fleet.server_settings import load_fleet

    loaded = load_fleet(settings)
    folder = loaded.data / loaded.group / "agents" / name
    if not folder.is_dir():
        raise InvalidInput(f"{name} has sent no rows to {loaded.group}")
    (folder / "readmit").touch()
    text = f"the learner of {loaded.group} takes the rows of {name} again in its next round"
    show({"agent": name, "group": loaded.group}, text, as_json=as_json)


def _say_learner(report: GroupLearnerReport) -> None:
    """Print the report of the learner, the wave and the excluded agents."""
    from runtime.console.status import plain

    progress, wave = report.progress, report.wave
    click.echo(
        plain(
            f"learner: {report.state}; {progress.get('state', 'waits for rows and a spec')}, "
            f"updates {progress.get('updates', 0)}, rows {progress.get('row', 0)}",
            MAX_REASON,
        )
    )
    if wave is not None:
        paused = ", paused" if report.paused else ""
        text = f"wave: {wave.get('version')} {wave.get('state')} at {wave.get('stage')}{paused}; {wave.get('reason') or 'no reason yet'}"
        click.echo(plain(text, MAX_REASON))
    for name, reason in sorted(report.excluded.items()):
        click.echo(plain(f"excluded: {name}; {reason}", MAX_REASON))
    for name, reason in sorted(report.uncounted.items()):
        click.echo(plain(f"verdicts of {name} do not count; {reason}", MAX_REASON))
    if progress.get("alert"):
        click.echo(plain(f"alert: {progress['alert']}", MAX_REASON))
