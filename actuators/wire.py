"""Encode commands and decode device states. No I/O, and no check of values: the gate has done that.

A device of ours gets the JSON command `{"value","decision","boot","seq","stamp","ttl_ms","policy"}`. A foreign one gets its own
`topic:` and `payload:`, a `string.Template`. In a JSON template values are escaped, so that no value can add a key. `boot`
names one run of the gate, and `seq` grows by one with every command of it, over all actuators. Stamps are Unix seconds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from typing import Any

import orjson
from jsonpointer import JsonPointer, JsonPointerException

from actuators.actions import Value
from actuators.config import ActuatorSettings, AnyActuator, ChoiceSettings, ContinuousSettings, UtteranceSettings

MAX_JSON_BYTES = 65_536
SAFE_TTL_MS = 60_000
"""Time to live of a safe action: it is right however late it comes, until a newer command replaces it."""
MAX_DEPTH = 16
_MISSING = object()


class WireError(ValueError):
    """A payload or a template cannot be used; `str` says why."""


@dataclass(frozen=True, slots=True)
class DeviceMessage:
    """One message to publish."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    expiry_s: int | None = None
    """MQTT 5 message expiry."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a device reports that it does, and the command it answers, where it names one."""

    value: str | float | list[float]
    seq: int | None = None
    boot: str | None = None
    stamp_s: float | None = None
    """Unix seconds by the device's own clock, where it states them."""


def command_topic(base: str, name: str, settings: ActuatorSettings) -> str:
    """Return the topic of commands; `base` is `reflexd/<agent>`."""
    return settings.topic or f"{base}/act/{name}/set"


def state_topic(base: str, name: str, settings: ActuatorSettings) -> str:
    """Return the topic of the device's reports; `base` is `reflexd/<agent>`."""
    return settings.state_topic or f"{base}/act/{name}/state"


class CommandWriter:
    """Write commands and count `seq`.

    Args:
        base: `reflexd/<agent>`.
        actuators: settings by name.
        boot: a new word for each run of the gate.

    Raises:
        WireError: a `payload:` that begins like JSON is not JSON when filled in.
    """

    def __init__(self, base: str, actuators: Mapping[str, AnyActuator], boot: str) -> None:
        self.boot = boot
        self._base = base
        self._actuators = dict(actuators)
        self._templates = {
            name: ForeignPayload(name, each) for name, each in actuators.items() if each.payload is not None
        }
        self._seq = 0
        self._last: dict[str, int] = {}

    def write(
        self,
        actuator: str,
        value: Value,
        *,
        decision: str | None,
        policy: str,
        stamp_s: float,
        ttl_ms: int | None = None,
    ) -> DeviceMessage:
        """Write the next command; `stamp_s` is the Unix time from which it ages, `ttl_ms` replaces the actuator's."""
        settings = self._actuators[actuator]
        self._seq += 1
        self._last[actuator] = self._seq
        life_ms = ttl_ms or settings.ttl_ms
        fields = {
            "value": list(value) if isinstance(value, tuple) else value,
            "decision": decision,
            "boot": self.boot,
            "seq": self._seq,
            "stamp": stamp_s,
            "ttl_ms": life_ms,
            "policy": policy,
        }
        template = self._templates.get(actuator)
        payload = orjson.dumps(fields) if template is None else template.fill(fields)
        topic = command_topic(self._base, actuator, settings)
        return DeviceMessage(topic, payload, qos=1, expiry_s=max(1, math.ceil(life_ms / 1_000)))

    def last(self, actuator: str) -> int:
        """Return the `seq` of the newest command to this actuator; 0 before the first."""
        return self._last.get(actuator, 0)

    def is_older(self, actuator: str, report: DeviceReport) -> bool:
        """Return whether a report answers an older command than the last one to this actuator, and so is outdated."""
        return report.boot == self.boot and report.seq is not None and report.seq < self._last.get(actuator, 0)


