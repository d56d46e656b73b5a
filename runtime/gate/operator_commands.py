"""Read the messages of operators to the gate: the stop, overrides and requests. All of it is untrusted.

A message on `stop` that is not exactly a release engages the stop. What allows movement (a release, arming, a mode, an
override) must be exactly right, and is refused when the broker may have stored it. Each request is answered once, after what
it changed is on the disk, with the data or with the reason why not.

The stop has its own connection and a limit may delay a request, so messages may be handled in another order than they were sent.
A request to arm that finds the stop engaged waits until the stop's connection has caught up. What allows movement is refused
when a newer message that ends it was handled first.

A message on `stop` is acknowledged to the broker once the latches on the disk have it. So the broker sends a stop again that
this process lost when it was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from actuators.safety.decisions import MODES
from learners.goal_models.config import GOAL
from runtime.gate.host import GateHost
from runtime.gate.latches import Saved
from runtime.gate.stop.messages import may_mean_stop, read_stop
from runtime.gate.stop.unacknowledged import Unacknowledged
from runtime.mqtt import Limit, Message, rpc
from runtime.mqtt.topics import Override, Payload, Refused, decode

Reload = Callable[[], Awaitable[dict[str, Any]]]

OVERRIDES = Limit(rate_hz=50.0, burst=50)
"""Overrides of one actuator that are read; between two of them the newest wins."""
REQUESTS = Limit(rate_hz=20.0, burst=40)
"""Requests of one sender with one verb that are read; between two of them the newest wins."""
CATCH_UP_S = 1.0
"""A request to arm waits so long for the connection of the stop."""
MAX_WAITING = 4
"""Requests that wait, of a kind."""
STORED = 100
"""Messages on `stop` that the broker stored, after which it may have dropped one; brokers store 100 or more."""
REFUSED_S = 1.0
"""Between two events of refused releases."""


class ModeRequest(Payload):
    """`request/mode`; without `actuator` for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["shadow", "assist", "autonomous"]
    actuator: str | None = Field(None, max_length=64)

    @field_validator("actuator")
    @classmethod
    def _named(cls, actuator: str | None) -> str | None:
        """Refuse null, as a template without its variable sends it: it must not change the mode of all."""
        if actuator is None:
            raise ValueError("actuator: null is not a name; leave the key out to mean all actuators")
        return actuator


class EndOverrideRequest(Payload):
    """`request/end_override`: the policy may act again at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    actuator: str = Field(max_length=64)


class EmptyRequest(Payload):
    """`request/arm`, `request/reload`: nothing, or an empty object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field("", max_length=64)


