"""`reflexd checkpoints`: the versions in a state folder, for a person in a terminal."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from learners.checkpoints import Checkpoints
from learners.manifest import CheckpointRefused, Manifest
from learners.signing import load_key
from runtime.settings import Config


def open_checkpoints(config: Config) -> Checkpoints:
    """The versions of one daemon, with its signing key: made at first start, or given by systemd."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    key = load_key(config.state_dir, Path(credentials) if credentials else None)
    keep = config.promotion
    return Checkpoints(config.state_dir / "checkpoints", key, keep_last=keep.keep_last, keep_best=keep.keep_best)


def show(checkpoints: Checkpoints) -> None:
    """One line a version, oldest first."""
    live = checkpoints.live()
    table = Table("version", "state", "made", "parent", "figures")
    for manifest in checkpoints.list():
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.created_s))
        table.add_row(
            manifest.version,
            _state(manifest, live.version, live.failed),
            made,
            manifest.parent or "",
            _figures(manifest),
        )
    Console().print(table)


def adopt(checkpoints: Checkpoints, directory: Path) -> str:
    """Take over and promote what `reflexd train` wrote: its output folder, or the version's own directory."""
    key = load_key(_trained_state(directory))
    try:
        version = checkpoints.adopt(_trained_version(directory), key.public_key())
        checkpoints.promote(version)
    except CheckpointRefused as refusal:
        raise click.ClickException(str(refusal)) from None
    return version


def _trained_state(directory: Path) -> Path:
    """The folder whose keys/ signed the version: the output folder of `reflexd train`."""
    return next((folder for folder in (directory, *directory.parents) if (folder / "keys").is_dir()), directory)


def _trained_version(directory: Path) -> Path:
    if (directory / "manifest.json").exists():
        return directory
    found = sorted(directory.glob("checkpoints/*/manifest.json"))
    if not found:
        raise click.ClickException(f"{directory}: no checkpoint in it; give the --out folder of `reflexd train`")
    return found[-1].parent


def _state(manifest: Manifest, live: str | None, failed: tuple[str, ...]) -> str:
    if manifest.version == live:
        return "live"
    return "failed" if manifest.version in failed else ""


def _figures(manifest: Manifest) -> str:
    numbers = {key: value for key, value in manifest.metrics.items() if isinstance(value, int | float)}
    return ", ".join(f"{key} {value:.4g}" for key, value in list(numbers.items())[:4])
