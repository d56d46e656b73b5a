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
from lock_packages import CUDA, ENTRY, FILES, RUN, TEST, entries, with_other_hashes
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = {file: entries((ROOT / file).read_text()) for file in FILES}
BUILD, MAIN, GPU, MORE = FILES


def version(lines: str) -> str:
    found = ENTRY.match(lines)
    assert found is not None
    return found["version"]


def pip_lines(folder: Path) -> list[list[str]]:
    """What `make` would have pip do in a fresh folder."""
    command = ["make", "--dry-run", "--always-make", f"VENV={folder}", f"{folder}/.test"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in done.stdout.splitlines() if "/pip " in line]
    return [shlex.split(line.split("|| ")[-1]) for line in lines]


@pytest.mark.parametrize("file", FILES)
def test_every_line_is_an_exact_version_with_hashes(file: str) -> None:
    text = (ROOT / file).read_text()
    found = entries(text)
    assert len(found) >= 5
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
            versions.setdefault(name, set()).add(version(lines))
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
    assert all(CUDA.match(name) for name in LOCKED[GPU])


def test_make_installs_from_the_network_only_with_hashes(tmp_path: Path) -> None:
    lines = pip_lines(tmp_path / "venv")
    from_files = [line[line.index("--requirement") + 1] for line in lines if "--require-hashes" in line]
    assert from_files == [BUILD, MAIN, GPU, MORE]
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


def test_a_hash_from_elsewhere_is_added_once() -> None:
    torch = LOCKED[MAIN]["torch"]
    assert with_other_hashes("torch", torch) == torch
    shorter = torch.rsplit(" \\\n", 1)[0] + "\n"
    assert with_other_hashes("torch", shorter) == torch
    assert with_other_hashes("six", LOCKED[MAIN]["six"]) == LOCKED[MAIN]["six"]
