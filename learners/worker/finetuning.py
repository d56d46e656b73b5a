"""Starts fine-tunes of tasks, one at a time, each in a process of its own, and follows their progress.

The reinforcement learning loop calls `step` once a round and never waits: a fine-tune takes minutes. The process
(`finetune_process.py`) has random states and memory of its own, so a fine-tune changes nothing in what the loop learns next,
and one that crashes ends alone. It posts its own events; the runner posts one for a process that ended without.

Event: `finetune_skipped`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.ipc.outbox import Outbox
from learners.ipc.progress import read_progress
from learners.ipc.requests import FinetuneRequests
from learners.ipc.settings import LearnerConfig

if TYPE_CHECKING:
    from learners.continual.trainer import ContinualTrainer

STORAGE = 74
"""Exit code of a fine-tune if the disk refused its result (EX_IOERR of sysexits.h)."""
GRACE_S = 5.0
"""From SIGTERM to SIGKILL when the learner ends."""


def finetune_command(task: str) -> list[str]:
    """Build the command of the process that fine-tunes a task; the settings reach it on standard input."""
    return [sys.executable, "-m", "learners.worker.finetune_process", task, str(os.getpid())]


def progress_path(state_dir: Path) -> Path:
    """Name the file in which a fine-tune writes its progress."""
    return state_dir / "learner" / "finetuning.json"


class FinetuneRunner:
    """Runs due and requested fine-tunes.

    Args:
        inputs: the learner's settings.
        tasks: by name, in the order in which due ones run.
        outbox: takes the events.
        command: builds the command line for a task.
    """

    def __init__(
        self,
        inputs: LearnerConfig,
        tasks: Mapping[str, ContinualTrainer],
        outbox: Outbox,
        *,
        command: Callable[[str], Sequence[str]] = finetune_command,
    ) -> None:
        self.inputs, self.tasks, self.outbox = inputs, tasks, outbox
        self.requests = FinetuneRequests(inputs.state_dir)
        self.task: str | None = None
        """The one that is being fine-tuned."""
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._served: dict[Path, set[str]] = {}
        """Tasks that each waiting request has started."""

    def step(self) -> None:
        """Notice the end of a fine-tune; start the next one if one is requested or due. Does not wait."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._finish(code)
        name = self._requested() or next((name for name, task in self.tasks.items() if task.due()), None)
        if name is not None:
            self._start(name)

    def progress(self) -> dict[str, Any] | None:
        """Read task, epoch, step, loss and score of the running fine-tune; None while none runs."""
        if self.task is None:
            return None
        return {**(read_progress(progress_path(self.inputs.state_dir)) or {}), "task": self.task}

    def stop(self) -> None:
        """Ask a running fine-tune to end; it does so after its current update."""
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """End a running fine-tune within `GRACE_S`."""
        if self._process is None:
            return
        self.stop()
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._finish(code)

    def _requested(self) -> str | None:
        """Return the next task that a request names; a request is acknowledged as its last task starts."""
        for request in self.requests.waiting():
            named = request.fields.get("task")
            if named is not None and named not in self.tasks:
                self.outbox.post("finetune_skipped", {"task": named, "reason": "no such task in the settings"})
                request.acknowledge()
                continue
            served = self._served.setdefault(request.path, set())
            left = [name for name in ([named] if named is not None else self.tasks) if name not in served]
            if left[1:]:
                served.add(left[0])
            else:
                del self._served[request.path]
                request.acknowledge()
            if left:
                return left[0]
        return None

    def _start(self, name: str) -> None:
        self.tasks[name].restart_timer()
        progress_path(self.inputs.state_dir).unlink(missing_ok=True)
        process = subprocess.Popen(self._command(name), stdin=subprocess.PIPE)  # noqa: S603 - our own command
        self.task, self._process = name, process
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                pipe.write(self.inputs.model_dump_json().encode())
        except BrokenPipeError:
            pass  # it ended at once; the next step reads its exit code

    def _finish(self, code: int) -> None:
        if code != 0:
            refused = "the disk refused the result; the next fine-tune tries again"
            reason = refused if code == STORAGE else f"the fine-tuning process ended with code {code}"
            self.outbox.post("finetune_skipped", {"task": self.task, "reason": reason})
        self.task = self._process = None
        progress_path(self.inputs.state_dir).unlink(missing_ok=True)
