"""Recognise Shelly devices: the first generation below `shellies/`, and later ones by `PREFIX/status/COMPONENT:NUMBER`.

What they measure is proposed, and relays. Those of later generations take `on` and `off`, and report true and false.
References: Shelly's MQTT interfaces of generation 1 and of generations 2 and 3.
"""

from __future__ import annotations

import re
from dataclasses import replace

from runtime.discovery.conventions import stream
from runtime.discovery.payload_fields import bare_numbers, bare_words, documents, numeric_fields
from runtime.discovery.proposals import FoundActuator, LeftOut, Proposals, is_diagnostic, is_growing
from runtime.discovery.topic_samples import Tree, levels

_FIRST = re.compile(r"shellies/(?P<device>[^/]+)(?:/(?P<place>.+))?")
_LATER = re.compile(r"(?P<device>.+)/status/(?P<component>[a-z0-9_]+)(?::(?P<number>\d+))?")
_OF_DEVICE = re.compile(r"temperature(_f|_status)?|overtemperature|online|announce|info|command|.*(_f|/command|/set)")
"""Places below a device of the first generation that are about it, doubled, or commands."""
_WHY = "Shelly"


def shelly(tree: Tree, found: Proposals) -> None:
    """Read what Shelly devices measure, and relays that answer on `relay/NUMBER`."""
    for topic in [each for each in tree.topics if each not in found.used]:
        if match := _FIRST.fullmatch(topic):
            found.used.add(topic)
            _first(tree, found, topic, match["device"], match["place"] or "announce")
    statuses = [match for topic in tree.topics if topic not in found.used and (match := _LATER.fullmatch(topic))]
    later = {match["device"] for match in statuses if _is_later(tree, match)}
    for match in statuses:
        if match["device"] in later:
            found.used.add(match[0])
            _later(tree, found, match[0], match)
    found.used |= {topic for topic in tree.topics if any(above in later for above in levels(topic))}


def _first(tree: Tree, found: Proposals, topic: str, device: str, place: str) -> None:
    observed = tree.topics[topic]
    if re.fullmatch(r"relay/\d+", place) and bare_words(observed.samples, ("on", "off")):
        about = "roller" if f"shellies/{device}/roller/0" in tree.topics else device
        name = found.unique(f"{device}_{place}")
        found.move(FoundActuator(name, f"{topic}/command", ("off", "on"), state_topic=topic, why=_WHY), about)
    elif _OF_DEVICE.fullmatch(place) or is_diagnostic(place):
        found.left_out.append(LeftOut(topic, "it describes the device itself"))
    elif is_growing(place):
        found.left_out.append(LeftOut(topic, "it only grows"))
    elif bare_numbers(observed.samples):
        found.read(stream(found.unique(f"{device}_{place}"), topic, observed, _WHY, {_last(place): ""}))
    else:
        found.left_out.append(LeftOut(topic, "neither numbers nor a switch"))


def _last(place: str) -> str:
    last = place.rsplit("/", maxsplit=1)[-1]
    return last if last.isidentifier() and last.isascii() else "value"


def _is_later(tree: Tree, match: re.Match[str]) -> bool:
    """Return whether a status is of generation 2 or 3: that of a numbered component repeats its number as `id`."""
    reports = documents(tree.topics[match[0]].samples)
    number = match["number"]
    return number is not None and any(isinstance(each, dict) and each.get("id") == int(number) for each in reports)


def _later(tree: Tree, found: Proposals, topic: str, match: re.Match[str]) -> None:
    observed, component = tree.topics[topic], match["component"]
    # `temperature` below another component is that of the chip; Fahrenheit says the same as Celsius
    fields = {
        name: place
        for name, place in numeric_fields(observed.samples).items()
        if not place.startswith(("/temperature/", "/aenergy/", "/ret_aenergy/")) and place.rsplit("/")[-1] != "tF"
    }
    if match["number"] is None or component in {"devicepower", "script"}:
        found.left_out.append(LeftOut(topic, "it describes the device itself"))
    elif not fields:
        found.left_out.append(LeftOut(topic, "neither numbers nor a switch"))
    else:
        name = found.unique(f"{match['device']}_{component}_{match['number']}")
        found.read(stream(name, topic, observed, _WHY, fields))
        if component in {"switch", "light"} and fields.get("output") == "output":
            command = f"{match['device']}/command/{component}:{match['number']}"
            relay = FoundActuator(found.unique(f"{name}_relay"), command, ("off", "on"), state_topic=topic, why=_WHY)
            reports = {"off": "false", "on": "true"}
            found.move(replace(relay, state_value="output", state_words=reports), match["device"])
