"""Run the server of a fleet: the embedded broker where the settings ask for one, and the ingests as actors of Ray.

Ray places the actors, starts a failed one again, and runs them on other machines of its cluster. The actor is a thin shell: the
ingest itself (`ingest.py`) knows nothing of Ray. A device never joins Ray, and nothing that a device sent crosses between actors.

Ray listens on loopback unless `ray.address` names a cluster, asks each of its processes for a token, and reports nothing to its
authors.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

import structlog

from learners.files import BusyError, exclusive_lock, private_folder
from learners.fleet_data.folder_identity import folder_id, folder_problem
from learners.fleet_data.parquet_log import ParquetLog
from learners.fleet_data.row_limits import MAX_REASON
from learners.fleet_data.storage.keeper import StorageKeeper
from runtime.fleet.ingest import Ingest
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.topics import FleetTopics
from runtime.mqtt import Address
from runtime.process import child
from runtime.process import log as process_log
from runtime.process.ray_cluster import RayMissing, joined_ray, start_ray
from runtime.supervisor import broker
from runtime.supervisor.child_processes import Child, RestartLimitExceeded, Spec

log = structlog.get_logger(__name__)

BROKER_S = 10.0
STOP_S = 5.0
RETRY_S = (0.5, 30.0)
STORAGE_S = 300.0
"""Between two passes over the files of rows."""
STEADY_S = 60.0
"""A run that lasted so long ends the back-off."""


class UnsharedFolder(Exception):  # noqa: N818 - reads as what happened
    """A machine of the cluster has another data folder than the server; `str` names both and the remedy."""


class IngestActor:
    """The shell of an ingest in Ray. Ray starts it again when its process ends, and calls `run` again.

    Args:
        settings: of the server, as JSON.
        name: of the ingest.
        folder: identity of the server's data folder.
    """

    def __init__(self, settings: str, name: str, folder: str) -> None:
        self._settings, self._name = FleetServerSettings.model_validate_json(settings), name
        self._folder = folder
        process_log.configure()

    def problem(self) -> str:
        """Return why this machine cannot store the group's rows; empty if it can."""
        return folder_problem(self._settings.data, self._folder)

    async def run(self) -> None:
        """Receive and store until the actor ends.

        Raises:
            UnsharedFolder: this machine has another data folder than the server.
        """
        _require_shared([self.problem()])
        await build_ingest(self._settings, self._name).run()

    def pid(self) -> int:
        """Return the process of the actor."""
        return os.getpid()


class LearnerActor:
    """The shell of the group's learner in Ray; it resumes exactly when Ray starts it again.

    Args:
        settings: of the server, as JSON.
        folder: identity of the server's data folder.
    """

    def __init__(self, settings: str, folder: str) -> None:
        self._settings, self._folder = FleetServerSettings.model_validate_json(settings), folder
        process_log.configure()

    def problem(self) -> str:
        """Return why this machine cannot read the group's rows; empty if it can."""
        return folder_problem(self._settings.data, self._folder)

    async def run(self) -> None:
        """Train and publish until the actor ends.

        Raises:
            UnsharedFolder: this machine has another data folder than the server.
        """
        _require_shared([self.problem()])
        from learners.rl.tokens.ray_shards import RayShards  # noqa: PLC0415 - torch, which no ingest needs
        from runtime.fleet.group_learner import GroupLearner  # noqa: PLC0415

        count = self._settings.learner.replay_shards
        await GroupLearner(self._settings, RayShards(joined_ray(), count) if count else None).run()

    def pid(self) -> int:
        """Return the process of the actor."""
        return os.getpid()


def build_ingest(settings: FleetServerSettings, name: str) -> Ingest:
    """Build one ingest; call it inside the loop.

    Raises:
        OSError: the data folder cannot be created, or a certificate cannot be read.
    """
    store = ParquetLog(
        settings.data,
        settings.group,
        min_daemon=settings.min_daemon,
        min_free_bytes=settings.storage.min_free_gb * 1e9,
        max_bytes=settings.storage.limits().max_bytes,
        agent_bytes=settings.storage.limits().agent_bytes,
    )
    return Ingest(
        name,
        Address.of(settings.mqtt, "agent"),
        store,
        FleetTopics(settings.group),
        settings.max_reward,
        settings.rate_hz,
    )


def settings_json(settings: FleetServerSettings) -> str:
    """Return the settings for an actor, with the password, which Ray passes within its own cluster."""
    body = settings.model_dump(mode="json")
    if settings.mqtt.password is not None:
        body["mqtt"]["password"] = settings.mqtt.password.get_secret_value()

    return json.dumps(body)


def start_ingests(ray: Any, settings: FleetServerSettings) -> list[Any]:
    """Start the ingests as named actors, or find those that run already; return them."""
    remote = ray.remote(IngestActor)
    return [
        remote.options(
            name=name,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=-1,
            num_cpus=0.1,
            max_concurrency=4,
        ).remote(settings_json(settings), name, folder_id(settings.data))
        for name in (f"ingest-{number}" for number in range(settings.ingests))
    ]


