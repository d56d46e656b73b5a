"""The verb `reflexd checkpoints`: versions of the policy, or of a task, for a person in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from runtime.verbs import FILE, FOLDER, load_or_demo

if TYPE_CHECKING:
    from learners.checkpoints import Checkpoints
    from runtime.taskversions import TaskVersions

T = TypeVar("T")


@click.group(invoke_without_command=True)
@click.option("--config", type=FILE, help="The daemon's settings; default: the demo.")
@click.option("--task", help="The versions of this task instead of the policy's.")
@click.pass_context
def checkpoints(context: click.Context, config: Path | None, task: str | None) -> None:
    """List policy versions; promote one, or roll back to the one before. A running agent follows within a second.

    With --task NAME the same for a task that is fine-tuned from labels.
    """
    from runtime.taskversions import TaskVersions, show_task
    from runtime.versions import open_checkpoints, show

    loaded = load_or_demo(config).config
    context.obj = open_checkpoints(loaded) if task is None else (TaskVersions.of(loaded), task)
    if context.invoked_subcommand is None:
        _said(lambda: show(context.obj) if task is None else show_task(*context.obj))


def _said(work: Callable[[], T]) -> T:
    """The work's answer; a refusal becomes the command line's error."""
    from learners.manifest import CheckpointRefused
    from runtime.taskversions import TaskRefused

    try:
        return work()
    except (CheckpointRefused, TaskRefused) as refusal:
        raise click.ClickException(str(refusal)) from None


@checkpoints.command()
@click.argument("version")
@click.pass_obj
def promote(folder: Checkpoints | tuple[TaskVersions, str], version: str) -> None:
    """Make VERSION live, after every check of its files."""
    if isinstance(folder, tuple):
        versions, task = folder
        version = _said(lambda: versions.promote(task, version))["version"]
    else:
        _said(lambda: folder.promote(version))
    click.echo(f"{version} is live")


@checkpoints.command()
@click.pass_obj
def rollback(folder: Checkpoints | tuple[TaskVersions, str]) -> None:
    """Take the live version out for good and return to the one before it."""
    if isinstance(folder, tuple):
        versions, task = folder
        live = _said(lambda: versions.rollback(task))["to"]
    else:
        live = _said(folder.rollback).version
    click.echo(f"{live} is live")


@checkpoints.command()
@click.argument("directory", type=FOLDER)
@click.pass_obj
def adopt(folder: Checkpoints | tuple[TaskVersions, str], directory: Path) -> None:
    """Take over the checkpoint that `reflexd train` wrote to DIRECTORY and make it live."""
    from runtime.versions import adopt as take

    if isinstance(folder, tuple):
        raise click.ClickException(
            "`adopt` takes over policies; a task is fine-tuned from labels, or `model:` names a folder"
        )
    click.echo(f"{take(folder, directory)} is live")
