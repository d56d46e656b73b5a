"""Serve the page of a fleet and its Prometheus metrics, from the retained reports at the broker alone.

The page lists each agent with state, version, wave, reward, backlog and last verdict. An operator may stop one agent or all, roll back,
and pause waves there, as the verbs do. A viewer may not. Sign-in, host names and origins are those of an agent's page (`runtime/dashboard/sign_in.py`). Reports are
untrusted: they are validated, bounded, and sent to browsers as JSON, which shows them as text.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from learners.checkpoints.manifest import CheckpointRefused
from learners.files import private_folder
from learners.fleet_data.segment import NAME
from runtime.dashboard.access.auth import Access, token_file
from runtime.dashboard.access.sign_in import HEADERS, SignIn, check_origin, html_page
from runtime.fleet.policy_publisher import PolicyPublisher, rollback_in_words
from runtime.fleet.reports import GroupWatch
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.stop.caller import StopCaller
from runtime.fleet.stop.messages import StopAnswer, StopTopics
from runtime.fleet.wave_runner import PAUSED
from runtime.mqtt import MqttLost
from runtime.process.http_server import address, put_headers, serve, serve_metrics

log = structlog.get_logger(__name__)

SHOWN = 20
"""Agents that a sentence names."""
GroupAction = Literal["rollback", "pause", "resume"]
Action = GroupAction | Literal["stop", "stop_all"]


class ActionRequest(BaseModel):
    """What a browser asks for."""

    model_config = ConfigDict(extra="forbid")
    action: Action
    agent: str | None = Field(None, pattern=NAME)
    """Of `stop`, and of nothing else."""

    @model_validator(mode="after")
    def _names_its_agent(self) -> Self:
        if (self.agent is None) == (self.action == "stop"):
            raise ValueError("`stop` names an agent, and no other action does")
        return self


@dataclass(slots=True)
class FleetPage(SignIn):
    """The handlers of the page.

    Args:
        agent: name of the group; it names the cookie.
        access: who may sign in.
        hosts: host names that are answered; None takes any.
        token_hint: where the operator's token is.
        watch: the newest reports.
        act: does what an operator asks for, and returns a sentence.
        stops: stops agents, over the connection of `watch`.
    """

    agent: str
    access: Access
    hosts: frozenset[str] | None
    token_hint: str
    watch: GroupWatch
    act: Callable[[GroupAction], Awaitable[str]]
    stops: StopCaller

    def application(self) -> web.Application:
        """Build the application."""
        app = web.Application(middlewares=[self.host_check], client_max_size=4_096)
        app.on_response_prepare.append(put_headers(HEADERS))
        app.router.add_get("/", self.index)
        app.router.add_get("/state", self.state)
        app.router.add_post("/action", self.action)
        self.add_routes(app.router)
        return app

    async def index(self, request: web.Request) -> web.Response:
        """Serve the page, or redirect to the login."""
        if self.role(request) is None:
            raise web.HTTPSeeOther("/login")
        return html_page("fleet.html")

    async def state(self, request: web.Request) -> web.Response:
        """Return the newest reports."""
        role = self.role(request)
        if role is None:
            raise web.HTTPUnauthorized(text="sign in first")
        return web.json_response({"role": role, **group_state(self.agent, self.watch, self.stops.newest)})

    async def action(self, request: web.Request) -> web.Response:
        """Do what an operator asks for."""
        check_origin(request, required=True)
        role = self.role(request)
        if role is None:
            raise web.HTTPUnauthorized(text="sign in first")
        if role != "operator":
            raise web.HTTPForbidden(text="viewers change nothing")
        try:
            wanted = ActionRequest.model_validate_json(await request.read())
        except ValidationError:
            raise web.HTTPBadRequest(text="the page's server does not know this action: reload the page") from None
        # before it is done: a stop is in the log whatever becomes of it
        log.info("fleet.page_action", action=wanted.action, agent=wanted.agent)
        try:
            outcome = await self._do(wanted)
        except (MqttLost, CheckpointRefused, OSError, ValueError) as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from None
        return web.json_response({"outcome": outcome})

    async def _do(self, wanted: ActionRequest) -> str:
        """Do what an operator asks for; return a sentence.

        Raises:
            MqttLost, CheckpointRefused, OSError, ValueError: it could not be done.
        """
        if wanted.action not in {"stop", "stop_all"}:
            return await self.act(wanted.action)  # type: ignore[arg-type]
        answers = await self.stops.stop(wanted.agent, self.watch.found.agents.keys(), "the fleet's page")
        if wanted.agent is not None:
            return f"{wanted.agent}: {answers[wanted.agent].in_words()}"
        stopped = sum(each.outcome == "stopped" for each in answers.values())
        others = [name for name, each in answers.items() if each.outcome != "stopped"]
        left = (
            f". Not stopped: {', '.join(others[:SHOWN])}{' and others' if len(others) > SHOWN else ''}"
            if others
            else ""
        )
        return f"{stopped} of {len(answers)} agents are stopped{left}"


def group_state(group: str, watch: GroupWatch, stops: Mapping[str, StopAnswer]) -> dict[str, Any]:
    """Return what the page shows, as JSON.

    Args:
        group: its name.
        watch: the newest reports.
        stops: by agent, its answer to the newest stop.
    """
    learner = watch.found.learner
    progress = {} if learner is None else learner.progress
    trust = progress.get("trust")
    excluded = {} if learner is None else learner.excluded
    wave = None if learner is None else learner.wave
    agents = [
        {
            **report.model_dump(
                include={"agent", "state", "daemon_state", "policy", "wave", "backlog_rows", "verdict", "apart"}
            ),
            "reward": _reward(trust, name),
            "excluded": excluded.get(name, ""),
            "stop": stops[name].in_words() if name in stops else "",
        }
        for name, report in sorted(watch.found.agents.items())
    ]
    return {
        "group": group,
        "connected": watch.link.connected,
        "agents": agents,
        "learner": "not seen" if learner is None else learner.state,
        "paused": learner is not None and learner.paused,
        "alert": str(progress.get("alert") or "")[:500],
        "wave": "No wave yet."
        if wave is None
        else f"Wave of {wave.get('version')}: {wave.get('state')} at {wave.get('stage')}. {wave.get('reason') or ''}"[
            :600
        ],
    }


def _reward(trust: object, agent: str) -> float | None:
    """Return the mean reward of an agent, as the learner reports it; None where it says none."""
    figures = trust.get(agent) if isinstance(trust, dict) else None
    value = figures.get("reward") if isinstance(figures, dict) else None
    return float(value) if isinstance(value, int | float) else None


@dataclass(slots=True, eq=False)
class GroupMetrics(Collector):
    """Prometheus metrics of every part of a group. Agents are those that may write at the broker, at most `MAX_AGENTS` of them."""

    watch: GroupWatch

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the newest figures."""
        found, labels = self.watch.found, ("online", "backlog_rows", "fleet_version", "sampling_probability")
        families = {
            name: GaugeMetricFamily(f"reflexd_fleet_agent_{name}", f"`{name}` of an agent.", labels=["agent"])
            for name in labels
        }
        for name, report in found.agents.items():
            values = {
                "online": float(report.state == "online"),
                "backlog_rows": report.backlog_rows,
                "fleet_version": report.fleet_version,
                "sampling_probability": report.sampling_probability,
            }
            for what, value in values.items():
                if value is not None:
                    families[what].add_metric([name], value)
        yield from families.values()
        counts = GaugeMetricFamily(
            "reflexd_fleet_ingest", "Counts of an ingest since its start.", labels=["ingest", "count"]
        )
        for name, ingest in found.ingests.items():
            counts.add_metric([name, "online"], float(ingest.state == "online"))
            for what, count in ingest.counts.items():
                counts.add_metric([name, what[:64]], count)
        yield counts
        learner = GaugeMetricFamily("reflexd_fleet_learner", "Figures of the group's learner.", labels=["figure"])
        if found.learner is not None:
            progress = found.learner.progress
            learner.add_metric(["online"], float(found.learner.state == "online"))
            learner.add_metric(["excluded"], found.learner.excluded_count)
            learner.add_metric(["paused"], float(found.learner.paused))
            for what in ("updates", "row", "buffer", "sampleable", "demonstrations", "pending_updates", "reward_mean"):
                if isinstance(value := progress.get(what), int | float):
                    learner.add_metric([what], value)
        yield learner
        yield GaugeMetricFamily(
            "reflexd_fleet_broker_connected", "1 while the broker answers.", value=float(self.watch.link.connected)
        )


