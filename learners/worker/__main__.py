"""Entry point of the learner process: `python -m learners.worker SETTINGS`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import orjson

from learners.ipc.settings import LearnerConfig
from learners.worker.loop import serve
from learners.worker.priority import die_with_parent, lower_priority


def main(arguments: list[str]) -> int:
    """The process's entry; returns its exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m learners.worker SETTINGS.json\n")
        return 2
    parent = os.getppid()
    if not die_with_parent(parent):
        return 1
    inputs = LearnerConfig.model_validate(orjson.loads(Path(arguments[0]).read_bytes()))
    lower_priority("reflexd: learner", inputs.learner.threads, inputs.learner.priority)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(inputs, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
