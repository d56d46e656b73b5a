"""Bound the values of an expression by interval arithmetic (Moore, 1966), to prove that a rule never or always holds.

Used by `forbid_lint`. Parts of which nothing is known are unbounded, so a result of None means "not proved", never "possible".
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from functools import reduce

Bounds = tuple[float, float]
"""The least and the greatest value."""
Find = Callable[[str, str | int | None], Bounds | None]
"""Returns the bounds of a name and a part of it; None for a word, or where nothing is known."""
EVERYTHING: Bounds = (-math.inf, math.inf)


def truth(node: ast.expr, find: Find) -> bool | None:
    """Return True if a part of an expression holds for all values, False if for none, None if that is not proved.

    Args:
        node: of a parsed expression, with its names as they were written.
        find: looks the bounds of a name up.
    """
    if isinstance(node, ast.BoolOp):
        return _joined([truth(each, find) for each in node.values], decides=isinstance(node.op, ast.Or))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = truth(node.operand, find)
        return None if inner is None else not inner
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        pairs = zip(node.ops, sides, sides[1:], strict=False)
        return _joined([_comparison(op, bounds(a, find), bounds(b, find)) for op, a, b in pairs], decides=False)
    found = bounds(node, find)
    if found is None:
        return None
    return False if found == (0.0, 0.0) else True if found[0] > 0 or found[1] < 0 else None


def _joined(parts: Sequence[bool | None], *, decides: bool) -> bool | None:
    return decides if decides in parts else None if None in parts else not decides


def _comparison(op: ast.cmpop, left: Bounds | None, right: Bounds | None) -> bool | None:
    if left is None or right is None:
        return None
    apart = left[1] < right[0] or left[0] > right[1]
    same = left == right and left[0] == left[1]
    never = {
        ast.Gt: left[1] <= right[0],
        ast.GtE: left[1] < right[0],
        ast.Lt: left[0] >= right[1],
        ast.LtE: left[0] > right[1],
        ast.Eq: apart,
        ast.NotEq: same,
    }
    always = {
        ast.Gt: left[0] > right[1],
        ast.GtE: left[0] >= right[1],
        ast.Lt: left[1] < right[0],
        ast.LtE: left[1] <= right[0],
        ast.Eq: same,
        ast.NotEq: apart,
    }
    return False if never.get(type(op)) else True if always.get(type(op)) else None


def bounds(node: ast.expr, find: Find) -> Bounds | None:
    """Return the least and the greatest value of a part; None for a word."""
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            found: Bounds | None = (float(value), float(value))
        case ast.Name(id="pi"):
            found = (math.pi, math.pi)
        case ast.Name(id=name):
            found = find(name, None)
        case ast.Attribute(value=ast.Name(id=name), attr=part):
            found = find(name, part)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str() | int() as part)):
            found = find(name, part)
        case _:
            found = _calculated(node, find)
    return found


def _calculated(node: ast.expr, find: Find) -> Bounds | None:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = bounds(operand, find)
            found = None if inner is None else (-inner[1], -inner[0])
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            found = bounds(operand, find)
        case ast.BinOp(op=op, left=left, right=right):
            found = _combined(op, bounds(left, find), bounds(right, find))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            found = _called(name, [bounds(each, find) for each in arguments])
        case _:
            found = _judged(node, find)
    return found


def _judged(node: ast.expr, find: Find) -> Bounds | None:
    """Bound what depends on a truth value: a comparison is 0 or 1, `and` and `or` may be one of their parts."""
    match node:
        case ast.Compare() | ast.UnaryOp(op=ast.Not()):
            holds = truth(node, find)
            return (0.0, 1.0) if holds is None else (float(holds), float(holds))
        case ast.BoolOp(values=values):
            return _hull([(0.0, 1.0), *(bounds(each, find) for each in values)])
        case ast.IfExp(test=test, body=body, orelse=orelse):
            holds = truth(test, find)
            chosen = [body] if holds else [orelse] if holds is False else [body, orelse]
            return _hull([bounds(each, find) for each in chosen])
    return None


def _hull(parts: Sequence[Bounds | None]) -> Bounds | None:
    known = [part for part in parts if part is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(parts) else None


def _combined(op: ast.operator, left: Bounds | None, right: Bounds | None) -> Bounds | None:
    if left is None or right is None:
        return None
    match op:
        case ast.Add() | ast.Sub():
            found = _corners(operator.add if isinstance(op, ast.Add) else operator.sub, left, right)
        case ast.Mult():
            found = _corners(_product, left, right)
        case ast.Div() if right[0] > 0 or right[1] < 0:
            found = _corners(operator.truediv, left, right)
        case ast.Mod() if right[0] > 0 or right[1] < 0:
            found = (min(0.0, right[0]), max(0.0, right[1]))
        case ast.Pow() if right[0] == right[1] and right[0] > 0 and right[0] % 1 == 0:
            found = _power(left, right[0])
        case _:
            found = EVERYTHING
    return found


def _product(a: float, b: float) -> float:
    return 0.0 if 0.0 in (a, b) else a * b


def _corners(function: Callable[[float, float], float], left: Bounds, right: Bounds) -> Bounds:
    values = [function(a, b) for a, b in itertools.product(left, right)]
    return EVERYTHING if any(map(math.isnan, values)) else (min(values), max(values))


def _power(base: Bounds, exponent: float) -> Bounds:
    ends = size(base) if exponent % 2 == 0 else base
    return _raised(ends[0], exponent), _raised(ends[1], exponent)


def _raised(value: float, exponent: float) -> float:
    try:
        return math.pow(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def size(inner: Bounds) -> Bounds:
    """Return the bounds of the absolute value."""
    ends = [abs(each) for each in inner]
    return (0.0 if inner[0] <= 0 <= inner[1] else min(ends)), max(ends)


def _called(name: str, arguments: Sequence[Bounds | None]) -> Bounds | None:
    known = [each for each in arguments if each is not None]
    if len(known) < len(arguments):
        return None
    match name, known:
        case "abs", [one]:
            found = size(one)
        case "min" | "max", [_, *_]:
            chosen = min if name == "min" else max
            found = (chosen(low for low, _ in known), chosen(high for _, high in known))
        case "clip", [value, low, high]:
            ends = [min(high[end], max(low[end], value[end])) for end in (0, 1)]
            found = (ends[0], ends[1])
        case _:
            found = _of_library(name, known)
    return found


def _of_library(name: str, known: Sequence[Bounds]) -> Bounds:
    match name, known:
        case "sin" | "cos" | "tanh", [_]:
            found = (-1.0, 1.0)
        case "atan2", [_, _]:
            found = (-math.pi, math.pi)
        case "exp", [one]:
            found = _wider(_exponential(one[0]), _exponential(one[1]))
        case "sqrt", [one] if one[1] >= 0:
            found = _wider(math.sqrt(max(0.0, one[0])), math.sqrt(one[1]))
        case "hypot", [_, *_]:
            sizes = [size(each) for each in known]
            low, high = (reduce(math.hypot, [each[end] for each in sizes]) for end in (0, 1))
            found = _wider(low, high)
        case _:
            found = EVERYTHING
    return found


def _exponential(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _wider(low: float, high: float) -> Bounds:
    """Widen bounds that are not negative by what the functions of a library may be off."""
    return max(0.0, low * (1 - 1e-12)), high * (1 + 1e-12)
