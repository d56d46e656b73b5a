"""`reflexd service install`: the unit systemd takes, its exposure, and what is refused with a remedy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime.cli import service
from runtime.cli.service import CannotInstall, install, objections, render, verify

ROOT = Path(__file__).parents[3]
SETTINGS = """
agent: robot
state_dir: robot
streams: {joints: {kind: telemetry, fields: [a]}}
actuators: {head: {kind: choice, choices: [a, b], safe: a}}
"""
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="apt-get install systemd")
TRUE = Path("/bin/true")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A settings file in a place the unit may see: the tests' own folder counts as one."""
    monkeypatch.setattr(service, "HIDDEN", (Path("/home"),))
    path = tmp_path / "robot file.yaml"
    path.write_text(SETTINGS)
    return path


@needs_systemd
def test_the_unit_is_written_verified_and_closed(config: Path, tmp_path: Path) -> None:
    done = install(config, root=tmp_path, executable=TRUE, credentials=("mqtt-password:/etc/reflexd/mqtt",))
    text = done.unit.read_text()
    assert done.unit == tmp_path / "etc/systemd/system/reflexd.service"
    assert done.exposure <= 1.5
    assert "@" not in text.split("[Unit]")[1].replace("@system-service", "").replace("@privileged", "").replace(
        "@resources", ""
    )
    assert f"ExecStart=/bin/true run {tmp_path}/robot\\x20file.yaml" in text
    assert "LoadCredential=mqtt-password:/etc/reflexd/mqtt" in text


def test_the_unit_says_what_it_must() -> None:
    text = render(Path("/etc/reflexd/a.yaml"), Path("/opt/reflexd/bin/reflexd"))
    for line in (
        "Type=notify",
        "WatchdogSec=10",
        "DynamicUser=yes",
        "StateDirectory=reflexd",
        "CacheDirectory=reflexd",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "DeviceAllow=char-video4linux rw",
        "DeviceAllow=char-alsa rw",
        "DeviceAllow=char-drm rw",
    ):
        assert line in text.splitlines(), line


@needs_systemd
def test_a_unit_systemd_does_not_take_or_that_is_too_open_is_refused() -> None:
    good = render(Path("/etc/reflexd/a.yaml"), TRUE)
    assert verify(good) <= 1.5
    with pytest.raises(CannotInstall, match="Failed to parse"):
        verify(good.replace("WatchdogSec=10", "WatchdogSec=soon"))
    with pytest.raises(CannotInstall, match="exposure"):
        verify(
            good.replace("ProtectSystem=strict", "").replace("NoNewPrivileges=yes", "").replace("DynamicUser=yes", "")
        )


@needs_systemd
def test_the_unit_of_the_fleet_server_is_verified_and_closed() -> None:
    text = (ROOT / "configs/systemd/reflexd-fleet.service").read_text()
    command = "ExecStart=/opt/reflexd/bin/reflexd fleet serve /etc/reflexd/fleet.yaml"
    assert command in text.splitlines()
    assert verify(text.replace("/opt/reflexd/bin/reflexd", "/bin/true")) <= 1.5
    own = {line for line in render(Path("/a.yaml"), TRUE).split("# A box around it")[1].splitlines() if "=" in line}
    assert own <= set(text.splitlines())  # no protection of the daemon's unit is missing


def test_what_could_not_work_is_reported_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(SETTINGS.replace("state_dir: robot", "state_dir: /srv/robot"))
    found = "\n".join(objections(path, Path("/home/me/venv/bin/reflexd"), ("no-colon",)))
    assert "/opt/reflexd" in found
    assert "state_dir: /srv/robot cannot be written" in found
    assert "NAME:/ABSOLUTE/FILE" in found
    assert "/etc/reflexd" in "\n".join(objections(Path("/root/a.yaml"), TRUE, ()))


def test_newer_systemd_gets_the_drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    systemctl = tools / "systemctl"
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for version, expected in (("252 (252.38)", []), ("255 (255.4)", ["notify-reload.conf"])):
        systemctl.write_text(f"#!/bin/sh\necho 'systemd {version}'\n")
        systemctl.chmod(0o755)
        written = service._drop_ins(tmp_path)
        assert [path.name for path in written] == expected
    assert "Type=notify-reload" in written[0].read_text()


@needs_systemd
def test_the_verb_says_what_it_wrote_and_what_starts_it(config: Path, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(service.service, ["install", str(config), "--root", str(tmp_path)])
    assert outcome.exit_code in {0, 2}, outcome.output
    if outcome.exit_code == 0:
        assert "systemctl enable --now reflexd" in outcome.output
    broken = tmp_path / "broken.yaml"
    broken.write_text("agent: 1\n")
    outcome = CliRunner().invoke(service.service, ["install", str(broken), "--root", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "broken.yaml" in outcome.output


@needs_systemd
def test_a_dry_run_prints_the_unit_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    text = service.planned(config, executable=TRUE)
    assert f"ExecStart={TRUE} run " in text
    assert config.name.replace(" ", "\\x20") in text
    with pytest.raises(CannotInstall, match="NAME:/ABSOLUTE/FILE"):
        service.planned(config, ("no-colon",), TRUE)
    refused = CliRunner().invoke(service.service, ["install", "/root/a.yaml", "--dry-run", "--root", str(tmp_path)])
    assert refused.exit_code == 2
    assert not (tmp_path / "etc").exists()


def test_uninstall_deletes_the_unit_and_its_drop_in_alone(tmp_path: Path) -> None:
    folder = tmp_path / "etc/systemd/system"
    (folder / "reflexd.service.d").mkdir(parents=True)
    for name in ("reflexd.service", "reflexd.service.d/notify-reload.conf", "other.service"):
        (folder / name).write_text("x")
    done = CliRunner().invoke(service.service, ["uninstall", "--root", str(tmp_path)])
    assert done.exit_code == 0
    assert "daemon-reload" in done.output
    assert [path.name for path in folder.iterdir()] == ["other.service"]
    again = CliRunner().invoke(service.service, ["uninstall", "--root", str(tmp_path)])
    assert "nothing was deleted" in again.output


def test_without_systemd_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(CannotInstall, match="install systemd"):
        verify("")
