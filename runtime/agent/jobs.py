"""Define the tasks of the agent that run until the agent stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from runtime.agent.components import Components
from sensors.base import PayloadRefused, Sensor
from sensors.drivers.sensor import DriverSensor

SPEC_RETRY_S = 5.0
_LOG = structlog.get_logger(__name__)


def jobs(parts: Components) -> dict[str, Coroutine[Any, Any, None]]:
    """Return every task of the agent by its name; each runs until cancelled, but for `policy spec`."""
    running: dict[str, Coroutine[Any, Any, None]] = {
        "control mqtt": parts.control.run(),
        "media mqtt": parts.media.run(),
        "gate": parts.gate.listen(),
        "decoder": parts.decoder.run(),
        "tick": parts.control_loop.run(),
        "policy": parts.policy_updater.run(),
        "experiments": parts.experiments.file.run(),
        "sources": parts.sources.file.run(),
        "drift": parts.drift.run(),
        "drift references": parts.drift.file.run(),
        "encoders": parts.encoder_updater.run(),
        "learner events": parts.learner_events.run(),
        "requests": parts.requests.run(),
        "explanations": parts.requests.explainer.run(),
        "recording": parts.requests.recording.run(),
        "policy spec": _write_spec(parts),
        "storage": parts.storage.run(),
        "health": parts.reporter.health(parts.health),
    }
    for name, sensor in parts.sensors.items():
        if isinstance(sensor, Sensor):
            running[f"sensor {name}"] = _run_sensor(parts, sensor)
    if parts.task_outputs is not None:
        running["tasks"] = parts.task_outputs.runner.run()
    if parts.task_updater is not None:
        running["task versions"] = parts.task_updater.run()
    if parts.deliberator is not None:
        running["deliberator"] = parts.deliberator.run()
        running["goal state"] = parts.deliberator.file.run()
    if parts.announcer is not None:
        running["home assistant"] = parts.announcer.run()
    if parts.agent_card is not None:
        running["agent card"] = parts.agent_card.run()
    if parts.config.metrics is not None:
        from runtime.process.http_server import serve_metrics  # noqa: PLC0415 - 8 MB that a daemon without metrics does not need

        running["metrics"] = serve_metrics(parts.registry, partial(unready, parts), parts.config.metrics.listen)
    return running


async def _write_spec(parts: Components) -> None:
    """Write the policy spec, for which the learner waits; try again when the disk refuses."""
    while True:
        try:
            await asyncio.to_thread(parts.write_spec)
        except OSError as error:
            _LOG.warning("agent.policy_spec_not_written", reason=str(error))
            await asyncio.sleep(SPEC_RETRY_S)
        else:
            return


def unready(parts: Components) -> list[str]:
    """Return the reasons why the agent is not ready; empty when it is."""
    loop, verdict = parts.control_loop, parts.gate.latest
    stale = parts.inbox.stale(loop.clock.now())
    reasons = [f"stream {name} is stale" for name in stale if name in parts.inbox.required]
    trouble = parts.control.trouble
    if not parts.control.connected:
        reasons.append("no connection to the broker" + (f": {trouble}" if trouble else ""))
    elif trouble:
        reasons.append(trouble)
    if verdict is None:
        reasons.append("the gate has not answered any tick yet")
    elif not verdict.armed and parts.config.gate.arm == "auto" and loop.mode == "autonomous":
        reasons.append("stopped" if verdict.stopped else "not armed")
    return reasons


async def _run_sensor(parts: Components, sensor: Sensor) -> None:
    """Run a sensor; publish its losses and recoveries, and what it refuses, as events."""
    loop = asyncio.get_running_loop()

    def lost(reason: str) -> None:
        parts.reporter.event("sensor_lost", {"stream": sensor.name, "reason": reason})

    def refused(refusal: PayloadRefused) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(parts.decoder.report, sensor.name, refusal)

    def recovered() -> None:
        parts.reporter.event("sensor_recovered", {"stream": sensor.name})

    if isinstance(sensor, DriverSensor):
        sensor.refused = refused
    await sensor.run(parts.inbox.put, lost, recovered)
