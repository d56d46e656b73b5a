"""Log with structlog in every process: readable lines on a terminal, else one JSON object a line, on standard error.

Records of the standard library's logging go the same way. A disk or a pipe that takes no line costs the line, never the process. A scrubber removes known secrets (those the settings loader
found) from every record, also where they are percent-encoded as in a URL.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SHORTEST_SECRET = 4
"""Shorter secrets would match inside ordinary words; they are hidden only where they are the whole value."""
HIDDEN = "***"
MAX_DEPTH = 8


class Scrubber:
    """Remove secrets from records; secrets may be added at any time."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._spellings: list[str] = []
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Add secrets."""
        self._secrets.update(secret for secret in secrets if secret)
        long = {secret for secret in self._secrets if len(secret) >= SHORTEST_SECRET}
        spellings = {spelling for secret in long for spelling in _spellings(secret)}
        self._spellings = sorted(spellings, key=len, reverse=True)  # the longest first: one may contain another

    def text(self, text: str) -> str:
        """Return `text` without secrets."""
        if text in self._secrets:
            return HIDDEN
        for spelling in self._spellings:
            if spelling in text:
                text = text.replace(spelling, HIDDEN)
        return text

    def value(self, value: Any, depth: int = 0) -> Any:
        """Any value without secrets; what is no plain data is shown by its `repr`."""
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool | int | float):
            return value
        if depth >= MAX_DEPTH:
            return self.text(repr(value))
        if isinstance(value, dict):
            return {self.value(key, depth + 1): self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item, depth + 1) for item in value]
        return self.text(repr(value))

    def strings(self, value: Any) -> Any:
        """Any value in which every text is without secrets; all else is as it was."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.strings(key): self.strings(item) for key, item in value.items()}
        return [self.strings(item) for item in value] if isinstance(value, list | tuple) else value

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Process one record for structlog."""
        return {key: item if key.startswith("_") else self.value(item) for key, item in event.items()}


class LossyOutput:
    """An output for which no error is raised: a full disk or a closed pipe must not end a process that moves a machine.

    What cannot be written is counted. The first line that can be written again is preceded by a record of the loss.

    Args:
        stream: a text stream; None where the process was started without one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lost = 0

    def isatty(self) -> bool:
        """Return whether a person reads it."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def flush(self) -> None:
        """Do nothing: each write is flushed."""

    def write(self, text: str) -> int:
        """Write and flush, or count a lost line for each end of a line in the text."""
        if self._lost and self._written(f'{{"count":{self._lost},"event":"log.lines_lost","level":"warning"}}\n'):
            self._lost = 0
        if not self._written(text):
            self._lost += max(1, text.count("\n"))
        return len(text)

    def _written(self, text: str) -> bool:
        """Return whether the text could be written, past the buffer of the stream: what stays there fails at the end of the process."""
        if self._stream is None:
            return False
        try:
            number = self._stream.fileno()
        except (OSError, ValueError, AttributeError):  # in memory, or closed
            number = None
        try:
            if number is None:
                self._stream.write(text)
            else:
                data = memoryview(text.encode("utf-8", "backslashreplace"))
                while data:
                    data = data[os.write(number, data) :]
        except (OSError, ValueError):
            return False
        return True


_LEVELS = [logging.NOTSET]
"""The level in force; before `configure` structlog shows everything."""


def shows_debug() -> bool:
    """Return whether a debug record is shown: composing one that is not costs as much as one that is."""
    return _LEVELS[0] <= logging.DEBUG


def configure(*, verbose: bool = False, secrets: Iterable[str] = (), stream: TextIO | None = None) -> Scrubber:
    """Set up logging for this process, also repeatedly; return the scrubber for secrets that are found later."""
    out = LossyOutput(stream or sys.stderr)
    scrubber = Scrubber(secrets)
    level = logging.DEBUG if verbose else logging.INFO
    _LEVELS[:] = [level]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        scrubber,
    ]
    renderer: Processor = structlog.dev.ConsoleRenderer() if out.isatty() else _json
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", out)),
        cache_logger_on_first_use=False,  # a later configure must reach loggers made at import
    )
    _bridge(out, level, shared, renderer)
    return scrubber


def _bridge(out: LossyOutput, level: int, shared: list[Processor], renderer: Processor) -> None:
    handler = logging.StreamHandler(cast("TextIO", out))
    name: Processor = structlog.stdlib.add_logger_name
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.INFO))  # no debug lines of other libraries


def _json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def _spellings(secret: str) -> set[str]:
    """Return the spellings of a secret in a record: as it is, in a URL, in a `repr`, in JSON."""
    inside_quotes = orjson.dumps(secret).decode()[1:-1]
    return {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), repr(secret)[1:-1], inside_quotes}
