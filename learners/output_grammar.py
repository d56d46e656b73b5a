"""Settings of generated text, and the grammar that a text must follow: a list of choices, a regular expression or a JSON schema.

A grammar is in llguidance's Lark form; `learners/tasks/generation` makes a model follow it. This module imports no torch, so
`reflexd check` refuses a schema or expression that llguidance cannot read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Self

from llguidance import LLMatcher, LLTokenizer, regex_to_lark
from pydantic import Field, ValidationError, model_validator

from sensors.config import Settings

Text = Annotated[str, Field(min_length=1, max_length=1_000)]
COMPACT = {"whitespace_flexible": False}
"""No white space between the parts of a JSON text: a model could write it without an end."""

NAMED_SCHEMAS = frozenset(
    ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
)
"""Keywords of JSON Schema with a schema for each name."""
SCHEMAS = frozenset(
    (
        "additionalItems", "additionalProperties", "allOf", "anyOf", "contains", "contentSchema", "else", "if", "items", "not",
        "oneOf", "prefixItems", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
    )
)  # fmt: skip
"""Those with a schema or a list of schemas."""
KEYWORDS = frozenset(
    (
        "$anchor", "$comment", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef", "$ref", "$schema",
        "$vocabulary", "const", "contentEncoding", "contentMediaType", "default", "dependentRequired", "deprecated", "description", "discriminator",
        "enum", "example", "examples", "exclusiveMaximum", "exclusiveMinimum", "format", "id", "maxContains", "maxItems", "maxLength",
        "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "nullable",
        "pattern", "readOnly", "required", "title", "type", "uniqueItems", "writeOnly",
    )
)  # fmt: skip
"""The other keywords of drafts 4 to 2020-12, and those of OpenAPI that describe."""
BOUNDS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
MOST_EXACT, MOST_DIGITS = 2**53, 15
"""The largest whole number, and the digits of a bound with decimals, up to which llguidance computes exactly."""
MOST_MULTIPLE = 10_000
"""Largest numerator and denominator of `multipleOf`; llguidance computes as many states."""


class OutputSettings(Settings):
    """The form of every generated text; give one of the three."""

    choices: tuple[Text, ...] | None = Field(
        None, min_length=1, max_length=4_096, description="the texts that can be generated"
    )
    regex: str | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="a regular expression that the whole text matches, in the syntax of Rust's `regex`: no look-around and no "
        "back references; `\\d` and `\\w` are ASCII",
    )
    json_schema: dict[str, Any] | None = Field(
        None, description="a JSON schema; the text is JSON without white space between its parts that is valid by it"
    )

    @model_validator(mode="after")
    def _readable(self) -> Self:
        given = [name for name in ("choices", "regex", "json_schema") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of choices, regex and json_schema, not {' and '.join(given) or 'none'}")
        if self.json_schema is not None:
            _check_schema(self.json_schema)
        bare = lark("TEXT", f"TEXT: /{regex_to_lark(self.regex, use_ascii='dw')}/") if self.regex is not None else None
        if reason := (unreadable(bare) if bare else "") or unreadable(self.grammar(space=True)):
            raise ValueError(f"{given[0]}: llguidance cannot follow it: {reason}")
        return self

    def grammar(self, *, space: bool = False) -> str:
        """Return the grammar of the texts.

        Args:
            space: whether one space may precede the text; many tokenizers begin an answer with one.
        """
        if self.choices is not None:
            texts = "|".join(map(_literal, dict.fromkeys(self.choices)))
            return lark("TEXT", f"TEXT: /{' ?' if space else ''}(?:{texts})/")
        if self.regex is not None:
            return lark("TEXT", f"TEXT: /{' ?' if space else ''}(?:{regex_to_lark(self.regex, use_ascii='dw')})/")
        schema = json.dumps({**(self.json_schema or {}), "x-guidance": COMPACT})
        return lark('" "? body' if space else "body", f"body: %json {schema}")


class GenerationSettings(Settings):
    """How a task generates text."""

    stop: tuple[Text, ...] = Field(
        (), max_length=64, description="a text ends before the first of these; not together with `output`"
    )
    banned: tuple[Text, ...] = Field(
        (),
        max_length=1_000,
        description="words that no text contains, in upper or lower case; a part of a longer word is permitted. Not together with "
        "`output`",
    )
    temperature: float = Field(
        0.0, ge=0, le=5, description="0: the most probable token; above: a random token, more random at a higher value"
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of random tokens; the same input and seed generate the same text"
    )

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.banned and (reason := unreadable(without_words(self.banned))):
            raise ValueError(f"banned: llguidance cannot follow it: {reason}")
        return self


def read_output(text: str) -> dict[str, Any]:
    """Return an `output` from its JSON text.

    Raises:
        ValueError: it is not JSON, or no output that llguidance can follow.
    """
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'output: not JSON: {error}; write it as {{"choices": ["yes", "no"]}}') from None
    try:
        return OutputSettings.model_validate(body).model_dump(exclude_none=True, mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("output", *first["loc"]))
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


def lark(start: str, *rules: str) -> str:
    """Return a grammar in llguidance's form from its start rule and its other rules."""
    return LLMatcher.grammar_from_lark("\n".join((f"start: {start}", *rules)))


