"""What people may ask of the gate: stop, override, arm, disarm, mode, reload.

All of it is untrusted. What the broker remembered (retained) is someone's past wish and ignored, except that engaging the stop
is always obeyed. Requests are answered once, with the data or the reason why not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from runtime.gate.host import GateHost
from runtime.mqtt import Message
from runtime.mqtt.topics import Override, Payload, Refused, Stop, decode, encode

Reload = Callable[[], Awaitable[dict[str, Any]]]


class ModeRequest(Payload):
    """`request/mode`; without `actuator` for all."""

    mode: Literal["shadow", "assist", "autonomous"]
    actuator: str | None = Field(None, max_length=64)


class EndOverrideRequest(Payload):
    """`request/end_override`: the policy may act again at once."""

    actuator: str = Field(max_length=64)


class OperatorCommands:
    """Takes the operator's messages from the connection to the gate."""

    def __init__(self, host: GateHost, reload: Reload) -> None:
        self.host = host
        self.reload = reload
        self._overridden: dict[str, dict[str, Any]] = {}
        self._reloads: asyncio.Queue[Message | None] = asyncio.Queue(4)
        topics, subscribe = host.topics, host.connection.subscribe
        subscribe(topics("stop"), self.stop)
        for name in host.config.actuators:
            subscribe(topics("override", name), self.override)
        for verb in ("arm", "disarm", "mode", "end_override", "reload"):
            subscribe(topics("request", verb), self.requested)

    def stop(self, message: Message) -> None:
        """Engage or release the software stop, and answer where the message names a response topic."""
        with self._refusing(message):
            stop = decode(Stop, message.payload)
            if message.retain and not stop.engaged:
                raise Refused("a retained release is ignored")
        host = self.host
        was = host.gate.stopped
        host.apply(host.gate.stop(host.now(), engaged=stop.engaged))
        if stop.engaged != was:
            host.publisher.event("stopped" if stop.engaged else "stop_released", {})
        host.publisher.publish_changes()
        host.latches.changed()
        self._respond(message, {"stopped": host.gate.stopped, "armed": host.gate.armed})

    def override(self, message: Message) -> None:
        """Apply a person's override, and answer where the message names a response topic."""
        with self._refusing(message):
            _not_retained(message)
            wish = decode(Override, message.payload)
        name = message.topic.rsplit("/", 1)[-1]
        host = self.host
        ruling = host.gate.override(name, wish.value, wish.hold_s, host.now())
        host.apply([ruling])
        told: dict[str, Any] = {"actuator": name, "value": wish.value, "hold_s": wish.hold_s, "source": wish.source}
        told |= {"sent": ruling.sent, "rule": ruling.rule}
        if told != self._overridden.get(name):  # a hand on a slider repeats itself many times a second
            self._overridden[name] = told
            host.publisher.event("override", told)
        host.publisher.publish_changes()
        self._respond(message, told | {"reason": ruling.reason})

    def requested(self, message: Message) -> None:
        """One request."""
        _not_retained(message)
        verb = message.topic.rsplit("/", 1)[-1]
        if verb == "reload":
            self.ask_reload(message)
            return
        try:
            answer = {"status": "ok", "data": self._do(verb, message.payload)}
        except Refused as refusal:
            answer = {"status": "error", "error": str(refusal)}
        self._reply(message, answer)

    def ask_reload(self, message: Message | None = None) -> None:
        """Have the settings read again; without a message nobody is answered."""
        try:
            self._reloads.put_nowait(message)
        except asyncio.QueueFull:
            if message is not None:
                self._reply(message, {"status": "error", "error": "a reload is under way"})

    async def serve_reloads(self) -> None:
        """Reload, one after the other, until cancelled."""
        while True:
            message = await self._reloads.get()
            try:
                answer = {"status": "ok", "data": await self.reload()}
            except Refused as refusal:
                answer = {"status": "error", "error": str(refusal)}
            if message is not None:
                self._reply(message, answer)

    def _do(self, verb: str, payload: bytes) -> dict[str, Any]:
        host = self.host
        data = {"arm": self._arm, "disarm": self._disarm, "mode": self._mode, "end_override": self._end_override}[verb](
            payload
        )
        host.publisher.publish_changes()
        host.latches.changed()
        return data

    def _arm(self, _payload: bytes) -> dict[str, Any]:
        refusal = self.host.gate.arm(self.host.now())
        if refusal is not None:
            raise Refused(refusal.reason)
        armed = self.host.gate.armed
        return {"armed": armed, "waiting_for": [] if armed else list(self.host.publisher.status()[1])}

    def _disarm(self, _payload: bytes) -> dict[str, Any]:
        self.host.apply(self.host.gate.disarm(self.host.now()))
        return {"armed": False}

    def _mode(self, payload: bytes) -> dict[str, Any]:
        wish = decode(ModeRequest, payload)
        host = self.host
        if wish.actuator is not None and wish.actuator not in host.config.actuators:
            raise Refused(f"actuator: {wish.actuator!r} is not configured; there are {sorted(host.config.actuators)}")
        host.apply(host.gate.set_mode(wish.mode, host.now(), wish.actuator))
        host.publisher.event("mode_changed", {"modes": host.gate.modes})
        return {"modes": host.gate.modes}

    def _end_override(self, payload: bytes) -> dict[str, Any]:
        name = decode(EndOverrideRequest, payload).actuator
        host = self.host
        if name not in host.config.actuators:
            raise Refused(f"actuator: {name!r} is not configured; there are {sorted(host.config.actuators)}")
        host.apply(host.gate.end_hold(name, host.now()))
        host.holds.publish_changes(host.now())
        return {"actuator": name}

    @contextmanager
    def _refusing(self, message: Message) -> Iterator[None]:
        """Answer a refusal where the message names a response topic, and pass it on to the connection, which counts it."""
        try:
            yield
        except Refused as refusal:
            if message.response_topic is not None:
                self._reply(message, {"status": "error", "error": str(refusal)})
            raise

    def _respond(self, message: Message, data: dict[str, Any]) -> None:
        if message.response_topic is not None:
            self._reply(message, {"status": "ok", "data": data})

    def _reply(self, message: Message, answer: dict[str, Any]) -> None:
        verb = message.topic.rsplit("/", 1)[-1]
        self.host.connection.reply(message, encode(answer), self.host.topics("response", verb))


def _not_retained(message: Message) -> None:
    if message.retain:
        raise Refused("a retained message is ignored: publish it without the retain flag")
