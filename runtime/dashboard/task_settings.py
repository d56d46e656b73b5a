"""Write a task, or one more class of a task, into the text of a settings file, and leave every other character as it is."""

from __future__ import annotations

import json

import yaml

from learners.task_kinds import KINDS, STREAMS, TaskKind
from runtime.config.schema import Config
from runtime.config.yaml_core import CoreLoader

MODELS = {"camera": "bundled:efficientnet-lite0", "microphone": "bundled:whisper-tiny.en", "text": "bundled:minilm-l6"}
"""By kind of stream, the model of a task on a stream without a pretrained encoder."""


class TaskNotAdded(Exception):  # noqa: N818 - reads as what happened
    """The task or class cannot be written; `str` says why."""


def with_task(text: str, config: Config, name: str, stream: str) -> str:
    """Return the text with a new task that classifies the readings of a stream.

    Args:
        text: the settings file.
        config: what it says.
        name: of the task.
        stream: of the task; a camera, a microphone or a text stream.

    Raises:
        TaskNotAdded: the name is in use, the stream cannot be classified, or a YAML alias shares the tasks with another part.
    """
    if name in config.tasks or name in config.streams:
        raise TaskNotAdded(f"{name} is in use: choose another name")
    settings = config.streams.get(stream)
    kind = _kind(settings.kind) if settings is not None else None
    if settings is None or kind is None:
        raise TaskNotAdded(f"{stream} is not a camera, microphone or text stream")
    encoder = config.encoders.get(settings.encoder or "")
    model = MODELS[settings.kind] if encoder is None or encoder.plugin else encoder.model
    entry = (
        f"{_key(name)}: {{kind: {kind}, stream: {_key(stream)}, "
        f"model: {json.dumps(model, ensure_ascii=False)}, train: frozen}}"
    )
    root = yaml.compose(text, CoreLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TaskNotAdded("the settings file is not a mapping")
    node = _value(root, "tasks")
    _refuse_shared(root, node, "tasks")
    if node is None:
        if root.flow_style:
            return _insert(text, root.start_mark.index + 1, f"tasks: {{{entry}}}, ")
        return f"{text.rstrip()}\n\ntasks:\n  {entry}\n"
    if not isinstance(node, yaml.MappingNode):
        return _insert(text, node.start_mark.index, f" {{{entry}}}")
    if node.flow_style or not node.value:
        return _insert(text, node.start_mark.index + 1, f"{entry}, " if node.value else entry)
    start = node.value[0][0].start_mark
    return _insert(text, start.index, f"{entry}\n{' ' * start.column}")


def with_class(text: str, config: Config, task: str, label: str) -> str:
    """Return the text with one more class of a task that declares its classes.

    Raises:
        TaskNotAdded: there is no such task, it has the class, it declares none, or it shares them with another by a YAML alias.
    """
    settings = config.tasks.get(task)
    if settings is None or not settings.labels:
        raise TaskNotAdded(f"tasks.{task} declares no labels")
    if label in settings.labels:
        raise TaskNotAdded(f"{label} is a class of {task} already")
    root = yaml.compose(text, CoreLoader)
    node: yaml.Node | None = root
    for name in ("tasks", task, "labels"):
        node = _value(node, name) if isinstance(node, yaml.MappingNode) else None
        _refuse_shared(root, node, name if name == "tasks" else f"tasks.{task}")
    if not isinstance(node, yaml.SequenceNode):
        raise TaskNotAdded(f"tasks.{task}.labels is not written as a list; edit the settings file")
    written = json.dumps(label, ensure_ascii=False)
    if node.flow_style:
        return _insert(text, node.value[-1].end_mark.index, f", {written}")
    start = node.start_mark
    return _insert(text, start.index, f"- {written}\n{' ' * start.column}")


def _kind(stream: str) -> TaskKind | None:
    return next((kind for kind, one in KINDS.items() if one.classifies and STREAMS[one.modality] == stream), None)


def _value(mapping: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in mapping.value if key.value == name), None)


def _refuse_shared(root: yaml.Node | None, node: yaml.Node | None, where: str) -> None:
    """Refuse a part of the file that an alias shares with another part: an insertion would change both.

    Raises:
        TaskNotAdded: an alias refers to it.
    """
    waiting, seen, uses = [] if root is None else [root], set[int](), 0
    while waiting:
        one = waiting.pop()
        uses += one is node
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, yaml.MappingNode):
            waiting += [each for pair in one.value for each in pair]
        elif isinstance(one, yaml.SequenceNode):
            waiting += one.value
    if uses > 1:
        raise TaskNotAdded(f"{where} is shared by a YAML alias (&, *); edit the settings file")


def _insert(text: str, at: int, more: str) -> str:
    return text[:at] + more + text[at:]


def _key(name: str) -> str:
    """Return a name as YAML reads it as text: `on` or `12` in quotes."""
    return name if isinstance(yaml.load(name, CoreLoader), str) else json.dumps(name)  # noqa: S506 - a safe loader
