"""Whatever the network delivers to `make run` and `make test` has a hash in a constraints file, and pip refuses the rest."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from lock_packages import CUDA, ENTRY, FILES, RUN, TEST, entries, without_cuda
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = {file: entries((ROOT / file).read_text()) for file in FILES}
BUILD, CPU, MAIN, GPU, MORE = FILES


def version(lines: str) -> str:
    found = ENTRY.match(lines)
    assert found is not None
    return found["version"]


def pip_lines(folder: Path) -> list[list[str]]:
    """What `make` would have pip do in a fresh folder."""
    command = ["make", "--dry-run", "--always-make", f"VENV={folder}", f"{folder}/.test"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in done.stdout.splitlines() if "/pip " in line]
    return [shlex.split(line.removesuffix(" 2>/dev/null || true").split("|| ")[-1]) for line in lines]


@pytest.mark.parametrize("file", FILES)
def test_every_line_is_an_exact_version_with_hashes(file: str) -> None:
    text = (ROOT / file).read_text()
    found = entries(text)
    assert len(found) >= (1 if file == CPU else 5)
    assert sum(1 for line in text.splitlines() if not line.startswith(("#", " "))) == len(found)
    assert all("--hash=sha256:" in lines and ENTRY.match(lines) for lines in found.values())
    assert "://" not in text  # no address of an index


def test_the_files_have_what_the_project_requires() -> None:
    extras = PROJECT["optional-dependencies"]
    run = [*PROJECT["dependencies"], *extras["bundled"], *(each for name in RUN for each in extras[name])]
    test = [*run, *(each for name in TEST for each in extras[name])]
    for wanted, files in ((run, [MAIN]), (test, [MAIN, MORE])):
        have = {name: version(lines) for file in files for name, lines in LOCKED[file].items()}
        for each in map(Requirement, wanted):
            assert have[canonicalize_name(each.name)] in each.specifier, each


def test_no_version_contradicts_another_file() -> None:
    versions: dict[str, set[str]] = {}
    for packages in LOCKED.values():
        for name, lines in packages.items():
            versions.setdefault(name, set()).add(version(lines).split("+")[0])
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
    assert all(CUDA.match(name) for name in LOCKED[GPU])


def test_make_installs_from_the_network_only_with_hashes(tmp_path: Path) -> None:
    lines = pip_lines(tmp_path / "venv")
    from_files = [line[line.index("--requirement") + 1] for line in lines if "--require-hashes" in line]
    assert from_files == [BUILD, CPU, MAIN, GPU, MORE]
    assert all({"--no-deps", "--no-build-isolation"} <= set(line) for line in lines)
    assert [line[-2:] for line in lines if "--require-hashes" not in line] == [["--editable", "."]]


def test_a_swapped_package_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / f"six-{version(LOCKED[MAIN]['six'])}-py2.py3-none-any.whl", "w") as wheel:
        wheel.writestr("six.py", "print('swapped')")
    (tmp_path / "one.txt").write_text(LOCKED[MAIN]["six"])
    install = next(line for line in pip_lines(tmp_path / "venv") if MAIN in line)
    arguments = [str(tmp_path / "one.txt") if each == MAIN else each for each in install[1:]]
    alone = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--target", str(tmp_path / "site")],
        env={"PATH": os.environ["PATH"]} | alone, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "HASHES" in done.stderr
    assert not (tmp_path / "site").exists()


def test_the_small_build_of_torch_is_listed_for_the_locked_version_alone() -> None:
    assert without_cuda(LOCKED[MAIN]["torch"]) == LOCKED[CPU]
    assert version(LOCKED[CPU]["torch"]) == f"{version(LOCKED[MAIN]['torch'])}+cpu"
    assert without_cuda("torch==99.0 \\\n    --hash=sha256:0\n") == {}
