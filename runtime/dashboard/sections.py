"""Sections of the page's state, and what has changed in them since a browser was last sent something.

Three kinds: a value is sent whole when it changes; a table is sent by its changed entries; a list that only grows is sent by
what was appended. Every piece is encoded once, however many browsers show it. It knows nothing of what the sections mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

OPTIONS = orjson.OPT_NON_STR_KEYS


@dataclass(slots=True)
class ClientPosition:
    """What one browser has been sent."""

    version: int = 0
    lists: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By list: its generation, and how many items it had got in all."""
    skipped: set[tuple[str, str]] = field(default_factory=set)
    """Entries that changed while the browser did not show them."""


@dataclass(slots=True)
class _List:
    """A list of bounded length; items have numbers that are never used twice."""

    items: deque[Any]
    generation: int = 0
    """Grows when the list was replaced as a whole."""
    total: int = 0
    changed: int = 0


@dataclass(slots=True)
class Sections:
    """Values, tables and lists by name."""

    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 0
    """Grows with every change."""
    _lists: dict[str, _List] = field(default_factory=dict)
    _changed: dict[tuple[str, str], int] = field(default_factory=dict)
    """By section and entry, the empty entry for a value: the version of the last change."""
    _encoded: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """Return a section's content.

        Raises:
            KeyError: there is no such section.
        """
        for sections in (self.values, self.tables):
            if name in sections:
                return sections[name]
        return list(self._lists[name].items)

    def __contains__(self, name: str) -> bool:
        """Return whether a section exists."""
        return name in self.values or name in self.tables or name in self._lists

    def get(self, name: str, default: Any = None) -> Any:
        """Return a section's content, or `default` without one."""
        return self[name] if name in self else default  # noqa: SIM401 - the sections are no dict

    def set(self, name: str, value: Any) -> None:
        """Replace a value."""
        self.values[name] = value
        self._touch(name, "")

    def put(self, table: str, key: str, value: Any) -> None:
        """Replace an entry of a table."""
        self.tables.setdefault(table, {})[key] = value
        self._touch(table, key)

    def append(self, name: str, item: Any, limit: int) -> None:
        """Append to a list; the oldest item makes room beyond `limit`."""
        known = self._lists.setdefault(name, _List(deque(maxlen=limit)))
        known.items.append(item)
        known.total += 1
        known.changed = self._next()

    def replace(self, name: str, items: list[Any], limit: int) -> None:
        """Replace a list as a whole."""
        generation = self._lists[name].generation + 1 if name in self._lists else 0
        self._lists[name] = _List(deque(items, maxlen=limit), generation, len(items), self._next())

    def news(self, seen: ClientPosition, shows: Callable[[str, str], bool]) -> bytes:
        """Return what changed since `seen`, as the inside of a JSON object, and note in `seen` that it was sent.

        Args:
            seen: what the browser has.
            shows: whether the browser shows an entry of a table. An entry that it does not show is sent once it does.
        """
        if seen.version == self.version and not any(shows(*entry) for entry in seen.skipped):
            return b""
        values, tables = [], dict[str, list[bytes]]()
        for (name, key), version in self._changed.items():
            if version <= seen.version and (name, key) not in seen.skipped:
                continue
            if name in self.values:
                values.append(b"%s:%s" % (orjson.dumps(name), self._json(name, key, version)))
            elif shows(name, key):
                seen.skipped.discard((name, key))
                tables.setdefault(name, []).append(b"%s:%s" % (orjson.dumps(key), self._json(name, key, version)))
            else:
                seen.skipped.add((name, key))
        lists = [
            b"%s:%s" % (orjson.dumps(name), self._appended(name, seen))
            for name, known in self._lists.items()
            if known.changed > seen.version
        ]
        seen.version = self.version
        joined = b",".join(b"%s:{%s}" % (orjson.dumps(name), b",".join(entries)) for name, entries in tables.items())
        return b'"values":{%s},"tables":{%s},"lists":{%s}' % (b",".join(values), joined, b",".join(lists))

    def _appended(self, name: str, seen: ClientPosition) -> bytes:
        """The items that the browser lacks: `first` is the number of the oldest item there is, `at` of the first one sent."""
        known = self._lists[name]
        generation, total = seen.lists.get(name, (-1, 0))
        first = known.total - len(known.items)
        at = max(first, total) if generation == known.generation else first
        seen.lists[name] = (known.generation, known.total)
        return orjson.dumps({"first": first, "at": at, "items": list(known.items)[at - first :]}, option=OPTIONS)

    def _json(self, name: str, key: str, version: int) -> bytes:
        known, data = self._encoded.get((name, key), (-1, b""))
        if known != version:
            data = orjson.dumps(self.tables[name][key] if key else self.values[name], option=OPTIONS)
            self._encoded[name, key] = (version, data)
        return data

    def _touch(self, name: str, key: str) -> None:
        self._changed[name, key] = self._next()

    def _next(self) -> int:
        self.version += 1
        return self.version
