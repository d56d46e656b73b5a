"""Put the present state into words for a language model: a bounded text in a stable order. Pure.

All that comes from outside is data: each text is one quoted line without control characters, cut to a length. The newest orders come
first, so a model that cuts the end loses the least.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MOST_BYTES = 1_500
"""Of the whole text in UTF-8: about 500 tokens of English, and never more than 1,500 tokens of a tokenizer on bytes."""
MOST_TEXT = 160
"""Characters of one order or transcript."""
MOST_ORDERS, MOST_RESULTS, MOST_NUMBERS, MOST_GOALS = 4, 8, 24, 5
UNITS = ((3_600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True, slots=True)
class Order:
    """A text of a stream."""

    stream: str
    text: str
    age_s: float


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The newest result of a task."""

    task: str
    value: str
    confidence: float | None
    age_s: float


@dataclass(frozen=True, slots=True)
class PastGoal:
    """A goal that was in force, and how it ended."""

    goal: str
    outcome: str
    lasted_s: float


@dataclass(frozen=True, slots=True)
class OrderStep:
    """The step of the newest order that is due, counted from 1."""

    text: str
    number: int
    of: int


@dataclass(frozen=True, slots=True)
class KnownState:
    """What is known at one moment."""

    orders: Sequence[Order] = ()
    """Newest first."""
    results: Sequence[TaskResult] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    """By `stream.field`."""
    goal: str = ""
    goal_age_s: float = 0.0
    past: Sequence[PastGoal] = ()
    """Newest first."""
    step: OrderStep | None = None
    """None where the newest order has one step."""

    @property
    def words(self) -> tuple[object, ...]:
        """Orders and results without numbers and ages: a change of them is worth a question at once."""
        return (
            tuple((one.stream, one.text) for one in self.orders),
            self.step,
            tuple((one.task, one.value) for one in self.results if not _is_number(one.value)),
        )


def state_text(state: KnownState) -> str:
    """Return the state in words, at most `MOST_BYTES` bytes."""
    lines = [
        *_section("Orders, newest first", (_order(one) for one in state.orders[:MOST_ORDERS])),
        *([] if state.step is None else [_step(state.step)]),
        f"Present goal: {state.goal}, for {_time(state.goal_age_s)}",
        *_section("Perceived", (_result(one) for one in state.results[:MOST_RESULTS])),
        *_section("Numbers", _numbers(state.numbers)),
        *_section("Goals before, newest first", (_past(one) for one in state.past[:MOST_GOALS])),
    ]
    return _cut("\n".join(lines), MOST_BYTES)


def one_line(text: str) -> str:
    """Return a text from outside as one line without control characters, at most `MOST_TEXT` characters."""
    visible = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text[: 4 * MOST_TEXT])
    short = " ".join(visible.split())
    return short if len(short) <= MOST_TEXT else short[: MOST_TEXT - 1] + "…"


def _section(title: str, items: Iterable[str]) -> list[str]:
    listed = list(items)
    return [f"{title}:", *(f"- {item}" for item in listed)] if listed else []


def _order(order: Order) -> str:
    return f"{json.dumps(one_line(order.text), ensure_ascii=False)} ({order.stream}, {_time(order.age_s)} ago)"


def _step(step: OrderStep) -> str:
    return f"Due now, step {step.number} of {step.of} of the newest order: {json.dumps(one_line(step.text), ensure_ascii=False)}"


def _result(result: TaskResult) -> str:
    sure = "" if result.confidence is None else f" ({result.confidence:.2f})"
    return f"{result.task}: {one_line(result.value)}{sure}, {_time(result.age_s)} ago"


def _numbers(numbers: Mapping[str, float]) -> list[str]:
    finite = {name: value for name, value in sorted(numbers.items()) if math.isfinite(value)}
    return [f"{one_line(name)} {value:.3g}" for name, value in list(finite.items())[:MOST_NUMBERS]]


def _past(past: PastGoal) -> str:
    return f"{past.goal}: {past.outcome} after {_time(past.lasted_s)}"


def _time(seconds: float) -> str:
    for size, unit in UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "0 s"


def _cut(text: str, most: int) -> str:
    return text.encode(errors="replace")[:most].decode(errors="ignore")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
