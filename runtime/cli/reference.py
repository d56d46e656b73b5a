"""Write the reference pages from the code: `python -m runtime.cli.reference docs` (`make docs`).

The payload models of `runtime/mqtt/topics.py` and the table below make `docs/topics.md`; the settings models make
`docs/settings.md`. A test compares both pages with the code, so that a page is never older than what it describes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from learners.task_kinds import KINDS
from runtime.cli.payload_examples import EXAMPLES
from runtime.config.schema import Config
from runtime.mqtt import topics
from runtime.mqtt.events import EVENTS
from runtime.mqtt.topics import PreviewRequest
from sensors.codecs.json_payload import MAX_DEPTH

TOPICS: tuple[tuple[str, str, str], ...] = (
    ("status", "out, retained, QoS 1, also the will", "the daemon's state: `starting`, `online`, `degraded`, `stopped` or `offline`, with reasons for people"),
    ("info", "out, retained, QoS 1", "program version, digest of the settings, streams, actuators with limits, tasks, live policy version, mode"),
    ("health", "out, every 10 s", "tick time p50 and p99 in ms, overruns; age, staleness and drops of each stream; memory; counts of tasks and speech (`models`); state and metrics of the learner; live policy version, `exploration`, mode, armed, stopped"),
    ("decision", "out, each tick, QoS 0", '`{"id","tick","stamp","policy","mode","actions":{name:{"value","probability","probabilities"?}},"value","reward","ages_ms","skew_ms","missing","latency_ms","experiment","other"}`; in an experiment, `experiment` has arm, block, pair, coin and wash-out, and `other` what the other version would have done: value, probability, and the probability of each action under the version that did not take it'),
    ("event", "out, QoS 1", '`{"type","stamp","data"}`; [types](#event-types)'),
    ("proposal/<actuator>", "out, QoS 1", "the action that the policy proposes in mode `assist`; a person confirms it on `override/<actuator>`"),
    ("in/<stream>", "in", "text: UTF-8 or a JSON object with `text`; camera: JPEG or PNG; microphone: 16-bit little-endian mono PCM; telemetry: a JSON object"),
    ("reward", "in, QoS 1", "a reward for the named decision, or, without one, for the tick at `stamp` or at the arrival"),
    ("label", "in, QoS 1", "one labelled example of a task; `id` names the `label_requested` event that it answers"),
    ("override/<actuator>", "in, QoS 1", "a person's command for `hold_s` seconds; the policy yields and imitates it later. The gate answers like a request if the message names a response topic"),
    ("hold/<actuator>", "out, retained, QoS 1", 'the override in force: `{"value","until"}`, `until` in Unix seconds; both are null without an override'),
    ("stop", "in, QoS 1", "engages or releases the software stop, which survives restarts. After a release nothing moves until `request/arm`. The gate answers as for an override"),
    ("request/<verb>", "in, QoS 1", '`arm`, `disarm`, `mode`, `end_override`, `promote`, `rollback`, `explain`, `checkpoints`, `reload`, `record`, `finetune`, `release`, `accept_drift`, `readings`, `label_readings`, `labels`, `correct_labels`; answered on the MQTT 5 response topic with the same correlation data, else on `response/<verb>`: `{"status":"ok"/"error","data"?,"error"?}`'),
    ("response/<verb>", "out, QoS 1", "the answer to a request without a response topic"),
    ("act/<actuator>/set", "out, QoS 1, with expiry, never retained", "a command to the device; only the gate writes it"),
    ("act/<actuator>/state", "in, retained by the device", "the state of the device, and its acknowledgement of a command"),
    ("task/<name>", "out", "the result of a task"),
    ("goal", "out, retained, QoS 1, with `deliberator`", 'the goal in force: `{"goal","goals","why","confidence","probabilities","still","model","id","since","stamp","ttl_s","held_s","step","past","state_sha256","took_ms"}`; `state_sha256` is the hash of the state in words that the model read'),
    ("override/goal", "in, QoS 1, with `deliberator`", "a person's goal for `hold_s` seconds"),
    ("preview/subscribe", "in, QoS 0, every 2 s", "requests previews of the named streams; previews stop 5 s after the last request"),
    ("preview/<stream>", "out, QoS 0, at most 4 a second, only while requested", 'camera: a JPEG of at most 320 pixels\' width; others JSON: `{"level_db","peak_db"}` in dBFS, `{"text"}`, or `{"values":{}}`'),
    ("homeassistant/state", "out, QoS 1, every 10 s, with `discovery: true`", "the state that the entities of Home Assistant show"),
)  # fmt: skip

MODELS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("status", topics.Status),
    ("reward", topics.Reward),
    ("label", topics.LabelPayload),
    ("override/<actuator>", topics.Override),
    ("override/goal", topics.GoalOverride),
    ("stop", topics.Stop),
    ("act/<actuator>/set", topics.CommandPayload),
    ("act/<actuator>/state", topics.DeviceState),
    ("preview/subscribe", PreviewRequest),
)


def topics_page() -> str:
    """Return the text of `docs/topics.md`."""
    lines = [
        "# Topics",
        "",
        "`make docs` writes this page from `runtime/mqtt/topics.py`; do not edit it. The protocol is MQTT 5. Every topic below starts",
        "with `reflexd/<agent>/`. In the column `direction`, `out` is published by reflexd and `in` is received by it.",
        "",
        "Payloads are JSON if the table names no other format. reflexd refuses NaN, Infinity, numbers beyond a double, nesting deeper",
        f"than {MAX_DEPTH}, and more than {topics.MAX_JSON_BYTES:,} bytes. Names match `[a-z0-9_-]{{1,64}}`. Stamps are Unix seconds.",
        "reflexd ignores retained commands and requests, because they may be old.",
        "",
        "| topic | direction | what |",
        "|---|---|---|",
        *(f"| `{name}` | {how} | {_cell(what)} |" for name, how, what in TOPICS),
        "",
        "Home Assistant's discovery message is retained on `homeassistant/device/reflexd_<agent>/config` (`discovery: true`).",
        "The agent card of A2A is retained on `$a2a/v1/discovery/<organization>/<unit>/<agent>` (`a2a: {organization, unit}`).",
        "",
        "## Event types",
        "",
        "| type | meaning |",
        "|---|---|",
        *(f"| `{kind}` | {_cell(meaning)} |" for kind, meaning in sorted(EVENTS.items())),
        "",
        "## Examples",
        "",
        "| topic | example payload |",
        "|---|---|",
        *(f"| `{name}` | `{EXAMPLES[name]}` |" for name, _, _ in TOPICS),
        "",
        "## Payloads, field by field",
        "",
    ]
    for name, model in MODELS:
        lines += [f"### `{name}`", "", _first_line(model), "", *_table(model.model_json_schema()), ""]
    return "\n".join(lines).rstrip() + "\n"


def settings_page() -> str:
    """Return the text of `docs/settings.md`."""
    schema = Config.model_json_schema()
    models: dict[str, Any] = schema["$defs"]
    lines = [
        "# Settings",
        "",
        "`make docs` writes this page from the settings models; do not edit it. Settings are one YAML file. `reflexd check FILE`",
        "validates it: it refuses unknown keys, and every error names the file, the line, the path and the remedy.",
        "",
        "`${env:NAME}` and `${file:PATH}` in a text insert a secret. Times are in seconds, or in the unit that ends the name.",
        "`reflexd check --schema` prints the JSON Schema.",
        "",
        "## The file",
        "",
        *_table(schema),
        "",
    ]
    for name in sorted(models):
        model = models[name]
        if model.get("properties"):
            lines += [
                f"## {_title(name)}",
                "",
                str(model.get("description", "")).split("\n")[0],
                "",
                *_table(model),
                "",
            ]
    lines += ["## Kinds of tasks", "", "What `tasks.X.kind` reads, learns from and publishes.", "", *_kinds()]
    return "\n".join(lines).rstrip() + "\n"


def _kinds() -> Iterator[str]:
    yield "| kind | stream | reading | examples in files | target | published on `task/<name>` |"
    yield "|---|---|---|---|---|---|"
    for kind, one in KINDS.items():
        inputs = ", ".join(f"`{name.replace('|', '` or `')}`" for name in one.inputs)
        published = ", ".join(f"`{name}`" for name in one.published) or "nothing; text actuators speak"
        cells = (f"`{kind}`", one.stream, one.reading or f"the {one.modality}", inputs, f"`{one.target}`", published)
        yield "| " + " | ".join(map(_cell, cells)) + " |"


def _table(schema: dict[str, Any]) -> Iterator[str]:
    yield "| key | type | default | what |"
    yield "|---|---|---|---|"
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in required else _default(field)
        about = field.get("description", "") + _limits(field)
        yield f"| `{name}` | {_cell(_type(field))} | {_cell(default)} | {_cell(about.strip())} |"


def _type(field: dict[str, Any]) -> str:
    for key, texts in _KINDS.items():
        if key in field:
            return texts(field)
    if field.get("format") == "path":
        return "path"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items') or (field.get('prefixItems') or [{}])[0])}"
    entries = field.get("additionalProperties") or next(iter(field.get("patternProperties", {}).values()), None)
    if isinstance(entries, dict):
        return f"by name: {_type(entries)}"
    words = {"null": "nothing", "string": "text", "boolean": "true or false", "integer": "whole number"}
    kind = str(field.get("type", "anything"))
    return words.get(kind, kind)


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "none"
    if "$ref" in field:
        return "its own"
    return f"`{_shown(field['default'])}`"


def _link(field: dict[str, Any]) -> str:
    title = _title(field["$ref"].rsplit("/", 1)[-1])
    return f"[{title}](#{title.lower().replace(' ', '-')})"


_KINDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "$ref": _link,
    "const": lambda field: f"`{field['const']}`",
    "enum": lambda field: ", ".join(f"`{each}`" for each in field["enum"]),
    "anyOf": lambda field: " or ".join(map(_type, field["anyOf"])),
    "oneOf": lambda field: " or ".join(map(_type, field["oneOf"])),
}


def _limits(field: dict[str, Any]) -> str:
    words = (
        ("exclusiveMinimum", "above"),
        ("minimum", "at least"),
        ("exclusiveMaximum", "below"),
        ("maximum", "at most"),
    )
    texts = [f"{word} {field[key]:g}" for key, word in words if key in field]
    return f" ({', '.join(texts)})" if texts else ""


def _title(name: str) -> str:
    """Return `CameraSettings` as `Camera settings`."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    return words[:1].upper() + words[1:]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n")[0]


def pages() -> dict[str, str]:
    """Return every generated page by file name."""
    return {"topics.md": topics_page(), "settings.md": settings_page()}


def main(folder: Path) -> None:
    """Write the pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
