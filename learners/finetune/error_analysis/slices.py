"""Divide held-out examples into slices, such as speakers or cameras, and measure each of them.

A slice is named by a column of the examples (`speaker`), by a pattern in a column (`file~_([a-z]+)_`), or by `length`. Used by the
offline report and by the verdict on a candidate. Knows no model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import regex
from scipy.special import stdtrit

from learners.data_error import DataError
from learners.tasks.base import Example

LENGTH = "length"
LENGTHS = (5, 12, 30)
"""Words up to which a text belongs to each slice of `length`."""
OTHERS = "(other)"
NONE = "(none)"
"""The slice of the examples without the column."""
MOST_S = 1.0
"""Time in which a pattern must search one value."""
LEAST_ROWS = 20
"""Rows of a slice from which its loss can reject a candidate."""
MOST_SLICES = 100
"""Slices of one rule that a report shows: the largest, and those that lost."""
Z95 = 1.959964
TEXTS = ("text", "source", "question")


@dataclass(frozen=True, slots=True)
class SliceRule:
    """How examples are divided: by the value of a column, or by what a pattern finds in it."""

    name: str
    column: str
    pattern: regex.Pattern[str] | None = None

    @classmethod
    def of(cls, text: str) -> SliceRule:
        """Read `COLUMN` or `COLUMN~PATTERN`.

        Raises:
            ValueError: there is no column, or the pattern is no regular expression.
        """
        column, separator, pattern = text.partition("~")
        if not column.strip() or (separator and not pattern):
            raise ValueError(f"slices: {text!r} is neither COLUMN nor COLUMN~PATTERN; write speaker or file~_(\\w+)_")
        try:
            return cls(text, column.strip(), regex.compile(pattern) if separator else None)
        except regex.error as error:
            raise ValueError(f"slices: {text!r}: no regular expression: {error}") from None

    def value(self, example: Example) -> str | None:
        """Return the slice of an example; None where it has no such column.

        Raises:
            DataError: the pattern searches one value for longer than `MOST_S`.
        """
        given = _length(example) if self.column == LENGTH and LENGTH not in example else _column(example, self.column)
        if given is None or self.pattern is None:
            return given
        try:
            found = self.pattern.search(given, timeout=MOST_S)
        except TimeoutError:
            raise DataError(
                f"slices: {self.name!r} searches {given[:80]!r} for more than {MOST_S:g} s; write a pattern without nested repetition"
            ) from None
        if found is None:
            return OTHERS
        return str(next((group for group in found.groups() if group is not None), found[0]))


@dataclass(frozen=True, slots=True)
class SliceMetrics:
    """The metric of one slice: the mean score of its examples, with its interval at 95 %."""

    rule: str
    value: str
    examples: int
    metric: float
    low: float
    high: float
    before: float | None = None
    """Of the version before, on the same examples."""
    difference_high: float | None = None
    """Upper bound of the paired difference to the version before, for all slices together at 97.5 %."""

    @property
    def name(self) -> str:
        """Rule and value."""
        return f"{self.rule}={self.value}"

    def row(self) -> dict[str, Any]:
        """Return the fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def places(rule: SliceRule, examples: Sequence[Example]) -> dict[str, list[int]]:
    """Return the places of the examples of each slice, the largest slice first; empty where no example has the column."""
    found: dict[str, list[int]] = {}
    without: list[int] = []
    for place, example in enumerate(examples):
        value = rule.value(example)
        (without if value is None else found.setdefault(value, [])).append(place)
    if found and without:
        found[NONE] = sorted([*found.get(NONE, []), *without])
    return dict(sorted(found.items(), key=lambda each: (-len(each[1]), each[0])))


def check_slice(text: str, examples: Sequence[Example]) -> dict[str, list[int]]:
    """Return the slices of a rule as `places`.

    Raises:
        DataError: no example has its column.
        ValueError: as `SliceRule.of`.
    """
    rule = SliceRule.of(text)
    if not (groups := places(rule, examples)):
        there = ", ".join(sorted({str(name) for example in examples[:100] for name in example})) or "none"
        raise DataError(f"slices: no held-out example has {rule.column!r}, only {there}; correct the slice {text!r}")
    return groups


