"""Connect the page to the broker: once for control, once for the stop, once for images and sound while a browser shows them.

Messages go into the state, commands go to the broker. While a browser shows streams, the bridge publishes `preview/subscribe` every 2 s:
the agent previews these streams and no others. The state of the connection is a section of the state like any other. The connection
of the stop receives its own responses and nothing else, so that no flood of messages delays a press.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.config.mqtt_settings import Credentials
from runtime.dashboard.view_state import ViewState
from runtime.mqtt import Address, Connection, Message, MqttLost
from runtime.mqtt.connection_types import wild
from runtime.mqtt.topics import Refused, Topics, encode, parse

WATCH_S = 2.0
TROUBLE_S = 0.5
MAX_EXTRA = 256
"""Topics beyond the agent's own that `info` may name."""
GATED = frozenset({"stop", "override", "arm", "disarm", "mode", "end_override", "reload"})
"""What the gate responds to; the agent responds to all other requests."""
MAX_PACKET = 8_388_608
RETAINED = ("status", "info", "act/+/state", "hold/+", "goal")
LIVE = ("health", "decision", "event", "reward", "proposal/+", "task/+", "act/+/set")


def has_own_stop(login: Credentials | None) -> bool:
    """Return whether the stop can have its own connection.

    A broker that uses the user name as client id would end the session of `control` for a second one of the same user. `stop`
    therefore names a user of its own.
    """
    return login is None or login.stop is not None


class Unreachable(Exception):  # noqa: N818 - reads as what happened
    """Broker or agent did not respond; `str` names which."""


