"""Find fields of the settings that no code reads: `python tests/settings_reads.py`, which `make lint` runs.

mypy infers the type of every expression; a read is an attribute of an expression that is a settings model. Names prove nothing: many
models have a field `path`. What a model reads of itself in a property or a method counts only where something uses that property or
method. Validators do not count, nor does anything in `runtime/config`: they judge a value and do nothing with it.

`getattr(settings, name)` with a computed name reads the fields that strings name in the same module. `model_dump` is no read:
it copies everything, also what no code uses.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mypy.build
import mypy.find_sources
from mypy.nodes import (
    AssignmentStmt,
    CallExpr,
    ClassDef,
    Decorator,
    Expression,
    FuncDef,
    MemberExpr,
    MypyFile,
    NameExpr,
    Node,
    StrExpr,
    TypeInfo,
    Var,
)
from mypy.options import Options
from mypy.patterns import ClassPattern
from mypy.types import Instance, LiteralType, Type, TypeType, TypeVarType, UnionType, get_proper_type

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "learners", "sensors", "actuators")
BASES = frozenset({"sensors.config.Settings", "actuators.config._Settings", "learners.ipc.settings._Section"})
"""What every settings model inherits from."""
COPIES = {
    "runtime.config.schema.Config": "learners.ipc.settings.LearnerConfig",
    "runtime.config.fleet_settings.FleetSettings": "learners.ipc.settings.FleetRoute",
}
"""A model -> another one that other processes read in its place: same names, filled by `model_dump`."""
CHECKS = "runtime.config."
SKIPPED = (
    "torch", "transformers", "peft", "numpy", "cv2", "openvino", "scipy", "skimage", "matplotlib", "pyarrow", "pandas", "gymnasium", "ray",
    "aiohttp", "mcp", "rich", "onnx", "onnxruntime", "llguidance", "cryptography", "prometheus_client", "PIL", "huggingface_hub", "mcap",
    "aiomqtt", "paho", "structlog", "click",
    "pydantic._internal", "pydantic_core", "annotated_types", "typing_inspection", "jinja2", "safetensors", "sounddevice", "soundfile", "psutil",
)  # fmt: skip
"""Libraries that hold no settings; what they return is of type Any here, and mypy takes seconds instead of a minute."""

REFERENCES = frozenset({"node", "info", "type", "unanalyzed_type", "def_var", "analyzed"})
"""Attributes of nodes that lead to other places of the program."""
Attribute = tuple[str, str]
"""The class that defines a field, property or method, and its name."""


@dataclass
class Reads:
    """What reads which attributes of settings models."""

    outside: set[Attribute] = field(default_factory=set)
    """By code that is no settings model."""
    inside: dict[Attribute, set[Attribute]] = field(default_factory=dict)
    """By the property or method of a model."""

    def used(self) -> set[Attribute]:
        """Return what is read outside, and what that reads in turn."""
        found: set[Attribute] = set()
        waiting = list(self.outside)
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += self.inside.get(one, ())
        return found


def build(folder: Path, packages: tuple[str, ...]) -> mypy.build.BuildResult:
    """Let mypy infer all types of the packages in a folder."""
    options = Options()
    options.export_types = options.preserve_asts = options.check_untyped_defs = True
    options.incremental = False
    options.ignore_missing_imports = True
    options.mypy_path = [str(folder)]
    options.per_module_options = {
        pattern: {"follow_imports": "skip"} for library in SKIPPED for pattern in (library, f"{library}.*")
    }
    sources = mypy.find_sources.create_source_list([str(folder / package) for package in packages], options)
    return mypy.build.build(sources, options)


def is_settings(info: TypeInfo) -> bool:
    """Whether a class is a settings model."""
    return any(base.fullname in BASES for base in info.mro) and info.fullname not in BASES


def models(of: Type | None) -> Iterator[TypeInfo]:
    """Yield the settings models that a value of this type may be."""
    proper = None if of is None else get_proper_type(of)
    if isinstance(proper, UnionType):
        for item in proper.items:
            yield from models(item)
    elif isinstance(proper, TypeVarType):
        yield from models(proper.upper_bound)
    elif isinstance(proper, TypeType):
        yield from models(proper.item)
    elif isinstance(proper, Instance) and is_settings(proper.type):
        yield proper.type


def definer(info: TypeInfo, name: str) -> Attribute:
    """Return the class that defines an attribute."""
    return next((base.fullname for base in info.mro if name in base.names), info.fullname), name


def judges(method: Decorator | FuncDef) -> bool:
    """Whether a method is a validator."""
    names = [one.callee if isinstance(one, CallExpr) else one for one in getattr(method, "original_decorators", ())]
    return any(isinstance(one, NameExpr) and one.name.endswith("_validator") for one in names)


@functools.cache
def slots(kind: type) -> tuple[str, ...]:
    """Return the attributes of a kind of node; compiled classes have no `__dict__`, and no visitor can be derived from them."""
    return tuple(
        name for name in dir(kind) if inspect.isgetsetdescriptor(getattr(kind, name)) and name not in REFERENCES
    )


def nodes(value: Any, seen: set[int]) -> Iterator[Node]:
    """Yield a node and all nodes below it, each once."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from nodes(item, seen)
    elif isinstance(value, Node) and not isinstance(value, TypeInfo | MypyFile) and id(value) not in seen:
        seen.add(id(value))
        yield value
        for name in slots(type(value)):
            yield from nodes(getattr(value, name, None), seen)


