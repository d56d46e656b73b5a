"""Write the systemd unit (`reflexd service install CONFIG`), after systemd has verified it.

The unit is `configs/systemd/reflexd.service` with the command, the settings file and the credentials filled in. It is verified
with `systemd-analyze verify`, and its exposure is measured with `systemd-analyze security`, before it is installed. The verb
starts nothing: it prints the command that does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import click

from learners.files import write_atomically
from runtime.cli.options import show, takes_settings, with_json
from runtime.config.loader import ConfigError, load

UNIT = "reflexd.service"
STATE = Path("/var/lib/reflexd")
HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - places the unit cannot see
MAX_EXPOSURE = 1.5
NOTIFY_RELOAD = 253
_CREDENTIAL = re.compile(r"^[A-Za-z0-9_.-]{1,64}:/\S+$")


class CannotInstall(Exception):  # noqa: N818 - reads as what happened
    """The service would not work with these arguments; `str` lists every reason with its remedy."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What was written."""

    unit: Path
    drop_ins: tuple[Path, ...]
    exposure: float
    """systemd's measure from 0 (closed) to 10."""


def render(config: Path, executable: Path, credentials: tuple[str, ...] = ()) -> str:
    """Return the text of the unit."""
    lines = "\n".join(f"LoadCredential={each}" for each in credentials) or "# none"
    values = {"REFLEXD": _escaped(executable), "CONFIG": _escaped(config), "CREDENTIALS": lines}
    text = (files("configs") / "systemd" / UNIT).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def objections(config: Path, executable: Path, credentials: tuple[str, ...]) -> list[str]:
    """Return every reason why the service would not work, each with its remedy."""
    found = [
        f"{path}: the service cannot read {hidden}; move it, for example to {better}"
        for path, better in ((config, "/etc/reflexd"), (executable, "/opt/reflexd (a virtual environment there)"))
        for hidden in HIDDEN
        if path.is_relative_to(hidden)
    ]
    found += [f"--credential {each}: write NAME:/ABSOLUTE/FILE" for each in credentials if not _CREDENTIAL.match(each)]
    try:
        settings = load(config).config
    except ConfigError as error:
        return [*found, *map(str, error.problems)]
    if settings.state_dir.is_absolute() and not settings.state_dir.is_relative_to(STATE):
        found.append(f"state_dir: {settings.state_dir} cannot be written; use a relative folder or one below {STATE}")
    return found


def verify(text: str) -> float:
    """Verify the unit with systemd; return its exposure from 0 to 10.

    Raises:
        CannotInstall: systemd-analyze is missing, refuses the unit, or measures an exposure above `MAX_EXPOSURE`.
    """
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        raise CannotInstall("systemd-analyze is missing; install systemd")
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder) / UNIT
        unit.write_text(text)
        read = _run(analyze, "verify", str(unit))
        complaints = [line for line in read.stderr.splitlines() if UNIT in line]
        if read.returncode or complaints:
            raise CannotInstall("\n".join(complaints) or read.stderr.strip())
        measured = _run(analyze, "security", "--offline=true", "--no-pager", str(unit))
    level = re.search(r"exposure level for .*: ([\d.]+)", measured.stdout)
    if level is None:
        raise CannotInstall(f"systemd-analyze security gave no level: {measured.stderr.strip()}")
    exposure = float(level[1])
    if exposure > MAX_EXPOSURE:
        raise CannotInstall(f"exposure {exposure} is above {MAX_EXPOSURE}; the unit was edited")
    return exposure


def install(
    config: Path, *, root: Path = Path("/"), executable: Path | None = None, credentials: tuple[str, ...] = ()
) -> Installed:
    """Write the unit below `root` if there is no objection to it.

    Raises:
        CannotInstall: with every reason.
        OSError: the files cannot be written.
    """
    command = executable or Path(sys.executable).with_name("reflexd")
    config = config.absolute()
    found = objections(config, command, credentials)
    if found:
        raise CannotInstall("\n".join(found))
    text = render(config, command, credentials)
    exposure = verify(text)
    folder = root / "etc/systemd/system"
    folder.mkdir(parents=True, exist_ok=True)
    unit = folder / UNIT
    write_atomically(unit, text.encode())
    return Installed(unit, tuple(_drop_ins(folder)), exposure)


