"""Count the bytes of a group's rows, by agent, and refuse rows beyond the limits: `<group>/storage.json`.

The server measures them every few minutes (`storage/retention.py`). Between two measurements an ingest adds what it stored itself. So the limits may
be passed by what the other ingests stored since. Knows no Parquet.
"""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path

import orjson

from learners.files import write_atomically

FILE = "storage.json"


class StoredBytes:
    """The bytes of a group on disk, and their limits.

    Args:
        group: its folder.
        most: bytes of all rows.
        most_of_agent: bytes of the rows of one agent.
    """

    def __init__(self, group: Path, *, most: float = float("inf"), most_of_agent: float = float("inf")) -> None:
        self.most, self.most_of_agent = most, most_of_agent
        self._path = group / FILE
        self._measured_ns = -1
        self._total = 0
        self._by_agent: Counter[str] = Counter()

    def add(self, agent: str, size: int) -> None:
        """Note what was stored."""
        self._total += size
        self._by_agent[agent] += size

    def require_room(self, agent: str) -> None:
        """Refuse further rows where a limit is reached.

        Raises:
            OSError: with the limit.
            ValueError: the measurement cannot be read.
        """
        if min(self.most, self.most_of_agent) == float("inf"):
            return
        self._read()
        for held, most, owner, setting in (
            (self._total, self.most, "the group", "max_gb"),
            (self._by_agent[agent], self.most_of_agent, agent, "agent_gb"),
        ):
            if held >= most:
                reason = f"{owner} has {held / 1e9:.3g} GB of rows, storage.{setting} is {most / 1e9:g}"
                raise OSError(errno.EDQUOT, f"{reason}; its rows stay on the device", str(self._path.parent))

    def _read(self) -> None:
        """Take the newest measurement over; it has what this process stored before."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns == self._measured_ns:
            return
        total, by_agent = read_usage(self._path.parent)
        self._measured_ns, self._total, self._by_agent = changed_ns, total, Counter(by_agent)


def read_usage(group: Path) -> tuple[int, dict[str, int]]:
    """Return the measured bytes of a group, and of each agent; none before the first measurement.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not ours.
    """
    try:
        body = orjson.loads((group / FILE).read_bytes())
        return int(body["bytes"]), {str(name): int(size) for name, size in body["agents"].items()}
    except FileNotFoundError:
        return 0, {}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{group / FILE}: {error}; delete it, the server measures again") from None


def write_usage(group: Path, by_agent: Counter[str]) -> None:
    """Store a measurement.

    Raises:
        OSError: the disk refuses.
    """
    body = {"bytes": by_agent.total(), "agents": dict(by_agent)}
    write_atomically(group / FILE, orjson.dumps(body), mode=0o600)