@dataclass(slots=True)
class MqttBridge:
    """Fills `state` and publishes commands. Create it inside the running loop."""

    address: Address
    topics: Topics
    state: ViewState
    watched: Callable[[], list[str]]
    name: str = "page"
    """Of this client in its identifiers and response topics."""
    control: Connection = field(init=False)
    stop: Connection = field(init=False)
    """Sends the stop. It is `control` where the broker would take both for one client."""
    watch_changed: asyncio.Event = field(default_factory=asyncio.Event)
    instance: str = field(default_factory=lambda: secrets.token_hex(6))
    _extra: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.control = self._connection(self.name, on_connection_change=self._link)
        self.stop = self._connection(f"{self.name}-stop") if has_own_stop(self.address.credentials) else self.control
        for line, what in ((self.stop, f"{self.name}-stop"), (self.control, self.name)):
            line.expect_answers(self.topics("response", what, self.instance))
        for name in RETAINED:
            self.control.subscribe(self.topics(name), self._take, retained="send")
        for name in LIVE:
            self.control.subscribe(self.topics(name), self._take, qos=0 if name in {"decision", "reward"} else 1)
        self._link(up=False, reason="not connected yet")

    def _connection(
        self, what: str, on_connection_change: Callable[[bool, str], None] = lambda _up, _reason: None
    ) -> Connection:
        # several pages may show one agent: a process id alone is the same in each container
        identifier = f"reflexd-{self.topics.agent}-{what}-{self.instance}"
        address = self.address
        if what == "media" and address.credentials is not None:
            address = replace(address, credentials=address.credentials.for_media())
        if what == f"{self.name}-stop" and address.credentials is not None:
            address = replace(address, credentials=address.credentials.for_stop())
        return Connection(address, identifier, on_connection_change=on_connection_change, max_packet=MAX_PACKET)

    async def run(self) -> None:
        """Keep the connections until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.control.run(), name="page control")
            if self.stop is not self.control:
                group.create_task(self.stop.run(), name="page stop")
            group.create_task(self._watching(), name="page watch")
            group.create_task(self._report_trouble(), name="page trouble")

    def _link(self, up: bool, reason: str) -> None:  # noqa: FBT001 - the connection's own callback
        self.state.set("link", {"connected": up, "reason": reason})

    async def _report_trouble(self) -> None:
        """Show why there is no connection, for as long as there is none."""
        while True:
            await asyncio.sleep(TROUBLE_S)
            reason = self.control.trouble
            if not self.control.connected and reason is not None and reason != self.state.sections["link"]["reason"]:
                self._link(up=False, reason=reason)

    def _take(self, message: Message) -> None:
        self.state.take(message.topic, message.payload)
        if message.topic.endswith("/info"):
            for topic in self._always():
                if topic not in self._extra and len(self._extra) < MAX_EXTRA:
                    self._extra.add(topic)
                    self.control.subscribe(topic, self._take, retained="send" if topic.endswith("state") else "ignore")

    def _always(self) -> list[str]:
        """Topics beyond the agent's fixed ones that are read all the time: texts, and foreign actuators' topics."""
        streams = self.state.stream_views.streams
        texts = [self._raw(name) for name, about in streams.items() if about["kind"] == "text"]
        heavy = {self._raw(name) for name in streams}
        foreign = (topic for topic in self.state.foreign_topics() if topic not in heavy)
        return [topic for topic in (*texts, *foreign) if topic]

    def _raw(self, stream: str) -> str:
        """Return the topic that a stream comes from, or an empty string where it comes from none."""
        source = str(self.state.stream_views.streams.get(stream, {}).get("source", ""))
        if source.startswith("topic:"):
            topic = source.removeprefix("topic:")
            return "" if wild(topic) or topic.startswith("$") else topic
        return self.topics("in", stream) if source == "topic" else ""

    async def _watching(self) -> None:
        """Keep a media connection while a browser shows streams."""
        while True:
            await self.watch_changed.wait()
            self.watch_changed.clear()
            if not self.watched():
                continue
            media = self._connection("media")
            media.subscribe(self.topics("preview/+"), self._take, qos=0)
            async with asyncio.TaskGroup() as spell:
                running = spell.create_task(media.run(), name="page media")
                await self._keep_watching(media)
                running.cancel()

    async def _keep_watching(self, media: Connection) -> None:
        """Request previews until no browser has shown a stream for one period."""
        reading: set[str] = set()
        idle = False
        while not idle or self.watched():
            streams = self.watched()
            idle = not streams
            if streams:
                self.control.enqueue(self.topics("preview", "subscribe"), encode({"streams": streams}))
            for topic in {self._raw(stream) for stream in streams} - reading - self._extra - {""}:
                reading.add(topic)
                media.subscribe(topic, self._take, qos=0)
            self.watch_changed.clear()
            try:
                async with asyncio.timeout(WATCH_S):
                    await self.watch_changed.wait()
            except TimeoutError:
                continue

    async def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        """Send one message and have it acknowledged.

        Raises:
            Unreachable: there is no broker now.
        """
        try:
            await self.control.publish(topic, payload, qos=1 if qos else 0)
        except MqttLost as lost:
            raise Unreachable(f"not sent: {lost}") from None

    async def request(self, parts: tuple[str, ...], body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Publish on the topic below the agent's own that `parts` name; return the `data` of the response.

        The stop has its own connection, and takes the one for control only while its own is down.

        Raises:
            Unreachable: no broker, no response, or the reason for a refusal.
        """
        what = " ".join(parts)
        is_stop = parts == ("stop",) and self.stop.connected
        line = self.stop if is_stop else self.control
        reply_to = self.topics("response", f"{self.name}-stop" if is_stop else self.name, self.instance)
        try:
            answer = await line.request(self.topics(*parts), encode(body), reply_to=reply_to, timeout_s=timeout_s)
            response = parse(answer.payload, 1_048_576)
        except MqttLost as lost:
            raise Unreachable(f"{what}: not sent: {lost}") from None
        except TimeoutError:
            taker = "no gate received it" if parts[0] in GATED or parts[-1] in GATED else "no agent received it"
            raise Unreachable(f"{what}: {taker}: no response within {timeout_s:g} s") from None
        except Refused as refusal:
            raise Unreachable(f"{what}: the response is malformed: {refusal}") from None
        if not isinstance(response, dict) or response.get("status") != "ok":
            error = response.get("error") if isinstance(response, dict) else None
            raise Unreachable(f"{what}: refused: {error or 'without a reason'}")
        found = response.get("data")
        return found if isinstance(found, dict) else {"value": found}