def read_by(tree: Node, types: Mapping[Expression, Type], strings: set[str]) -> set[Attribute]:
    """Return the attributes of settings models that a statement reads, however deep.

    Args:
        tree: a statement, such as a function.
        types: of every expression.
        strings: what a computed name in `getattr` may be.
    """
    found: set[Attribute] = set()
    for node in nodes(tree, set()):
        if isinstance(node, MemberExpr):
            found |= {definer(info, node.name) for info in models(types.get(node.expr))}
        elif isinstance(node, CallExpr) and isinstance(node.callee, NameExpr) and node.callee.name == "getattr":
            name = node.args[1]
            names = {name.value} if isinstance(name, StrExpr) else strings
            for info in models(types.get(node.args[0])):
                found |= {definer(info, each) for each in names if info.has_readable_member(each)}
        elif isinstance(node, ClassPattern) and isinstance(info := node.class_ref.node, TypeInfo) and is_settings(info):
            found |= {definer(info, name) for name in node.keyword_keys}
    return found


def reads(tree: MypyFile, types: Mapping[Expression, Type], into: Reads) -> None:
    """Add the reads of one module."""
    strings = {node.value for node in nodes(tree.defs, set()) if isinstance(node, StrExpr)}
    for statement in tree.defs:
        if isinstance(statement, ClassDef) and is_settings(statement.info):
            for member in statement.defs.body:
                if isinstance(member, Decorator | FuncDef) and not judges(member):
                    key = (statement.info.fullname, member.name)
                    into.inside.setdefault(key, set()).update(read_by(member, types, strings))
        elif not tree.fullname.startswith(CHECKS):
            into.outside |= read_by(statement, types, strings)


def fields(tree: MypyFile) -> Iterator[Attribute]:
    """Yield the fields of the settings models of a module; a field with one possible value chooses the model and is not listed."""
    for statement in tree.defs:
        if isinstance(statement, ClassDef) and is_settings(statement.info):
            for name, symbol in statement.info.names.items():
                kind = symbol.node.type if isinstance(symbol.node, Var) and not symbol.node.is_property else None
                if (
                    kind is not None
                    and name in annotated(statement)
                    and not isinstance(get_proper_type(kind), LiteralType)
                ):
                    yield statement.info.fullname, name


def annotated(model: ClassDef) -> set[str]:
    """Return the names that a class annotates."""
    found = [one for one in model.defs.body if isinstance(one, AssignmentStmt) and one.type is not None]
    return {one.lvalues[0].name for one in found if isinstance(one.lvalues[0], NameExpr)}


def unread(folder: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """Return the fields of the settings that no code reads."""
    built = build(folder, packages)
    trees = [tree for name, tree in built.files.items() if name.split(".")[0] in packages]
    found = Reads()
    for tree in trees:
        reads(tree, built.types, found)
    used = found.used()
    used |= {(model, name) for model, copy in COPIES.items() for owner, name in used if owner == copy}
    every = [one for tree in trees for one in fields(tree)]
    assert every, "no settings model was found"
    return sorted(".".join(one) for one in every if one not in used)


if __name__ == "__main__":
    nothing_reads = unread()
    print(*nothing_reads, f"{len(nothing_reads)} fields of the settings that nothing reads", sep="\n")
    sys.exit(bool(nothing_reads))
