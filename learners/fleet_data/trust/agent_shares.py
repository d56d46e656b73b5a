"""Bound the share that one agent has of the newest merged rows, so that an agent that sends much does not displace the others.

Of `WINDOW` rows an agent has at most `FAIR` times an equal part, or `LEAST_ROWS`. Its further rows wait on disk until the other agents
have brought theirs. Only agents that brought rows lately count: one that is alone in a group has all of it. Pure: knows no file.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable

WINDOW = 16_384
"""Newest merged rows of the group that shares are of."""
FAIR = 1.5
"""Times the rows of an equal part that an agent may have."""
LEAST_ROWS = 1_024
"""That an agent may always have: a run of neighbours."""


class AgentShares:
    """Counts the newest merged rows of each agent.

    Args:
        runs: agents and counts of rows that were merged before, oldest first.
        window: rows that are counted.
    """

    def __init__(self, runs: Iterable[tuple[str, int]] = (), *, window: int = WINDOW) -> None:
        self.window = window
        self.held: Counter[str] = Counter()
        """Rows in the window, by agent."""
        self._runs: deque[tuple[str, int]] = deque()
        for agent, count in runs:
            self.add(agent, count)

    def add(self, agent: str, count: int) -> None:
        """Note rows that were merged; the oldest beyond the window are forgotten."""
        if count <= 0:
            return
        self._runs.append((agent, count))
        self.held[agent] += count
        excess = self.held.total() - self.window
        while excess > 0:
            oldest, rows = self._runs.popleft()
            gone = min(rows, excess)
            self.held[oldest] -= gone
            excess -= gone
            if gone < rows:
                self._runs.appendleft((oldest, rows - gone))
        self.held = +self.held

    def room(self, agent: str, present: Collection[str]) -> int:
        """Return how many rows an agent may bring now; 0 if it has its share.

        Args:
            agent: which one.
            present: agents that brought rows lately; those without a row in the window do not count.
        """
        count = len({agent, *(name for name in present if name in self.held)})
        if count == 1:
            return self.window
        part = min(0.9, FAIR / count)
        others = self.held.total() - self.held[agent]
        allowed = min(int(others * part / (1 - part)), int(part * self.window))
        return max(0, max(LEAST_ROWS, allowed) - self.held[agent])

    def forget(self, agent: str) -> None:
        """Forget the rows of an agent that was excluded."""
        self._runs = deque(run for run in self._runs if run[0] != agent)
        del self.held[agent]
