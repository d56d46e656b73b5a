"""Judge the rows of each agent of a group by those of the others: an agent that lies is one source, and is named.

Two faults are found:

- `flipped`: the rewards have the opposite sign. A ridge regression from the tokens and the end of an episode to the reward
  is fitted on the rows of all other agents. The rewards of an honest agent are near its predictions. Flipped ones are nearer
  to the negated predictions: the sum of squared errors against them is `RATIO` times smaller.
- `rate`: more rows a second of their own stamps than `MOST_RATE` times the rate of the group's ticks.

A fault counts once it was found in `CONFIRMED` windows in a row. With fewer than three agents the liar cannot be
found, so flips are not looked for. Pure: knows no file and no clock.

Shapes: N rows, F features, W agents of the group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from learners.experience.transition import Transition

WINDOW = 512
"""Rows of an agent in one look; another agent needs half of them to be compared with."""
NEWEST = 512
"""Rows of an agent that the others are compared with."""
AGENTS = 3
"""Agents with rows below which flips are not looked for."""
RATIO = 3.0
CONFIRMED = 2
MOST_RATE = 2.0
FEATURES = 64
"""Of a row; wider tokens are cut to their first numbers."""
MAX_AGENTS = 1_000
"""Further agents are not judged."""
MOST_OTHERS = 32
"""Agents that one agent is compared with."""
RIDGE = 1e-2
Array = NDArray[np.float64]


@dataclass(slots=True)
class _Agent:
    """What is remembered of one agent."""

    rows: deque[tuple[Array, float]] = field(default_factory=lambda: deque(maxlen=NEWEST))
    """Features and reward."""
    since_look: int = 0
    first_s: float = float("inf")
    last_s: float = -float("inf")
    """Stamps of the rows since the last look."""
    found: dict[str, int] = field(default_factory=dict)
    """Windows in a row with each fault."""
    reason: str = ""
    looks: int = 0


class AgentTrust:
    """The statistics of a group.

    Args:
        rate_hz: ticks a second of its agents.
        window: rows of an agent in one look.
    """

    def __init__(self, rate_hz: float, *, window: int = WINDOW) -> None:
        self.rate_hz, self.window = rate_hz, window
        self._agents: dict[str, _Agent] = {}

    def add(self, agent: str, transitions: Sequence[Transition]) -> None:
        """Take rows of an agent, and look at each full window."""
        if agent not in self._agents and len(self._agents) >= MAX_AGENTS:
            return
        own = self._agents.setdefault(agent, _Agent())
        for transition in transitions:
            own.rows.append((features(transition), transition.reward))
            own.since_look += 1
            own.first_s, own.last_s = min(own.first_s, transition.stamp_s), max(own.last_s, transition.stamp_s)
            if own.since_look >= self.window:
                self._look(agent, own)
                own.since_look, own.first_s, own.last_s = 0, float("inf"), -float("inf")

    def untrusted(self) -> dict[str, str]:
        """Return the agents with a confirmed fault, with the reason."""
        return {name: agent.reason for name, agent in self._agents.items() if agent.reason}

    def forget(self, agent: str) -> None:
        """Forget what is known of an agent."""
        self._agents.pop(agent, None)

    def figures(self) -> dict[str, dict[str, float | str]]:
        """Return for each agent how often it was looked at, how often each fault was found last, and the reason."""
        return {
            name: {"looks": agent.looks, **agent.found, "reason": agent.reason} for name, agent in self._agents.items()
        }

    def _look(self, name: str, agent: _Agent) -> None:
        agent.looks += 1
        rate = (self.window - 1) / max(1e-6, agent.last_s - agent.first_s)
        faults = {
            "rate": f"{rate:.0f} rows a second of its own stamps, its ticks have {self.rate_hz:g}"
            if rate > MOST_RATE * self.rate_hz
            else "",
            "flipped": self._flipped(name, agent),
        }
        for fault, reason in faults.items():
            agent.found[fault] = agent.found.get(fault, 0) + 1 if reason else 0
            if agent.found[fault] >= CONFIRMED and not agent.reason:
                agent.reason = f"{fault}: {reason}"

    def _flipped(self, name: str, agent: _Agent) -> str:
        """Return why the rewards of an agent look flipped; empty if they do not, or this cannot be decided."""
        others = [
            one
            for other, one in self._agents.items()
            if other != name and len(one.rows) >= self.window / 2 and not one.reason
        ]
        if len(others) < AGENTS - 1:
            return ""
        own_NF, own_N = _arrays(list(agent.rows)[-self.window :])
        tables = [_arrays(one.rows) for one in others[-MOST_OTHERS:]]
        width = own_NF.shape[1]
        if any(table.shape[1] != width for table, _ in tables):
            return ""
        predicted_N = _predicted(np.concatenate([t for t, _ in tables]), np.concatenate([r for _, r in tables]), own_NF)
        as_sent = float(np.square(own_N - predicted_N).sum())
        negated = float(np.square(own_N + predicted_N).sum())
        if as_sent <= RATIO * negated or float(np.square(own_N).sum()) == 0.0:
            return ""
        return f"its rewards are {as_sent / max(1e-9, negated):.0f} times nearer to the negated rewards of {len(others)} other agents"


def features(transition: Transition) -> Array:
    """Return the features of a row: tokens, the end of an episode and 1, at most `FEATURES` + 1."""
    parts = [np.asarray(transition.tokens[name], np.float64).ravel() for name in sorted(transition.tokens)]
    tokens = np.concatenate(parts)[: FEATURES - 1] if parts else np.zeros(0)
    return np.concatenate((tokens, [float(transition.done), 1.0]))


def _arrays(rows: Sequence[tuple[Array, float]] | deque[tuple[Array, float]]) -> tuple[Array, Array]:
    """Return features NF and rewards N; rows of another width than the last are left out."""
    width = len(rows[-1][0])
    same = [row for row in rows if len(row[0]) == width]
    return np.stack([row[0] for row in same]), np.array([row[1] for row in same], np.float64)


def _predicted(known_NF: Array, known_N: Array, wanted_NF: Array) -> Array:
    """Return the rewards N that a ridge regression on the known rows predicts for the wanted ones."""
    scale_F = np.maximum(1e-6, np.abs(known_NF).max(0))
    known_NF, wanted_NF = known_NF / scale_F, np.clip(wanted_NF / scale_F, -1.0, 1.0)
    gram_FF = known_NF.T @ known_NF + RIDGE * np.eye(known_NF.shape[1])
    weights_F = np.linalg.solve(gram_FF, known_NF.T @ known_N)
    predicted_N: Array = wanted_NF @ weights_F
    return predicted_N
