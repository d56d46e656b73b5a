"""Fine-tune with several workers on Ray (`reflexd finetune --engine ray`): each trains its share of every batch.

`ray.train.torch.TorchTrainer` starts the workers and joins them in a process group of torch: gloo on processors, NCCL on GPUs. Each worker
reads the files of the examples and the model. The first one writes OUT, so its machine must have that folder, too.

A worker that dies ends the others. All are then started again, at most `RESTARTS` times, and go on from the last save below OUT.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from learners.gym.seeds import end_by, stop_signals
from runtime.process.ray_cluster import start_ray, torch_trainer

RESTARTS = 2
"""Times that all workers are started again after one of them died."""
POLL_S = 0.2
COLLECTIVE_S = 24 * 3600
"""Longest time that workers wait for each other: the first one may measure a large test split meanwhile. A worker that died ends the
others earlier."""
PROGRESS = "progress.json"
UNHEALTHY = "WorkerHealthCheckFailedError"
"""Ray's error of a worker that does not answer; it has no public name."""


class WorkerRefusal(ValueError):  # noqa: N818 - reads as what happened
    """A worker refuses its input; `str` names worker, machine and reason in one line."""


def train_share(call: dict[str, Any]) -> None:
    """Fine-tune as one worker of the process group of this process.

    Args:
        call: arguments of `learners.finetune.few_labels.finetune.finetune`, and `run_folder`: where the first worker reports progress. It
            exists where the machine has OUT.

    Raises:
        WorkerRefusal: files, model or options cannot be used.
    """
    from learners.data_parallel import TorchWorkers
    from learners.finetune.few_labels.finetune import finetune
    from learners.finetune.trainer import TrainingProgress

    group, folder = TorchWorkers(), Path(call.pop("run_folder"))

    def report(progress: TrainingProgress) -> None:
        draft = folder / f"{PROGRESS}.new"
        draft.write_bytes(orjson.dumps(asdict(progress)))
        draft.replace(folder / PROGRESS)

    try:
        if not group.rank and not folder.is_dir():
            raise ValueError(f"{folder.parent} is not the folder of the machine that began the run; share it")  # noqa: TRY301
        finetune(**call, group=group, on_progress=None if group.rank else report)
    except (ValueError, OSError, ArithmeticError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WorkerRefusal(f"worker {group.rank} on {socket.gethostname()}: {reason}") from error


def finetune_on_ray(
    call: dict[str, Any],
    *,
    workers: int,
    address: str | None,
    on_progress: Callable[[dict[str, Any]], None],
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Fine-tune with several workers; return the report.

    SIGTERM and SIGINT end the workers first. Only the main thread may call this.

    Args:
        call: arguments of `learners.finetune.few_labels.finetune.finetune`, with absolute paths.
        workers: how many train; each has a core, or a GPU where Ray has some.
        address: of a cluster; None for a local Ray.
        on_progress: called with the fields of `TrainingProgress` of the first worker.
        note: called with a sentence when the workers are started again.

    Raises:
        RayMissing: Ray is not installed.
        ConnectionError: no cluster answers.
        ValueError: Ray has too few cores or GPUs, or a worker refuses its input.
        RuntimeError: a worker failed, or died too often.
        SystemExit: SIGTERM arrived.
        KeyboardInterrupt: SIGINT arrived.
    """
    cores = len(os.sched_getaffinity(0))
    if address is None and workers > cores:
        raise ValueError(f"--workers {workers}: this machine has {cores} cores; give at most as many")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would train slower than a process
    ray = start_ray(address, workers, "reflexd-finetune", log_to_driver=False)
    try:
        with stop_signals() as received:  # after Ray, which sets its own
            on_gpus = _on_gpus(ray, workers)
            given = call if on_gpus else {**call, "device": "cpu"}
            with _run_folder(Path(call["out"])) as folder:
                for attempt in range(RESTARTS + 1):
                    one = {**given, "run_folder": str(folder), "resume": call.get("resume", True) or attempt > 0}
                    died = _fit(ray, one, folder, workers, received, on_progress, use_gpu=on_gpus)
                    if died is None:
                        return dict(orjson.loads((Path(call["out"]) / "report.json").read_bytes()))
                    if attempt < RESTARTS:
                        note(f"{died}; all workers are started again")
        raise RuntimeError(f"workers died {RESTARTS + 1} times; the last time {died}")
    finally:
        ray.shutdown()


def _on_gpus(ray: Any, workers: int) -> bool:
    """Return whether each worker gets a GPU.

    Raises:
        ValueError: Ray has too few cores or GPUs.
    """
    found = ray.cluster_resources()
    for name, what in (("GPU", "GPUs"), ("CPU", "cores")):
        if 0 < (most := int(found.get(name, 0))) < workers:
            raise ValueError(f"--workers {workers}: Ray has {most} {what}; give at most as many")
    return int(found.get("GPU", 0)) >= workers


@contextmanager
def _run_folder(out: Path) -> Iterator[Path]:
    """Give a folder below OUT for what Ray and the first worker write during the run."""
    folder = out / f".ray-{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fit(
    ray: Any,
    call: dict[str, Any],
    folder: Path,
    workers: int,
    received: list[int],
    on_progress: Callable[[dict[str, Any]], None],
    *,
    use_gpu: bool,
) -> str | None:
    """Train until the end; return which worker died, None where the training has ended.

    Raises:
        ValueError: a worker refuses its input.
        RuntimeError: a worker failed.
        SystemExit: SIGTERM arrived.
        KeyboardInterrupt: SIGINT arrived.
    """
    trainer = torch_trainer(train_share, call, workers, folder, timeout_s=COLLECTIVE_S, use_gpu=use_gpu)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - it is raised by the thread that waits
            failures.append(error)

    # in a thread of its own, so that Ray sets no handler of signals
    thread = threading.Thread(target=run, name="fit", daemon=True)
    thread.start()
    shown = b""
    while thread.is_alive() and not received:
        thread.join(POLL_S)
        try:
            now = (folder / PROGRESS).read_bytes()
        except FileNotFoundError:
            continue
        if now != shown:
            on_progress(orjson.loads(now))
            shown = now
    end_by(received)
    return _died(ray, failures[0]) if failures else None


def _died(ray: Any, error: BaseException) -> str:
    """Return which worker died.

    Raises:
        ValueError: workers refuse their input.
        RuntimeError: workers failed, or Ray did.
    """
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    if refused := [str(each) for _, each in sorted(failures.items()) if isinstance(each, WorkerRefusal)]:
        raise ValueError("; ".join(refused))
    for rank, each in sorted(failures.items()):  # the others only lost their connection to it
        if isinstance(each, ray.exceptions.RayError) or type(each).__name__ == UNHEALTHY:
            return f"worker {rank} died ({type(each).__name__})"
    raise RuntimeError(str(error)) from error