def planned(config: Path, credentials: tuple[str, ...] = (), executable: Path | None = None) -> str:
    """Return the text of the unit that `install` would write, after the same checks.

    Raises:
        CannotInstall: with every reason.
    """
    command, config = executable or Path(sys.executable).with_name("reflexd"), config.absolute()
    found = objections(config, command, credentials)
    if found:
        raise CannotInstall("\n".join(found))
    text = render(config, command, credentials)
    verify(text)
    return text


def uninstall(root: Path = Path("/")) -> list[Path]:
    """Delete the unit and its drop-in; the state and the settings remain. Return what was deleted.

    Raises:
        OSError: a file cannot be deleted.
    """
    folder = root / "etc/systemd/system"
    drop_in = folder / f"{UNIT}.d" / "notify-reload.conf"
    gone = [path for path in (folder / UNIT, drop_in) if path.exists()]
    for path in gone:
        path.unlink()
    if drop_in.parent.is_dir() and not any(drop_in.parent.iterdir()):
        drop_in.parent.rmdir()
    return gone


def _drop_ins(folder: Path) -> list[Path]:
    """Write the drop-in for systemd v253 and later, if that version runs."""
    version = re.search(r"systemd (\d+)", _run(shutil.which("systemctl") or "systemctl", "--version").stdout)
    if version is None or int(version[1]) < NOTIFY_RELOAD:
        return []
    target = folder / f"{UNIT}.d" / "notify-reload.conf"
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, (files("configs") / "systemd" / f"{UNIT}.d" / target.name).read_bytes())
    return [target]


def _escaped(path: Path) -> str:
    """Return a path as systemd reads it inside ExecStart=."""
    return str(path).replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace(" ", "\\x20")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - our own words


@click.group()
def service() -> None:
    """Run reflexd under systemd."""


@service.command("install")
@takes_settings("none", required=True)
@click.option(
    "--credential",
    "credentials",
    multiple=True,
    metavar="NAME:FILE",
    help="A secret for the service, as in LoadCredential= of systemd.",
)
@click.option("--root", type=click.Path(file_okay=False, path_type=Path), default=Path("/"), show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the unit and what is wrong with it; write nothing.")
@with_json("the written files and the exposure")
def install_command(config: Path, credentials: tuple[str, ...], root: Path, *, dry_run: bool, as_json: bool) -> None:
    """Write and verify the systemd unit for CONFIG.

    Secrets: `reflexd service install robot.yaml --credential mqtt-password:/etc/reflexd/mqtt-password`, and in the settings
    `password: "${file:/run/credentials/reflexd.service/mqtt-password}"`.
    """
    try:
        if dry_run:
            unit = planned(config, credentials)
            show({"unit": unit}, unit, as_json=as_json)
            return
        done = install(config, root=root, credentials=credentials)
    except (CannotInstall, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    written = [str(path) for path in (done.unit, *done.drop_ins)]
    lines = [
        *(f"written: {path}" for path in written),
        f"verified; exposure {done.exposure} (0 is closed, 10 is open)",
        "start it:  systemctl daemon-reload && systemctl enable --now reflexd",
    ]
    show({"written": written, "exposure": done.exposure}, "\n".join(lines), as_json=as_json)


@service.command("uninstall")
@click.option("--root", type=click.Path(file_okay=False, path_type=Path), default=Path("/"), show_default=True)
@with_json("the deleted files")
def uninstall_command(root: Path, *, as_json: bool) -> None:
    """Delete the systemd unit; settings and state remain.

    Example: systemctl disable --now reflexd; reflexd service uninstall
    """
    try:
        gone = uninstall(root)
    except OSError as error:
        click.echo(f"{error.filename}: {error.strerror}", err=True)
        sys.exit(2)
    lines = [*(f"deleted: {path}" for path in gone), "tell systemd:  systemctl daemon-reload"]
    nothing = f"there is no unit below {root}; nothing was deleted"
    show({"deleted": [str(path) for path in gone]}, "\n".join(lines) if gone else nothing, as_json=as_json)
