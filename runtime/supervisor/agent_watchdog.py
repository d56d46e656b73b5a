"""Kill an agent that is alive and no longer ticks; its supervision starts it again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from runtime.gate.host import GateHost
from runtime.supervisor.child_processes import Child

log = structlog.get_logger(__name__)

HUNG_S = 20.0
"""An agent that has ticked and then was silent for so long is restarted."""


async def kill_hung_agent(host: GateHost, agent: Callable[[], Child | None]) -> None:
    """Look once a second until cancelled.

    Args:
        host: knows when the agent spoke last.
        agent: returns the agent's process, if there is one.
    """
    while True:
        await asyncio.sleep(1.0)
        spoke_s, running = host.agent.spoke_s, agent()
        if spoke_s is not None and running is not None and time.monotonic() - spoke_s > HUNG_S:
            host.agent.spoke_s = None
            log.error("supervisor.agent_unresponsive", silent_s=HUNG_S)
            running.kill()
