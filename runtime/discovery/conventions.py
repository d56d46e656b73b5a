"""Recognise the conventions of home automation: Home Assistant discovery, Zigbee2MQTT, Tasmota, ESPHome and statestream.

Each function takes the topics that no earlier one has explained. What is not certain is left out with the reason: a wrong
proposal costs more than a missing one, because it may move a device. References: Home Assistant's MQTT discovery
(abbreviations included), Zigbee2MQTT's `exposes`, Tasmota's `tele`/`stat`/`cmnd` prefixes, ESPHome's `state` and `command`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from actuators.config import ChoiceSettings
from actuators.wire import WireError, parse_state
from runtime.discovery.dangerous_devices import is_dangerous
from runtime.discovery.payload_fields import bare_numbers, bare_words, numeric_fields, values_at
from runtime.discovery.proposals import (
    FoundActuator,
    FoundStream,
    LeftOut,
    Proposals,
    is_diagnostic,
    is_growing,
)
from runtime.discovery.topic_samples import TopicSamples, Tree, levels

LONG: dict[str, str] = {
    "stat_t": "state_topic", "cmd_t": "command_topic", "val_tpl": "value_template", "pl_on": "payload_on",
    "pl_off": "payload_off", "stat_val_tpl": "state_value_template", "ent_cat": "entity_category", "dev_cla": "device_class", "ops": "options", "dev": "device",
    "uniq_id": "unique_id", "cmd_tpl": "command_template", "schema": "schema", "stat_on": "state_on", "stat_off": "state_off",
    "cmps": "components", "p": "platform", "stat_cla": "state_class", "on_cmd_type": "on_command_type",
}  # fmt: skip
"""Abbreviations of Home Assistant's discovery."""
_FILTERS = r"(?:\|\s*(?:float|int|round)\s*(?:\(\s*(?:default\s*=\s*)?-?[\d.]*\s*\)\s*)?)*"
"""Filters that leave a number what it is, but for its digits. Behind them nothing is computed."""
_TEMPLATE = re.compile(r"^\{\{\s*value_json((?:\.\w+|\[['\"]\w+['\"]\])+)\s*" + _FILTERS + r"\}\}$")
_BARE = re.compile(r"^\{\{\s*value\s*" + _FILTERS + r"\}\}$")
_STEP = re.compile(r"\.(\w+)|\[['\"](\w+)['\"]\]")
MOST_OPTIONS = 64
"""Words of a select; a policy learns no longer list."""
MOVED: frozenset[str] = frozenset(
    {"switch", "light", "fan", "siren", "number", "select", "lock", "cover", "valve", "climate", "button"}
)
ESPHOME = re.compile(r"^(?P<device>.+)/(?P<kind>sensor|binary_sensor|switch|light|fan|number)/(?P<id>[^/]+)/state$")


def home_assistant(tree: Tree, found: Proposals) -> None:
    """Read the retained configurations below `homeassistant/`, or below another prefix."""
    for topic, component in [(each, component) for each in tree.topics if (component := _component(tree, each))]:
        found.used.add(topic)
        body = _object(tree, topic)
        if body is None:
            continue
        if component == "device":
            parts = body.get("components")
            entities = list(parts.values()) if isinstance(parts, dict) else []
        else:
            entities = [{"platform": component, **body}]
        for entity in entities:
            if isinstance(entity, dict):
                _entity(tree, found, _expanded({**_shared(body), **_long(entity)}), topic)


def _component(tree: Tree, topic: str) -> str | None:
    """Return the component that a topic configures, or None."""
    if not topic.endswith("/config"):
        return None
    if match := re.fullmatch(r"homeassistant/(\w+)(?:/[\w-]+)?/[\w-]+/config", topic):
        return match[1]
    match = _OTHER_PREFIX.fullmatch(topic)
    body = _object(tree, topic) if match is not None else None
    return match[1] if match is not None and body is not None and any(map(_OF_ENTITY.search, body)) else None


