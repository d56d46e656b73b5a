"""Build the agent from its settings, leaf to root: every component gets its collaborators as constructor arguments.

The only place that builds the agent; the modules `build_*.py` hold its steps. Nothing runs yet when this returns: `jobs.py` lists
what runs, `subscriptions.py` which topic goes to which handler.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial

from learners.ipc.policy_spec import write_policy_spec
from runtime.agent.build_context import AgentContext
from runtime.agent.build_control import build_control_loop, build_health, build_requests, build_storage_monitor
from runtime.agent.build_feedback import build_drift_watch, build_feedback
from runtime.agent.build_models import load_models
from runtime.agent.build_perception import build_deliberator, build_perception, build_speech
from runtime.agent.build_publishing import build_agent_card, build_announcer, build_publishing
from runtime.agent.components import Components
from runtime.agent.subscriptions import subscribe
from runtime.config.loader import LoadedConfig
from runtime.gate.client import GateLink
from runtime.process.pacing import MonotonicClock


async def build(
    loaded: LoadedConfig,
    gate_end: socket.socket,
    faults: Iterable[str],
    decoders: Executor,
    *,
    wall: Callable[[], float] = time.time,
) -> Components:
    """Build every component and load the live policy; takes seconds, the models off the event loop.

    Args:
        loaded: the settings.
        gate_end: the agent's end of the socket to the gate.
        faults: sensor faults to inject, as `--fault` names them.
        decoders: threads that decode and encode media.
        wall: Unix seconds.

    Raises:
        ValueError: settings that fail only when they are used, such as a fault for an unknown stream.
    """
    clock = MonotonicClock.for_period(loaded.config.tick.period_s)
    context = AgentContext(loaded, decoders, wall, session=uuid.uuid4().hex[:12], clock=clock)
    config, gate = context.config, GateLink(gate_end, context.config.agreement)

    publishing = build_publishing(context)
    perception = build_perception(context, publishing, faults)
    feedback = build_feedback(context, publishing)
    drift = build_drift_watch(context, publishing, feedback)
    deliberator = build_deliberator(context, publishing, perception, drift, feedback.receiver)
    speech = build_speech(context, publishing, perception)
    models = await load_models(context, publishing, perception, feedback, speech, deliberator)
    control_loop = build_control_loop(context, publishing, perception, feedback, models, drift, deliberator, gate)
    storage = build_storage_monitor(context, publishing, feedback, control_loop)
    health = build_health(
        context, perception, feedback, control_loop, storage, drift, models.task_outputs, speech, deliberator
    )
    requests = build_requests(context, publishing, feedback, models, control_loop, drift)
    parts = Components(
        config=config,
        control=publishing.control,
        media=publishing.media,
        registry=publishing.registry,
        reporter=publishing.reporter,
        sensors=perception.sensors,
        inbox=perception.inbox,
        decoder=perception.decoder,
        store=feedback.store,
        checkpoints=feedback.checkpoints,
        experiments=feedback.experiments,
        sources=feedback.sources,
        outcomes=feedback.outcomes,
        feedback=feedback.receiver,
        learner_events=models.learner_events,
        engine=models.engine,
        policy_updater=models.policy_updater,
        encoder_updater=models.encoder_updater,
        task_outputs=models.task_outputs,
        task_updater=models.task_updater,
        deliberator=deliberator,
        viewer=publishing.viewer,
        gate=gate,
        control_loop=control_loop,
        storage=storage,
        drift=drift,
        write_spec=partial(write_policy_spec, context.state_dir, models.engine.spec),
        health=health,
        requests=requests,
        announcer=build_announcer(config, publishing, health, gate),
        agent_card=build_agent_card(config, publishing),
    )
    subscribe(parts, context.topics)
    return parts
