"""Define what several verbs share: types of arguments, options, loading of the settings file, and errors for invalid inputs."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import click

from learners.files import not_plain
from learners.task_kinds import FORMER_KINDS, KINDS
from runtime.config import loader as settings_file
from runtime.config.errors import Problem
from runtime.config.loader import LoadedConfig
from runtime.config.ports import busy_ports
from runtime.preflight.forked_preflight import forked_preflight

REFUSED = 2
"""Exit code for settings or arguments that cannot be used."""
MAY_PASS = 1
"""Exit code for what may pass without an edit, such as a port in use."""


P = ParamSpec("P")
T = TypeVar("T")


class PlainPath(click.Path):
    """A path that is no pipe, socket or device: these would block, or never end."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return the path; a pipe, a socket or a device ends the program with exit code 2."""
        path = super().convert(value, param, ctx)
        if (problem := not_plain(Path(os.fsdecode(path)))) is not None:
            self.fail(f"{os.fsdecode(path)!r} is {problem}", param, ctx)
        return path


FILE = PlainPath(dir_okay=False, path_type=Path)

ANY = PlainPath(path_type=Path)

FOLDER = PlainPath(file_okay=False, path_type=Path)


class Number(click.FloatRange):
    """A finite number in a range: NaN is neither below nor above any limit, so click's own range takes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; one that is not finite ends the program with exit code 2."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


SEED = click.IntRange(0, 2**31 - 1)
"""What numpy, torch and gymnasium all accept."""

MIN_RATE_HZ, MAX_RATE_HZ = 1e-3, 1e3
"""Of a simulated device."""

_NAME = re.compile(r"[a-z0-9_-]{1,64}")


def takes_settings(what: str = "the demo", *, required: bool = False) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Let a verb take the settings file as its last argument or as `--config`, alike; the verb gets it as `config`.

    Args:
        what: the default, for the help.
        required: whether the verb ends with exit code 2 without a file.
    """

    def decorate(verb: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(verb)
        def run(*arguments: Any, config: Path | None, config_option: Path | None, **options: Any) -> T:
            if config is not None and config_option is not None:
                raise click.UsageError("the settings file is given twice: as CONFIG and as --config")
            chosen = config or config_option
            if chosen is None and required:
                raise click.UsageError("CONFIG is missing; name a settings file")
            return verb(*arguments, config=chosen, **options)

        with_option = click.option(
            "--config", "config_option", type=FILE, help=f"The settings file, as CONFIG. Default: {what}."
        )(run)
        return click.argument("config", type=FILE, required=False)(with_option)

    return decorate


def with_json(what: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a verb the option `--json`, as the argument `as_json`.

    Args:
        what: is printed as JSON, for the help.
    """
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def on_ray(runs: str, workers: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Add `--engine`, `--workers` and `--ray-address`; `runs` and `workers` are the helps of the first two."""
    options = (
        click.option(
            "--engine", type=click.Choice(["process", "ray"]), default="process", show_default=True, help=runs
        ),
        click.option("--workers", type=click.IntRange(1, 1_000), help=workers),
        click.option("--ray-address", metavar="HOST:PORT", help="A running Ray cluster; default: a local Ray."),
    )

    def add(verb: Callable[..., T]) -> Callable[..., T]:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return add


def show(body: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print the result of a verb: a text for a person, or the body on one line of JSON."""
    click.echo(json.dumps(body, default=str) if as_json else text)


def renamed(name: str, now: str) -> click.Command:
    """Return a hidden verb that answers its former `name` with the present one, and exits with code 2."""

    def answer(ctx: click.Context, given: tuple[str, ...]) -> None:
        del given
        click.echo(f"{ctx.command_path}: renamed to `{now}`", err=True)
        sys.exit(REFUSED)

    return click.Command(
        name,
        callback=click.pass_context(answer),
        params=[click.Argument(["given"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
        hidden=True,
    )


class TaskKinds(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """A kind of task; a former name is an error that names the present one."""

    name = "KIND"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the choices for the help."""
        del param, ctx
        return f"[{'|'.join(KINDS)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the kind; one that does not exist ends the program with exit code 2."""
        kind = str(value)
        if kind in FORMER_KINDS:
            click.echo(f"--task {kind}: renamed to {' or '.join(FORMER_KINDS[kind])}", err=True)
            sys.exit(REFUSED)
        if kind not in KINDS:
            self.fail(f"{kind!r} is not one of {', '.join(KINDS)}", param, ctx)
        return kind


class AgentName(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """A name that may be a part of topics, as `agent` in the settings."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; another one ends the program with exit code 2."""
        if _NAME.fullmatch(str(value)) is None:
            self.fail(
                f"{str(value)[:80]!r} is not a valid name; use 1 to 64 lower-case letters, digits, _ and -", param, ctx
            )
        return str(value)


class Rate(click.ParamType):  # type: ignore[type-arg] # generic only in the newest click
    """A rate in Hz, from `MIN_RATE_HZ` to `MAX_RATE_HZ`."""

    name = "HZ"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the rate; another number, or none, ends the program with exit code 2."""
        rate_hz = click.FLOAT.convert(value, param, ctx)
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            self.fail(f"{value} is not between {MIN_RATE_HZ:g} and {MAX_RATE_HZ:g} Hz", param, ctx)
        return float(rate_hz)


def load_or_demo(config: Path | None) -> LoadedConfig:
    """Load a settings file, or the demo's; exit with code 2 if it is invalid."""
    with as_file(files("configs") / "demo.yaml") as demo:
        return load(config or demo)


def load(path: Path) -> LoadedConfig:
    """Load a settings file; if it is invalid, print every problem on standard error and exit with code 2."""
    try:
        return settings_file.load(path)
    except settings_file.ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(REFUSED)


def startable(path: Path, meanwhile: Callable[[], object] = lambda: None) -> LoadedConfig:
    """Read settings with which a daemon can start now; else print what is wrong and end.

    The exit code is 2 where the settings must be edited, and 1 for a port that another program has taken. The service manager
    then tries again, because that program may end.

    Args:
        path: the settings file.
        meanwhile: called while the settings are checked in another process, because the check needs a second of the start. It may
            import, and must start nothing.
    """
    loaded = load(path)
    problems = forked_preflight(path, loaded)
    meanwhile()
    if found := problems():
        click.echo(found, err=True, nl=False)
        sys.exit(REFUSED)
    busy = busy_ports(path, loaded)
    for problem in busy:
        click.echo(str(problem), err=True)
    if busy:
        sys.exit(MAY_PASS)
    return loaded


def refuse(problems: Sequence[Problem]) -> None:
    """Print problems, one a line, and end with exit code 2 if there are any."""
    for problem in problems:
        click.echo(str(problem), err=True)
    if problems:
        sys.exit(REFUSED)


class InvalidInput(click.ClickException):
    """An invalid input of the user: it is printed without a prefix, one line for each problem, with exit code 2."""

    exit_code = REFUSED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message without control characters: names of files and errors of foreign code may contain them."""
        plain = "".join(
            character if character.isprintable() or character in "\n\t" else "?" for character in self.message
        )
        click.echo(plain, file=file, err=file is None)


def refusing(verb: Callable[P, T]) -> Callable[P, T]:
    """Turn the errors by which our own readers refuse files, models and folders into `InvalidInput`; a verb shows no traceback for them."""

    @functools.wraps(verb)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return verb(*arguments, **options)
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends a verb quietly when the pipe it writes to is closed
                raise
            place = f"{error.filename}: " if error.filename is not None else ""
            raise InvalidInput(f"{place}{error.strerror or error}") from error
        except (ValueError, ArithmeticError) as error:
            raise InvalidInput(str(error) or type(error).__name__) from error

    return run
