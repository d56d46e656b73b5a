"""Train several seeds on Ray (`reflexd train --engine ray`): the same command for each seed as without Ray, on the machines of a cluster.

A task of Ray runs the command in a process of its own with one thread, so a seed gives the same results as in a process here. The process
ends with its worker, so that no seed is trained twice at once. Where the worker's machine has the folder OUT, it writes there. Elsewhere it
writes to a folder of its own, and the files come back at the end.

A seed is started again when its worker dies, at most `RESTARTS` times: where it wrote to OUT, it goes on from its last save. A training that
is resumed takes what was saved below OUT along to a machine without it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learners.gym.seeds import end_by, last_line, stop_signals
from runtime.process.child import with_parent_death
from runtime.process.ray_cluster import start_ray

RESTARTS = 2
"""Times that a seed is started again after its worker died."""
POLL_S = 0.2
DIED = 125
"""Exit code that is reported of a seed with workers that died too often."""
MAX_RETURNED = 512 * 2**20
"""Bytes of the files of one seed that come back from another machine."""
LOG = "log"
NEEDS_FILES = -1
"""Exit code of a seed that was not begun: it resumes, and its machine has neither OUT nor the files of the seed."""
Files = dict[str, tuple[int, bytes]]
"""Mode and content by path below the folder of a seed."""


@dataclass(frozen=True, slots=True)
class SeedEnd:
    """How the process of one seed ended."""

    code: int
    line: str
    """The last one of its output."""
    files: Files = field(default_factory=dict)
    """Where the machine does not have OUT."""


def run_seed(words: Sequence[str], folder: str, marker: tuple[str, str], saved: Files | None = None) -> SeedEnd:
    """Run the command of one seed on the machine of a worker, and wait for its end.

    Args:
        words: arguments of `reflexd`, up to the folder.
        folder: of the seed.
        marker: path and content of a file; where this machine has it, it has OUT.
        saved: the files of the seed, for a machine without OUT; None if they were not sent.

    Raises:
        OSError: the process cannot be started.
        ValueError: the files are too large to come back.
    """
    path, content = marker
    try:
        is_shared = Path(path).read_text() == content
    except OSError:
        is_shared = False
    if is_shared:
        return _run(words, Path(folder))
    if saved is None and "--resume" in words:
        return SeedEnd(NEEDS_FILES, "")
    with tempfile.TemporaryDirectory(prefix="reflexd-seed-") as own:
        _store(Path(own), saved or {})
        end = _run(words, Path(own))
        return SeedEnd(end.code, end.line, _files_of(Path(own)))


def _run(words: Sequence[str], folder: Path) -> SeedEnd:
    folder.mkdir(parents=True, exist_ok=True)
    command = with_parent_death([sys.executable, "-m", "runtime.cli", *words, "--out", str(folder)])
    with (folder / LOG).open("wb") as output:
        code = subprocess.run(  # noqa: S603 - our own program
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    return SeedEnd(code, last_line(folder / LOG))


def _files_of(folder: Path) -> Files:
    """Return the files below a folder.

    Raises:
        ValueError: they are larger than `MAX_RETURNED`.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if (size := sum(path.stat().st_size for path in paths)) > MAX_RETURNED:
        raise ValueError(f"{size} bytes of files of one seed; at most {MAX_RETURNED} are sent")
    return {str(path.relative_to(folder)): (path.stat().st_mode & 0o777, path.read_bytes()) for path in paths}


