"""Define the verbs `reflexd backup` and `reflexd restore`; `runtime/backup/` does the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from runtime.cli.options import ANY, FILE, InvalidInput, load_or_demo, refusing, show, takes_settings, with_json


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows bytes done and in all as a bar; on no terminal it shows nothing."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        job = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)


def _size(count: int) -> str:
    """Return bytes for a person."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


@click.command()
@click.argument("file", type=ANY)
@takes_settings()
@click.option("--recordings", is_flag=True, help="Include the recordings.")
@with_json("path, number of files, bytes and what is left out")
@refusing
def backup(file: Path, config: Path | None, *, recordings: bool, as_json: bool) -> None:
    """Write the state of the daemon of CONFIG (default: the demo) into the new FILE; the daemon may be running.

    FILE contains policies, experience, labels, fine-tuned models, keys, tokens, the software stop and modes set by hand. Keep it as
    secret as the state folder. Logs, recordings, compiled graphs and the retained messages of the embedded broker are not
    contained. The exit code is 1 if something could not be read and is left out.

    \b
    Examples:
      reflexd backup reflexd.backup
      reflexd backup /media/disk/robot.backup robot.yaml --recordings
    """  # noqa: D301 - click's mark for lines that stay as they are
    from runtime.backup.create import create

    settings = load_or_demo(config).config
    with _progress("backing up") as progress:
        done = create(settings.state_dir, settings.agent, file, recordings=recordings, progress=progress)
    for reason in done.left_out:
        click.echo(f"left out: {reason}", err=True)
    if not done.has_key:
        click.echo(
            "left out: the key that signs policies is not in state_dir; keep a copy of systemd's credential checkpoint-key",
            err=True,
        )
    size = done.path.stat().st_size
    show(
        {"path": done.path, "files": done.files, "bytes": done.bytes, "size": size, "left_out": done.left_out},
        f"{done.path}: {done.files} files, {_size(done.bytes)} of the state, {_size(size)} on disk",
        as_json=as_json,
    )
    if done.left_out:
        click.echo("the backup is not complete", err=True)
        raise SystemExit(1)


@click.command()
@click.argument("file", type=FILE)
@takes_settings()
@click.option("--replace", is_flag=True, help="Rename a state folder that is not empty, and restore in its place.")
@with_json("folder, number of files, bytes, time of the backup and the folder of the earlier state")
@refusing
def restore(file: Path, config: Path | None, *, replace: bool, as_json: bool) -> None:
    """Restore the state of the daemon of CONFIG (default: the demo) from FILE, which `reflexd backup` wrote.

    Stop the daemon first. Everything is unpacked and verified before anything changes. Restore only files that you made: a backup
    contains the key that signs policies.

    \b
    Examples:
      reflexd restore reflexd.backup
      reflexd restore /media/disk/robot.backup robot.yaml --replace
    """  # noqa: D301 - click's mark for lines that stay as they are
    from learners.files import BusyError
    from runtime.backup.restore import restore as read

    settings = load_or_demo(config).config
    try:
        with _progress("restoring") as progress:
            done = read(file, settings.state_dir, replace=replace, progress=progress)
    except BusyError as error:
        raise InvalidInput(str(error)) from None
    if done.head.agent != settings.agent:
        click.echo(f"the backup is of agent {done.head.agent}; these settings are of agent {settings.agent}", err=True)
    if done.set_aside is not None:
        click.echo(f"the earlier state is now {done.set_aside}; delete it when you no longer need it", err=True)
    show(
        {
            "state_dir": settings.state_dir,
            "files": done.files,
            "bytes": done.bytes,
            "created": done.head.created,
            "earlier": done.set_aside,
        },
        f"{settings.state_dir}: {done.files} files, {_size(done.bytes)}, as of {done.head.created}",
        as_json=as_json,
    )
