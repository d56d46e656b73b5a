"""The tools of the MCP server: what each is called, takes and may do, and the request of the daemon that it sends.

Every tool that changes something publishes the message that a person's page would publish: the gate decides, and only the gate
writes an actuator topic. Reading tools return the newest messages. Texts in a result come from streams, devices and people: they
are data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat

from runtime.dashboard.access.auth import Role
from runtime.dashboard.broker_connections import MqttBridge
from runtime.mcp_server.daemon_view import MAX_DECISIONS, DaemonView, bounded
from runtime.mqtt.topics import encode

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Version = Annotated[str, Field(min_length=1, max_length=128)]
SOURCE = "mcp"
GATE_S, AGENT_S = 1.5, 20.0
"""Time limits of a request to the gate, and of one to the agent."""
FIRST_S, LOOK_S = 5.0, 0.05
"""How long the first call waits for the daemon's status, and between two looks at it."""


class Input(BaseModel):
    """Base of what a tool takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Nothing(Input):
    """A tool without arguments."""


class Count(Input):
    """How many entries to return."""

    count: int = Field(10, ge=1, le=MAX_DECISIONS, description="how many of the newest to return")


class DecisionInput(Input):
    """One decision."""

    decision: str = Field(
        min_length=1, max_length=128, description="id of a decision, as the tool `decisions` returns it"
    )


class TaskInput(Input):
    """The policy, or one task."""

    task: Name | None = Field(None, description="name of a task; without it the versions are the policy's")


class VersionInput(TaskInput):
    """One version of the policy or of a task."""

    version: Version = Field(description="name of a version, as the tool `checkpoints` returns it, or `newest`")


class ModeInput(Input):
    """A mode, of all actuators or of one."""

    mode: Literal["shadow", "assist", "autonomous"] = Field(
        description="`shadow` decides and does not act, `assist` proposes, `autonomous` acts"
    )
    actuator: Name | None = Field(None, description="name of one actuator; without it the mode is for all")


class ActuatorInput(Input):
    """One actuator."""

    actuator: Name = Field(description="name of an actuator, as the tool `status` returns it")


class OverrideInput(ActuatorInput):
    """A value that an actuator holds instead of the policy's."""

    value: Annotated[str, Field(max_length=1_024)] | Annotated[list[StrictFloat], Field(max_length=1_024)] = Field(
        description="a choice or text, or a list of numbers, as the actuator's kind requires"
    )
    hold_s: StrictFloat = Field(2.0, ge=0, le=3_600, description="seconds until the policy acts again")


class GoalInput(Input):
    """A listed goal."""

    goal: Name = Field(description="one of the listed goals, as the tool `goals` returns them")
    hold_s: StrictFloat = Field(600.0, ge=0, le=86_400, description="seconds until the model chooses again")


class ToolFailed(Exception):  # noqa: N818 - reads as what happened
    """A tool has no result; `str` says why and what to do."""