class ExactOverride(Override):
    """`override/<actuator>` without a key that might be a misspelt one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OperatorCommands:
    """Passes the operators' messages from the connections to the gate's host."""

    def __init__(self, host: GateHost, reload: Reload) -> None:
        self.host = host
        self.reload = reload
        self._overridden: dict[str, dict[str, Any]] = {}
        self._reloads: asyncio.Queue[Message | None] = asyncio.Queue(MAX_WAITING)
        self._arms: asyncio.Queue[Message] = asyncio.Queue(MAX_WAITING)
        self._stored = 0
        """Messages on `stop` in a row that the broker may have stored."""
        self._unacknowledged = Unacknowledged()
        """Messages on `stop` that the broker stores until the latches have them."""
        self._modes_s = float("-inf")
        """When the newest request for a mode was received."""
        self._refused_s = float("-inf")
        """When the newest refusal of a release was published."""
        self._ends_s: dict[str, float] = {}
        """By actuator: when the newest request to end its override was received."""
        topics, subscribe = host.topics, host.connection.subscribe
        host.safety.subscribe(topics("stop"), self.stop, retained="send")
        subscribe(topics("override", "+"), self.override, limit=OVERRIDES)
        subscribe(topics("request", "+"), self.requested, limit=REQUESTS)

    def stop(self, message: Message) -> None:
        """Engage or release the software stop, and answer where the message names a response topic.

        Raises:
            Refused: a release that may be old.
        """
        host = self.host
        self._stored = self._stored + 1 if message.resumed else 0
        if self._stored == STORED:
            host.stop(engaged=True, reason=f"the broker stored {STORED} messages on `stop`: it may have dropped a stop")
        try:
            with self._refusing(message):
                read = read_stop(message)
                if read is not None and not read[0]:
                    self._refuse_old()
        except Refused as refusal:
            self._release_refused(message, str(refusal))
            raise
        if read is None:
            message.acknowledge()
            return
        engaged, reason = read
        number = self._unacknowledged.add(message)
        if not engaged and host.gate.stopped:  # a retained stop would engage again at the next connect
            host.safety.enqueue(host.topics("stop"), b"", qos=1, retain=True)

        what = f"the stop is {'engaged' if engaged else 'released'}"
        state = lambda: {"stopped": host.gate.stopped, "armed": host.gate.armed}  # noqa: E731 - read when it is saved
        answered = self._after_saving(message, what, state) if message.response_topic is not None else None

        def saved(error: str | None) -> None:
            if answered is not None:
                answered(error)
            if error is None:
                self._unacknowledged.acknowledge(number)

        host.stop(engaged=engaged, reason=reason, saved=saved)

    def _release_refused(self, message: Message, reason: str) -> None:
        """Publish why a release is refused, at most once a second; a sender that named a response topic has the answer."""
        now_s = self.host.now()
        if message.response_topic is None and now_s - self._refused_s >= REFUSED_S:
            self._refused_s = now_s
            self.host.publisher.event("stop_release_refused", {"reason": reason})

    def override(self, message: Message) -> None:
        """Apply an operator's override, and answer where the message names a response topic.

        Raises:
            Refused: it is retained or malformed, or its actuator is not configured.
        """
        name = rpc.last_level(message)
        host = self.host
        if name == GOAL and host.config.deliberator is not None:
            return  # a goal moves nothing: the agent takes it
        with self._refusing(message):
            rpc.refuse_retained(message)
            wanted = decode(ExactOverride, message.payload)
            self._known(name)
            self._refuse_old()
            if message.stamp_s < self._ends_s.get(name, float("-inf")):
                raise Refused("a newer request ended the override; send it again")
        decision = host.override(name, wanted.value, wanted.hold_s)
        shown: dict[str, Any] = {
            "actuator": name,
            "value": wanted.value,
            "hold_s": wanted.hold_s,
            "source": wanted.source,
        }
        shown |= {"sent": decision.sent, "rule": decision.rule}
        if shown != self._overridden.get(name):  # a hand on a slider repeats itself many times a second
            self._overridden[name] = shown
            host.publisher.event("override", shown)
        if message.response_topic is not None:
            self._respond(message, rpc.ok(shown | {"reason": decision.reason}))

    def requested(self, message: Message) -> None:
        """Serve one request, or say that there is no such verb; the agent serves its own.

        Raises:
            Refused: it is retained.
        """
        rpc.refuse_retained(message)
        verb = rpc.last_level(message)
        serve = {
            "arm": self._arm,
            "disarm": self._disarm,
            "mode": self._mode,
            "end_override": self._end_override,
            "reload": self._reload,
        }.get(verb)
        if serve is None and verb in rpc.AGENT_VERBS:
            return
        if serve is None:
            known = ", ".join(sorted((*rpc.GATE_VERBS, *rpc.AGENT_VERBS)))
            error = f"unknown verb {verb[:64]!r}; there are {known}"
            if may_mean_stop(verb):
                reason = f"a request {verb[:64]!r} counts as a stop; publish stops on `stop`"
                self.host.stop(engaged=True, reason=reason)
                error = f"{error}. The stop is engaged: {reason}"
            self._respond(message, rpc.error(error))
            return
        try:
            serve(message)
        except Refused as refusal:
            self._respond(message, rpc.error(refusal))

    def ask_reload(self, message: Message | None = None) -> None:
        """Have the settings read again; without a message there is no answer."""
        try:
            self._reloads.put_nowait(message)
        except asyncio.QueueFull:
            if message is not None:
                self._respond(message, rpc.error("another reload is in progress"))

    async def serve(self) -> None:
        """Serve requests that wait, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_reloads(), name="reloads")
            group.create_task(self._serve_arms(), name="arms")

    async def _serve_arms(self) -> None:
        """Arm once a release that was sent before has been handled."""
        while True:
            message = await self._arms.get()
            if not await self.host.safety.caught_up(CATCH_UP_S):
                reason = (
                    "the gate's stop connection does not respond, so a stop may be on its way; send the request again"
                )
                self._respond(message, rpc.error(reason))
                continue
            try:
                self._arm_now(message)
            except Refused as refusal:
                self._respond(message, rpc.error(refusal))

    async def _serve_reloads(self) -> None:
        while True:
            message = await self._reloads.get()
            try:
                answer = rpc.ok(await self.reload())
            except Refused as refusal:
                answer = rpc.error(refusal)
            if message is not None:
                self._respond(message, answer)

    def _arm(self, message: Message) -> None:
        decode(EmptyRequest, message.payload or b"{}")
        self._refuse_old()
        if not self.host.gate.stopped:
            self._arm_now(message)
            return
        try:
            self._arms.put_nowait(message)  # a release may be under way on the other connection
        except asyncio.QueueFull:
            raise Refused("release the stop first, then arm") from None

    def _arm_now(self, message: Message) -> None:
        answered = self._after_saving(message, "armed", self._armed)
        refusal = self.host.arm(answered, message.stamp_s)
        if refusal is not None:
            raise Refused(refusal.reason)

    def _armed(self) -> dict[str, Any]:
        armed = self.host.gate.armed
        return {"armed": armed, "waiting_for": [] if armed else list(self.host.publisher.status()[1])}

    def _disarm(self, message: Message) -> None:
        self.host.disarm(self._after_saving(message, "disarmed", lambda: {"armed": False}))

    def _mode(self, message: Message) -> None:
        wanted = decode(ModeRequest, message.payload)
        if wanted.actuator is not None:
            self._known(wanted.actuator)
        now = [mode for name, mode in self.host.gate.modes.items() if wanted.actuator in (None, name)]
        if MODES.index(wanted.mode) > min(map(MODES.index, now)):
            self._refuse_old()
            if message.stamp_s < self._modes_s:
                raise Refused("a newer request set another mode; send it again")
        self._modes_s = max(self._modes_s, message.stamp_s)
        answered = self._after_saving(message, "the gate changed the mode", lambda: {"modes": self.host.gate.modes})
        self.host.set_mode(wanted.mode, wanted.actuator, answered)

    def _end_override(self, message: Message) -> None:
        name = decode(EndOverrideRequest, message.payload).actuator
        self._known(name)
        if self.host.ending:
            raise Refused("the daemon is ending; every override has ended")
        self._ends_s[name] = message.stamp_s
        self.host.end_override(name)
        self._respond(message, rpc.ok({"actuator": name}))

    def _reload(self, message: Message) -> None:
        decode(EmptyRequest, message.payload or b"{}")
        self.ask_reload(message)

    def _refuse_old(self) -> None:
        """Refuse what allows movement while its age is unknown, because it may have waited for this process.

        Raises:
            Refused: this process has just not run.
        """
        if self.host.has_stalled(self.host.now()):
            raise Refused("the gate was suspended, so the age of this message is unknown: send it again")

    def _known(self, actuator: str) -> None:
        configured = self.host.config.actuators
        if actuator not in configured:
            raise Refused(f"actuator: {actuator[:64]!r} is not configured; there are {sorted(configured)}")

    def _after_saving(self, message: Message, what: str, data: Callable[[], dict[str, Any]]) -> Saved:
        """Answer once: with the data when the change is on the disk, or with the reason of the first failed write."""
        respond = self._once(message)

        def saved(error: str | None) -> None:
            respond(
                rpc.ok(data()) if error is None else rpc.error(f"{what}, but not saved: {error}; the gate tries again")
            )

        return saved

    def _once(self, message: Message) -> Callable[[dict[str, Any]], None]:
        answered = False

        def respond(answer: dict[str, Any]) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._respond(message, answer)

        return respond

    @contextmanager
    def _refusing(self, message: Message) -> Iterator[None]:
        """Answer a refusal where the message names a response topic, and pass it on to the connection, which counts it."""
        try:
            yield
        except Refused as refusal:
            if message.response_topic is not None:
                self._respond(message, rpc.error(refusal))
            raise

    def _respond(self, message: Message, answer: dict[str, Any]) -> None:
        rpc.respond(self.host.connection, self.host.topics, message, answer)
