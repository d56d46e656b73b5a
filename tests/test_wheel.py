"""What is built is what is used: wheel and sdist, installed where there is no checkout, answer from their own files.

The new environment is empty. Wheels of the dependencies are not fetched again: a path line lends it those of the tests'
environment, which Python searches last and without their `.pth` files, so the checkout installed there stays out of sight.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "runs", "mutants", "__pycache__", "images")


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment in which a built distribution is installed."""

    python: Path
    elsewhere: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        stored = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return subprocess.run(
            command, cwd=self.elsewhere, env=stored, capture_output=True, text=True, timeout=120, check=False
        )

    def verb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.python.parent / "reflexd"), *arguments)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the tree as it is, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-1_500:] + done.stderr[-1_500:]
    shutil.rmtree(folder / "tree")  # a copy of these very tests, and of the passwords they are written with
    return folder / "dist"


def install(package: Path, folder: Path) -> Installed:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    lent = sysconfig.get_paths()["purelib"]
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    (site / "zz-lent.pth").write_text(f"{lent}\n")
    done = subprocess.run(
        [*pip, "--no-build-isolation", str(package)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Installed(python, elsewhere)


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(next(built.glob(request.param)), tmp_path_factory.mktemp("installed"))


def test_every_package_comes_from_the_new_environment(installed: Installed) -> None:
    code = (
        "import json, runtime, sensors, actuators, learners, configs, importlib.metadata as m; "
        "print(json.dumps([p.__path__[0] for p in (runtime, sensors, actuators, learners, configs)] + [m.version('reflexd')]))"
    )
    done = installed.run(str(installed.python), "-c", code)
    assert done.returncode == 0, done.stderr
    *places, version = json.loads(done.stdout)
    home = installed.python.parents[1]
    assert all(Path(place).is_relative_to(home) for place in places), places
    assert version


def test_help_check_and_schema_answer(installed: Installed) -> None:
    assert "reflexd demo" in installed.verb("--help").stdout
    shutil.copy(ROOT / "configs" / "robot.yaml", installed.elsewhere / "robot.yaml")
    good = installed.verb("check", "robot.yaml")
    assert good.returncode == 0, good.stdout + good.stderr
    (installed.elsewhere / "bad.yaml").write_text("agent: x\ntick: {rate_hz: fast}\n")
    bad = installed.verb("check", "bad.yaml")
    assert bad.returncode == 2
    assert "bad.yaml:2" in bad.stdout + bad.stderr
    assert json.loads(installed.verb("check", "--schema").stdout)["type"] == "object"


def test_the_demo_its_page_and_its_words_are_inside(installed: Installed) -> None:
    code = (
        "from importlib.resources import files, as_file\nfrom runtime.config.loader import load\n"
        "with as_file(files('configs') / 'demo.yaml') as path: print(path, load(path).config.agent)\n"
        "from runtime.dashboard.access.sign_in import static_files\nassert 'app.js' in static_files()\n"
        "assert any(each.name.endswith('.wav') for each in (files('actuators') / 'sim' / 'spoken_words').iterdir())\n"
    )
    done = installed.run(str(installed.python), "-c", code)
    assert done.returncode == 0, done.stderr
    path, agent = done.stdout.split()
    assert agent == "demo"
    assert Path(path).is_relative_to(installed.python.parents[1])


def test_wheel_and_sdist_hold_the_same_packages_and_no_state(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        sources = {name.partition("/")[2] for name in sdist.getnames()}
    assert files <= sources
    for folder in ("runtime", "sensors", "actuators", "learners"):
        tree = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert tree <= files, tree - files
    assert not {name for name in files if name.startswith("tests/") or ".reflexd" in name or name.endswith(".pyc")}
