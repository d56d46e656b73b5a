"""Ask the package index whether every locked package has a wheel for 64-bit ARM with the Python and glibc of Debian 12.

A package with an installed wheel for any platform is in order without a question; pip is asked about the others. It downloads
nothing. The exit code is 1 if a wheel is missing. `python tests/aarch64_wheels.py [--constraints FILE]`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MACHINE = "aarch64"
GLIBC = 36
"""Of Debian 12: 2.36."""
PLATFORMS = (
    "manylinux2014_aarch64",
    "linux_aarch64",
    *(f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1)),
)
AT_ONCE = 4


def locked(path: Path) -> Iterator[Requirement]:
    """Yield the pinned packages of a file that apply to the machine."""
    environment = {**default_environment(), "platform_machine": MACHINE}
    for line in path.read_text().splitlines():
        text = line.split("#")[0].split("--hash")[0].strip(" \\")
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement


def runs_anywhere(name: str) -> bool:
    """Return whether the installed wheel of a package is for any platform; False where it is not installed."""
    try:
        wheel = distribution(name).read_text("WHEEL") or ""
    except PackageNotFoundError:
        return False
    tags = [line.partition(": ")[2] for line in wheel.splitlines() if line.startswith("Tag: ")]
    return any(tag.endswith("-none-any") for tag in tags)


def has_wheel(requirement: Requirement) -> bool:
    """Return whether the index has a wheel of this version, as pip reads it."""
    version = next(iter(requirement.specifier)).version.partition("+")[0]
    platforms = [word for each in PLATFORMS for word in ("--platform", each)]
    python = ["--python-version", "311", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
    command = [sys.executable, "-m", "pip", "index", "versions", requirement.name, "--only-binary=:all:", "--pre"]
    done = subprocess.run([*command, *python, *platforms], capture_output=True, text=True, check=False)
    available = next((line for line in done.stdout.splitlines() if line.startswith("Available versions: ")), "")
    return version in {each.strip() for each in available.partition(": ")[2].split(",")}


def main() -> int:
    """Print the packages without a wheel, and the count of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt", help="file of pinned packages")
    packages = list(locked(parser.parse_args().constraints))
    asked = [each for each in packages if not runs_anywhere(each.name)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(has_wheel, asked))
    missing = [str(each) for each, there in zip(asked, found, strict=True) if not there]
    for each in missing:
        print(f"no wheel for {MACHINE}: {each}")
    print(f"{len(packages)} packages: {len(packages) - len(asked)} for any platform, {sum(found)} with a wheel for it")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
