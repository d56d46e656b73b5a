"""Turn readings into the inputs of a task, by the declaration of its kind. Live readings and labels of readings use it alike."""

from __future__ import annotations

from typing import Any

from learners.data_error import DataError
from learners.task_kinds import KINDS, TaskKind
from sensors.base import PayloadRefused
from sensors.codecs.json_payload import parse_json
from sensors.readings import Frame, Reading, Sound, Text

MAX_JSON_BYTES = 1_000_000
"""Of a text that names several inputs, such as question and context."""


def inputs_of_reading(kind: TaskKind, reading: Reading, context: Reading | None = None) -> dict[str, Any]:
    """Return the inputs that a kind of task takes from a reading.

    Args:
        kind: the kind of task.
        reading: of the task's stream.
        context: the newest reading of the task's context stream.

    Raises:
        DataError: the reading is of another modality, or its text does not hold the inputs.
    """
    modality = KINDS[kind].modality
    match reading:
        case Text() if modality == "text":
            return inputs_of_text(kind, reading.text, context.text if isinstance(context, Text) else None)
        case Frame() if modality == "picture":
            return {"picture": reading.image}
        case Sound() if modality == "sound":
            return {"sound": reading.samples, "rate_hz": reading.rate_hz}
    raise DataError(f"{kind} reads a {modality}, not a reading of {type(reading).__name__}")


def inputs_of_text(kind: TaskKind, text: str, context: str | None = None) -> dict[str, Any]:
    """Return the inputs that a kind of task takes from a text.

    A kind with one input takes the text. A kind with two takes a JSON object with both, or the text and `context`.

    Raises:
        DataError: the text is no such object.
    """
    inputs = KINDS[kind].inputs
    if inputs == ("messages",):
        return {"messages": [{"role": "user", "content": text}]}
    if inputs == ("tokens|text",):
        return {"text": text}
    if len(inputs) == 1:
        return {inputs[0]: text}
    if context is not None:
        return {inputs[0]: text, inputs[1]: context}
    return _object(kind, text)


def _object(kind: TaskKind, text: str) -> dict[str, Any]:
    inputs = KINDS[kind].inputs
    wanted = "{" + ", ".join(f'"{name}": "..."' for name in inputs) + "}"
    try:
        body = parse_json(text.encode(errors="replace"), MAX_JSON_BYTES)
    except PayloadRefused as reason:
        raise DataError(f"{kind} takes {wanted}: {reason}") from None
    if not isinstance(body, dict) or not all(isinstance(body.get(name), str) and body[name].strip() for name in inputs):
        raise DataError(f"{kind} takes {wanted} with texts that are not empty")
    return {name: body[name] for name in inputs}