OF_AGENT = frozenset({"decision", "policy"})
"""Fields with words of the agent, which is not believed."""
_SIGNS = re.compile(r"[^\w.:+-]", re.ASCII)


class ForeignPayload:
    """A `payload:` template, checked once.

    Raises:
        WireError: it begins like JSON and is not JSON when filled in, or a text could add a key to it.
    """

    def __init__(self, name: str, settings: AnyActuator) -> None:
        self._template = Template(settings.payload or "")
        self._is_json = (settings.payload or "").lstrip()[:1] in {"{", "[", '"'}
        if self._is_json:
            self._check(name, settings)

    def _check(self, name: str, settings: AnyActuator) -> None:
        samples: list[Any] = ['"\\']
        if isinstance(settings, ContinuousSettings):
            samples = [list(settings.low)]
        elif isinstance(settings, ChoiceSettings) and all(map(_is_scalar, settings.choices)):
            samples = list(settings.choices)  # as `{"on": ${value}}` with the choices true and false
        fields = {"boot": "b", "seq": 1, "stamp": 1.5, "ttl_ms": 300, "policy": "p"}
        try:
            for sample in samples:
                for decision in (None, "d-1"):
                    filled = orjson.loads(self.fill(fields | {"value": sample, "decision": decision}))
                    if isinstance(settings, UtteranceSettings) and _is_nested(filled, sample):
                        raise WireError(
                            f"actuators.{name}.payload: the text is inside JSON in a string, where it could add a key; put it in a string of its own"
                        )
        except orjson.JSONDecodeError as error:
            raise WireError(
                f'actuators.{name}.payload: not JSON when filled in ({error}); put quotes around words, as in "${{value}}", and none around numbers'
            ) from None

    def fill(self, fields: Mapping[str, Any]) -> bytes:
        """Fill in one command; a vector of one number is written as the number."""
        filled = {key: self._text(self._plain(key, value)) for key, value in fields.items()}
        return self._template.substitute(filled).encode()

    def _plain(self, key: str, value: Any) -> Any:
        """Return what a field contains; the agent's words have no sign that a device might read, inside a string of JSON either."""
        return _SIGNS.sub("_", value) if key in OF_AGENT and isinstance(value, str) else value

    def _text(self, value: Any) -> str:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None:
            return ""
        if not isinstance(value, str):
            return orjson.dumps(value).decode()
        return orjson.dumps(value).decode()[1:-1] if self._is_json else value


def _is_nested(document: Any, text: str) -> bool:
    """Return whether a text is in a string that a device may read as JSON."""
    if isinstance(document, str):
        return text in document and document.lstrip()[:1] in {"{", "["}
    children = _children(document)
    return any(_is_nested(child, text) for child in children)


def _is_scalar(word: str) -> bool:
    """Return whether a word is true, false or a number in JSON: it needs no quotes, and adds no key without them."""
    try:
        return isinstance(orjson.loads(word), bool | int | float)
    except orjson.JSONDecodeError:
        return False


def parse_state(settings: AnyActuator, payload: bytes) -> DeviceReport:
    """Parse an untrusted report: a JSON object with the value under `state_value`, or the bare value.

    Raises:
        WireError: malformed, too large, too deep, without the value, or of a type that no actuator has.
    """
    document = parse_json(payload, bare_words=True)
    seq = boot = stamp_s = None
    if isinstance(document, dict):
        seq, boot = _acknowledged(document)
        stamp_s = _stamp(document)
        document = _find(document, settings.state_value)
    if isinstance(settings, ChoiceSettings) and isinstance(document, bool | int | float):
        document = orjson.dumps(document).decode()  # a switch may report true, or 1
    return DeviceReport(_as_commanded(settings, _value(document)), seq, boot, stamp_s)


_NUMBER = re.compile(r"[+-]?(\d{1,32}(\.\d{0,32})?|\.\d{1,32})([eE][+-]?\d{1,3})?", re.ASCII)


