"""Load a settings file: YAML with line numbers, `${env:NAME}` and `${file:PATH}`, and errors with their remedy.

Plain values follow the core schema of YAML 1.2.2 (section 10.3.2): `010` is ten, `on` and `yes` are words, `1:30` is not a
number. Merge keys (`<<`) of YAML 1.1 work too. A path may begin with `~/`.

The model is in `schema.py`. Values from the environment or from a file count as secrets: the log scrubs them, and no error
repeats them.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from actuators.config import conditions_of
from actuators.expressions import Expression, ExpressionError, Known
from actuators.safety.forbid_rules import Rule, known_names, unsafe_rests
from learners.files import read_plain_file
from runtime.config import forbid_lint
from runtime.config.errors import Problem, Steps, dotted, explain
from runtime.config.schema import Config
from runtime.config.yaml_core import CoreLoader
from sensors.codecs.file_kinds import file_kind
from sensors.config import field_kinds_of, fields_of, stream_secrets

MAX_BYTES = 1_048_576
MAX_NODES = 50_000
MAX_DEPTH = 20
PATH_KEYS = frozenset({"state_dir", "ca", "cert", "key", "cert_key", "model", "eval_file", "source"})
"""Settings in which `~/` at the begin means the home directory."""
_MAP, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")
_NO_REFERENCE = re.compile(r"\$\{(?:(?:env|file):[^}]*(?:\}|$)|[A-Za-z_]\w*(?::[^}]*)?(?:\}|$))", re.IGNORECASE)
"""What its writer took for a reference: `${NAME}`, `${ENV:NAME}`, `${env:NAME` without its end."""
TEMPLATES = frozenset({"payload"})
"""Settings with placeholders of their own."""
_UNSEEN = re.compile(r"[\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f\u2060\u3000\ufeff]")


class ConfigError(Exception):
    """The settings file cannot be used; `problems` has every reason found."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


@dataclass(slots=True)
class LoadedConfig:
    """A settings file: the model, the secret values found, the text for its digest, and the line of each path."""

    config: Config
    secrets: set[str] = field(default_factory=set)
    text: str = ""
    lines: dict[Steps, int] = field(default_factory=dict)

    def line(self, where: Steps) -> int:
        """Return the line of a path, or of the nearest part of the file above it; 1 where there is none."""
        return next((self.lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in self.lines), 1)


def load(path: Path) -> LoadedConfig:
    """Read and validate one settings file.

    Raises:
        ConfigError: with file, line, path and remedy of everything that is wrong.
    """
    text = _read(path)
    root = _compose(path, text)
    reader = _Reader(path)
    value = reader.value(root, ())
    if reader.problems:
        raise ConfigError(reader.problems)
    try:
        config = Config.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ConfigError([explain(path, reader.lines, detail) for detail in details]) from None
    problems = [
        Problem(path, reader.lines.get(where, 1), dotted(where), str(error), "correct the expression")
        for where, error in _bad_expressions(config)
    ]
    problems += [
        Problem(path, reader.lines.get(where, 1), dotted(where), f"{written} is a truth value", "write a number")
        for where, written in _truth_values(value, config)
    ]
    if problems:
        raise ConfigError(problems)
    return LoadedConfig(config, reader.secrets | _model_secrets(config), text, reader.lines)


def load_argument(arguments: list[str]) -> LoadedConfig | None:
    """Load the settings file that the first argument of a process names; None, with the reason on stderr, where that fails."""
    try:
        return load(Path(arguments[0]))
    except (IndexError, ConfigError) as error:
        sys.stderr.write(f"{error if arguments else 'name a settings file'}\n")
        return None


