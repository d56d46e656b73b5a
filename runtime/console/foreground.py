"""Hold the terminal while the daemon runs as a child: banner, live line, events, Ctrl-C.

The daemon runs in a session of its own and writes its log to a file. Nothing that the terminal does (Ctrl-C, Ctrl-S, Ctrl-Z,
a closed window) therefore reaches the gate, the broker or the learner. This process is an MQTT client like any other: it
shows what was published. When it dies, the kernel sends the daemon SIGTERM, and the daemon shuts down safely.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from runtime.config.loader import LoadedConfig
from runtime.console.banner import LiveSeen, banner, event_line, line, sentence_line
from runtime.console.client import NoAnswer
from runtime.console.log_file import LogFile
from runtime.console.status import plain, subscribe
from runtime.dashboard.access.login_link import create_link
from runtime.mqtt import Connection
from runtime.mqtt.daemon_messages import EventMessage
from runtime.mqtt.event_sentences import Sentence
from runtime.process import child
from runtime.supervisor.child_processes import environment

REFRESH_S = 0.25
ROTATE_S = 10.0
LOG = "log/reflexd.log"
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def has_terminal() -> bool:
    """Return whether a person watches: both outputs are a terminal."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def run_on_terminal(path: Path, loaded: LoadedConfig, *, faults: tuple[str, ...]) -> int:
    """Run the daemon and show it until it ends; return its exit code.

    Args:
        path: the settings file.
        loaded: its content.
        faults: `STREAM=KIND[@START]`, passed to the agent.

    Raises:
        OSError: `state_dir` cannot be written.
    """
    config = loaded.config
    log_file = LogFile(config.state_dir / LOG)
    log_file.begin()
    link = None
    if config.dashboard is not None:
        link = create_link(config.state_dir, config.dashboard.listen, time.time())
    console = Console(highlight=False)
    console.print(banner(config, path, link, log_file.path.absolute()), soft_wrap=True, end="")
    front = Foreground(loaded, console, log_file)
    with log_file.path.open("ab") as output:
        more = [part for fault in faults for part in ("--fault", fault)]
        command = [sys.executable, "-m", "runtime.supervisor", str(path), *more]
        process = subprocess.Popen(  # noqa: S603 - this interpreter and our own module
            child.with_parent_death(command, number=signal.SIGTERM),
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment(),
        )
    with front.signals(process):
        code = asyncio.run(front.show(process))
    front.conclude(code)
    return code


@dataclass(slots=True)
class Foreground:
    """The terminal of one run."""

    loaded: LoadedConfig
    console: Console
    log_file: LogFile
    ending: bool = False
    _pending: list[EventMessage] = field(default_factory=list)
    _problems: list[str] = field(default_factory=list)
    """Errors in the log that no event has shown."""

    @contextmanager
    def signals(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Pass the signals of the terminal on to the daemon: the first one ends it in order, a second one at once."""

        def received(_number: int, _frame: FrameType | None) -> None:
            self.ending = True
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, received) for number in ENDS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def show(self, process: subprocess.Popen[bytes]) -> int:
        """Show the daemon until it ends; return its exit code."""
        seen = LiveSeen(on_event=self._pending.append)
        link: Connection | None = None
        with suppress(NoAnswer):  # no login for this tool: the events of the log remain
            link = subscribe(self.loaded, "status", seen)
        running = asyncio.create_task(link.run(), name="console mqtt") if link is not None else None
        rotate_s = time.monotonic()
        try:
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                while process.poll() is None:
                    await asyncio.sleep(REFRESH_S)
                    if running is not None and running.done():
                        running.result()
                    if time.monotonic() - rotate_s > ROTATE_S:
                        rotate_s = time.monotonic()
                        self.log_file.rotate()
                    self._print_news()
                    live.update(self._line(seen, link), refresh=True)
        finally:
            if running is not None:
                running.cancel()
                await asyncio.wait([running])
        return process.returncode

    def _line(self, seen: LiveSeen, link: Connection | None) -> Text:
        if self.ending:
            return plain("● shutting down: safe values first; Ctrl-C again ends it at once")
        if link is None:
            return plain("● running; add mqtt.status: {username, password} to see more here")
        streams = len(self.loaded.config.streams)
        return line(seen, rate_hz=seen.rate_hz(), connected=link.connected, streams=streams, now_s=time.monotonic())

    def _print_news(self) -> None:
        for event in self._pending:
            shown = event_line(event)
            if shown is not None:
                self.console.print(shown)
        self._pending.clear()
        for record in self.log_file.new_records():
            if record.get("level") in {"error", "critical"}:
                problem = str(record.get("reason") or record.get("exception") or record["event"])
                self._problems.append(problem)
                self.console.print(sentence_line(Sentence(problem, "bad", notable=True), time.time()))

    def conclude(self, code: int) -> None:
        """Print how the daemon ended."""
        self._print_news()
        if code == 0:
            self.console.print(plain("reflexd has ended; the gate sent every actuator its safe value."))
            return
        for each in self.log_file.plain[-5:] if not self._problems else ():
            self.console.print(plain(each, 300))
        reason = signal.Signals(-code).name if code < 0 and -code in {*signal.Signals} else f"exit code {code}"
        self.console.print(plain(f"reflexd ended with {reason}; the log is {self.log_file.path.absolute()}", 400))