_OTHER_PREFIX = re.compile(
    r".+/(device|sensor|binary_sensor|switch|light|fan|siren|number|select|lock|cover|valve|climate|button|scene|text|update|"
    r"water_heater|humidifier|vacuum|lawn_mower|alarm_control_panel|camera|image|event|device_tracker)(?:/[\w-]+)?/[\w-]+/config"
)
_OF_ENTITY = re.compile(r"_(topic|t)$|^(components|platform)$")
"""Keys of Home Assistant's discovery."""


def _shared(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("state_topic", "command_topic", "device", "~") if name in body}


def _expanded(entity: dict[str, Any]) -> dict[str, Any]:
    """Return the entity with long names, and `~` replaced by the base topic."""
    known = _long(entity)
    base = known.get("~")
    if isinstance(base, str):
        for name, value in known.items():
            if isinstance(value, str) and name.endswith(("_topic", "_t")):
                known[name] = re.sub(r"^~|~$", lambda _: base, value)
    return known


def _entity(tree: Tree, found: Proposals, entity: dict[str, Any], topic: str) -> None:
    kind, state = str(entity.get("platform", "")), entity.get("state_topic")
    command = entity.get("command_topic")
    if isinstance(state, str):
        found.used.add(state)
    if isinstance(command, str):
        found.used.add(command)
    found.used |= {value for key, value in entity.items() if _COMMANDS.search(key) and isinstance(value, str)}
    if isinstance(command, str) and command.startswith("reflexd/"):
        return  # our own entities
    device = _device_name(entity)
    own = entity.get("name") or (device if "name" in entity else "")  # without a name of its own it has the device's
    label = str(own or entity.get("unique_id") or topic.split("/")[-2])
    name = found.unique(f"{device}_{label}" if entity.get("name") else label)
    if entity.get("entity_category") in {"diagnostic", "config"} or is_diagnostic(label):
        found.left_out.append(LeftOut(topic, "it describes the device itself"))
    elif kind in {"sensor", "binary_sensor"} and isinstance(state, str):
        _sensor(tree, found, entity, name, state)
    elif kind in MOVED and isinstance(command, str):
        _moved(found, entity, name, kind, command, (label, topic, *_described(entity)))
    else:
        found.left_out.append(LeftOut(topic, f"a {kind} is neither telemetry nor a simple actuator"))


def _device_name(entity: dict[str, Any]) -> str:
    device = entity.get("device")
    return str(device.get("name", "")) if isinstance(device, dict) else ""


def _described(entity: dict[str, Any]) -> tuple[str, ...]:
    """Return the words that say what the device is."""
    device = entity.get("device")
    about = device if isinstance(device, dict) else {}
    keys = ("name", "model", "mdl", "suggested_area", "sa")
    return (
        *(str(about.get(key, "")) for key in keys),
        *(str(entity.get(key, "")) for key in ("unique_id", "icon", "ic")),
    )


_COMMANDS = re.compile(r"(command|availability|cmd|avty)_(t|topic)$|^(set_pos|pct_cmd|set_position)_(t|topic)$")
"""Keys of topics that are commands or say whether the device is there: they are no telemetry."""


