"""A small disk of its own for tests of full and read-only disks: a tmpfs, where this user may mount one."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave no free byte: large pieces first, then small ones."""
        for size in (1 << 20, 1 << 12):
            n = 0
            while True:
                try:
                    (self.folder / f"fill-{size}-{n}").write_bytes(bytes(size))
                except OSError:
                    break
                n += 1

    def free(self) -> None:
        """Delete what `fill` wrote."""
        for path in self.folder.glob("fill-*"):
            path.unlink()

    def remount(self, options: str) -> None:
        """Change the mount's options, such as `ro` or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[SmallDisk]:
    """Mount a tmpfs with these options; skip the test where that is not permitted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {done.stderr.decode().strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Let every `open` of this process fail with EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