async def act_on(settings: FleetServerSettings, action: GroupAction) -> str:
    """Do what an operator asks for the group, as the verbs of `reflexd fleet` do.

    Raises:
        MqttLost, CheckpointRefused, OSError, ValueError: it could not be done.
    """
    if action == "rollback":
        publisher = PolicyPublisher(settings)
        return rollback_in_words(publisher, await publisher.roll_back(1.0))
    path = settings.data / settings.group / PAUSED
    private_folder(path.parent)
    if action == "pause":
        path.touch()
    else:
        path.unlink(missing_ok=True)
    return f"waves: {action}"


async def run_page(
    settings: FleetServerSettings, listen: str, metrics: str | None, hosts: frozenset[str] | None
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        settings: of the server.
        listen: HOST:PORT of the page.
        metrics: HOST:PORT of the metrics; None for none.
        hosts: host names that are answered; None takes any.

    Raises:
        OSError, ValueError: an address or the token file cannot be used.
    """
    private_folder(settings.data)
    path = settings.data / "page-token"
    watch = GroupWatch(settings)
    access = Access(token_file(path), token_file(settings.data / "page-viewer-token"), time.monotonic)
    caller = StopCaller(watch.link, StopTopics(settings.group))
    hint = f"The operator's token is in {path.absolute()}."
    page = FleetPage(settings.group, access, hosts, hint, watch, lambda action: act_on(settings, action), caller)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    registry = CollectorRegistry()
    registry.register(GroupMetrics(watch))
    parts = [watch.link.run(), *([serve_metrics(registry, list, metrics)] if metrics is not None else [])]
    async with serve(page.application(), listen) as port:
        log.info("fleet.page", address=f"{address(listen)[0]}:{port}")
        running = [asyncio.create_task(part) for part in (*parts, ending.wait())]
        done, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.wait(running)
        for task in done:
            task.result()
