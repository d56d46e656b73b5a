"""The demo itself under a test's control: the daemon from configs/demo.yaml, with its own state, ports and token."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import canaries
import yaml
from free_ports import free_port

from fakes import end, listening, wait_for

ROOT = Path(__file__).parents[2]
START_S = 150.0
"""For the first start on a busy machine: models are converted and backends calibrated."""
INTENTS: dict[str, Any] = {
    "kind": "text-classification",
    "stream": "orders",
    "model": "bundled:minilm-l6",
    "labels": ["find", "show", "turn"],
    "query_confidence": 1.0,
}
"""Something to ask about: a task that has learned nothing is never sure."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that runs."""

    folder: Path
    config: Path
    port: int
    address: str
    metrics: str
    process: subprocess.Popen[bytes]

    @property
    def token(self) -> str:
        """The operator's, which the page made itself."""
        return (self.folder / "state" / "token").read_text().strip()


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """configs/demo.yaml with a state directory and ports of its own; `changes` are merged into its sections."""
    known: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    known["state_dir"] = str(folder / "state")
    known["mqtt"] |= {"url": f"embedded://127.0.0.1:{free_port()}", **canaries.LOGIN}
    known["dashboard"]["listen"] = f"127.0.0.1:{free_port()}"
    known["metrics"]["listen"] = f"127.0.0.1:{free_port()}"
    for section, change in changes.items():
        known[section] = {**known.get(section, {}), **change}
    return known


@contextmanager
def running_demo(folder: Path, **changes: Any) -> Iterator[Demo]:
    """Start it, wait until its page answers, and end it as systemd would."""
    known = settings(folder, **changes)
    config = folder / "demo.yaml"
    config.write_text(yaml.safe_dump(known))
    page = known["dashboard"]["listen"]
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "runtime.cli", "run", str(config)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    port = int(known["mqtt"]["url"].rpartition(":")[2])
    demo = Demo(folder, config, port, f"http://{page}", f"http://{known['metrics']['listen']}", process)
    try:
        wait_for(lambda: _up(demo, int(page.rpartition(":")[2])), "the demo's page", START_S)
        yield demo
    finally:
        end(process)


def _up(demo: Demo, page: int) -> bool:
    reported = (demo.folder / "log").read_text()[-2_000:]
    assert demo.process.poll() is None, reported
    return listening(page)
