"""Say what a broker would close the connection over: topics and logins that MQTT or mosquitto does not permit, and hosts that are none.

Used by the settings, so that `reflexd check` names the setting. A client with such a topic would connect, be disconnected, and
connect again, for ever.
"""

from __future__ import annotations

import ipaddress

MOST_BYTES = 65_535
"""Of a string in MQTT (1.5.4)."""
MOST_LEVELS = 200
"""Levels of a topic that mosquitto accepts."""
MOST_HOST, MOST_LABEL = 253, 63
"""Characters of a host's name, and of a part of it (RFC 1035)."""


def text_problem(text: str) -> str | None:
    """Return why no string in MQTT may be this text, or None (MQTT 5, 1.5.4)."""
    for character in text:
        code = ord(character)
        if code == 0:
            return "contains a zero byte; delete it"
        if code < 0x20 or 0x7F <= code <= 0x9F:
            return f"contains the control character U+{code:04X}, and a broker ends the connection over it; delete it"
        if 0xD800 <= code <= 0xDFFF:
            return f"contains U+{code:04X}, half of a character; write the whole one"
        if code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
            return f"contains U+{code:04X}, which is no character, and a broker ends the connection over it; delete it"
    if len(text.encode()) > MOST_BYTES:
        return f"has {len(text.encode())} bytes; MQTT has at most {MOST_BYTES}"
    return None


def topic_problem(topic: str) -> str | None:
    """Return why a broker would end the connection over a topic, or None."""
    if (problem := text_problem(topic)) is not None:
        return f"the topic {problem}"
    if topic.count("/") >= MOST_LEVELS:
        return f"the topic has {topic.count('/') + 1} levels; mosquitto accepts {MOST_LEVELS}"
    return None


def filter_problem(topics: str) -> str | None:
    """Return why a broker would refuse a filter of topics, or None (MQTT 5, 4.7.1)."""
    levels = topics.split("/")
    if not topics:
        return "a filter is not empty; write # for every topic"
    if any("#" in level and (level != "#" or at < len(levels) - 1) for at, level in enumerate(levels)):
        return "# is a level of its own, and the last one; correct it"
    if any("+" in level and level != "+" for level in levels):
        return "+ is a whole level; correct it"
    return topic_problem(topics)


def host_problem(host: str) -> str | None:
    """Return why a text is neither the name nor the address of a host, or None; names are not looked up."""
    plain = host.strip("[]").partition("%")[0]
    numbers = plain.split(".")
    if ":" in plain or all(part.isdecimal() for part in numbers if part):
        try:
            ipaddress.ip_address(plain)
        except ValueError:
            return f"{host!r} is not an address; write one such as 192.168.1.20 or [::1], or a name"
        return None
    if not host.isprintable() or " " in host:
        return f"{host!r} is not a host; write its name or address"
    labels = host.removesuffix(".").split(".")
    if len(host) > MOST_HOST or any(not label or len(label) > MOST_LABEL for label in labels):
        return f"{host[:80]!r} is not the name of a host: a part of it is empty or too long; correct it"
    return None