def train_on_ray(
    folders: dict[int, Path],
    words: Callable[[int], list[str]],
    report: Callable[[int, int, str], None],
    note: Callable[[str], None],
    *,
    workers: int | None,
    address: str | None,
    ready: Callable[[], None] = lambda: None,
) -> list[int]:
    """Train each seed as a task of Ray; return the seeds that failed.

    SIGTERM and SIGINT end all of them first. Only the main thread may call this.

    Args:
        folders: by seed, its folder.
        words: returns the arguments of `reflexd` for a seed, without its folder.
        report: called after each with the seed, its exit code and the last line of its output.
        note: called with a sentence when a seed is started again.
        workers: seeds at once; default and at most: the cores of Ray.
        address: of a cluster; None for a local Ray.
        ready: called once Ray runs, before anything is trained.

    Raises:
        RayMissing: Ray is not installed.
        ConnectionError: no cluster answers.
        SystemExit: SIGTERM arrived.
        KeyboardInterrupt: SIGINT arrived.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would train slower than a process
    ray = start_ray(address, min(workers or cores, cores), "reflexd-train", log_to_driver=False)
    try:
        with stop_signals() as received:  # after Ray, which sets its own
            ready()
            with _marker(next(iter(folders.values())).parent) as marker:
                most = max(1, int(ray.cluster_resources().get("CPU", 1)))
                run = _Seeds(ray, folders, words, report, note, marker)
                return run.all(min(workers or most, most), received)
    finally:
        ray.shutdown()


@contextmanager
def _marker(out: Path) -> Iterator[tuple[str, str]]:
    """Give path and content of a file below OUT: a machine that reads it there has OUT."""
    out.mkdir(parents=True, exist_ok=True)
    path, content = out / f".ray-{secrets.token_hex(8)}", secrets.token_hex(16)
    path.write_text(content)
    try:
        yield str(path.resolve()), content
    finally:
        path.unlink(missing_ok=True)


class _Seeds:
    """The seeds of one call, and what became of them."""

    def __init__(
        self,
        ray: Any,
        folders: dict[int, Path],
        words: Callable[[int], list[str]],
        report: Callable[[int, int, str], None],
        note: Callable[[str], None],
        marker: tuple[str, str],
    ) -> None:
        self._ray, self._folders, self._words = ray, folders, words
        self._report, self._note, self._marker = report, note, marker
        # a worker that dies is no reason for Ray to begin again: the seed may go on from its last save
        self._task = ray.remote(run_seed).options(num_cpus=1, max_retries=0)
        self._running: dict[Any, int] = {}
        self._died: Counter[int] = Counter()
        self._sends: set[int] = set()
        """Seeds that go to a machine without OUT and resume."""
        self._failed: list[int] = []

    def all(self, most: int, received: list[int]) -> list[int]:
        """Train all seeds, `most` at once, until a signal is received; return those that failed."""
        waiting = list(self._folders)
        try:
            while (waiting or self._running) and not received:
                while waiting and len(self._running) < most:
                    self._start(waiting.pop(0))
                if not self._running:  # those that remained could not be started
                    continue
                ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=POLL_S)
                for each in ended:
                    waiting += self._ended(each, self._running.pop(each))
        finally:
            for each in self._running:
                self._ray.cancel(each, force=True)
        end_by(received)
        return sorted(self._failed)

    def _start(self, seed: int) -> None:
        words = self._words(seed)
        again = ["--resume"] if self._died[seed] and "--resume" not in words else []
        folder = self._folders[seed].resolve()
        try:
            saved = _files_of(folder) if seed in self._sends else None
        except (OSError, ValueError) as error:
            self._fail(seed, f"it cannot be resumed on another machine: {error}")
            return
        self._running[self._task.remote([*words, *again], str(folder), self._marker, saved)] = seed

    def _ended(self, task: Any, seed: int) -> list[int]:
        """Note the end of a seed; return it where it has to be started again."""
        errors = self._ray.exceptions
        try:
            end: SeedEnd = self._ray.get(task)
            if end.code == NEEDS_FILES:
                self._sends.add(seed)
                return [seed]
            _store(self._folders[seed], end.files)
        except (
            errors.RayTaskError
        ) as error:  # of our own function, as on a full disk: another attempt would fail as well
            self._fail(seed, f"{type(error.cause).__name__}: {error.cause}")
            return []
        except OSError as error:
            self._fail(seed, f"its files cannot be written here: {error}")
            return []
        except errors.RayError as error:
            self._died[seed] += 1
            reason = str(error).splitlines()[0] if str(error) else ""
            reason = f"{type(error).__name__}: {reason}"
            if self._died[seed] > RESTARTS:
                self._fail(seed, f"its worker died {self._died[seed]} times; the last time {reason}")
                return []
            self._note(f"seed {seed}: its worker died ({reason}); the seed is started again")
            return [seed]
        self._failed += [seed] if end.code else []
        self._report(seed, end.code, end.line)
        return []

    def _fail(self, seed: int, reason: str) -> None:
        self._failed.append(seed)
        self._report(seed, DIED, reason)


def _store(folder: Path, files: Files) -> None:
    """Write the files that came from another machine; a private key among them stays private.

    Raises:
        OSError: the disk refuses.
    """
    for name, (mode, content) in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise OSError(f"{name} is not below {folder}")
        _make_folders(folder, path.parent)
        path.unlink(missing_ok=True)  # an older one may be open to more readers
        path.touch(mode | 0o200, exist_ok=False)
        path.write_bytes(content)


def _make_folders(seed: Path, folder: Path) -> None:
    """Make the folders of a file; those below the seed's are private, as where they were made first."""
    seed.mkdir(parents=True, exist_ok=True)
    for each in [*reversed(folder.relative_to(seed).parents), folder.relative_to(seed)]:
        if not (seed / each).is_dir():
            (seed / each).mkdir(mode=0o700)