def _sensor(tree: Tree, found: Proposals, entity: dict[str, Any], name: str, state: str) -> None:
    place = _place(entity.get("value_template"))
    observed = tree.topics.get(state)
    why = "Home Assistant discovery"
    if place is None:
        found.left_out.append(LeftOut(state, f"{name}: its value_template is more than a field"))
    elif observed is None:
        found.left_out.append(LeftOut(state, f"{name}: no message arrived on its topic"))
    elif str(entity.get("state_class")) == "total_increasing" or is_growing(name):
        found.left_out.append(LeftOut(state, f"{name}: it only grows"))
    elif place == "" and entity.get("platform") == "binary_sensor":
        off, on = str(entity.get("payload_off", "OFF")), str(entity.get("payload_on", "ON"))
        if off == on:
            found.left_out.append(LeftOut(state, f"{name}: it has one word for both states"))
        elif bare_words(observed.samples, (off, on)):
            found.read(stream(name, state, observed, why, {"state": ""}, {"state": (off, on)}))
        else:
            found.left_out.append(LeftOut(state, f"{name}: its payload is neither {off} nor {on}"))
    elif place == "" and bare_numbers(observed.samples):
        found.read(stream(name, state, observed, why, {_field(entity, "value"): ""}))
    elif place and _is_switch(entity, observed, place):
        off, on = (str(entity.get(f"payload_{word}", word.upper())) for word in ("off", "on"))
        field = _field({}, place.strip("/").split("/")[-1])
        found.read(stream(name, state, observed, why, {field: place}, {field: (off, on)}))
    elif place and place in numeric_fields(observed.samples).values():
        last = place.strip("/").split("/")[-1].lower()
        # `contact: true` is a closed door: the field has the name of what its number says
        field = _field({}, last) if entity.get("platform") == "binary_sensor" else _field(entity, last)
        found.read(stream(name, state, observed, why, {field: place}))
    else:
        found.left_out.append(LeftOut(state, f"{name}: its payload is not a number"))


def _is_switch(entity: dict[str, Any], observed: TopicSamples, place: str) -> bool:
    """Return whether every message has one of the two words of a binary sensor at a place."""
    words = {str(entity.get(f"payload_{word}", word.upper())) for word in ("off", "on")}
    found = values_at(observed.samples, place)
    return entity.get("platform") == "binary_sensor" and len(words) == 2 and bool(found) and words.issuperset(found)


def _field(entity: dict[str, Any], otherwise: str) -> str:
    wanted = str(entity.get("device_class") or otherwise)
    return re.sub(r"[^a-z0-9_]+", "_", wanted.lower()).strip("_") or "value"


def _place(template: object) -> str | None:
    """Return key or JSON pointer that a value_template reads; "" for the whole payload, None for any other template."""
    if template is None:
        return ""
    text = str(template).strip()
    if _BARE.match(text):
        return ""
    match = _TEMPLATE.match(text)
    if match is None:
        return None
    steps = [first or second for first, second in _STEP.findall(match[1])]
    return steps[0] if len(steps) == 1 else "".join(f"/{step}" for step in steps)


def _moved(
    found: Proposals, entity: dict[str, Any], name: str, kind: str, command: str, about: tuple[str, ...]
) -> None:
    template = entity.get("state_value_template", entity.get("value_template"))
    place, state = _place(template), entity.get("state_topic")
    switched = tuple(str(entity.get(f"payload_{word}", word.upper())) for word in ("off", "on"))
    reported = tuple(_as_read(entity.get(f"state_{word}", switched[at])) for at, word in enumerate(("off", "on")))
    is_switched = kind in {"switch", "light", "fan"}
    readable = not is_switched or (len(set(reported)) > 1 and (place != "" or all(map(_is_itself, reported))))
    report = state if isinstance(state, str) and place is not None and readable else None
    device = FoundActuator(
        name, command, state_topic=report, state_value=place or "value", why="Home Assistant discovery"
    )
    own = entity.get("command_template") is not None
    if kind not in {"switch", "light", "fan", "select", "number"}:
        found.left_out.append(LeftOut(command, f"{name}: a {kind} can cause harm; add it by hand"))
    elif kind == "light" and entity.get("schema") == "json" and not own:
        report = state if isinstance(state, str) else None
        on_off = replace(device, choices=("OFF", "ON"), payload='{"state": "${value}"}', state_topic=report)
        found.move(replace(on_off, state_value="state"), *about)
    elif own or entity.get("schema") not in {None, "basic", "default"} or entity.get("on_command_type") == "brightness":
        found.left_out.append(LeftOut(command, f"{name}: its command is a template of its own"))
    elif is_switched and switched[0] != switched[1]:
        words = {word: other for word, other in zip(switched, reported, strict=True) if word != other and report}
        found.move(replace(device, choices=switched, off=switched[0], state_words=words), *about)
    elif kind == "select" and len(options := _options(entity)) > 1:
        found.move(replace(device, choices=options), *about)
    else:
        found.left_out.append(
            LeftOut(command, f"{name}: this {kind} needs limits or two distinct words; add it by hand")
        )


