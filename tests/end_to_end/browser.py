"""Headless Chromium, the page's process and its broker, for tests that look at the page as a person does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import canaries
from canary_watch import WATCH
from free_ports import free_port
from playwright.sync_api import Browser, Page, expect, sync_playwright

from fakes import listening, wait_for

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


PATIENCE_MS = 60_000
"""A busy machine shows the same, later."""
expect.set_options(timeout=PATIENCE_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def overheard(page: Page) -> Page:
    """The page, with `canary_watch.py` hearing its console and everything its web sockets get from now on."""
    page.on("console", lambda reported: WATCH.take("console of the page", reported.text))
    page.on("websocket", lambda ws: ws.on("framereceived", lambda frame: WATCH.take("web socket of the page", frame)))
    return page


@contextmanager
def without_errors(page: Page) -> Iterator[Page]:
    """The page for a test, closed after it; whatever its scripts or its console complained of fails the test."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda reported: problems.append(reported.text) if reported.type == "error" else None)
    yield page
    WATCH.take("the page", page.content())
    page.context.close()
    assert problems == [], problems


def until(page: Page, expression: str, patience_s: float = 60.0) -> None:
    """Wait for an expression to be true; the page's policy forbids what playwright's own way of waiting needs."""
    end_s = time.monotonic() + patience_s
    while not page.evaluate(expression):
        assert time.monotonic() < end_s, expression
        page.wait_for_timeout(50)


def serious_findings(page: Page, within: str = "html") -> list[tuple[str, list[str]]]:
    """What axe finds serious or critical in an element with everything unfolded: rule and elements. The page must bypass its CSP."""
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.add_script_tag(content=(files("axe_playwright_python") / "axe.min.js").read_text())
    found = page.evaluate("(within) => axe.run(within)", within)["violations"]
    return [(f["id"], [n["html"][:150] for n in f["nodes"]]) for f in found if f["impact"] in {"serious", "critical"}]


@contextmanager
def page_process(
    folder: Path, url: str, extra: str = "", streams: str = "{joints: {kind: telemetry, fields: [a]}}"
) -> Iterator[tuple[str, str]]:
    """The page as its own process; gives its address and the operator's token, which it made itself."""
    port = free_port()
    config = folder / "page.yaml"
    config.write_text(
        f"agent: demo\nstate_dir: {folder}/state\nmqtt: {{url: '{url}', {canaries.LOGIN_YAML}}}\n"
        f"streams: {streams}\nactuators: {{head: {{kind: choice, choices: [a, b], safe: a}}}}\n"
        f"dashboard: {{listen: '127.0.0.1:{port}', viewer_token: {canaries.VIEWER}}}\n{extra}"
    )
    with (folder / "page.log").open("wb") as log:
        command = [sys.executable, "-m", "runtime.dashboard", str(config)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for(lambda: listening(port), "the page listening")
        yield f"http://127.0.0.1:{port}", (folder / "state" / "token").read_text().strip()
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0, (folder / "page.log").read_text()[-2_000:]


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
        process.wait(timeout=60)
