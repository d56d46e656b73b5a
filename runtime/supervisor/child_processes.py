"""Define the command of each child process, and supervise one child.

A failed child is restarted with a growing delay, at most `MAX_RESTARTS` times in `WINDOW_S`. This module knows nothing of the gate:
the caller that starts the agent passes the descriptor.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from runtime.config.schema import Config
from runtime.gate.stop.listener import has_own_session
from runtime.process import child
from sensors.config import transcribed

log = structlog.get_logger(__name__)

MAX_RESTARTS = 5
WINDOW_S = 60.0
CANNOT_START = 78
"""Exit code of a child that no restart helps (EX_CONFIG in sysexits.h), such as `REFUSED_EXIT` of a refused signing key."""
BACKOFF_S = (0.1, 5.0)
KILL_S = 5.0
"""For the kernel to end a killed process."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One child as it is to be started."""

    name: str
    command: tuple[str, ...]
    """Already wrapped (`child.with_parent_death`) if it must die with this process; `{gate_fd}` is replaced by its descriptor."""
    linked: bool = False
    """Only this child inherits the link to the gate."""
    stop_channel: bool = False
    """Only this child inherits the channel to the gate that carries the stop."""
    grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    stdin: bool = False
    essential: bool = True
    """The daemon ends when it fails too often. A child that is not essential is tried again every `WINDOW_S`, for ever."""
    blas_threads: int | None = 1
    """As `environment` has it; None for a process that trains."""


class RestartLimitExceeded(Exception):  # noqa: N818 - reads as what happened
    """A child failed too often."""


def table(config: Config, path: Path, *, faults: tuple[str, ...] = (), verbose: bool = False) -> list[Spec]:
    """Return every child but the broker, in the order of their start."""
    python = [sys.executable, "-m"]
    more = [*(part for fault in faults for part in ("--fault", fault)), *(["--verbose"] if verbose else [])]
    agent = [*python, "runtime.agent", str(path), "--gate-fd", "{gate_fd}", *more]
    listener = [
        *python,
        "runtime.gate.stop.listener",
        "--parent",
        str(os.getpid()),
        "--gate-fd",
        "{gate_fd}",
        str(path),
    ]
    command = tuple(child.with_parent_death(agent, priority="tick"))
    specs = [Spec("agent", command, linked=True, stdin=True, blas_threads=config.engine.threads)]
    if has_own_session(config):
        command = tuple(child.outliving(listener, priority="first"))
        specs.append(Spec("stop listener", command, stop_channel=True, grace_s=3.0, essential=False))
    if config.learner.enabled:
        settings = config.state_dir / "learner" / "settings.json"
        learner = [*python, "learners.worker", str(settings)]
        # at once: its imports alone would hold up the agent's on few cores
        command = tuple(child.with_parent_death(learner, priority=config.learner.priority))
        specs.append(Spec("learner", command, essential=False, blas_threads=None))  # the policy acts on without it
    if has_models_process(config):
        models = child.with_parent_death([*python, "runtime.models", str(path)], priority="background")
        specs.append(Spec("models", tuple(models), grace_s=3.0, essential=False, blas_threads=None))
    if config.fleet is not None:
        uplink = child.with_parent_death([*python, "runtime.fleet", str(path)], priority="nice")
        specs.append(Spec("uplink", tuple(uplink), grace_s=3.0, essential=False))
    if config.dashboard is not None:
        specs.append(
            Spec(
                "dashboard",
                tuple(child.with_parent_death([*python, "runtime.dashboard", str(path)], priority="page")),
                grace_s=3.0,
                essential=False,
            )
        )
    if config.plant is not None:
        specs.append(Spec("plant", tuple(child.with_parent_death([*python, "runtime.plant", str(path)])), grace_s=3.0))
    return specs


def has_models_process(config: Config) -> bool:
    """Return whether the daemon has a models process: with a task that reads a stream, speech to text, or a deliberator."""
    return (
        config.deliberator is not None
        or any(task.stream is not None for task in config.tasks.values())
        or bool(transcribed(config.streams))
    )