def start_learner(ray: Any, settings: FleetServerSettings) -> list[Any]:
    """Start the learner as a named actor, or find the one that runs already; return none where it is switched off."""
    if not settings.learner.enabled:
        return []
    options = {
        "name": "learner",
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    return [
        ray.remote(LearnerActor)
        .options(**options, num_cpus=1, max_concurrency=4)
        .remote(settings_json(settings), folder_id(settings.data))
    ]


async def serve(settings: FleetServerSettings) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code.

    Raises:
        RayMissing: Ray is not installed.
        broker.BrokerError, broker.ExposedError: the embedded broker cannot be started.
        BusyError: another server uses the data folder.
        UnsharedFolder: a machine of the cluster has another data folder.
        OSError: the data folder cannot be written.
    """
    ending = asyncio.Event()
    private_folder(settings.data)
    with ExitStack() as stack:
        stack.enter_context(exclusive_lock(settings.data))
        started = await _start_broker(settings)
        try:
            ray = await asyncio.to_thread(
                start_ray, settings.ray.address, settings.ray.cpus, f"reflexd-{settings.group}"
            )
            stack.callback(ray.shutdown)
            for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which sets its own
                asyncio.get_running_loop().add_signal_handler(number, ending.set)
            actors = [*start_ingests(ray, settings), *start_learner(ray, settings)]
            try:
                _require_shared([await actor.problem.remote() for actor in actors])
            except UnsharedFolder:
                _end(ray, actors)
                raise
            runs = [asyncio.create_task(keep_running(_run(actor)), name=f"actor {i}") for i, actor in enumerate(actors)]
            runs.append(asyncio.create_task(keep_storage(settings, ending.is_set), name="storage"))
            log.info(
                "fleet.serving",
                group=settings.group,
                ingests=settings.ingests,
                learner=settings.learner.enabled,
                data=str(settings.data),
            )
            await ending.wait()
            for each in runs:
                each.cancel()
            _end(ray, actors)
            await asyncio.wait(runs)
        finally:
            if started is not None:
                await started[0].stop()
                await asyncio.wait((started[1],))
    return 0


def _require_shared(problems: Iterable[str]) -> None:
    """Refuse a data folder that is not shared.

    Raises:
        UnsharedFolder: with the first problem.
    """
    problem = next(filter(None, problems), "")
    if problem:
        raise UnsharedFolder(problem)


def _end(ray: Any, actors: Iterable[Any]) -> None:
    """End the actors for good."""
    for actor in actors:
        ray.kill(actor, no_restart=True)


async def keep_running(run: Callable[[], Awaitable[None]], pauses_s: tuple[float, float] = RETRY_S) -> None:
    """Run one actor until cancelled: log a failure, wait, and run it again, so that no failure ends the others.

    Args:
        run: one run of the actor.
        pauses_s: the first pause and the longest; each failure within `STEADY_S` doubles it.
    """
    pause_s = pauses_s[0]
    while True:
        begun_s = time.monotonic()
        try:
            await run()
            reason = "it ended"
        except Exception as error:  # noqa: BLE001 - of another process: whatever ended the run
            reason = f"{type(error).__name__}: {error}"[-MAX_REASON:]
        if time.monotonic() - begun_s >= STEADY_S:
            pause_s = pauses_s[0]
        log.error("fleet.actor_failed", reason=reason, retry_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, pauses_s[1])


async def keep_storage(
    settings: FleetServerSettings, is_stopping: Callable[[], bool] = lambda: False, pause_s: float = STORAGE_S
) -> None:
    """Merge small files of rows and delete the oldest, every few minutes until cancelled.

    Args:
        settings: of the server.
        is_stopping: ends a pass early.
        pause_s: between two passes.
    """
    keeper = StorageKeeper(settings.data / settings.group, settings.storage.limits(), is_stopping)
    while True:
        try:
            done = await asyncio.to_thread(keeper.run)
        except (OSError, ValueError, sqlite3.Error) as error:
            log.warning("fleet.storage_failed", reason=str(error)[:MAX_REASON], retry_s=pause_s)
        else:
            if done:
                log.info("fleet.storage", **done)
        await asyncio.sleep(pause_s)


def _run(actor: Any) -> Callable[[], Awaitable[None]]:
    """Return the call of an actor."""

    async def run() -> None:
        await actor.run.remote()

    return run


async def _start_broker(settings: FleetServerSettings) -> tuple[Child, asyncio.Task[None]] | None:
    """Start the embedded broker and wait until it listens; None where the settings name a running one."""
    if settings.mqtt.scheme != "embedded":
        return None
    prepared = broker.prepare(settings.mqtt, settings.data)
    process = Child(Spec("broker", tuple(prepared.command), grace_s=STOP_S))
    supervising = asyncio.create_task(_supervised(process), name="broker")
    try:
        async with asyncio.timeout(BROKER_S):
            while not broker.accepts(prepared.host, prepared.port) and not supervising.done():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
    except TimeoutError:
        await process.stop()
        raise broker.BrokerError(f"{prepared.kind} does not listen after {BROKER_S:.0f} s") from None
    return process, supervising


async def _supervised(process: Child) -> None:
    with suppress(RestartLimitExceeded):  # the ingests say that there is no broker, and try again
        await process.supervise()


def run_server(settings: FleetServerSettings) -> int:
    """Serve until a signal; return the exit code."""
    child.set_process_title("fleet")
    process_log.configure()
    try:
        return asyncio.run(serve(settings))
    except (RayMissing, broker.ExposedError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (broker.BrokerError, BusyError, UnsharedFolder, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
