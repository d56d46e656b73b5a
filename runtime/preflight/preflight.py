"""Find what keeps a daemon with valid settings from starting: all that can be checked without hardware and without a broker.

`reflexd check` prints it and `reflexd run` refuses to start over it, so that no child is restarted over its settings. Sensors,
rewards and commands are built as the agent and the gate build them and thrown away; nothing is opened, bound ports are
closed at once. Models are looked up, not loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from runtime.config.errors import Found, Problem, dotted, split_path
from runtime.config.lint import lint
from runtime.config.loader import ConfigError, LoadedConfig, load
from runtime.config.ports import busy_ports
from runtime.config.schema import Config
from runtime.preflight.component_checks import (
    check_actuators,
    check_broker,
    check_fleet,
    check_plant,
    check_rewards,
    check_sound_files,
    check_streams,
)
from runtime.preflight.file_checks import check_signing_key, check_state_folder, check_tls
from runtime.preflight.model_checks import (
    check_deliberator,
    check_device,
    check_encoders,
    check_graphs,
    check_mirror,
    check_policy,
    check_speech,
    check_tasks,
)


def problems_and_warnings(path: Path, *, ports: bool) -> tuple[list[Problem], list[Problem], LoadedConfig | None]:
    """Return what `reflexd check` prints: problems, warnings, and the settings where they could be read.

    Args:
        path: the settings file.
        ports: whether to try the ports that the daemon would listen on.
    """
    try:
        loaded = load(path)
    except ConfigError as error:
        return list(error.problems), [], None
    problems = preflight(path, loaded)
    if problems:
        return problems, [], loaded
    cut = _problems(path, loaded, (check_sound_files,))
    return [], [*lint(path, loaded), *cut, *(busy_ports(path, loaded) if ports else ())], loaded


def preflight(path: Path, loaded: LoadedConfig) -> list[Problem]:
    """Return everything that would keep a daemon with these settings from starting."""
    checks: tuple[Callable[[Config], Found], ...] = (
        check_streams, check_actuators, check_rewards, check_encoders, check_tasks, check_speech, check_deliberator, check_policy, check_mirror, check_device, check_graphs, check_plant, check_state_folder, check_signing_key, check_tls, check_broker, check_fleet,
    )  # fmt: skip
    return _problems(path, loaded, checks)


def _problems(path: Path, loaded: LoadedConfig, checks: Iterable[Callable[[Config], Found]]) -> list[Problem]:
    """Return what the checks find, with lines of the file."""
    problems = []
    for check in checks:
        for where, message, remedy in _found(check, loaded.config):
            named, text = split_path(message)
            place = named if named[: len(where)] == where else where
            problems.append(Problem(path, loaded.line(place), dotted(place), text if named else message, remedy))
    return problems


def _found(check: Callable[[Config], Found], config: Config) -> Found:
    """Yield what a check finds; a path that the system refuses is a problem too."""
    try:
        yield from check(config)
    except OSError as error:
        yield (), f"{error.filename}: {error.strerror}", "correct the path"