def measure(
    rules: Sequence[str], examples: Sequence[Example], scores: Sequence[float]
) -> list[tuple[SliceMetrics, list[int]]]:
    """Measure each slice.

    Args:
        rules: as `SliceRule.of` reads them.
        examples: the held-out examples.
        scores: the score of each.

    Returns:
        Each slice with the places of its examples.

    Raises:
        DataError: no example has the column of a rule.
        ValueError: as `SliceRule.of`.
    """
    found: list[tuple[SliceMetrics, list[int]]] = []
    scores = without_nan(scores)
    for text in rules:
        groups = check_slice(text, examples)
        rule = SliceRule.of(text)
        for value, some in groups.items():
            picked = [scores[place] for place in some]
            low, high = interval(picked)
            found.append((SliceMetrics(rule.name, value, len(some), float(np.mean(picked)), low, high), some))
    return found


def without_nan(scores: Sequence[float]) -> list[float]:
    """Return the scores with the lowest one, at the most 0, in place of those that are no number: such an answer is lost."""
    worst = min(0.0, *(score for score in scores if not math.isnan(score)), 0.0)
    return [worst if math.isnan(score) else score for score in scores]


def shown(slices: Sequence[Mapping[str, Any]], margin: float = math.inf) -> list[Mapping[str, Any]]:
    """Return the slices that a report shows: for each rule the first `MOST_SLICES`, and all that lost more than the margin."""
    keep = {id(one) for one in lost(slices, margin)}
    seen: Counter[str] = Counter()
    found = []
    for one in slices:
        seen[one["rule"]] += 1
        if seen[one["rule"]] <= MOST_SLICES or id(one) in keep:
            found.append(one)
    return found


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Return the interval of a mean at 95 %: Wilson's where each score is 0 or 1 (1927), else Student's."""
    count, mean = len(scores), float(np.mean(scores))
    if set(scores) <= {0.0, 1.0}:
        centre = mean + Z95**2 / (2 * count)
        spread = Z95 * math.sqrt(mean * (1 - mean) / count + Z95**2 / (4 * count * count))
        scale = 1 + Z95**2 / count
        return (centre - spread) / scale, (centre + spread) / scale
    if count < 2:
        return -math.inf, math.inf
    spread = float(stdtrit(count - 1, 0.975)) * float(np.std(scores, ddof=1)) / math.sqrt(count)
    return mean - spread, mean + spread


def lost(slices: Sequence[Mapping[str, Any]], margin: float) -> list[Mapping[str, Any]]:
    """Return the slices of enough rows that are shown to have lost more than the margin, the largest loss first."""
    found = [one for one in slices if one["examples"] >= LEAST_ROWS and one.get("difference_high", math.inf) < -margin]
    return sorted(found, key=lambda one: one["metric"] - one["before"])


def describe(slices: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each slice, the worst first."""
    return [
        f"slice {one['rule']}={one['value']}: {one['metric']:.3f} [{one['low']:.3f}, {one['high']:.3f}] of {one['examples']}"
        for one in sorted(slices, key=lambda one: (one["rule"], one["metric"]))
    ]


def _column(example: Example, name: str) -> str | None:
    """Return a column as a text, None for an empty one; `file` is also the path of a picture or sound."""
    given = example.get(name)
    if given is None and name == "file":
        given = next((example[kind] for kind in ("picture", "sound") if isinstance(example.get(kind), str)), None)
    if isinstance(given, list | tuple):
        return " ".join(map(str, given)) or None
    return None if given is None else str(given).strip() or None


def _length(example: Example) -> str | None:
    """Return the slice of a text by its number of words; None for other examples."""
    text = next((str(example[name]) for name in TEXTS if name in example), None)
    words = len(example["tokens"]) if "tokens" in example else None if text is None else len(text.split())
    if words is None:
        return None
    at = next((at for at, most in enumerate(LENGTHS) if words <= most), len(LENGTHS))
    low = 1 if at == 0 else LENGTHS[at - 1] + 1
    return f"{low} to {LENGTHS[at]} words" if at < len(LENGTHS) else f"{low} words and more"
