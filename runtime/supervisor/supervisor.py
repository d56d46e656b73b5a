"""Start the children in order, host the gate, restart failed children, and end them in reverse. No torch in this process.

Ctrl-C (or SIGTERM) drains: safe actions first, then the children end, then the broker. A second one ends everything at once.
SIGHUP reads the settings again: they are validated first, and the error names settings that cannot change in a running daemon.

Exit codes: 0 after a requested end; 2 for a problem that needs an edit of the settings. 1 is for a problem that may be temporary,
for example a child that failed too often, or a port that is taken.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import structlog

from actuators.wire import WireError
from learners.files import BusyError, exclusive_lock
from learners.ipc import settings
from runtime.config.loader import ConfigError, LoadedConfig, load
from runtime.config.schema import Config
from runtime.gate import ipc
from runtime.gate.build import SettingsUnusable, build_host
from runtime.gate.host import GateHost
from runtime.gate.info import InfoBuilder
from runtime.gate.operator_commands import OperatorCommands
from runtime.gate.stop import channel
from runtime.mqtt.aiomqtt_client import error_text
from runtime.mqtt.topics import Refused
from runtime.process import child
from runtime.process.log import Scrubber, configure
from runtime.process.systemd import Notifier
from runtime.supervisor import broker
from runtime.supervisor.agent_watchdog import kill_hung_agent
from runtime.supervisor.child_processes import Child, RestartLimitExceeded, Spec, table
from runtime.supervisor.reload import compare

log = structlog.get_logger(__name__)

BROKER_S = 10.0
"""For the embedded broker to listen."""
SAME_SIGNAL_S = 0.5
"""One Ctrl-C may come twice: from the terminal, and from a program in between that passes it on."""
CANNOT_BEGIN = 1
"""Exit code for what may pass: a busy port or folder, a full disk. The service manager starts the daemon again."""
MEND_SETTINGS = 2
"""Exit code for what only an edit of the settings mends. The service manager leaves it."""
FIRST_IN_LINE = -10
"""The gate's niceness: a busy machine must not delay a safe action."""
Table = Callable[[], list[Spec]]


async def run(
    config: Config,
    path: Path,
    *,
    text: str = "",
    faults: tuple[str, ...] = (),
    verbose: bool = False,
    scrubber: Scrubber | None = None,
    children: Table | None = None,
    notifier: Notifier | None = None,
) -> int:
    """Run the daemon until a signal stops it; return its exit code.

    Args:
        config: the settings.
        path: the file they came from; children and reloads read it.
        text: the file's text, for the digest in `info`.
        faults: `STREAM=KIND[@START]`, passed to the agent.
        verbose: passed to the agent.
        scrubber: removes the secrets of reloaded settings from the log.
        children: what to start instead of the usual processes.
        notifier: the service manager; default: from the environment.
    """
    child.set_process_title("supervisor")
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):  # systemd's Nice= does the same for a service without the right
        os.setpriority(os.PRIO_PROCESS, 0, min(before, FIRST_IN_LINE))
    chosen = children or partial(table, config, path, faults=faults, verbose=verbose)
    try:
        with exclusive_lock(config.state_dir):
            _write_learner_config(config)
            supervisor = Supervisor(config, path, text, chosen, notifier or Notifier.from_environment(), scrubber)
            return await supervisor.run()
    except (broker.ExposedError, SettingsUnusable, WireError) as error:
        log.error("supervisor.start_failed", reason=str(error))  # noqa: TRY400 - the reason is whole
        return MEND_SETTINGS
    except (broker.BrokerError, BusyError, OSError) as error:
        log.error("supervisor.start_failed", reason=str(error))  # noqa: TRY400 - the reason is whole
        return CANNOT_BEGIN
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


