"""Write a settings file with comments from proposals; `reflexd check` accepts it, and it begins in shadow mode."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.discovery.proposals import FoundActuator, FoundStream

OLDEST_S = 3_600.0
SAMPLE = 90


@dataclass(frozen=True, slots=True)
class Plan:
    """What the file is to contain."""

    agent: str
    url: str
    streams: Sequence[FoundStream]
    actuators: Sequence[FoundActuator]
    reward: str | None = None
    """An expression over fields; None for rewards that people give."""
    rate_hz: float = 1.0
    username: str | None = None
    password_reference: str | None = None
    """`${env:NAME}` or `${file:PATH}`; never a password itself."""
    cameras: Sequence[str] = ()
    microphones: Sequence[str] = ()


def settings_text(plan: Plan) -> str:
    """Return the text of the file."""
    login = ""
    if plan.username is not None:
        login = f", username: {_text(plan.username)}"
        login += f", password: {_text(plan.password_reference)}" if plan.password_reference else ""
    lines = [
        "# Written by `reflexd discover`. Read it, then `reflexd check` and `reflexd run` it.",
        "# It begins in shadow mode: the policy decides and learns, and nothing moves. Switch to assist and then to autonomous",
        "# on the page, or with `reflexd mode`, once its decisions look right.",
        f"agent: {_text(plan.agent)}",
        "mode: shadow",
        f"tick: {{rate_hz: {plan.rate_hz:g}}}",
        f"state_dir: {_text('.reflexd/' + plan.agent)}",
        f"mqtt: {{url: {_text(plan.url)}{login}}}",
        "streams:",
        *(line for each in plan.streams for line in _stream(each, plan.reward or "")),
        *(
            f"  {name}: {{kind: camera, source: {source}, encoder: vision}}"
            for name, source in _numbered("camera", plan.cameras)
        ),
        *(
            f"  {name}: {{kind: microphone, source: {source}, encoder: hearing}}"
            for name, source in _numbered("microphone", plan.microphones)
        ),
    ]
    if plan.cameras or plan.microphones:
        lines.append("encoders:")
        lines += ['  vision: {model: "bundled:efficientnet-lite0"}'] if plan.cameras else []
        lines += ['  hearing: {model: "builtin:utterance"}'] if plan.microphones else []
    lines += ["actuators:", *(line for each in plan.actuators for line in _actuator(each))]
    lines += [
        "# How good the present state is, each tick: the policy learns to make it larger. See docs/learning.md.",
        "rewards:",
        f"  - {{name: goal, kind: expression, value: {_text(plan.reward)}}}"
        if plan.reward
        else "  - {name: people, kind: topic}   # rewards come from the page or from the topic `reward`",
        'dashboard: {listen: "127.0.0.1:8080"}',
        'metrics: {listen: "127.0.0.1:9464"}',
    ]
    return "\n".join(lines) + "\n"


def _stream(found: FoundStream, reward: str) -> list[str]:
    age_s = OLDEST_S if found.longest_s is None else min(OLDEST_S, max(5.0, math.ceil(3 * found.longest_s)))
    how_often = "one message" if found.longest_s is None else f"at least every {found.longest_s:.1f} s"
    parts = [
        "kind: telemetry",
        f"source: {_text('topic:' + found.topic)}",
        f"fields: [{', '.join(map(_text, found.fields))}]",
        f"max_age_s: {age_s:g}",
    ]
    if re.search(rf"\b{re.escape(found.name)}\b", reward):
        parts.append("required: true")  # without what it is rewarded for, a policy acts blindly
    if found.paths:
        parts.insert(3, "paths: {" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in found.paths.items()) + "}")
    if found.words:
        kinds = ", ".join(
            f"{_text(k)}: {{kind: enum, words: [{', '.join(map(_text, words))}]}}" for k, words in found.words.items()
        )
        parts.insert(3, f"field_kinds: {{{kinds}}}")
    return [
        f"  # {found.why}, {how_often}; a sample: {_comment(found.sample)}",
        f"  {found.name}: {{{', '.join(parts)}}}",
    ]


def _actuator(found: FoundActuator) -> list[str]:
    lines = [f"  # {found.why}", f"  {found.name}:"]
    if found.choices:
        lines += ["    kind: choice", f"    choices: [{', '.join(map(_text, found.choices))}]"]
        lines.append("    min_hold_s: 3   # a relay lasts about 100,000 switches: raise it as far as the task permits")
    else:
        lines += ["    kind: continuous", f"    low: [{found.low:g}]", f"    high: [{found.high:g}]"]
    lines += [f"    topic: {_text(found.topic)}", f"    payload: {_text(found.payload)}"]
    if found.state_topic is not None:
        lines += [f"    state_topic: {_text(found.state_topic)}", f"    state_value: {_text(found.state_value)}"]
    if found.state_topic is not None and found.state_words:
        words = ", ".join(f"{_text(choice)}: {_text(reported)}" for choice, reported in found.state_words.items())
        lines.append(f"    state_words: {{{words}}}")
    safe = _text(found.safe)
    return [
        *lines,
        f"    safe: {safe}   # sent whenever the policy must not act: choose what is harmless",
        "    refresh_s: 600   # an unchanged command again every ten minutes, not at every tick",
        "    ttl_ms: 2000",
    ]


def _numbered(kind: str, sources: Sequence[str]) -> list[tuple[str, str]]:
    return [(kind if number == 1 else f"{kind}{number}", _text(source)) for number, source in enumerate(sources, 1)]


def _text(value: str) -> str:
    """Return a YAML scalar in double quotes, which JSON's are."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


_UNPRINTABLE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202f\u2060-\u206f\ud800-\udfff\ufeff\ufffe\uffff]")
"""Characters that YAML takes escaped only, or that are not seen."""


def _comment(value: str) -> str:
    shown = "".join(character if character.isprintable() else " " for character in value[: SAMPLE + 1])
    return shown[:SAMPLE] + ("…" if len(shown) > SAMPLE else "")
