"""Seeds as tasks of Ray: the results of a process, dead workers, machines without OUT; on a real Ray (slow) and on a fake one."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import psutil
import pytest
from click.testing import CliRunner
from free_ports import free_port

from learners.gym.train import train
from runtime.cli.main import main
from runtime.cli.on_ray import seeds as ray_seeds
from runtime.cli.on_ray.seeds import NEEDS_FILES, RESTARTS, Files, SeedEnd, run_seed, train_on_ray


class RayError(Exception):
    """As `ray.exceptions.RayError`."""


class WorkerCrashedError(RayError):
    """As that of Ray."""


class RayTaskError(RayError):
    """As that of Ray."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """What `train_on_ray` uses of Ray, without processes: a task ends when it is waited for.

    Args:
        cpus: of the cluster.
        outcome: returns or raises what a task does; called with its arguments and its attempt, from 1.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, WorkerCrashedError=WorkerCrashedError)

    def __init__(self, cpus: int, outcome: Callable[[list[str], Path, int], SeedEnd]) -> None:
        self.cpus, self._outcome = cpus, outcome
        self.tasks: dict[int, tuple[list[str], str]] = {}
        self.attempts: Counter[str] = Counter()
        self.most, self.cancelled, self.is_shut = 0, list[int](), False
        self._running: set[int] = set()
        self.saved: list[Files | None] = []
        """What each start was given."""

    def remote(self, _function: object) -> FakeRay:
        self.start = SimpleNamespace(remote=self._start)
        return self

    def options(self, **given: Any) -> Any:
        assert given == {"num_cpus": 1, "max_retries": 0}
        return self.start

    def _start(self, words: list[str], folder: str, marker: tuple[str, str], saved: Files | None) -> int:
        assert Path(marker[0]).read_text() == marker[1]
        self.saved.append(saved)
        number = len(self.tasks)
        self.tasks[number] = (words, folder)
        self._running.add(number)
        self.most = max(self.most, len(self._running))
        return number

    def wait(self, tasks: list[int], *, num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        assert (num_returns, timeout > 0) == (1, True)
        return tasks[:1], tasks[1:]

    def get(self, number: int) -> SeedEnd:
        words, folder = self.tasks[number]
        self._running.discard(number)
        self.attempts[folder] += 1
        return self._outcome(words, Path(folder), self.attempts[folder])

    def cancel(self, number: int, *, force: bool) -> None:
        assert force
        self.cancelled.append(number)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def shutdown(self) -> None:
        self.is_shut = True


def on(
    monkeypatch: pytest.MonkeyPatch, ray: FakeRay, folder: Path, seeds: int, workers: int | None = None
) -> tuple[list[int], dict[int, tuple[int, str]], list[str]]:
    """Train seeds on a fake Ray; return those that failed, what was reported of each, and the notes."""
    reported: dict[int, tuple[int, str]] = {}
    notes: list[str] = []
    monkeypatch.setattr(ray_seeds, "start_ray", lambda *_, **__: ray)
    failed = train_on_ray(
        {seed: folder / f"seed-{seed}" for seed in range(seeds)},
        lambda seed: ["train", "CartPole-v1", "--seed", str(seed)],
        lambda seed, code, line: reported.update({seed: (code, line)}),
        notes.append,
        workers=workers,
        address="10.0.0.1:6379",
    )
    assert ray.is_shut
    assert list(folder.glob(".ray-*")) == []
    return failed, reported, notes


def test_a_dead_worker_is_replaced_and_one_that_dies_always_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(words: list[str], folder: Path, attempt: int) -> SeedEnd:
        if folder.name == "seed-1" and attempt == 1:
            raise WorkerCrashedError("killed\nmore")
        if folder.name == "seed-2":
            raise WorkerCrashedError("the node died")
        if folder.name == "seed-3":
            raise RayTaskError(OSError("No space left on device"))
        assert ("--resume" in words) == (attempt > 1)  # it goes on from its last save
        return SeedEnd(3 if folder.name == "seed-4" else 0, "the last line")

    ray = FakeRay(2, outcome)
    failed, reported, notes = on(monkeypatch, ray, tmp_path, 5, workers=8)
    assert failed == [2, 3, 4]
    assert reported[0] == reported[1] == (0, "the last line")
    assert reported[2] == (
        125,
        f"its worker died {RESTARTS + 1} times; the last time WorkerCrashedError: the node died",
    )
    assert reported[3] == (125, "OSError: No space left on device")
    assert reported[4] == (3, "the last line")
    assert "seed 1: its worker died (WorkerCrashedError: killed); the seed is started again" in notes
    assert len(notes) == 1 + RESTARTS
    assert ray.most == 2  # the cores of the cluster, not the 8 that were asked for


def test_fewer_workers_than_cores_are_as_many_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(16, lambda *_: SeedEnd(0, ""))
    assert on(monkeypatch, ray, tmp_path, 5, workers=3)[0] == []
    assert ray.most == 3


def test_files_of_a_machine_without_the_folder_come_back_and_stay_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(_words: list[str], folder: Path, _attempt: int) -> SeedEnd:
        name = "checkpoints/LIVE" if folder.name == "seed-0" else "../seed-0/log"
        return SeedEnd(0, "", {name: (0o600, b"content")})

    failed, reported, _ = on(monkeypatch, FakeRay(1, outcome), tmp_path, 2)
    came = tmp_path / "seed-0" / "checkpoints" / "LIVE"
    assert came.read_bytes() == b"content"
    assert (came.stat().st_mode & 0o777, came.parent.stat().st_mode & 0o777) == (0o600, 0o700)  # as a private key needs
    assert not (tmp_path / "seed-0" / "log").exists()
    assert (failed, "is not below" in reported[1][1]) == ([1], True)


def test_a_machine_without_the_folder_returns_what_the_command_wrote(tmp_path: Path) -> None:
    (tmp_path / "marker").write_text("right")
    end = run_seed(["train", "--help"], str(tmp_path / "seed-0"), (str(tmp_path / "marker"), "of another folder"))
    assert (end.code, b"--out" in end.files["log"][1]) == (0, True)
    assert not (tmp_path / "seed-0").exists()
    end = run_seed(["train", "--help"], str(tmp_path / "seed-0"), (str(tmp_path / "marker"), "right"))
    assert (end.code, end.files) == (0, {})
    assert b"--out" in (tmp_path / "seed-0" / "log").read_bytes()


def test_a_seed_that_resumes_takes_its_files_to_a_machine_without_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, words = (str(tmp_path / "marker"), "none here"), ["train", "--help", "--resume"]
    assert (
        run_seed(words, str(tmp_path / "seed-0"), marker).code == NEEDS_FILES
    )  # it would begin at step 0 without saying so
    end = run_seed(words, str(tmp_path / "seed-0"), marker, {"training/state": (0o600, b"saved")})
    assert (end.code, end.files["training/state"]) == (0, (0o600, b"saved"))

    ray = FakeRay(1, lambda _words, _folder, attempt: SeedEnd(NEEDS_FILES if attempt == 1 else 0, ""))
    for seed in range(2):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "state").write_bytes(b"saved")
    (tmp_path / "seed-1" / "state").write_bytes(b"much too large to be sent")
    monkeypatch.setattr(ray_seeds, "MAX_RETURNED", 20)
    failed, reported, _ = on(monkeypatch, ray, tmp_path, 2)
    assert [None if each is None else each["state"][1] for each in ray.saved] == [None, None, b"saved"]
    assert (failed, reported[0][0], "cannot be resumed" in reported[1][1]) == ([1], 0, True)