def _read(path: Path) -> str:
    try:
        data = read_plain_file(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(
            [Problem(path, 1, "", error.strerror or str(error), "name an existing, readable file")]
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigError([Problem(path, 1, "", "too large", f"a settings file has at most {MAX_BYTES} bytes")])
    if b"\0" in data:
        raise ConfigError([Problem(path, 1, "", _no_text(data), "save the settings as a text file in UTF-8")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        kind = file_kind(data)
        reason = "not UTF-8" if kind in (None, "text") else f"a {kind} file, no settings"
        raise ConfigError([Problem(path, line, "", reason, "save the file as UTF-8")]) from None


def _no_text(data: bytes) -> str:
    """Say what a file with zero bytes is: text has none."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
    ):
        if data.startswith(mark):
            return f"text in {name}"
    if (kind := file_kind(data)) not in (None, "text"):
        return f"a {kind} file, no settings"
    half = len(data) // 2
    if half * 0.8 <= data.count(0) <= half * 1.2 and (not any(data[::2][:40]) or not any(data[1::2][:40])):
        return "text in UTF-16"
    if not any(data):
        return f"{len(data)} zero bytes, as a crash of the machine may leave them"
    return f"a zero byte at {data.index(0)}; text has none"


def _compose(path: Path, text: str) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.context_mark or error.problem_mark  # an unclosed bracket is wrong where it opens
        line = mark.line + 1 if mark else 1
        remedy = (
            "write spaces instead of tabs in indentation"
            if "\\t" in str(error.problem)
            else "check indentation, colons and quotes here"
        )
        before = "\n".join(text.splitlines()[max(0, line - 2) : line])
        if (unseen := _UNSEEN.search(before)) is not None:
            remedy = f"replace the invisible {_named(unseen)} in this line or the one before by a plain space"
        raise ConfigError(
            [
                Problem(
                    path,
                    line,
                    "",
                    f"not YAML: {error.problem or error}",
                    remedy,
                )
            ]
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            [Problem(path, 1, "", f"not YAML: {type(error).__name__}", "remove control characters and deep nesting")]
        ) from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            [
                Problem(
                    path, 1, "", "the file is empty or not a mapping", "start with `agent: NAME`; see configs/demo.yaml"
                )
            ]
        )
    return root


class _Reader:
    """Convert YAML nodes to plain values and store the line of every path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Steps, int] = {}
        self.secrets: set[str] = set()
        self.problems: list[Problem] = []
        self._construct = CoreLoader("")

    def value(self, node: yaml.Node, where: Steps) -> Any:
        if len(self.lines) > MAX_NODES:  # aliases can make a short file endless
            self._problem(node, where, f"more than {MAX_NODES} values", "write the file without nested aliases")
            return None
        self.lines[where] = node.start_mark.line + 1
        if len(where) > MAX_DEPTH:  # an alias inside its own anchor never ends
            self._problem(
                node, where[:2], f"nested deeper than {MAX_DEPTH}", "write the file without recursive aliases"
            )
            return None
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (_MAP, _SEQUENCE):
            self._problem(node, where, f"the tag {node.tag} is not supported", "delete it")
            return None
        if isinstance(node, yaml.MappingNode):
            return dict(self._items(node, where))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*where, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, where)

    def _scalar(self, node: yaml.Node, where: Steps) -> Any:
        try:
            scalar = self._construct.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            self._problem(
                node, where, f"cannot be read: {_one_line(error)}", "use plain numbers, words and quoted strings"
            )
            return None
        if not isinstance(scalar, str):
            return scalar
        text = self._resolve(node, where, scalar)
        home = where and where[-1] in PATH_KEYS and (text == "~" or text.startswith("~/"))
        return os.path.expanduser(text) if home else text  # noqa: PTH111 - not every such setting is a path

    def _items(self, node: yaml.MappingNode, where: Steps) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, child in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key == "<<" and key_node.style is None:
                merged += self._merged(child, where)
                continue
            if key is None:
                self._problem(key_node, where, "a key must be a word", "write `name: value`")
                continue
            if key in seen:
                self._problem(key_node, (*where, key), "written twice", "keep one of the two")
                continue
            if (unseen := _UNSEEN.search(key)) is not None:
                self._problem(key_node, (*where, key), f"the key contains the invisible {_named(unseen)}", "delete it")
                continue
            seen.add(key)
            yield key, self.value(child, (*where, key))
            self.lines[(*where, key)] = key_node.start_mark.line + 1
        for (
            key_node,
            child,
        ) in merged:  # keys of the mapping itself come before merged ones, earlier ones before later ones
            key = str(key_node.value)
            if key not in seen:
                seen.add(key)
                yield key, self.value(child, (*where, key))

    def _merged(self, node: yaml.Node, where: Steps, depth: int = 0) -> list[tuple[yaml.Node, yaml.Node]]:
        """Return the pairs that `<<: *alias` or `<<: [*a, *b]` merges, in order of precedence."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: list[tuple[yaml.Node, yaml.Node]] = []
        for part in parts:
            if not isinstance(part, yaml.MappingNode) or depth > MAX_DEPTH or len(found) > MAX_NODES:
                self._problem(
                    node, where, "`<<` merges mappings only", "write `<<: *name` for a mapping marked `&name`"
                )
                return []
            pairs = [(key, child) for key, child in part.value if isinstance(key, yaml.ScalarNode)]
            found += [(key, child) for key, child in pairs if key.value != "<<"]
            for key, child in pairs:
                if key.value == "<<":
                    found += self._merged(child, where, depth + 1)
        return found

    def _resolve(self, node: yaml.Node, where: Steps, text: str) -> str:
        def one(match: re.Match[str]) -> str:
            kind, name = match.groups()
            try:
                secret = (
                    os.environ[name]
                    if kind == "env"
                    else read_plain_file((self.path.parent / name).expanduser(), MAX_BYTES).decode().strip()
                )
            except KeyError:
                self._problem(
                    node, where, f"environment variable {name} is not set", f"export {name}=... before the start"
                )
                return ""
            except (OSError, ValueError, RuntimeError) as error:  # no such file, no text, no such user
                reason = getattr(error, "strerror", None) or type(error).__name__
                self._problem(node, where, f"cannot read {name}: {reason}", "create the file and make it readable")
                return ""
            if secret:
                self.secrets.add(secret)
            return secret

        left = _NO_REFERENCE.search(_REFERENCE.sub("", text))
        if left is not None and (where[-1] if where else "") not in TEMPLATES:
            self._problem(node, where, f"{left[0][:80]} is not replaced", "write ${env:NAME} or ${file:PATH}")
        return _REFERENCE.sub(one, text)

    def _problem(self, node: yaml.Node, where: Steps, message: str, remedy: str) -> None:
        self.problems.append(Problem(self.path, node.start_mark.line + 1, dotted(where), message, remedy))


def _named(character: re.Match[str]) -> str:
    return f"character U+{ord(character[0]):04X}"


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _truth_values(written: Any, read: Any, where: Steps = ()) -> Iterator[tuple[Steps, str]]:
    """Yield every `true` or `false` that was read as a number: 1 is never what its writer meant."""
    if isinstance(written, bool) and not isinstance(read, bool) and isinstance(read, int | float):
        yield where, str(written).lower()
    elif isinstance(written, dict):
        for name, value in written.items():
            inner = read.get(name) if isinstance(read, dict) else getattr(read, name, None)
            yield from _truth_values(value, inner, (*where, name))
    elif isinstance(written, list) and isinstance(read, tuple | list) and len(written) == len(read):
        for number, (value, inner) in enumerate(zip(written, read, strict=True)):
            yield from _truth_values(value, inner, (*where, number))


def _bad_expressions(config: Config) -> Iterator[tuple[Steps, ExpressionError]]:
    actions = known_names(config.actuators)
    readings = known_readings(config)
    enums = enum_fields(config)
    broken = False
    for n, text in enumerate(config.gate.forbid):
        try:
            forbid_lint.check_rule(Rule(text, actions, readings).expression, config.actuators, enums)
        except ExpressionError as error:
            broken = True
            yield ("gate", "forbid", n), error
    yield from _bad_conditions(config, readings, enums)
    for n, reward in enumerate(config.rewards):
        if reward.kind == "expression":
            try:
                expression = Expression(reward.value, {**readings, **actions})
                forbid_lint.check_words(expression.text, config.actuators, enums)
                forbid_lint.check_value(expression, config.actuators, enums)
            except ExpressionError as error:
                yield ("rewards", n, "value"), error
    for n, problem in ({} if broken else unsafe_rests(config.actuators, config.gate, readings)).items():
        yield ("gate", "forbid", n), ExpressionError(problem)


def _bad_conditions(
    config: Config, readings: Known, enums: forbid_lint.Enums
) -> Iterator[tuple[Steps, ExpressionError]]:
    for name, actuator in config.actuators.items():
        for n, entry in enumerate(actuator.requires or ()):
            try:
                if entry in conditions_of(actuator.requires):
                    forbid_lint.check_condition(Expression(entry, readings), enums)
            except ExpressionError as error:
                yield ("actuators", name, "requires", n), error


def known_readings(config: Config) -> Known:
    """Return what expressions may use of streams: the fields of telemetry."""
    return {name: fields_of(stream) for name, stream in config.streams.items() if fields_of(stream)}


def enum_fields(config: Config) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the words of the fields that are enums, by stream and field."""
    return {
        (name, field): kind.words
        for name, stream in config.streams.items()
        for field, kind in field_kinds_of(stream).items()
        if kind.kind == "enum"
    }


def _model_secrets(config: Config) -> set[str]:
    users = (config.mqtt.gate, config.mqtt.agent, config.mqtt.dashboard)
    secrets = [config.mqtt.password, *(user.password for user in users if user)]
    if config.dashboard:
        secrets += [config.dashboard.token, config.dashboard.viewer_token]
    if config.deliberator:
        secrets.append(getattr(config.deliberator.backend, "key", None))
    if config.fleet is not None:
        secrets.append(config.fleet.password)
    held = {secret.get_secret_value() for secret in secrets if secret is not None}
    return held.union(*map(stream_secrets, config.streams.values()))
