"""Recognise topics without a convention: JSON objects with numbers, bare numbers, and switches that answer ON or OFF."""

from __future__ import annotations

import re

from runtime.config.mqtt_names import topic_problem
from runtime.discovery.conventions import esphome_and_statestream, home_assistant, stream, tasmota, zigbee2mqtt
from runtime.discovery.payload_fields import (
    bare_numbers,
    bare_words,
    documents,
    is_date,
    numeric_fields,
    several_devices,
)
from runtime.discovery.proposals import FoundActuator, LeftOut, Proposals, is_diagnostic, is_growing
from runtime.discovery.shelly import shelly
from runtime.discovery.topic_samples import TopicSamples, Tree

OURS = "reflexd/"
ENDS = ("state", "status", "value", "get")
"""Last levels that say nothing about the device."""
SWITCHED = (("OFF", "ON"), ("off", "on"))


def propose(tree: Tree) -> Proposals:
    """Return every stream and actuator among the topics; what is uncertain is left out with the reason.

    Names depend on the topics alone, and not on the order in which the broker sent them.
    """
    tree = Tree(dict(sorted(tree.topics.items())), tree.left_out)
    found = Proposals(used={topic for topic in tree.topics if topic.startswith((OURS, "$"))})
    for topic in sorted(set(tree.topics) - found.used):
        if (problem := topic_problem(topic)) is not None:
            found.used.add(topic)
            found.left_out.append(LeftOut(topic, problem))
    for convention in (home_assistant, zigbee2mqtt, tasmota, shelly, esphome_and_statestream, plain):
        convention(tree, found)
    return found


def plain(tree: Tree, found: Proposals) -> None:
    """Take the topics that no convention has explained."""
    topics = [topic for topic in tree.topics if topic not in found.used]
    for topic in topics:
        if topic.endswith(("/set", "/command", "/cmd")):
            _commanded(tree, found, topic)
    for topic in topics:
        if topic not in found.used:
            found.used.add(topic)
            _read(found, topic, tree.topics[topic])


def _read(found: Proposals, topic: str, observed: TopicSamples) -> None:
    name = found.unique(name_of(topic))
    fields = numeric_fields(observed.samples)
    last = topic.rsplit("/", maxsplit=1)[-1]
    if reason := _no_reading(topic):
        found.left_out.append(LeftOut(topic, reason))
    elif several_devices(observed.samples):
        found.left_out.append(LeftOut(topic, "messages of several devices come on it"))
    elif is_diagnostic(last) or is_diagnostic(name_of(topic)):
        found.left_out.append(LeftOut(topic, "it describes the device itself"))
    elif is_growing(last) and bare_numbers(observed.samples):
        found.left_out.append(LeftOut(topic, "it only grows"))
    elif fields:
        found.read(stream(name, topic, observed, "plain JSON", fields))
    elif bare_numbers(observed.samples) and all(map(is_date, documents(observed.samples))):
        found.left_out.append(LeftOut(topic, "its number is a time"))
    elif bare_numbers(observed.samples):
        found.read(
            stream(
                name,
                topic,
                observed,
                "a plain number",
                {last if last.isidentifier() and last.isascii() else "value": ""},
            )
        )
    elif any(bare_words(observed.samples, words) for words in SWITCHED):
        reason = "it reports ON or OFF, but no command topic was seen; name it with --actuator NAME=COMMAND_TOPIC"
        found.left_out.append(LeftOut(topic, reason))
    else:
        found.left_out.append(LeftOut(topic, "neither numbers nor a switch"))


def _no_reading(topic: str) -> str | None:
    """Return why a topic has no reading by its name, or None."""
    if any(level.startswith("$") for level in topic.split("/")):
        return "it describes the device itself"  # Homie's attributes
    if _OF_GATEWAY.search(topic):
        return "it describes a gateway, or repeats codes of remote controls"
    if topic.rsplit("/", maxsplit=1)[-1].lower() in _NO_READING:
        return "it is a description, a setting or a command"
    return None


_NO_READING = frozenset(
    ["config", "settings", "attributes", "announce", "discovery", "info", "rpc", "request", "response", "commands", "lwt", "availability"]
)  # fmt: skip
"""Last levels of topics that no sensor has."""
_OF_GATEWAY = re.compile(r"/(SYS|IR|RF|RF2|SRFB|Pilight|433|LORA)toMQTT(/|$)|/commands/MQTTto\w+")
"""Topics of OpenMQTTGateway; those of its sensors are others."""


def _commanded(tree: Tree, found: Proposals, topic: str) -> None:
    """Propose a command topic that was used and that has a state topic of the same device."""
    found.used.add(topic)
    observed, device = tree.topics[topic], topic.rpartition("/")[0]
    words = next((words for words in SWITCHED if bare_words(observed.samples, words)), None)
    report = next((t for t in (f"{device}/state", f"{device}/status", device) if t in tree.topics), None)
    if words is None or report is None or not bare_words(tree.topics[report].samples, words):
        found.left_out.append(LeftOut(topic, "a command topic without a state topic that reports ON or OFF"))
    else:
        found.used.add(report)
        name = found.unique(name_of(device))
        found.move(FoundActuator(name, topic, words, state_topic=report, why="a switch that was used"))


def name_of(topic: str) -> str:
    """Return a name from the last level that says something."""
    parts = [part for part in topic.split("/") if part]
    while len(parts) > 1 and parts[-1].lower() in ENDS:
        parts.pop()
    numbers = next((at for at, part in enumerate(reversed(parts)) if not part.isdecimal()), len(parts) - 1)
    return "_".join(parts[-1 - numbers :]) if parts else "device"