def environment(blas_threads: int | None = None) -> dict[str, str]:
    """What children inherit: this environment, and the packages of this very program before any of the working folder.

    At ten small products of matrices a second, as in the features of sound, the threads of numpy that wait would take half of a core
    for nothing. So they sleep, and a process that does not train has none.

    Args:
        blas_threads: of numpy's products of matrices; None for as many as there are cores.
    """
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    paths = [] if "site-packages" in root else [root]
    joined = os.pathsep.join([*paths, *([inherited] if inherited else [])])
    quiet = {"PYTHONSAFEPATH": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    blas = child.IDLE_BLAS | ({} if blas_threads is None else {"OPENBLAS_NUM_THREADS": str(blas_threads)})
    return blas | os.environ | quiet | ({"PYTHONPATH": joined} if joined else {})


@dataclass(slots=True)
class Child:
    """One child, which `supervise` restarts until `stop`."""

    spec: Spec
    link: Callable[[], int] | None = None
    """Returns the descriptor that the child inherits; a new one for each agent."""
    unlink: Callable[[], None] = lambda: None
    """Called once the child has its descriptor."""
    restarted: Callable[[str, int, int], None] = lambda _name, _code, _restarts: None
    process: Process | None = None
    stopping: bool = False
    patience_s: float = WINDOW_S
    """Between two attempts at a child that is not essential and failed too often."""
    planned: bool = False
    """The next end is a restart on purpose: no failure."""
    restarts: int = 0
    _pidfd: int | None = None
    _too_often_s: float = float("-inf")
    _failures: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_RESTARTS))
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _done: asyncio.Event = field(default_factory=asyncio.Event)

    async def supervise(self) -> None:
        """Run it, again and again, until `stop`.

        Raises:
            RestartLimitExceeded: it is essential and failed too often.
            OSError: it is essential and cannot be started.
        """
        try:
            while not self.stopping:
                try:
                    code = await self._once()
                except OSError as error:
                    await self._not_started(error)
                else:
                    await self._failed(code)
        finally:
            self.kill()
            self._done.set()

    async def _once(self) -> int:
        descriptor = self.link() if self.link is not None else None
        command = [part.format(gate_fd=descriptor) if part == "{gate_fd}" else part for part in self.spec.command]
        try:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                stdin=None if self.spec.stdin else asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor alone, which ends its children in order
                pass_fds=() if descriptor is None else (descriptor,),
                env=environment(self.spec.blas_threads),
            )
        finally:
            self.unlink()
        log.info("child.started", child=self.spec.name, pid=self.process.pid)
        try:
            self._pidfd = os.pidfd_open(self.process.pid)
        except ProcessLookupError:  # it has ended already, and asyncio has reaped it
            pass
        except OSError:  # it could not be signalled
            self.process.kill()
            await self.process.wait()
            raise
        try:
            return await self.process.wait()
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)
            self._pidfd = None

    async def _failed(self, code: int) -> None:
        if self.stopping or self.planned:
            self.planned = False
            return
        if code == CANNOT_START and self.spec.essential:
            raise RestartLimitExceeded(f"{self.spec.name} cannot start; its log names the file and the remedy")
        now_s = time.monotonic()
        too_often = len(self._failures) == MAX_RESTARTS and now_s - self._failures[0] < WINDOW_S
        too_often = too_often or code == CANNOT_START
        if too_often and self.spec.essential:
            raise RestartLimitExceeded(
                f"{self.spec.name} failed {MAX_RESTARTS + 1} times within {WINDOW_S:.0f} s, last with {exit_reason(code)}"
            )
        self._failures.append(now_s)
        self.restarts += 1
        recent = sum(now_s - failed_s < WINDOW_S for failed_s in self._failures)
        delay_s = self.patience_s if too_often else min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** (recent - 1))
        log.warning("child.failed", child=self.spec.name, ended=exit_reason(code), restart_in_s=round(delay_s, 2))
        self.restarted(self.spec.name, code, self.restarts)
        if too_often:
            self._too_often_s = now_s
        await self._rest(delay_s)

    async def _not_started(self, error: OSError) -> None:
        """Wait for the machine to have processes, memory or descriptors again."""
        if self.spec.essential:
            raise error
        log.warning("child.not_started", child=self.spec.name, reason=str(error), restart_in_s=self.patience_s)
        self._too_often_s = time.monotonic()
        await self._rest(self.patience_s)

    async def _rest(self, delay_s: float) -> None:
        """Wait before the next attempt, until `restart` or `stop`."""
        self._wake.clear()
        if self.stopping:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._wake.wait()

    def is_failing(self) -> bool:
        """Return whether it failed too often, or could not be started, and has not run for long since."""
        return time.monotonic() - self._too_often_s < self.patience_s + WINDOW_S

    def restart(self) -> None:
        """End the child and start it again, for new settings; one that waits for its next attempt is started at once."""
        if self._pidfd is None:
            self._wake.set()
            return
        self.planned = True
        self._signal(signal.SIGTERM)

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL after its grace."""
        self.stopping = True
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)  # a stopped process would not handle the signal
        self._wake.set()
        if not await self._ended(self.spec.grace_s):
            log.warning("child.killed", child=self.spec.name, grace_s=self.spec.grace_s)
            self.kill()
            await self._ended(KILL_S)

    async def _ended(self, timeout_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._done.wait()
        return self._done.is_set()

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """Through a pidfd: `Popen.send_signal` would reap a process that asyncio is waiting for, and lose its exit code."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


def exit_reason(code: int) -> str:
    """Return an exit code as a text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