def _as_read(word: object) -> str:
    """Return a word of a report as a state is read: Home Assistant writes JSON's truth values with a capital."""
    return {"True": "true", "False": "false"}.get(str(word), str(word))


def _is_itself(word: str) -> bool:
    """Return whether a report of this word alone is read as the word."""
    settings = ChoiceSettings(kind="choice", choices=(word, f"not {word}"), safe="hold")
    try:
        return parse_state(settings, word.encode()).value == word
    except WireError:
        return False


def _options(entity: dict[str, Any]) -> tuple[str, ...]:
    """Return the words of a select, each once; none where one of them is no word."""
    options = entity.get("options")
    given = options if isinstance(options, list) else []
    plain = all(isinstance(each, str | int) and not isinstance(each, bool) and str(each).strip() for each in given)
    return tuple(dict.fromkeys(map(str, given))) if plain and len(given) <= MOST_OPTIONS else ()


def zigbee2mqtt(tree: Tree, found: Proposals) -> None:
    """Read the devices that `BASE/bridge/devices` lists, with what each exposes."""
    for topic in [each for each in tree.topics if each.endswith("/bridge/devices")]:
        base = topic.removesuffix("/bridge/devices")
        found.used |= {each for each in tree.topics if each.startswith((f"{base}/bridge/", f"{base}/bridge"))}
        devices = _json(tree, topic)
        described = frozenset(found.used)  # by Home Assistant's discovery
        names: set[str] = set()
        for device in (
            sorted((each for each in devices if isinstance(each, dict)), key=_friendly)
            if isinstance(devices, list)
            else ()
        ):
            name, definition = device.get("friendly_name"), device.get("definition")
            if device.get("type") == "Coordinator" or not isinstance(name, str) or not isinstance(definition, dict):
                continue
            state = f"{base}/{name}"
            names.add(state)
            keys = ("description", "model", "vendor")
            about = (str(device.get("description")), *(str(definition.get(key)) for key in keys))
            about += tuple(_kinds(definition.get("exposes")))
            if state in described:
                if any(map(is_dangerous, (name, *about))):
                    found.withdraw(state)
            elif device.get("disabled") is not True:
                _zigbee_device(tree, found, state, name, definition, about)
        found.used |= {each for each in tree.topics if each in names or any(above in names for above in levels(each))}


def _kinds(exposes: object) -> Iterator[str]:
    """Every kind of thing that a device is, as `climate` or `lock`, with its label: its switch may be a part of that."""
    for each in exposes if isinstance(exposes, list) else ():
        if isinstance(each, dict) and isinstance(each.get("features"), list):
            yield from (_HARMFUL_KINDS.get(str(each.get("type")), ""), str(each.get("label", "")))


_HARMFUL_KINDS = {"climate": "thermostat", "lock": "lock", "cover": "cover"}


def _friendly(device: dict[str, Any]) -> str:
    return str(device.get("friendly_name"))


def _zigbee_device(
    tree: Tree, found: Proposals, state: str, device: str, definition: dict[str, Any], about: tuple[str, ...]
) -> None:
    features = list(_features(definition.get("exposes")))
    observed = tree.topics.get(state)
    readable = {
        str(each["property"])
        for each in features
        if each.get("type") in {"numeric", "binary"}
        and _access(each) & 1
        and not _access(each) & 2
        and each.get("category") not in {"diagnostic", "config"}
    }
    numbers = numeric_fields(observed.samples) if observed is not None else {}
    fields = {name: place for name, place in numbers.items() if place in readable}
    if observed is not None and fields:
        found.read(stream(found.unique(device), state, observed, "Zigbee2MQTT", fields))
    for each in features:
        _zigbee_feature(found, state, device, each, about)