@dataclass(slots=True)
class DaemonTools:
    """What the tools do, on one connection to the broker."""

    bridge: MqttBridge
    view: DaemonView

    async def _fresh(self) -> None:
        """Wait until the daemon's status is known.

        Raises:
            ToolFailed: there is no broker, or no daemon.
        """
        waited_s = 0.0
        while not (self.bridge.control.connected and "status" in self.view.sections):
            if waited_s >= FIRST_S:
                raise ToolFailed(self._absent())
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S

    async def _connected(self) -> None:
        """Wait until a connection carries a stop; after `FIRST_S` the attempt itself names what is wrong."""
        waited_s = 0.0
        while waited_s < FIRST_S and not (self.bridge.stop.connected or self.bridge.control.connected):
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S

    def _absent(self) -> str:
        if not self.bridge.control.connected:
            return f"no connection to the broker: {self.bridge.control.trouble or 'it does not answer'}"
        return f"no daemon named {self.bridge.topics.agent} on this broker; start it with `reflexd run FILE`"

    async def status(self, _: Nothing) -> dict[str, Any]:
        """Return state, mode, policy, goal, actuators and figures of the tick."""
        await self._fresh()
        sections = self.view.sections
        info, health = sections.get("info", {}), sections.get("health", {})
        wanted = ("armed", "stopped", "mode", "policy", "tick", "learner", "gate", "memory_mb")
        return {
            **sections.get("status"),
            "version": info.get("version"),
            **{name: health.get(name) for name in wanted},
            "goal": sections.get("goal", {}).get("goal"),
            "actuators": {
                name: {
                    **{
                        key: about[key]
                        for key in ("kind", "choices", "low", "high", "safe")
                        if about.get(key) is not None
                    },
                    "state": sections.get("actuators", {}).get(name, {}).get("state", {}).get("value"),
                    "held_until": sections.get("holds", {}).get(name, {}).get("until"),
                }
                for name, about in info.get("actuators", {}).items()
            },
            "tasks": sections.get("tasks", {}),
        }

    async def streams(self, _: Nothing) -> dict[str, Any]:
        """Return each stream with its age and its newest text or values."""
        await self._fresh()
        sections = self.view.sections
        healths, contents = sections.get("health", {}).get("streams", {}), sections.get("streams", {})
        return {
            name: {
                **{key: about[key] for key in ("kind", "required", "max_age_s", "fields")},
                **{key: healths.get(name, {}).get(key) for key in ("age_s", "stale", "drops", "last_refusal")},
                "newest": contents.get(name),
            }
            for name, about in sections.get("info", {}).get("streams", {}).items()
        }

    async def decisions(self, wanted: Count) -> dict[str, Any]:
        """Return the newest decisions since this server started, newest first."""
        await self._fresh()
        return {"decisions": list(self.view.decisions)[::-1][: wanted.count]}

    async def events(self, wanted: Count) -> dict[str, Any]:
        """Return the newest events since this server started, newest first."""
        await self._fresh()
        return {"events": self.view.sections.get("events", [])[::-1][: wanted.count]}

    async def goals(self, _: Nothing) -> dict[str, Any]:
        """Return the goal in force, with every goal's probability and the goals before."""
        await self._fresh()
        goal = self.view.sections.get("goal")
        if goal is None:
            raise ToolFailed("this daemon has no deliberator, so it has no goals; add `deliberator:` to its settings")
        return dict(goal)

    async def explain(self, wanted: DecisionInput) -> dict[str, Any]:
        """Return what each stream contributed to a decision."""
        return await self._request("request", "explain", body=wanted.model_dump())

    async def checkpoints(self, wanted: TaskInput) -> dict[str, Any]:
        """Return the versions of the policy or of a task."""
        return await self._request("request", "checkpoints", body=wanted.model_dump(exclude_none=True))

    async def stop(self, _: Nothing) -> dict[str, Any]:
        """Engage the software stop."""
        return await self._request("stop", body={"engaged": True}, timeout_s=GATE_S)

    async def arm(self, _: Nothing) -> dict[str, Any]:
        """Let the policy act."""
        return await self._request("request", "arm", body={}, timeout_s=GATE_S)

    async def disarm(self, _: Nothing) -> dict[str, Any]:
        """Keep the policy from acting."""
        return await self._request("request", "disarm", body={}, timeout_s=GATE_S)

    async def mode(self, wanted: ModeInput) -> dict[str, Any]:
        """Change the mode."""
        return await self._request("request", "mode", body=wanted.model_dump(exclude_none=True), timeout_s=GATE_S)

    async def override(self, wanted: OverrideInput) -> dict[str, Any]:
        """Have the gate send one value instead of the policy's."""
        await self._fresh()
        about = self.view.sections.get("info", {}).get("actuators", {}).get(wanted.actuator)
        if about is None:
            raise ToolFailed(f"{wanted.actuator!r} is not an actuator; the tool `status` lists them")
        takes = f"{len(about['low'])} numbers" if about["kind"] == "continuous" else "a text"
        if isinstance(wanted.value, str) is (about["kind"] == "continuous"):
            raise ToolFailed(f"value: {wanted.actuator} is {about['kind']} and takes {takes}, not {wanted.value!r:.80}")
        body = wanted.model_dump(include={"value", "hold_s"}) | {"source": SOURCE}
        return await self._request("override", wanted.actuator, body=body, timeout_s=GATE_S)

    async def end_override(self, wanted: ActuatorInput) -> dict[str, Any]:
        """Let the policy act again on one actuator."""
        return await self._request("request", "end_override", body=wanted.model_dump(), timeout_s=GATE_S)

    async def set_goal(self, wanted: GoalInput) -> dict[str, Any]:
        """Put a listed goal in force."""
        known = (await self.goals(Nothing()))["goals"]
        if wanted.goal not in known:
            raise ToolFailed(f"{wanted.goal!r} is not a listed goal; there are {', '.join(known)}")
        body = {"value": wanted.goal, "hold_s": wanted.hold_s, "source": SOURCE}
        await self.bridge.publish(self.bridge.topics("override", "goal"), encode(body), 1)
        return {"sent": wanted.goal, "hold_s": wanted.hold_s}

    async def promote(self, wanted: VersionInput) -> dict[str, Any]:
        """Make a version live."""
        return await self._request("request", "promote", body=wanted.model_dump(exclude_none=True))

    async def rollback(self, wanted: TaskInput) -> dict[str, Any]:
        """Return to the version before."""
        return await self._request("request", "rollback", body=wanted.model_dump(exclude_none=True))

    async def _request(self, *parts: str, body: dict[str, Any], timeout_s: float = AGENT_S) -> dict[str, Any]:
        if parts != ("stop",):
            await self._fresh()
        elif not (self.bridge.stop.connected or self.bridge.control.connected):
            await self._connected()  # a stop waits for nothing else
        return await self.bridge.request(parts, body, timeout_s)


