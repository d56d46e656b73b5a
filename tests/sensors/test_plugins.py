"""A plug-in is found by its entry point; what is missing, ambiguous or broken is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from sensors.plugins import PluginError, load_plugin

GROUP = "reflexd.sensors"


def install(folder: Path, package: str, points: str, code: str) -> None:
    """Put a package of one module into a folder of the path, as pip would."""
    info = folder / f"{package}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    (folder / f"{package}.py").write_text(code)


def test_plugin_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "thermometer_one", "warmth = thermometer_one:make", "def make(): return 20.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugin(GROUP, "warmth")() == 20.5


def test_missing_plugin_names_those_that_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "thermometer_two", "warmth2 = thermometer_two:make", "def make(): return 20.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"no entry point 'cold' in reflexd\.sensors; installed: .*warmth2"):
        load_plugin(GROUP, "cold")


def test_two_packages_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("thermometer_three", "thermometer_four"):
        install(tmp_path, package, f"warmth3 = {package}:make", "def make(): return 20.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="2 packages offer 'warmth3'"):
        load_plugin(GROUP, "warmth3")


@pytest.mark.parametrize(
    ("code", "reason"), [("raise OSError('no driver')", "OSError: no driver"), ("x = 1", "AttributeError")]
)
def test_plugin_that_cannot_be_imported_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    package = f"broken_{len(code)}"
    install(tmp_path, package, f"{package} = {package}:make", code + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=reason):
        load_plugin(GROUP, package)
