"""Arguments and options that several verbs share, and how they read the settings file."""

from __future__ import annotations

import sys
from importlib.resources import as_file, files
from pathlib import Path

import click

from runtime.config import loader as settings_file
from runtime.config.loader import Loaded

REFUSED = 2
"""Exit code for settings or arguments that cannot be used."""

FILE = click.Path(dir_okay=False, path_type=Path)

ANY = click.Path(path_type=Path)

FOLDER = click.Path(file_okay=False, path_type=Path)


def load_or_demo(config: Path | None) -> Loaded:
    """A settings file, else the demo's; a broken one ends the program with exit code 2."""
    with as_file(files("configs") / "demo.yaml") as demo:
        return load(config or demo)


def load(path: Path) -> Loaded:
    """A settings file, or the list of what is wrong with it on standard error and exit code 2."""
    try:
        return settings_file.load(path)
    except settings_file.ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(REFUSED)