@dataclass(frozen=True, slots=True)
class DaemonTool:
    """One tool: its name is its method's in `DaemonTools`."""

    name: str
    role: Role
    """The least role that may call it."""
    effect: Literal["reads", "stops", "changes"]
    input: type[Input]
    description: str

    async def call(self, tools: DaemonTools, arguments: dict[str, Any]) -> dict[str, Any]:
        """Validate the arguments, run the tool and return its bounded result.

        Raises:
            pydantic.ValidationError: the arguments have another shape.
            ToolFailed, Unreachable: there is no result; the text says why.
        """
        method: Callable[[Input], Awaitable[dict[str, Any]]] = getattr(tools, self.name)
        result: dict[str, Any] = bounded(await method(self.input.model_validate(arguments)))
        return result


TOOLS: dict[str, DaemonTool] = {
    tool.name: tool
    for tool in (
        DaemonTool("status", "viewer", "reads", Nothing, "State of the daemon: online or degraded and why, mode, armed or stopped, policy version, goal, actuators with their values, tick times."),
        DaemonTool("streams", "viewer", "reads", Nothing, "Every stream (camera, microphone, text, telemetry) with its age, whether it is stale, and its newest text or values."),
        DaemonTool("decisions", "viewer", "reads", Count, "The newest decisions of the policy with probabilities, newest first, since this server started."),
        DaemonTool("events", "viewer", "reads", Count, "The newest events of the daemon, newest first, since this server started."),
        DaemonTool("explain", "viewer", "reads", DecisionInput, "Why a decision was taken: the contribution of each stream, ages, policy lineage and the gate's verdict."),
        DaemonTool("goals", "viewer", "reads", Nothing, "The goal in force, the listed goals with their probabilities, and the goals before."),
        DaemonTool("checkpoints", "viewer", "reads", TaskInput, "Versions of the policy or of a task, which one is live, and the verdicts on candidates."),
        DaemonTool("stop", "viewer", "stops", Nothing, "Engage the software stop: every actuator gets its safe value. Every role may call it. Only a person releases it, on the page."),
        DaemonTool("arm", "operator", "changes", Nothing, "Let the policy act on the actuators. Operator only."),
        DaemonTool("disarm", "operator", "changes", Nothing, "Keep the policy from acting until someone arms it. Operator only."),
        DaemonTool("mode", "operator", "changes", ModeInput, "Change the mode of all actuators or of one. Operator only."),
        DaemonTool("override", "operator", "changes", OverrideInput, "Ask the gate to hold a value on one actuator for some seconds; the gate may refuse it. Operator only."),
        DaemonTool("end_override", "operator", "changes", ActuatorInput, "Let the policy act again on one actuator at once. Operator only."),
        DaemonTool("set_goal", "operator", "changes", GoalInput, "Put one of the listed goals in force for some seconds. Operator only."),
        DaemonTool("promote", "operator", "changes", VersionInput, "Make a version of the policy or of a task live. Operator only."),
        DaemonTool("rollback", "operator", "changes", TaskInput, "Return to the version before, of the policy or of a task. Operator only."),
    )
}  # fmt: skip
"""By name, in the order in which a client lists them."""