def _zigbee_feature(found: Proposals, state: str, device: str, feature: dict[str, Any], about: tuple[str, ...]) -> None:
    name = str(feature.get("property"))
    if feature.get("type") != "binary" or not re.fullmatch(r"state(_\w+)?", name, re.ASCII):
        return
    if not _access(feature) & 2:
        return
    if feature.get("of") not in {"switch", "light", "fan"}:
        found.left_out.append(LeftOut(f"{state}/set", f"{device}: such a device can cause harm; add it by hand"))
        return
    words = (feature.get("value_off", "OFF"), feature.get("value_on", "ON"))
    choices = tuple(word for word in words if isinstance(word, str) and _WORD.fullmatch(word))
    if len(set(choices)) < 2:
        found.left_out.append(
            LeftOut(f"{state}/set", f"{device}: its commands are not two plain words; add it by hand")
        )
        return
    payload = f'{{"{name}": "${{value}}"}}'
    wanted = device if name == "state" else f"{device}_{name.removeprefix('state_')}"
    unique = found.unique(f"{wanted}_switch" if found.is_read(state) else wanted)
    switch = FoundActuator(unique, f"{state}/set", choices, payload=payload, state_topic=state, state_value=name)
    found.move(replace(switch, why="Zigbee2MQTT", off=choices[0]), device, *about)


_WORD = re.compile(r"[\w .:-]+")
"""What is itself in JSON, between double quotes."""


def _access(feature: dict[str, Any]) -> int:
    """Return the bits of what may be done with a feature: 1 is published, 2 can be set; unreadable ones permit nothing."""
    access = feature.get("access", 1)
    return access if isinstance(access, int) else 0


def _features(exposes: object, of: str = "") -> Iterator[dict[str, Any]]:
    """Every single feature, with the kind of device it belongs to as `of`."""
    for each in exposes if isinstance(exposes, list) else ():
        if not isinstance(each, dict):
            continue
        if isinstance(each.get("features"), list):
            yield from _features(each["features"], str(each.get("type", "")))
        elif "property" in each:
            yield {**each, "of": of}


def tasmota(tree: Tree, found: Proposals) -> None:
    """Read `tele/NAME/SENSOR`, and switches that answer on `stat/NAME/POWER`."""
    about = _tasmota_words(tree)
    for device, words in about.items():
        if is_dangerous(words):
            found.withdraw(f"cmnd/{device}")  # what Home Assistant's discovery describes without these words
    for topic in sorted(tree.topics, reverse=True):  # sensors first, so that a device's stream has its name
        match = re.fullmatch(r"(tele|stat)/(.+)/([A-Z]+\d*)", topic)
        if match is None or topic in found.used:
            continue
        found.used.add(topic)
        prefix, device, leaf = match.groups()
        observed = tree.topics[topic]
        if prefix == "tele" and leaf == "SENSOR":
            fields = numeric_fields(observed.samples)
            if fields:
                found.read(stream(found.unique(device), topic, observed, "Tasmota", _short(fields)))
        elif prefix == "stat" and re.fullmatch(r"POWER\d*", leaf) and bare_words(observed.samples, ("ON", "OFF")):
            unique = found.unique(device if leaf == "POWER" else f"{device}_{leaf.lower()}")
            if found.is_read(f"tele/{device}/SENSOR"):
                unique = found.unique(f"{device}_{leaf.lower()}")
            switch = FoundActuator(unique, f"cmnd/{device}/{leaf}", ("OFF", "ON"), state_topic=topic, why="Tasmota")
            found.move(switch, device, about.get(device, ""))
    found.used |= {
        topic for topic in tree.topics if topic.startswith(("cmnd/", "tele/", "stat/", "tasmota/discovery/"))
    }


def _tasmota_words(tree: Tree) -> dict[str, str]:
    """Return what is known about each device by its topic: its names, and `shutter` where its relays move one."""
    words: dict[str, str] = {}
    for topic, observed in tree.topics.items():
        if match := re.fullmatch(r"(?:tele|stat)/(.+)/\w+", topic):
            if "SHUTTER" in topic or any(b'"Shutter' in sample for sample in observed.samples):
                words[match[1]] = words.get(match[1], "") + " shutter"
        elif re.fullmatch(r"tasmota/discovery/[^/]+/config", topic) and isinstance(body := _json(tree, topic), dict):
            relays = body.get("rl")
            shutter = "shutter" if isinstance(relays, list) and _SHUTTER_RELAY in relays else ""
            name = str(body.get("t"))
            words[name] = f"{words.get(name, '')} {body.get('dn')} {body.get('fn')} {shutter}"
    return words