def _as_commanded(settings: AnyActuator, value: str | float | list[float]) -> str | float | list[float]:
    """Return what a device reports in the words, or as the number, that are commanded."""
    if isinstance(settings, ChoiceSettings) and isinstance(value, str):
        return next((choice for choice, reported in settings.state_words.items() if reported == value), value)
    is_number = isinstance(settings, ContinuousSettings) and isinstance(value, str) and _NUMBER.fullmatch(value.strip())
    return float(value) if is_number and isinstance(value, str) else value


def state_payload(value: Value | None, seq: int | None, boot: str | None, stamp_s: float | None = None) -> bytes:
    """Encode a device's report of what it does, of the command it answers, and of its clock in Unix seconds."""
    body = {"value": value, "seq": seq, "boot": boot}
    return orjson.dumps(body if stamp_s is None else body | {"stamp": stamp_s})


def parse_json(payload: bytes, *, bare_words: bool = False) -> Any:
    """Parse untrusted JSON; with `bare_words`, text that is not JSON is a string.

    orjson refuses NaN, Infinity, numbers beyond a double and half surrogates; it would keep the last of two equal keys.

    Raises:
        WireError: larger than `MAX_JSON_BYTES`, malformed, nested deeper than `MAX_DEPTH`, or with a repeated key.
    """
    if len(payload) > MAX_JSON_BYTES:
        raise WireError(f"{len(payload)} bytes of JSON; the limit is {MAX_JSON_BYTES} bytes")
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        if not bare_words or payload[:1] in b'{["':
            raise WireError(f"not JSON: {error}") from None
        return _word(payload)
    if _deeper_than(value, MAX_DEPTH):
        raise WireError(f"nested deeper than {MAX_DEPTH} levels")
    json.loads(payload, object_pairs_hook=_distinct)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise WireError(f"the key {key[:64]!r} appears twice in one object")
        seen.add(key)


def _word(payload: bytes) -> str:
    try:
        return payload.decode().strip()
    except UnicodeDecodeError:
        raise WireError("neither JSON nor UTF-8") from None


def _acknowledged(document: dict[str, Any]) -> tuple[int | None, str | None]:
    seq, boot = document.get("seq"), document.get("boot")
    known = isinstance(seq, int) and not isinstance(seq, bool) and isinstance(boot, str)
    return (seq, boot) if known else (None, None)


EARLIEST_S, LATEST_S = 0.0, 1e11
"""Unix seconds that a device's clock may show: one without a battery starts in 1970. Milliseconds are beyond."""


def _stamp(document: dict[str, Any]) -> float | None:
    """Return the device's time; None where it states none in seconds."""
    stamp = document.get("stamp")
    if not isinstance(stamp, int | float) or isinstance(stamp, bool):
        return None
    return float(stamp) if EARLIEST_S <= stamp < LATEST_S else None


def check_state_value(where: str) -> None:
    """Check `state_value` of the settings.

    Raises:
        WireError: it begins with `/` and is no JSON pointer.
    """
    try:
        if where.startswith("/"):
            JsonPointer(where)
    except JsonPointerException as error:
        raise WireError(f"{where!r} is not a JSON pointer: {error}; write ~0 for ~ and ~1 for /") from None


def _find(document: dict[str, Any], where: str) -> Any:
    try:
        pointer = JsonPointer(where) if where.startswith("/") else None
        found = document.get(where, _MISSING) if pointer is None else pointer.resolve(document, _MISSING)
    except JsonPointerException:
        found = _MISSING
    if found is _MISSING:
        raise WireError(f"the report has no {where!r}; set state_value to the key of the value")
    return found


def _value(document: Any) -> str | float | list[float]:
    if isinstance(document, str):
        return document
    items = document if isinstance(document, list) else [document]
    if not items or any(isinstance(item, bool) or not isinstance(item, int | float) for item in items):
        raise WireError("the value must be a string, a number or a list of numbers")
    return [float(item) for item in items] if isinstance(document, list) else float(document)


def _deeper_than(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _children(item: object) -> list[object]:
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else []