def without_words(words: tuple[str, ...]) -> str:
    """Return the grammar of all texts that contain none of the words, in upper or lower case."""
    anyone = "|".join(regex_to_lark(re.escape(word), use_ascii="") for word in words)
    return lark("TEXT", rf"TEXT: /(?s:.*)/ & ~/(?is)(.*\W)?(?:{anyone})(\W.*)?/")


def grammar_of(options: Mapping[str, Any] | None, banned: tuple[str, ...], *, space: bool) -> str | None:
    """Return the grammar for an `output` as it is stored, or for banned words; None where every text is permitted.

    Raises:
        ValueError: llguidance cannot follow the output.
    """
    if options:
        return OutputSettings.model_validate(options).grammar(space=space)
    return without_words(banned) if banned else None


def unreadable(grammar: str) -> str:
    """Return why llguidance cannot follow a grammar, in one line; empty if it can."""
    reason = LLMatcher.validate_grammar(grammar)
    if not reason:
        matcher = LLMatcher(_bytes(), grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # some limits of llguidance are met only here
        reason = matcher.get_error()
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("error:")] or lines
    return telling[0][:300] if telling else ""


def _check_schema(schema: dict[str, Any]) -> None:
    """Refuse what llguidance would ignore, or would need too much memory for.

    Raises:
        ValueError: a schema has a keyword that JSON Schema does not know, a large `multipleOf`, or a number of too many digits.
    """
    left: list[tuple[str, Any]] = [("json_schema", schema)]
    while left:
        place, part = left.pop()
        if isinstance(part, list):
            left.extend((f"{place}.{at}", one) for at, one in enumerate(part))
        for name, value in part.items() if isinstance(part, dict) else ():
            if name in NAMED_SCHEMAS and isinstance(value, dict):
                left.extend((f"{place}.{name}.{key}", one) for key, one in value.items())
            elif name in SCHEMAS:
                left.append((f"{place}.{name}", value))
            elif name not in KEYWORDS and not name.startswith("x-"):
                near = get_close_matches(name, (*KEYWORDS, *SCHEMAS, *NAMED_SCHEMAS), 1)
                raise ValueError(f"{place}: unknown keyword {name!r}" + (f"; write {near[0]!r}" if near else ""))
            if name == "multipleOf" and isinstance(value, int | float):
                _check_multiple(value, place)
            if name in BOUNDS or name in ("const", "enum"):
                _check_exact(value, f"{place}.{name}", bound=name in BOUNDS)


def _check_multiple(value: float, place: str) -> None:
    """Refuse a `multipleOf` of too many states."""
    if max(map(abs, Fraction(str(value)).as_integer_ratio())) > MOST_MULTIPLE:
        raise ValueError(
            f"{place}.multipleOf: {value} is above {MOST_MULTIPLE} or finer than 1/{MOST_MULTIPLE}; write another number"
        )


def _check_exact(value: Any, place: str, *, bound: bool) -> None:
    """Refuse a number that llguidance rounds: the text would have another number.

    Args:
        value: of a keyword; the values in lists and objects are checked, too.
        place: of the keyword in the schema.
        bound: whether it is a bound, of which llguidance reads fewer digits.
    """
    for part in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        _check_exact(part, place, bound=bound)
    large = isinstance(value, int) and abs(value) > MOST_EXACT
    digits = len(Decimal(repr(value)).normalize().as_tuple().digits) if bound and isinstance(value, float) else 0
    if large or digits > MOST_DIGITS:
        raise ValueError(
            f"{place}: {value} has too many digits to be followed exactly; write fewer, or a text in double quotes"
        )


def repeated_key(text: str) -> str | None:
    """Return a key that an object of a JSON text has twice; None without one. A grammar cannot compare keys."""
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        counts = Counter(name for name, _ in pairs)
        repeated.extend(name for name, count in counts.items() if count > 1)

    json.loads(text, object_pairs_hook=note)
    return repeated[0] if repeated else None


def _literal(text: str) -> str:
    """Return the regular expression of a text: everything but ASCII letters and digits by its number."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def accepts(grammar: str, text: str) -> bool:
    """Return whether a grammar permits a text, by its bytes and so by no model's tokenizer."""
    matcher = LLMatcher(_bytes(), grammar, log_level=0)
    tokens = _bytes().tokenize_str(text)
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


@cache
def _bytes() -> LLTokenizer:
    """Return the tokenizer with one token for each byte."""
    return LLTokenizer("byte")
