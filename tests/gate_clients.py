"""The page and `reflexd top` in the world of `gate_model.py`: their real code from the connection up, on the model's broker.

What they show is compared with what is: a press that was answered did what the answer says, and a status, a hold or a mode on
the screen is in force.
"""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any
from unittest import mock

import aiomqtt
from gate_model import TOPICS, Client, Group, Line, World, open_session, parsed
from rich.console import Console

from runtime.console.status import LatestMessages, picture, subscribe
from runtime.dashboard import commands
from runtime.dashboard.broker_connections import MqttBridge, Unreachable
from runtime.dashboard.commands import COMMANDS, GATE_S, CommandPublisher
from runtime.dashboard.view_state import ViewState
from runtime.mqtt import Address, Connection
from runtime.mqtt.connection_types import PublishMessage

SETTLED_S = 0.7
"""Longer than the gate waits before it publishes a status again that the broker did not acknowledge."""
MOST_S = GATE_S + 0.2
HOLD_S = 0.6
"""A hold of the same value is published again when its end moved by half a second."""


class Clients:
    """A page with its two connections, and a terminal."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = ViewState(TOPICS, wall=lambda: world.wall_s)
        self.bridge = MqttBridge(Address("model", 1883), TOPICS, self.state, list)
        self.page = CommandPublisher(TOPICS, self.bridge, self.state.answered)
        self.top = LatestMessages()
        terminal = subscribe(SimpleNamespace(config=world.host.config), "top", self.top)  # type: ignore[arg-type]
        self.lines = [Line(each, Client(lambda _: None)) for each in (self.bridge.stop, self.bridge.control, terminal)]
        world.listeners.append(self.hear)
        self.connect()

    # --- the broker

    def connect(self) -> None:
        for line in self.lines:
            if line.group is None:
                self._connect(line)

    def _connect(self, line: Line) -> None:
        line.group, line.client = Group(self.world.loop), Client(lambda _: None)
        connection = line.connection
        connection._group, connection._client = line.group, line.client  # type: ignore[assignment]
        self.world.loop.run_until_complete(open_session(connection, line.client))
        for out in self.world.retained.values():
            if any(each.retained == "send" for each in subscriptions(connection, out.topic)):
                self._arrive(line, out)

    def lose(self, number: int) -> None:
        """The broker drops one of the three connections."""
        line = self.lines[number]
        if line.group is None:
            return
        self.world.drop(line)
        line.connection._greeted = False
        line.connection.on_connection_change(False, "lost")
        self.world.loop.spin(2)

    def close(self) -> None:
        for line in self.lines:
            self.world.drop(line)
        self.world.loop.spin(4)

    def hear(self, out: PublishMessage) -> None:
        """A message that the broker has accepted."""
        for line in self.lines:
            if line.group is not None and subscriptions(line.connection, out.topic):
                self._arrive(line, out)

    def _arrive(self, line: Line, out: PublishMessage) -> None:
        raw = SimpleNamespace(
            topic=aiomqtt.Topic(out.topic),
            payload=out.payload,
            qos=1,
            retain=out.retain,
            properties=parsed(out.properties),
        )
        self.world.in_loop(lambda: line.connection._inbound.dispatch(raw))  # type: ignore[arg-type]

    def deliver(self) -> None:
        """The broker accepts what the page has sent, and passes it to the gate."""
        if not self.world.prompt:
            return
        for line in self.lines:
            accepted, line.client.under_way = line.client.under_way, []
            for out, settled in accepted:
                self._pass_on(out)
                settled(None)

    def _pass_on(self, out: PublishMessage) -> None:
        match out.topic.split("/")[2:]:
            case ["stop"]:
                self.world.stop(out.payload, properties=parsed(out.properties))
            case ["request", verb]:
                self.world.request(verb, out.payload, properties=parsed(out.properties))
            case ["override", _]:
                self.world.arrive(self.world.requests, out.topic, out.payload, properties=parsed(out.properties))

    # --- the person

    def press(self, **command: Any) -> dict[str, Any] | str:
        """Press something on the page; the data of the answer, or what the page shows as the error."""
        world = self.world
        world.settle_loop()
        job = self.page.execute("operator", COMMANDS.validate_python(command))
        with mock.patch.object(commands, "GATE_ANSWER_S", GATE_S):
            pressed = world.loop.create_task(job)
            world.loop.spin(1)
        until_s = world.loop.now_s + MOST_S
        while True:
            world.loop.spin(4)
            self.deliver()
            world.settle_loop()
            if pressed.done():
                break
            world.check(world.loop.now_s < until_s, "a press shows nothing")
            world.wait(0.01)
        error = pressed.exception()
        if error is None:
            return pressed.result()
        world.check(isinstance(error, Unreachable), f"a press ends with {error!r}")
        return str(error)

    def press_stop(self) -> None:
        """What the page says of the stop is so, and with gate, broker and disk in order it is taken."""
        world = self.world
        in_order = world.prompt and world.safety.group and world.requests.group and not world.disk.broken
        in_order = in_order and (self.lines[0].group or self.lines[1].group)
        shown = self.press(do="stop", engaged=True)
        if isinstance(shown, str):
            world.check(not in_order, f"the page's stop was not taken: {shown}")
            return
        world.check(shown.get("stopped") and world.host.gate.stopped, "the page says stopped, and the gate is not")
        world.check((world.disk.content or {}).get("stopped"), "the page says stopped, and the disk does not have it")

    def press_release_and_arm(self) -> None:
        """What the page says of a release and of arming is so."""
        world = self.world
        shown = self.press(do="stop", engaged=False)
        if not isinstance(shown, str):
            world.check(shown["stopped"] is False, f"a release is answered with {shown}")
            world.check(not world.stop_in_force, "the page says released, and a stop is in force")
        shown = self.press(do="request", verb="arm")
        if not isinstance(shown, str):
            # a stop that waits at the broker for the gate's connection lets it say that it waits to arm, no more
            armed = shown["armed"] and world.stop_in_force
            world.check(not armed, "the page says that it is armed, and a stop is in force")
            world.check(shown["armed"] or shown["waiting_for"], "not armed, and the page does not say why")

    def press_override(self, name: str, value: Any) -> None:
        """What the page shows as sent left for the device; what did not leave has a reason."""
        world = self.world
        shown = self.press(do="override", actuator=name, value=value, hold_s=2.0)
        if isinstance(shown, str):
            return
        if shown["sent"]:
            world.check(not world.stop_in_force, f"{name}: the page says sent while the stop is engaged")
            world.check(name in world.commanded, f"{name}: the page says sent, and no command left")
        else:
            world.check(
                shown["rule"] or world.host.gate.holds[name], f"{name}: not sent, and the page does not say why"
            )

    def press_mode(self, mode: str) -> None:
        """A mode that the page shows as changed is in force and on the disk."""
        world = self.world
        shown = self.press(do="request", verb="mode", data={"mode": mode})
        if not isinstance(shown, str):
            world.check(set(shown["modes"].values()) == {mode}, f"the page says that the modes are {shown['modes']}")
            world.check(
                (world.disk.content or {}).get("modes") == shown["modes"], "a mode is shown and not on the disk"
            )

    def look(self) -> None:
        """With everything connected, page and terminal show what is."""
        world = self.world
        world.prompt = True
        world.connect(world.safety)
        world.connect(world.requests)
        self.connect()
        world.wait(SETTLED_S)
        host = world.host
        state, _ = host.publisher.status()
        if state == "stopped" and not world.disk.content:
            return
        page, terminal = self.state.sections["status"]["state"], self.top.status
        world.check(page == state, f"the page shows {page}, and the status is {state}")
        world.check(terminal and terminal.state == state, f"top shows {terminal}, and the status is {state}")
        shown = self.state.sections.tables.get("holds", {})
        for name, hold in host.gate.holds.items():
            value, until = shown[name]["value"], shown[name]["until"]
            world.check((value is None) == (hold is None), f"{name}: the page shows the hold {value}, there is {hold}")
            left_s = 0.0 if hold is None else hold.until_s - host.now()
            off_s = 0.0 if hold is None else abs(until - world.wall_s - left_s) - abs(world.stepped_s)
            world.check(off_s <= HOLD_S, f"{name}: the page shows another end of the hold, by {off_s:.1f} s")
        Console(file=StringIO(), width=100).print(picture("model", self.top))


def subscriptions(connection: Connection, topic: str) -> list[Any]:
    """The subscriptions of a connection that match a topic."""
    known = connection._inbound.subscriptions
    return [known[name] for name in connection._inbound._routes(aiomqtt.Topic(topic))]
