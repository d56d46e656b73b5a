"""Define the verb `reflexd checkpoints`, which lists and changes the versions of the policy or of a task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from runtime.cli.options import FILE, FOLDER, InvalidInput, load_or_demo, refusing, renamed, show, with_json

if TYPE_CHECKING:
    from learners.checkpoints.manifest import Manifest
    from learners.checkpoints.store import Checkpoints
    from runtime.deploy.task_versions import TaskVersions

T = TypeVar("T")
MOST_SHOWN = 500
"""Characters of a cell."""


@click.group(invoke_without_command=True)
@click.option("--config", type=FILE, help="The daemon's settings; default: the demo.")
@click.option("--task", help="Use the versions of this task instead of the policy's.")
@with_json("the list")
@click.pass_context
@refusing
def checkpoints(context: click.Context, config: Path | None, task: str | None, *, as_json: bool) -> None:
    """List the policy versions; promote one, or roll back to the version before. A running agent follows within a second.

    With --task NAME, do the same for a task that is fine-tuned from labels.
    """
    from learners.checkpoints.store import open_checkpoints
    from runtime.deploy.task_versions import TaskVersions

    loaded = load_or_demo(config).config
    context.obj = (
        open_checkpoints(loaded.state_dir, loaded.promotion) if task is None else (TaskVersions.of(loaded), task)
    )
    if context.invoked_subcommand is None:
        if as_json:
            click.echo(json.dumps(checked(lambda: rows(context.obj) if task is None else context.obj[0].rows(task))))
            return
        checked(lambda: list_versions(context.obj) if task is None else list_task_versions(*context.obj))


def checked(work: Callable[[], T]) -> T:
    """Return the result of `work`; turn a refusal into one line and exit code 2."""
    from learners.checkpoints.manifest import CheckpointRefused
    from runtime.deploy.task_versions import TaskRefused

    try:
        return work()
    except (CheckpointRefused, TaskRefused) as refusal:
        raise InvalidInput(str(refusal)) from None


@checkpoints.command()
@click.argument("version")
@with_json("the live version")
@click.pass_obj
@refusing
def promote(folder: Checkpoints | tuple[TaskVersions, str], version: str, *, as_json: bool) -> None:
    """Make VERSION live, after its files and its signature are verified. No promotion step is run."""
    if isinstance(folder, tuple):
        versions, task = folder
        version = checked(lambda: versions.promote(task, version))["version"]
    else:
        checked(lambda: folder.promote(version))
        warn_of_other_meaning(folder, version)
    show({"live": version}, f"{version} is live", as_json=as_json)


@checkpoints.command()
@with_json("the live version")
@click.pass_obj
@refusing
def rollback(folder: Checkpoints | tuple[TaskVersions, str], *, as_json: bool) -> None:
    """Mark the live version as failed, and make the version before it live."""
    if isinstance(folder, tuple):
        versions, task = folder
        live = checked(lambda: versions.rollback(task))["to"]
    else:
        live = checked(folder.rollback).version
    show({"live": live}, f"{live} is live", as_json=as_json)


checkpoints.add_command(renamed("adopt", "reflexd checkpoints import DIR"))


@checkpoints.command("import")
@click.argument("directory", type=FOLDER)
@click.option(
    "--key",
    metavar="KEY",
    help="The key that must have signed it: its fingerprint (`SHA256:...`, printed by `reflexd train`) or a PEM file.",
)
@with_json("the live version")
@click.pass_obj
@refusing
def import_version(
    folder: Checkpoints | tuple[TaskVersions, str], directory: Path, key: str | None, *, as_json: bool
) -> None:
    """Import the checkpoint that `reflexd train` wrote to DIRECTORY and make it live.

    Without --key, an unknown key is shown once: compare its fingerprint with the one that `reflexd train` printed. A confirmed
    key is remembered.
    """
    if isinstance(folder, tuple):
        raise InvalidInput("`import` reads policies; fine-tune a task from labels, or name a folder in its `model:`")
    version = import_directory(folder, directory, key)
    warn_of_other_meaning(folder, version)
    show({"live": version}, f"{version} is live", as_json=as_json)


def warn_of_other_meaning(folder: Checkpoints, version: str) -> None:
    """Say on standard error if the daemon, with the settings that it ran with last, refuses a version; new settings may be on their way."""
    from learners.checkpoints.manifest import CheckpointRefused
    from learners.ipc.policy_spec import read_policy_spec

    spec = read_policy_spec(folder.folder.parent)
    if spec is None:
        return
    try:
        folder.load_arrays(version, meaning=spec.meaning())
    except CheckpointRefused as refusal:
        click.echo(
            f"{version} is refused by a daemon with the settings that this one ran with last: {refusal.detail}",
            err=True,
        )


def list_task_versions(versions: TaskVersions, task: str) -> None:
    """Print one line for each version, oldest first."""
    from runtime.console.status import plain

    body = versions.rows(task)
    table = Table("version", "state", "made", "metrics")
    for row in body["versions"]:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created"]))
        figures = [
            f"{split} {name} {value:.4g}" for split, found in row["metrics"].items() for name, value in found.items()
        ]
        table.add_row(
            row["version"],
            "live" if row["version"] == body["live"] else "",
            made,
            plain(", ".join(figures), MOST_SHOWN),
        )
    Console().print(table)


def rows(checkpoints: Checkpoints) -> dict[str, Any]:
    """Return the live version, and every version, oldest first, with the reason why it is live or not."""
    from learners.checkpoints.experiment_records import notes_of_experiments

    live, notes = checkpoints.live(), notes_of_experiments(checkpoints.folder.parent)
    found = [
        {
            "version": each.version,
            "state": _state(each, live.version, live.failed),
            "created": each.created_s,
            "parent": each.parent,
            "metrics": dict(each.metrics),
            "why": notes.get(each.version, ""),
        }
        for each in checkpoints.list()
    ]
    return {"live": live.version, "versions": found}


def list_versions(checkpoints: Checkpoints) -> None:
    """Print one line for each version, oldest first, with the reason why it is live or not."""
    from learners.checkpoints.experiment_records import notes_of_experiments
    from runtime.console.status import plain

    live, notes = checkpoints.live(), notes_of_experiments(checkpoints.folder.parent)
    table = Table("version", "state", "made", "parent", "figures", "why")
    for manifest in checkpoints.list():
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created_s))
        table.add_row(
            manifest.version,
            _state(manifest, live.version, live.failed),
            made,
            plain(manifest.parent or ""),
            plain(_figures(manifest), MOST_SHOWN),
            plain(notes.get(manifest.version, ""), MOST_SHOWN),
        )
    Console().print(table)


def ask_to_trust(fingerprint: str) -> bool:
    """Show the fingerprint of an unknown key and ask the operator; without an answer, False."""
    click.echo(f"signed with an unknown key: {fingerprint}", err=True)
    try:
        return click.confirm("Is this the key that `reflexd train` printed? Trust it from now on?", err=True)
    except click.Abort:
        click.echo("", err=True)
        return False


def import_directory(
    checkpoints: Checkpoints, directory: Path, key: str | None = None, ask: Callable[[str], bool] = ask_to_trust
) -> str:
    """Import and promote what `reflexd train` wrote: its output folder, or the version's own directory.

    Args:
        checkpoints: of this installation.
        directory: the folder.
        key: a fingerprint or a PEM file; None to use the known keys, and `ask` where none of them has signed it.
        ask: shows a fingerprint to the operator.

    Raises:
        Refused: the checkpoint or its key is refused.
    """
    from learners.checkpoints.manifest import CheckpointRefused
    from learners.checkpoints.signing import KeyRefused
    from learners.checkpoints.trusted_keys import TrustedKeys, signer
    from learners.model.heads import finish_exploration

    trained = _trained_version(directory)
    try:
        public = signer(trained.resolve(), checkpoints.public, TrustedKeys(checkpoints.folder.parent), key, ask)
        version = checkpoints.import_version(trained, public, finish_exploration)
        checkpoints.promote(version, by="import")
    except (CheckpointRefused, KeyRefused) as refusal:
        raise InvalidInput(str(refusal)) from None
    return version


def _trained_version(directory: Path) -> Path:
    if (directory / "manifest.json").exists():
        return directory
    found = sorted(directory.glob("checkpoints/*/manifest.json"))
    if not found:
        raise InvalidInput(f"{directory}: no checkpoint in it; give the --out folder of `reflexd train`")
    return found[-1].parent


def _state(manifest: Manifest, live: str | None, failed: tuple[str, ...]) -> str:
    if manifest.version == live:
        return "live"
    return "failed" if manifest.version in failed else ""


def _figures(manifest: Manifest) -> str:
    numbers = {key: value for key, value in manifest.metrics.items() if isinstance(value, int | float)}
    return ", ".join(f"{key} {value:.4g}" for key, value in list(numbers.items())[:4])
