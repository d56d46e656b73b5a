"""Bounded arithmetic and logic on named numbers and words: the gate's `forbid` and the rewards of kind `expression`.

`lamp == 'ON' and joints.q1 > 0.2`: numbers, words, `+ - * / % **`, comparisons, `and or not`, `a if c else b`, and the
functions below. A name is an actuator or a telemetry stream; a part of it is `joints.q1`, `joints['/imu/yaw']` or `arm[0]`.
Parsing refuses everything else with its position; simpleeval evaluates what is left, on floats only, so that neither huge
integers nor long strings can arise. Knows nothing of streams or actuators.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import simpleeval

MAX_CHARS = 1_000
MAX_NODES = 200
MAX_DEPTH = 40

Known = Mapping[str, Collection[str] | int | None]
"""Name -> its parts: their names, their number, or None for a single word or number."""

Part = str | int | None


class ExpressionError(ValueError):
    """An expression cannot be used, or has no finite value for these numbers; `str` says where and why."""


def _number(value: Any) -> float:
    if isinstance(value, str) or not isinstance(value, int | float):
        raise ExpressionError(f"{value!r} is not a number; compare it with == or !=")
    return float(value)


def _arithmetic(function: Callable[..., float]) -> Callable[..., float]:
    return lambda *values: function(*map(_number, values))


def _same(left: Any, right: Any) -> bool:
    return bool(left == right)


def _other(left: Any, right: Any) -> bool:
    return not _same(left, right)


def _clip(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))


FUNCTIONS: dict[str, tuple[Callable[..., float], int, int]] = {
    "abs": (abs, 1, 1),
    "min": (min, 2, 16),
    "max": (max, 2, 16),
    "sqrt": (math.sqrt, 1, 1),
    "exp": (math.exp, 1, 1),
    "log": (math.log, 1, 1),
    "sin": (math.sin, 1, 1),
    "cos": (math.cos, 1, 1),
    "tanh": (math.tanh, 1, 1),
    "atan2": (math.atan2, 2, 2),
    "hypot": (math.hypot, 2, 2),
    "clip": (_clip, 3, 3),
}
"""Name: the function, the fewest and the most arguments."""

_CALLABLE = {name: _arithmetic(function) for name, (function, _, _) in FUNCTIONS.items()}

CONSTANTS = {"pi": math.pi}

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: _arithmetic(operator.truediv),
    ast.Mod: _arithmetic(operator.mod),
    ast.Pow: _arithmetic(math.pow),
    ast.USub: _arithmetic(operator.neg),
    ast.UAdd: _arithmetic(operator.pos),
    ast.Not: operator.not_,
    ast.Eq: _same,
    ast.NotEq: _other,
    ast.Lt: _arithmetic(operator.lt),
    ast.LtE: _arithmetic(operator.le),
    ast.Gt: _arithmetic(operator.gt),
    ast.GtE: _arithmetic(operator.ge),
}
_PLAIN = (ast.BoolOp, ast.And, ast.Or, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Load, *_OPERATORS)


class Expression:
    """A checked expression. `names` are the roots it uses, `parts` each root with the part read of it. One thread evaluates it.

    Args:
        text: at most `MAX_CHARS` characters on one line.
        known: every name that may be used; None to accept any (a syntax check).

    Raises:
        ExpressionError: with the position (from 1) of what is wrong.
    """

    def __init__(self, text: str, known: Known | None = None) -> None:
        self.text = text
        checker = _Checker(text, known)
        self.tree = checker.rewrite(_parse(text))
        self.parts: frozenset[tuple[str, Part]] = frozenset(checker.references.values())
        self.names = frozenset(root for root, _ in self.parts)
        self._references = checker.references
        self._values: Mapping[str, Any] = {}
        # made once: to make one costs several times what an evaluation does
        self._evaluator = simpleeval.SimpleEval(operators=_OPERATORS, functions=_CALLABLE, names=self._look_up)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def evaluate(self, values: Mapping[str, Any]) -> float:
        """Evaluate to a number, true as 1 and false as 0; names are looked up only where the result depends on them.

        Args:
            values: a word, a number, a tuple of numbers or a mapping of numbers for each name.

        Raises:
            ExpressionError: a name is missing, or the result is not a finite number.
        """
        result = self.evaluate_node(self.tree, values)
        if not math.isfinite(result):
            raise ExpressionError(f"{self.text!r} is not finite")
        return result

    def evaluate_node(self, node: ast.expr, values: Mapping[str, Any]) -> float:
        """Evaluate one part of `tree`, with true as 1 and false as 0; it may be infinite.

        Raises:
            ExpressionError: a name is missing, or the part has no value.
        """
        self._values = values
        try:
            return _number(self._evaluator.eval(self.text, previously_parsed=node))
        except ExpressionError as error:
            raise ExpressionError(f"{self.text!r}: {error}") from None
        except (ArithmeticError, ValueError, TypeError, simpleeval.InvalidExpression) as error:
            raise ExpressionError(f"{self.text!r} has no value: {error}") from None
        finally:
            self._values = {}

    def _look_up(self, name: ast.Name) -> Any:
        return _find(self._values, *self._references[name.id])


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"{len(text)} characters; an expression has at most {MAX_CHARS}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(
            f"position {error.offset or 1}: {error.msg}; write for instance a > 1 and b == 'ON'"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"position 1: cannot be read ({type(error).__name__}); write a shorter one") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES or _depth(tree) > MAX_DEPTH:
        raise ExpressionError(f"position 1: too long or too deep; at most {MAX_NODES} parts, {MAX_DEPTH} deep")
    return tree


def _depth(tree: ast.AST) -> int:
    level, depth = [tree], 0
    while level and depth <= MAX_DEPTH:
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1
    return depth


def _find(values: Mapping[str, Any], root: str, part: Part) -> Any:
    try:
        value = values[root] if part is None else values[root][part]
    except (KeyError, IndexError, TypeError):
        value = None
    if value is None:
        raise ExpressionError(f"{root if part is None else f'{root}[{part!r}]'} is unknown at the moment")
    return value


class _Checker:
    """Walk a parsed tree, refuse what is not allowed, and turn every reference into a single name."""

    def __init__(self, text: str, known: Known | None) -> None:
        self.text = text
        self.known = known
        self.references: dict[str, tuple[str, Part]] = {}

    def rewrite(self, node: ast.expr) -> ast.expr:
        """Return the same tree with references replaced."""
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name) and node.id in CONSTANTS:
            return ast.copy_location(ast.Constant(CONSTANTS[node.id]), node)
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return self._reference(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if not isinstance(node, _PLAIN):
            raise self._error(node, f"{type(node).__name__} is not allowed here")
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, field, [self._child(item, node) for item in value])
            elif isinstance(value, ast.AST):
                setattr(node, field, self._child(value, node))
        return node

    def _child(self, node: ast.AST, parent: ast.expr) -> ast.AST:
        if isinstance(node, ast.expr):
            return self.rewrite(node)
        if not isinstance(node, _PLAIN):
            raise self._error(parent, f"{type(node).__name__} is not allowed")
        return node

    def _constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str):
            return node
        if not isinstance(node.value, bool | int | float):
            raise self._error(node, f"{type(node.value).__name__} is not allowed; use numbers and words")
        try:
            number = float(node.value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._error(node, "this number is too large")
        return ast.copy_location(ast.Constant(number), node)

    def _reference(self, node: ast.Name | ast.Attribute | ast.Subscript) -> ast.Name:
        root, part = self._split(node)
        if self.known is not None:
            self._must_be_known(node, root, part, self.known)
        name = f"{root}[{part!r}]"
        self.references[name] = (root, part)
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def _split(self, node: ast.Name | ast.Attribute | ast.Subscript) -> tuple[str, Part]:
        if isinstance(node, ast.Name):
            return node.id, None
        if isinstance(node.value, ast.Name):
            if isinstance(node, ast.Attribute):
                return node.value.id, node.attr
            key = node.slice.value if isinstance(node.slice, ast.Constant) else None
            if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool)):
                return node.value.id, key
        raise self._error(node, "write name.part, name['part'] or name[0]")

    def _must_be_known(self, node: ast.expr, root: str, part: Part, known: Known) -> None:
        if root not in known:
            raise self._error(node, f"unknown name {root!r}; there are {sorted(known)}")
        parts = known[root]
        if parts is None:
            fits, right = part is None, f"{root} has no parts; write {root} alone"
        elif isinstance(parts, int):
            fits = isinstance(part, int) and 0 <= part < parts
            right = f"write {root}[0] to {root}[{parts - 1}]"
        else:
            fits, right = part in parts, f"{root} has {sorted(parts)}"
        if not fits:
            raise self._error(node, right)

    def _call(self, node: ast.Call) -> ast.Call:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name not in FUNCTIONS or node.keywords:
            raise self._error(node, f"only these can be called: {', '.join(sorted(FUNCTIONS))}")
        _, fewest, most = FUNCTIONS[name]
        if not fewest <= len(node.args) <= most:
            raise self._error(node, f"{name} takes {fewest} to {most} arguments, not {len(node.args)}")
        node.args = [self.rewrite(argument) for argument in node.args]
        return node

    def _error(self, node: ast.expr, message: str) -> ExpressionError:
        return ExpressionError(f"position {node.col_offset + 1}: {message}")
