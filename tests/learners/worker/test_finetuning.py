"""Fine-tunes beside the learner's loop: in a process of their own, one at a time, and the loop never waits for one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import learning
import orjson
import psutil
import pytest
import tinymodels
import torch

from learners.config.learner import ExperienceSettings
from learners.experience.reader import Reader
from learners.experience.store import Label, Store
from learners.finetune.trainer import TrainingProgress
from learners.ipc.outbox import Outbox
from learners.ipc.settings import LearnerConfig
from learners.worker import finetune_process
from learners.worker.finetuning import FinetuneRunner, progress_path
from learners.worker.loop import LearnerLoop
from runtime.monitoring.health import PROGRESS_STALE_S, Health

SLOW = """
import os, signal, sys, threading, time
from pathlib import Path
from learners.continual.acceptance import AcceptanceVerdict
from learners.finetune.trainer import TrainingProgress, Stopped
from learners.worker.finetune_process import finetune

state_dir, task = Path(sys.argv[1]), sys.argv[2]
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())

def run(*, on_progress, stop):
    on_progress(TrainingProgress(0, 3, 7, 100, 0.5, None))
    while not (state_dir / "go").exists():
        if stop():
            raise Stopped("stopped in epoch 1")
        time.sleep(0.01)
    return AcceptanceVerdict(task, "promoted", "good", "1-abc", {"validation": 0.9}, "file", ({"source": "label:x"},))

sys.stdin.read()
finetune(task, run, state_dir, stop)
os._exit(0)
"""
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@dataclass
class FakeTask:
    """Due when the test says so."""

    is_due: bool = False
    started: int = 0

    def due(self) -> bool:
        return self.is_due

    def restart_timer(self) -> None:
        self.started += 1
        self.is_due = False


@dataclass
class Bench:
    """A runner of fake tasks; `script` is what its processes run."""

    folder: Path
    script: str = "raise SystemExit(0)"
    tasks: dict[str, FakeTask] = field(default_factory=lambda: {"one": FakeTask(), "two": FakeTask()})

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.folder / "learner" / "outbox")
        self.runner = FinetuneRunner(inputs(self.folder), self.tasks, self.outbox, command=self.command)

    def command(self, task: str) -> list[str]:
        return [sys.executable, "-c", self.script, str(self.folder), task]

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.kind, event.fields) for event in self.outbox.collect()]

    def until_idle(self) -> None:
        def idle() -> bool:
            self.runner.step()
            return self.runner.task is None

        wait_until(idle)


def inputs(folder: Path, **fields: Any) -> LearnerConfig:
    learner = {"batch": 32, "warmup": 40, "reward_delay_s": 0, "replay_gb": 1e-3, "update_every_s": 0.02}
    made = {"state_dir": str(folder), "device": "cpu", "learner": learner, "promotion": {"steps": []}, **fields}
    return LearnerConfig.model_validate(made)


def wait_until(what: Callable[[], object], deadline_s: float = 240.0) -> None:
    end, tick = time.monotonic() + deadline_s, threading.Event()
    while not what():
        assert time.monotonic() < end, "not in time"
        tick.wait(0.01)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.runner.close()


def test_the_loop_goes_on_during_a_long_fine_tune_and_health_says_finetuning(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 100)
    loop = LearnerLoop(inputs(tmp_path), learning.SPEC, threading.Event(), build=learning.SmallPolicy)
    loop.progress.every_s = 0.0
    bench = Bench(tmp_path, SLOW, {"slow": FakeTask(is_due=True)})
    loop.finetuning = bench.runner
    file = tmp_path / "learner" / "progress.json"
    health: Any = SimpleNamespace(learner_enabled=True, progress_file=file, wall=time.time, clock=time.monotonic)
    health._progress = None
    health._age_s = lambda: Health._age_s(health)
    try:
        loop.begin()
        loop.step()
        wait_until(progress_path(tmp_path).exists)
        learning.fill(tmp_path, 100, 160)
        os.utime(file, (time.time() - 2 * PROGRESS_STALE_S,) * 2)
        assert Health.learner(health)["state"] == "dead", "what a loop that waits would show"
        loop.step()
        reported = Health.learner(health)
        assert reported["state"] == "finetuning"
        assert reported["finetuning"] == {
            "task": "slow", "epoch": 0, "epochs": 3, "step": 7, "steps": 100, "loss": 0.5, "score": None
        }  # fmt: skip
        assert reported["row"] == 160, "experience that came meanwhile"
        assert loop.learner.position.update > 0
        (tmp_path / "go").touch()
        wait_until(lambda: (loop.step(), bench.runner.task is None)[1])
        loop.step()
        reported = Health.learner(health)
        assert (reported["state"] == "finetuning", reported["finetuning"]) == (False, None)
    finally:
        bench.runner.close()
    kinds = dict(bench.events())
    assert kinds["task_promoted"]["version"] == "1-abc"
    assert kinds["source_quarantined"] == {"source": "label:x"}
    assert "finetune_skipped" not in kinds


def test_a_fine_tune_leaves_no_trace_in_what_the_loop_learns_next(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 100)
    loop = LearnerLoop(inputs(tmp_path), learning.SPEC, threading.Event(), build=learning.SmallPolicy)
    bench = Bench(tmp_path, tasks={"one": FakeTask(is_due=True)})
    loop.finetuning = bench.runner
    loop.begin()
    loop.learner.ingest()
    loop.learner.train(float("inf"), until=int(loop.learner.position.pending_updates))
    before = torch.get_rng_state()
    loop.step()
    assert bench.tasks["one"].started == 1
    assert torch.equal(torch.get_rng_state(), before)
    bench.runner.close()


def test_requested_and_due_tasks_run_one_at_a_time(bench: Bench) -> None:
    bench.runner.requests.add("two")
    bench.tasks["one"].is_due = True
    bench.runner.step()
    assert bench.runner.task == "two", "a request comes first"
    assert bench.tasks["one"].started == 0
    bench.until_idle()
    assert [task.started for task in bench.tasks.values()] == [1, 1]
    assert bench.runner.requests.waiting() == []
    assert bench.events() == []


def test_a_request_without_a_task_means_every_task(bench: Bench) -> None:
    bench.runner.requests.add(None)
    bench.runner.step()
    assert len(bench.runner.requests.waiting()) == 1, "a learner that is killed now starts it again"
    bench.until_idle()
    assert [task.started for task in bench.tasks.values()] == [1, 1]
    assert bench.runner.requests.waiting() == []


def test_a_request_for_a_task_that_is_gone_is_answered(bench: Bench) -> None:
    bench.runner.requests.add("old")
    bench.runner.step()
    assert bench.runner.task is None
    assert bench.events() == [("finetune_skipped", {"task": "old", "reason": "no such task in the settings"})]
    assert bench.runner.requests.waiting() == []


def test_a_process_that_crashes_ends_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CRASH, {"one": FakeTask(is_due=True)})
    bench.until_idle()
    reason = f"the fine-tuning process ended with code {-signal.SIGKILL}"
    assert bench.events() == [("finetune_skipped", {"task": "one", "reason": reason})]
    assert bench.tasks["one"].started == 1, "and is not repeated at once"


def test_whatever_ends_a_fine_tune_is_named_in_the_event(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An exit code alone says nothing of a loss that is no number, or of a model that cannot be opened."""

    def run(**_: Any) -> Any:
        raise FloatingPointError("the loss is nan in epoch 1; lower the learning rate or use float32")

    assert finetune_process.finetune("one", run, tmp_path, threading.Event()) == 0
    reason = "FloatingPointError: the loss is nan in epoch 1; lower the learning rate or use float32"
    (event,) = Outbox(tmp_path / "learner" / "outbox").collect()
    assert (event.kind, event.fields) == ("finetune_skipped", {"task": "one", "reason": reason})
    assert "Traceback" in capfd.readouterr().err, "the log has the stack"


