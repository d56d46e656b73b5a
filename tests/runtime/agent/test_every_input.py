"""Every input of a daemon, with what MQTT 5 adds to a message: content types, expiry, and the retain flag, new and stored.

The subscriptions are those of the real agent and gate, with their handlers, on a real broker. An input that is added needs a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import aiomqtt
import tinymodels
from agent_world import Wall, agent
from gate_host import TOPICS as GATE
from gate_host import world_of
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from wire_helpers import address, running

from fakes import Mosquitto, eventually
from runtime.agent.subscriptions import subscribe
from runtime.monitoring.home_assistant import BIRTH_TOPIC
from runtime.mqtt import Connection, Message
from runtime.mqtt.connection_types import Subscription
from runtime.mqtt.topics import Refused, Topics

AGENT = Topics("small")
TAKEN, AS_STORED, REFUSED, ABSENT = "taken", "taken as stored", "refused", "not delivered"

Row = tuple[bytes, str, str]
"""A payload, and what becomes of it with the retain flag: when it is published, and when the broker had stored it."""
INPUTS: dict[str, Row] = {
    AGENT("in", "joints"): (b'{"angle": 1}', TAKEN, AS_STORED),
    AGENT("in", "orders"): (b"go left", TAKEN, ABSENT),
    AGENT("in", "front"): (b"no picture", TAKEN, ABSENT),
    AGENT("in", "room"): (b"\0\0" * 100, TAKEN, ABSENT),
    AGENT("reward"): (b'{"value": 1}', AS_STORED, ABSENT),
    AGENT("label"): (b'{"task": "t", "label": "a", "text": "x"}', AS_STORED, ABSENT),
    AGENT("preview", "subscribe"): (b'{"streams": ["joints"]}', AS_STORED, ABSENT),
    AGENT("status"): (b'{"state": "online", "reasons": []}', AS_STORED, AS_STORED),
    BIRTH_TOPIC: (b"online", TAKEN, ABSENT),
    GATE("stop"): (b'{"engaged": false}', REFUSED, REFUSED),
    GATE("override", "+"): (b'{"value": "left", "hold_s": 1}', REFUSED, ABSENT),
    GATE("request", "+"): (b"{}", REFUSED, ABSENT),
    GATE("act", "head", "state"): (b'{"value": "stay"}', TAKEN, AS_STORED),
    GATE("act", "arm", "state"): (b'{"value": [0, 0]}', TAKEN, AS_STORED),
    "zigbee2mqtt/lamp": (b'{"state": "OFF"}', TAKEN, AS_STORED),
}
LEVELS = {GATE("override", "+"): GATE("override", "head"), GATE("request", "+"): GATE("request", "disarm")}
"""A topic of a filter."""


class Probe:
    """Subscribes as the daemon does, and notes what its handlers do, by topic and variant."""

    def __init__(self, port: int, subscriptions: Iterable[Subscription]) -> None:
        self.outcomes: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self.link = Connection(address(port), "probe")
        for one in subscriptions:
            self.link.subscribe(
                one.filter, lambda message, one=one: self.take(one, message), qos=one.qos, retained=one.retained, as_published=one.as_published  # type: ignore[misc]
            )  # fmt: skip

    def take(self, subscription: Subscription, message: Message) -> None:
        try:
            subscription.handler(message)
        except Refused:
            outcome = REFUSED
        else:
            outcome = AS_STORED if message.retain else TAKEN
        self.outcomes[subscription.filter][dict(message.properties)["variant"]] = outcome


def with_properties(variant: str) -> Properties:
    made = Properties(PacketTypes.PUBLISH)
    made.UserProperty = [("variant", variant)]
    if variant == "another content type":
        made.ContentType = "application/vnd.other; charset=utf-16"
        made.PayloadFormatIndicator = 0
    if variant == "expires":
        made.MessageExpiryInterval = 60
    return made


async def test_content_types_expiry_and_the_retain_flag_over_all_inputs(tmp_path: Path, broker: Mosquitto) -> None:
    words = str(tinymodels.bert(tmp_path / "words"))
    eye = str(tinymodels.efficientnet(tmp_path / "eye"))
    streams = {
        "joints": {"kind": "telemetry", "source": "topic", "fields": ["angle"]},
        "orders": {"kind": "text", "source": "topic", "encoder": "words"},
        "front": {"kind": "camera", "source": "topic", "encoder": "eye"},
        "room": {"kind": "microphone", "source": "topic", "encoder": "ear"},
    }
    encoders = {"words": {"model": words}, "eye": {"model": eye}, "ear": {"model": "builtin:modulation-spectrum"}}
    (tmp_path / "agent").mkdir()
    async with (
        agent(tmp_path / "agent", Wall(), streams=streams, encoders=encoders, discovery=True) as parts,
        world_of(tmp_path / "gate", broker) as world,
    ):
        subscribe(parts, AGENT)
        links = (parts.control, parts.media, world.host.safety, world.host.connection)
        found = {name: one for link in links for name, one in link._inbound.subscriptions.items()}
        table = INPUTS | {AGENT("request", verb): (b"{}", REFUSED, ABSENT) for verb in parts.requests.verbs}
        assert set(found) == set(table), "an input without a row, or a row without an input"
        await checked(broker, found, table)


async def checked(broker: Mosquitto, found: dict[str, Subscription], table: dict[str, Row]) -> None:
    probe = Probe(broker.port, found.values())
    async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as outside:

        async def publish(variant: str, *, retain: bool = False) -> None:
            for name, (payload, *_) in table.items():
                topic = LEVELS.get(name, name)
                await outside.publish(topic, payload, 1, retain=retain, properties=with_properties(variant))

        await publish("stored", retain=True)
        async with running(probe.link):
            for variant in ("plain", "another content type", "expires"):
                await publish(variant)
            await publish("retained", retain=True)
            await publish("last")
            await eventually(lambda: all("last" in probe.outcomes[name] for name in table), "every message")
    for name, (_, retained, stored) in table.items():
        seen = probe.outcomes[name]
        plain = {seen[variant] for variant in ("plain", "another content type", "expires", "last")}
        assert plain == {TAKEN}, (name, seen)
        assert (seen["retained"], seen.get("stored", ABSENT)) == (retained, stored), name