@dataclass(slots=True)
class Supervisor:
    """One run of the daemon."""

    config: Config
    path: Path
    text: str
    table: Table
    notifier: Notifier
    scrubber: Scrubber | None = None
    children: list[Child] = field(default_factory=list)
    restarts: int = 0
    _broker: Child | None = None
    _host: GateHost = field(init=False)
    _ending: asyncio.Event = field(default_factory=asyncio.Event)
    _reason: str = "stop requested"
    _code: int = 0
    _agent_end: Any = None
    _listener_end: socket.socket | None = None
    """Of every stop listener of this run, so that the gate reads on when one is restarted."""
    _signalled_s: float = float("-inf")

    async def run(self) -> int:
        """Start, run, end."""
        prepared = broker.prepare(self.config.mqtt, self.config.state_dir) if self._embedded else None
        self._host = build_host(self.config, self.notifier, self._info())
        self._host.publisher.failing = self._failing
        gate_end, self._listener_end = channel.pair()
        self._host.listener.attach(gate_end)
        operators = OperatorCommands(self._host, self.reload)
        self._signals(operators)
        try:
            async with asyncio.TaskGroup() as group:
                start = partial(_start, group)
                if prepared is not None:
                    await self._start_broker(prepared, start)
                jobs: dict[str, Coroutine[Any, Any, None]] = {
                    "mqtt": self._host.safety.run(),
                    "mqtt requests": self._host.connection.run(),
                    "gate": self._host.run(),
                    "latches": self._host.latches.run(),
                    "stop latch": self._host.listener.follow_latch(),
                    "requests that wait": operators.serve(),
                    "watch": kill_hung_agent(self._host, partial(self._child, "agent")),
                }
                tasks = [start(self._in_order(job, name), name) for name, job in jobs.items()]
                for spec in self.table() if not self._ending.is_set() else ():
                    self._launch(spec, start)
                await self._ending.wait()
                await self._end()
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                await self._host.latches.finish()  # a stop of the last moment
                if self._broker is not None:
                    await self._broker.stop()
        finally:
            self.force_exit()
            self._host.listener.detach()
            self._listener_end.close()
        log.info("supervisor.ended", reason=self._reason, code=self._code)
        return self._code

    # --- building

    @property
    def _embedded(self) -> bool:
        return self.config.mqtt.scheme == "embedded"

    def _info(self) -> InfoBuilder:
        return InfoBuilder(self.config, _version(), self.text)

    def _signals(self, operators: OperatorCommands) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_signal, number)
        loop.add_signal_handler(signal.SIGHUP, operators.ask_reload)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):  # their default would end the gate at once
            loop.add_signal_handler(number, partial(log.warning, "supervisor.signal_ignored", signal=number.name))

    def handle_signal(self, number: signal.Signals) -> None:
        """Begin the shutdown at the first signal, force it at a later one."""
        now_s = time.monotonic()
        if self._ending.is_set() and now_s - self._signalled_s < SAME_SIGNAL_S:
            return
        if self._ending.is_set():
            log.warning("supervisor.forced", signal=number.name)
            self._code = self._code or 128 + number
            self.force_exit()
            return
        self._signalled_s = now_s
        self.begin_shutdown(f"{number.name} received", 0)

    def begin_shutdown(self, reason: str, code: int) -> None:
        """From here on no child is started again, but the broker, which carries the safe actions."""
        self._reason, self._code = reason, code
        for each in self.children:
            each.stopping = True
        self._ending.set()

    # --- children

    async def _start_broker(self, prepared: broker.Broker, start: Callable[..., asyncio.Task[None]]) -> None:
        spec = Spec("broker", tuple(prepared.command), grace_s=5.0)
        self._broker = Child(spec, restarted=self._restarted)
        start(self._supervise(self._broker), "broker")
        try:
            async with asyncio.timeout(BROKER_S):
                while not broker.accepts(prepared.host, prepared.port) and not self._ending.is_set():  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._give_up(f"{prepared.kind} does not listen on {prepared.host}:{prepared.port} after {BROKER_S:.0f} s")

    def _launch(self, spec: Spec, start: Callable[..., asyncio.Task[None]]) -> None:
        if spec.linked:
            each = Child(spec, link=self._link, unlink=self._linked, restarted=self._restarted)
        elif spec.stop_channel:
            each = Child(spec, link=self._listener_descriptor, restarted=self._restarted)
        else:
            each = Child(spec, restarted=self._restarted)
        self.children.append(each)
        start(self._supervise(each), spec.name)

    async def _in_order(self, job: Coroutine[Any, Any, None], name: str) -> None:
        """Run a part of the gate; whatever it raises ends the daemon in order, with the safe actions."""
        try:
            await job
        except Exception as error:  # noqa: BLE001 - a fault of the code, whatever it is
            log.error("supervisor.task_failed", task=name, trace=traceback.format_exc())  # noqa: TRY400 - without all locals
            self.begin_shutdown(f"{name}: {type(error).__name__}: {error_text(error)}", CANNOT_BEGIN)

    async def _supervise(self, each: Child) -> None:
        """Whatever goes wrong with a child ends the daemon in order, and never the gate alone."""
        try:
            await each.supervise()
        except RestartLimitExceeded as reason:
            self._give_up(str(reason))
        except Exception as error:  # noqa: BLE001 - a child that cannot be started at all, for any reason
            self._give_up(f"{each.spec.name}: {type(error).__name__}: {error}")

    def _link(self) -> int:
        gate_end, self._agent_end = ipc.pair()
        self._host.channel.attach(gate_end)
        return int(self._agent_end.fileno())

    def _listener_descriptor(self) -> int:
        assert self._listener_end is not None
        return self._listener_end.fileno()

    def _linked(self) -> None:
        """The child has its copy; ours would hide the end-of-file."""
        self._agent_end.close()

    def _restarted(self, name: str, code: int, restarts: int) -> None:
        self._host.channel.restarts[name] = restarts
        self._host.publisher.event("child_restarted", {"child": name, "code": code, "restarts": restarts})

    def _failing(self) -> list[str]:
        return [each.spec.name for each in self.children if each.is_failing()]

    def _give_up(self, reason: str) -> None:
        log.error("supervisor.restart_limit", reason=reason)
        self._host.publisher.event("child_restart_limit", {"reason": reason})
        self.begin_shutdown(reason, 1)

    def _child(self, name: str) -> Child | None:
        return next((each for each in self.children if each.spec.name == name), None)

    # --- the end

    async def _end(self) -> None:
        """Make devices safe, end children in reverse, then publish the last status."""
        log.info("supervisor.draining", reason=self._reason)
        self.notifier.stopping(self._reason)
        await self._host.go_safe(self._reason)
        for each in reversed(self.children):
            self.notifier.extend(each.spec.grace_s + 5.0)
            await each.stop()
        await self._host.publish_offline(self._reason)

    def force_exit(self) -> None:
        """Kill every child at once."""
        for each in (*self.children, *([self._broker] if self._broker else [])):
            each.stopping = True
            each.kill()

    # --- reload

    async def reload(self) -> dict[str, Any]:
        """Read the settings again; on any error the old ones stay.

        Raises:
            Refused: with every problem.
        """
        self.notifier.reloading()
        try:
            loaded = await asyncio.to_thread(load, self.path)
        except ConfigError as error:
            self._host.publisher.event("reload_refused", {"problems": [str(problem) for problem in error.problems]})
            self.notifier.ready(f"the new settings were refused: {error.problems[0]}")
            raise Refused(str(error)) from None
        if self.scrubber is not None:
            self.scrubber.add(loaded.secrets)
        try:
            answer = self._apply(loaded.config, loaded.text)
        except OSError as error:
            self._host.publisher.event("reload_refused", {"problems": [str(error)]})
            self.notifier.ready(f"the new settings could not be applied: {error}")
            raise Refused(f"nothing was changed: {error}; mend it, then reload again") from None
        self._host.publisher.event("reloaded", answer)
        self.notifier.ready(f"reloaded; restart required for: {', '.join(answer['restart_required']) or 'nothing'}")
        return answer

    def _apply(self, new: Config, text: str) -> dict[str, Any]:
        changes = compare(self.config, new)
        if changes.restart_required:
            return {"changed": changes.changed, "restarted": [], "restart_required": changes.restart_required}
        _write_learner_config(new)  # first: it may fail, and half of a change is worse than none
        self.config, self.text = new, text
        self._host.reload(self._info(), new.mode if "mode" in changes.changed else None)
        # an agent that read an edit which is taken back now has to read the file again, though nothing changes for the gate
        names = changes.children | ({"agent"} if self._host.channel.disagrees else set())
        concerned = [each for each in self.children if each.spec.name in names]
        for each in concerned:
            each.restart()
        restarted = [each.spec.name for each in concerned]
        missing = sorted(changes.children.difference(restarted))
        return {
            "changed": changes.changed,
            "restarted": restarted,
            "restart_required": [name for name in missing if getattr(new, name, None)],
        }


def _write_learner_config(config: Config) -> None:
    """Write the learner's settings; on a full disk the file of the last start is used, and the policy acts all the same.

    Raises:
        OSError: the file cannot be written, and there is none.
    """
    try:
        settings.write_learner_config(config.model_dump(mode="json"))
    except OSError as error:
        if not (config.state_dir / "learner" / "settings.json").is_file():
            raise
        reason = f"{config.state_dir / 'learner'}: {error.strerror or error}"
        log.warning("supervisor.learner_settings_not_written", reason=reason, remedy="free the disk, then restart")


def _start(group: asyncio.TaskGroup, job: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return group.create_task(job, name=name)


def _version() -> str:
    with suppress(PackageNotFoundError):
        return version("reflexd")
    return "0+unknown"


def run_daemon(path: Path, loaded: LoadedConfig, *, faults: tuple[str, ...], verbose: bool) -> int:
    """Run the daemon until it ends; returns its exit code."""
    scrubber = configure(verbose=verbose, secrets=loaded.secrets)
    return asyncio.run(run(loaded.config, path, text=loaded.text, faults=faults, verbose=verbose, scrubber=scrubber))
