"""Entry point of the learner process: `python -m learners.worker SETTINGS`.

The supervisor starts it through `runtime.process.child`, which sets its priority and ends it with its parent.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

import orjson
from setproctitle import setproctitle

from learners.checkpoints.signing import REFUSED_EXIT, KeyRefused
from learners.ipc.settings import LearnerConfig
from learners.worker.loop import serve
from learners.worker.torch_limits import limit_torch


def main(arguments: list[str]) -> int:
    """Run the learner until SIGTERM; return the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m learners.worker SETTINGS.json\n")
        return 2
    inputs = LearnerConfig.model_validate(orjson.loads(Path(arguments[0]).read_bytes()))
    setproctitle("reflexd: learner")
    limit_torch(inputs.learner.threads)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve(inputs, stop)
    except KeyRefused as refused:
        logging.getLogger(__name__).error("the learner cannot start: %s", refused)  # noqa: TRY400 - the text says all
        return REFUSED_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
