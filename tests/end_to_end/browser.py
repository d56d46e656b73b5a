"""Headless Chromium, the page's process and its broker, for tests that look at the page as a person does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes import free_port, listening, wait_for

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
VIEWER = "viewer-token-of-this-test"


@contextmanager
def page_process(folder: Path, url: str, extra: str = "") -> Iterator[tuple[str, str]]:
    """The page as its own process; gives its address and the operator's token, which it made itself."""
    port = free_port()
    config = folder / "page.yaml"
    config.write_text(
        f"agent: demo\nstate_dir: {folder}/state\nmqtt: {{url: '{url}'}}\n"
        "streams: {joints: {kind: telemetry, fields: [a]}}\nactuators: {head: {kind: choice, choices: [a, b], safe: a}}\n"
        f"dashboard: {{listen: '127.0.0.1:{port}', viewer_token: {VIEWER}}}\n{extra}"
    )
    with (folder / "page.log").open("wb") as log:
        command = [sys.executable, "-m", "runtime.dashboard", str(config)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for(lambda: listening(port), "the page listening")
        yield f"http://127.0.0.1:{port}", (folder / "state" / "token").read_text().strip()
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0, (folder / "page.log").read_text()[-2_000:]


@contextmanager
def agent_process(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The agent that exists on the wire only, as its own process."""
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fakes_agent.py"), url],
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=20)
