"""PyYAML with the plain values of YAML 1.2.2's core schema (section 10.3.2): words, numbers and truth values as people mean them."""

from __future__ import annotations

import re
from typing import ClassVar

import yaml

MOST_DIGITS = 400
"""Of a whole number: beyond, not even a decimal number can hold it."""


class CoreLoader(yaml.SafeLoader):
    """Resolves plain values by the core schema of YAML 1.2.2, where PyYAML follows YAML 1.1."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc] # the stub has it on instances

    def integer(self, node: yaml.ScalarNode) -> int:
        """Read a decimal, octal (`0o17`) or hexadecimal number."""
        text = str(self.construct_scalar(node))
        if len(text) > MOST_DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text, 0 if text.lstrip("+-")[:2].lower() in ("0o", "0x") else 10)

    def decimal(self, node: yaml.ScalarNode) -> float:
        """Read a number with a fraction or an exponent, `.inf` or `.nan`."""
        text = str(self.construct_scalar(node)).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), [c if c != "\0" else "" for c in _first]
    )
CoreLoader.add_constructor("tag:yaml.org,2002:int", CoreLoader.integer)
CoreLoader.add_constructor("tag:yaml.org,2002:float", CoreLoader.decimal)