_SHUTTER_RELAY = 3
"""Of `rl` in Tasmota's discovery."""


def _short(fields: dict[str, str]) -> dict[str, str]:
    """Names without the sensor's own, where that leaves them distinct."""
    short = {place: place.strip("/").split("/")[-1].lower() for place in fields.values()}
    distinct = len(set(short.values())) == len(short)
    return {short[place] if distinct else name: place for name, place in fields.items()}


def esphome_and_statestream(tree: Tree, found: Proposals) -> None:
    """Read `BASE/KIND/NAME/state`. Only ESPHome, which says `online` on `BASE/status`, takes commands."""
    for topic in list(tree.topics):
        match = ESPHOME.match(topic)
        if match is None or topic in found.used:
            continue
        found.used.add(topic)
        device, kind, name = match["device"], match["kind"], match["id"]
        observed = tree.topics[topic]
        commanded = tree.text(f"{device}/status") in {"online", "offline"} and not _is_statestream(tree, topic)
        unique = found.unique(name)
        why = "ESPHome" if commanded else "Home Assistant statestream"
        if is_diagnostic(name):
            found.left_out.append(LeftOut(topic, "it describes the device itself"))
        elif is_growing(name):
            found.left_out.append(LeftOut(topic, f"{name}: it only grows"))
        elif kind == "sensor" and bare_numbers(observed.samples):
            found.read(stream(unique, topic, observed, why, {"value": ""}))
        elif kind == "binary_sensor" and (words := _words(observed)):
            found.read(stream(unique, topic, observed, why, {"state": ""}, {"state": words}))
        elif kind == "switch" and commanded and bare_words(observed.samples, ("ON", "OFF")):
            command = topic.removesuffix("state") + "command"
            found.used.add(command)
            found.move(FoundActuator(unique, command, ("OFF", "ON"), state_topic=topic, why=why))
        elif kind in {"switch", "light", "fan", "number"}:
            found.left_out.append(LeftOut(topic, f"{name}: this {kind} has no command topic"))
        else:
            found.left_out.append(LeftOut(topic, f"{name}: its payload is not a number"))
    found.used |= {
        topic
        for topic in tree.topics
        if re.search(r"/(sensor|binary_sensor|switch|light|fan|number)/[^/]+/\w+$", topic)
    }


def _words(observed: TopicSamples) -> tuple[str, str] | None:
    for words in (("OFF", "ON"), ("off", "on")):
        if bare_words(observed.samples, words):
            return words
    return None


def _is_statestream(tree: Tree, topic: str) -> bool:
    return any(topic.removesuffix("state") + leaf in tree.topics for leaf in ("last_changed", "last_updated"))


def stream(
    name: str,
    topic: str,
    observed: TopicSamples,
    why: str,
    places: dict[str, str],
    words: dict[str, tuple[str, ...]] | None = None,
) -> FoundStream:
    """Return a proposal; `places` are key or JSON pointer of each field, "" for a message that is the bare value."""
    paths = {field: place for field, place in places.items() if place and place != field}
    sample = observed.samples[-1].decode(errors="replace")
    longest_s = observed.longest_s if observed.count > 1 else None
    return FoundStream(name, topic, tuple(places), paths, words or {}, sample, longest_s, why)


def _object(tree: Tree, topic: str) -> dict[str, Any] | None:
    body = _json(tree, topic)
    return _long(body) if isinstance(body, dict) else None


def _long(entity: dict[str, Any]) -> dict[str, Any]:
    return {LONG.get(name, name): value for name, value in entity.items()}


def _json(tree: Tree, topic: str) -> Any:
    text = tree.text(topic)
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