def test_the_end_of_the_learner_ends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLOW, {"one": FakeTask(is_due=True)})
    bench.runner.step()
    process = bench.runner._process
    assert process is not None
    wait_until(progress_path(tmp_path).exists)
    bench.runner.close()
    assert not psutil.pid_exists(process.pid)
    assert bench.events() == [("finetune_skipped", {"task": "one", "reason": "stopped in epoch 1"})]
    assert not progress_path(tmp_path).exists()


def test_the_real_process_trains_a_task_and_posts_the_outcome(tmp_path: Path) -> None:
    model = str(tinymodels.bert(tmp_path / "model"))
    settings = inputs(
        tmp_path,
        tasks={"intents": {"kind": "text-classification", "model": model, "train": "full"}},
        finetune={"min_labels": 30, "every_s": 1e-3, "epochs": 2},
    )
    store = Store(tmp_path / "experience", ExperienceSettings.model_validate({}))
    for row in tinymodels.orders(40, 1, {"go": "move", "stop": "halt"}):
        assert store.add_label(Label("intents", row["label"], row["text"]))
    store.close()
    tasks = finetune_process.tasks_of(settings, Reader(tmp_path / "experience"))
    runner = FinetuneRunner(settings, tasks, Outbox(tmp_path / "learner" / "outbox"))
    wait_until(lambda: (runner.step(), runner.task is not None)[1])
    process = runner._process
    assert process is not None
    wait_until(lambda: process.poll() is not None)
    assert process.returncode == 0
    [event] = runner.outbox.collect()
    assert event.kind == "task_awaiting_approval"
    assert [version.name for version in tasks["intents"].versions.all()] == [event.fields["version"]]
    assert not tasks["intents"].due(), "its labels are learned"
    runner.close()


def test_progress_is_written_at_most_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    write = finetune_process.ProgressFile("one", tmp_path / "p.json", clock=lambda: now[0])
    for step in range(4):
        write(TrainingProgress(0, 1, step, 4, 1.0, None))
        now[0] += 0.4
    assert orjson.loads((tmp_path / "p.json").read_bytes())["step"] == 3
    write(TrainingProgress(0, 1, 4, 4, 1.0, None))
    assert orjson.loads((tmp_path / "p.json").read_bytes())["step"] == 3


def test_it_says_how_it_is_used_and_does_not_outlive_its_learner(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune_process.main([]) == 2
    assert "usage" in capsys.readouterr().err
