"""Write the constraints files, with the hashes of every package: `make lock` (`--upgrade` for newer versions).

`uv pip compile` resolves the packages for Python 3.11 and later on every platform. It lists the hashes of all files that the
package index offers. Versions that a file already names stay, unless they no longer fit `pyproject.toml`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "constraints-build.txt": "What builds the packages without a wheel and installs this project. `make lock` wrote it.",
    "constraints-cpu.txt": "A build of torch without CUDA, taken where pip finds it. `make lock` wrote it.",
    "constraints.txt": "Exact versions and hashes of what `make run` installs. `make lock` wrote it; ranges are in pyproject.toml.",
    "constraints-cuda.txt": "What torch needs beside constraints.txt where its build is for CUDA. `make lock` wrote it.",
    "constraints-test.txt": "What `make test` installs beside constraints.txt. `make lock` wrote it.",
}
BUILD = ("setuptools", "setuptools-scm", "wheel")
"""`seqeval` asks for `setuptools-scm` while it is built."""
RUN, TEST = ("chat", "simulation", "embedded", "mcp"), ("export", "fleet", "uplink", "test")
CUDA = re.compile(r"^(cuda|nvidia|triton)\b")
ELSEWHERE = {"torch==2.13.0+cpu": ("6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",)}
"""Builds that the package index does not have. This one is for Python 3.11 on x86_64 with manylinux_2_28."""
ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)")


def entries(text: str) -> dict[str, str]:
    """Return the lines of each package of a constraints file, by its name in lower case with hyphens."""
    out: dict[str, str] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        found = ENTRY.match(block)
        if found is not None:
            out[re.sub(r"[-_.]+", "-", found["name"]).lower()] = block.rstrip() + "\n"
    return out


def compiled(*arguments: str, pins: Path, given: str = "") -> dict[str, str]:
    """Resolve packages with uv and return their lines.

    Raises:
        subprocess.CalledProcessError: the requirements contradict each other, or the index cannot be read.
    """
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--constraint", str(pins), *arguments]
    done = subprocess.run(command, cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True, check=True)
    return entries(done.stdout)


def without_cuda(torch: str) -> dict[str, str]:
    """Return the lines of the builds of this version of torch that the index does not have."""
    found = {pin: hashes for pin, hashes in ELSEWHERE.items() if torch.startswith(pin.split("+")[0] + " ")}
    return {
        pin.split("==")[0]: " \\\n    ".join((pin, *(f"--hash=sha256:{h}" for h in hashes))) + "\n"
        for pin, hashes in found.items()
    }


def locked(*, upgrade: bool) -> dict[str, dict[str, str]]:
    """Resolve every group; return the lines of each package by file.

    Raises:
        subprocess.CalledProcessError: as `compiled`.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    now = [line for name in FILES if (ROOT / name).exists() for line in entries((ROOT / name).read_text()).values()]
    # a build that the index does not have is no pin: the version that the index has is in constraints.txt
    pins = (
        ""
        if upgrade
        else "\n".join(found[0] for line in now if (found := ENTRY.match(line)) and found[0] not in ELSEWHERE)
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pins.txt"
        file.write_text(pins)
        extras = [f"--extra={each}" for each in (*RUN, *TEST)]
        everything = compiled("pyproject.toml", *extras, pins=file)
        file.write_text("\n".join(found[0] for line in everything.values() if (found := ENTRY.match(line))))
        run = compiled("pyproject.toml", *extras[: len(RUN)], pins=file)
        build = compiled("-", pins=file, given="\n".join(BUILD))
    bundled = "\n".join(project["optional-dependencies"]["bundled"])
    run |= compiled("--no-deps", "-", pins=Path("/dev/null"), given=bundled)
    cuda = {name: lines for name, lines in run.items() if CUDA.match(name)}
    run = {name: lines for name, lines in run.items() if name not in cuda}
    test = {name: lines for name, lines in everything.items() if name not in run and name not in cuda}
    return dict(zip(FILES, (build, without_cuda(run["torch"]), run, cuda, test), strict=True))


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    for file, packages in locked(upgrade=parser.parse_args().upgrade).items():
        text = f"# {FILES[file]}\n" + "".join(packages[name] for name in sorted(packages))
        (ROOT / file).write_text(text)
        print(f"{file}: {len(packages)} packages")


if __name__ == "__main__":
    main()