def test_workers_of_a_cluster_find_the_file_of_demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(1, lambda *_: SeedEnd(1, "ended"))
    monkeypatch.setattr(ray_seeds, "start_ray", lambda *_, **__: ray)
    monkeypatch.chdir(tmp_path)
    Path("shown.npz").write_bytes(b"episodes")
    given = ["train", "CartPole-v1", "--engine", "ray", "--seeds", "0", "--demonstrations", "shown.npz", "--out", "run"]
    assert CliRunner().invoke(main, given).exit_code == 1
    words = ray.tasks[0][0]
    assert words[words.index("--demonstrations") + 1] == str(tmp_path / "shown.npz")


def test_without_ray_one_line_says_how_to_install_it_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["train", "CartPole-v1", "--engine", "ray", "--workers", "2", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 2
    assert done.output.splitlines() == [done.output.strip()]
    assert "pip install 'reflexd[fleet]'" in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(
    find_spec("ray") is None, reason="needs Ray; imported before its settings are made, it has no token"
)
def test_a_cluster_that_does_not_answer_is_named_in_one_line(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    given = ["train", "CartPole-v1", "--engine", "ray", "--ray-address", address, "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 2
    assert done.output.splitlines() == [f"Ray at {address} does not answer: [Errno 111] Connection refused"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--ray-address", "a:1"], "--ray-address belongs to --engine ray"),
        (["--workers", "2"], "--workers belongs to several seeds"),
        (["--engine", "ray", "--seeds", "0-1", "--seed", "3"], "--seed and --seeds exclude each other"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, given: list[str], problem: str) -> None:
    done = CliRunner().invoke(main, ["train", "CartPole-v1", "--out", str(tmp_path / "run"), *given])
    assert (done.exit_code, problem in done.output) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_real_ray_gives_the_results_of_a_process_also_after_its_worker_was_killed(tmp_path: Path) -> None:
    reported: dict[int, tuple[int, str]] = {}
    notes: list[str] = []
    killed = threading.Event()

    def kill() -> None:
        """Kill the first worker that trains."""
        while not killed.is_set():
            for each in psutil.Process().children(recursive=True):
                try:
                    if "ray::run_seed" in each.name() + " ".join(each.cmdline()) and each.children():
                        each.kill()
                        killed.set()
                        return
                except psutil.Error:
                    continue
            time.sleep(0.05)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    failed = train_on_ray(
        {seed: tmp_path / f"seed-{seed}" for seed in range(2)},
        lambda seed: ["train", "CartPole-v1", "--seed", str(seed), "--steps", "300"],
        lambda seed, code, line: reported.update({seed: (code, line)}),
        notes.append,
        workers=2,
        address=None,
    )
    killed.set()
    killer.join()
    assert (failed, len(notes), {code for code, _ in reported.values()}) == ([], 1, {0})
    for seed in range(2):
        here = train("CartPole-v1", 300, seed, tmp_path / f"here-{seed}", progress=False)
        there = orjson.loads((tmp_path / f"seed-{seed}" / "results.json").read_bytes())
        for name in ("final", "evaluations", "updates", "algorithm", "settings"):
            assert there[name] == orjson.loads(orjson.dumps(here[name])), name
