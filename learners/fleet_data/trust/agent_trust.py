"""Judge the rows of each agent of a group by those of the others: an agent that lies is one source, and is named.

Three faults are found:

- `flipped`: the rewards have the opposite sign. One ridge regression per other agent predicts the rewards from tokens, success
  and failure. Each of these models has one vote. It votes against an agent if its predictions correlate negatively with the
  rewards in most parts of the window. The agent is named by more than half of the votes.
- `rare rewards flipped`: most ticks earn one value, and the other rewards contradict those of the other agents. Their sign at a success
  or a failure tells, else the regressions over these ticks. They are remembered for longer than a window (`rare_rewards.py`).
- `rate`: more rows a second of their own stamps than `MOST_RATE` times the rate of the group's ticks.

The check of flips uses ranks of rewards without their mean. So neither scale nor offset nor a few huge values count. A place that
is harder has another mean at the end of episodes, so that mean is removed, too. A flip cannot be decided in these cases:

- fewer than three agents have rows;
- the models of the others do not explain the rewards of one another (`EXPLAINED`);
- most rows of the agent lie outside of what the others saw.

A fault counts once it was found in `CONFIRMED` windows in a row. If more than `MOST_EXCLUDED` of the agents would be excluded,
nothing is excluded and `alert` has the reason. Pure: knows no file and no clock.

Shapes: N rows, F features, W agents of the group.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from learners.experience.transition import Transition
from learners.fleet_data.trust.rare_rewards import LEAST_EVENTS, RewardEvent, contradicts, rare

WINDOW = 512
"""Rows of an agent in one look; another agent needs half of them to be compared with."""
NEWEST = 512
"""Rows of an agent that the others are compared with."""
EVENTS = 256
"""Ticks with rare rewards that are remembered of an agent; a regression needs half of them, and of another agent a quarter."""
AGENTS = 3
"""Agents with rows below which flips are not looked for."""
CONFIRMED = 2
MOST_RATE = 2.0
MOST_EXCLUDED = 1 / 3
"""Of the agents."""
FEATURES = 64
"""Of a row; wider tokens are cut to their first numbers."""
MAX_AGENTS = 1_000
"""Further agents are not judged."""
MOST_OTHERS = 16
"""Agents that one agent is compared with."""
RIDGE = 0.1
"""Per row; features have deviation 1."""
EXPLAINED = 0.3
"""Least share of the variance that the models of the others explain of one another; the median of all pairs."""
OPPOSED = -0.3
"""Largest correlation of a vote against an agent."""
BLOCKS = 8
"""Parts of a window that an error is computed from: neighbouring rows are alike."""
ERRORS = -4.0
"""Largest slope of a vote against an agent, in standard errors over the blocks."""
FAR = 3.0
"""Deviations from the mean of an agent's feature, beyond which its model is not used."""
LEAST_SPREAD = 0.1
"""Least deviation of predictions; rewards have deviation 1."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Row:
    features: Array
    end: int
    """How the tick ended: rewards are compared within rows of one kind only."""
    reward: float
    outcome: str

    def event(self, base: float) -> RewardEvent:
        """Return the row as an event, by the base of its agent's rewards."""
        return RewardEvent(self.outcome, self.reward - base)


@dataclass(slots=True)
class _Agent:
    """What is remembered of one agent."""

    rows: deque[_Row] = field(default_factory=lambda: deque(maxlen=NEWEST))
    events: deque[tuple[_Row, RewardEvent]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    """Ticks with rare rewards."""
    new_events: int = 0
    """Since their last look."""
    since_look: int = 0
    stamped: int = 0
    """Of these, all but amended ones: they are no further ticks."""
    first_s: float = float("inf")
    last_s: float = -float("inf")
    """Stamps of the rows since the last look."""
    found: dict[str, int] = field(default_factory=dict)
    """Windows in a row with each fault."""
    reason: str = ""
    looks: int = 0
    reward: float = 0.0
    """Mean of the newest rows at the last look."""

    def newest(self) -> list[_Row]:
        """Return the newest rows."""
        return list(self.rows)

    def at_events(self) -> list[_Row]:
        """Return the rows with rare rewards."""
        return [row for row, _ in self.events]


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows of one agent and one width."""

    features_NF: Array
    end_N: NDArray[np.int64]
    reward_N: Array
    """Ranks."""


@dataclass(frozen=True, slots=True)
class _Model:
    """A ridge regression of one agent's rewards on its features and their squares."""

    mean_F: Array
    scale_F: Array
    weights_F: Array
    """Of features, then of squares."""


class AgentTrust:
    """The statistics of a group.

    Args:
        rate_hz: ticks a second of its agents.
        window: rows of an agent in one look.
    """

    def __init__(self, rate_hz: float, *, window: int = WINDOW) -> None:
        self.rate_hz, self.window = rate_hz, window
        self.alert = ""
        """Why `untrusted` names no agent although some have a confirmed fault; empty if it does."""
        self._agents: dict[str, _Agent] = {}

    def add(self, agent: str, transitions: Sequence[Transition], *, are_amended: bool = False) -> None:
        """Take rows of an agent, and look at each full window.

        Args:
            agent: its name.
            transitions: in the order of arrival.
            are_amended: they are rows of before with other rewards; they say nothing of the rate of ticks.
        """
        if agent not in self._agents and len(self._agents) >= MAX_AGENTS:
            return
        own = self._agents.setdefault(agent, _Agent())
        for transition in transitions:
            row = _row(transition)
            if np.isfinite(row.reward) and np.isfinite(row.features).all():
                own.rows.append(row)
            own.since_look += 1
            if not are_amended:
                own.stamped += 1
                own.first_s, own.last_s = min(own.first_s, transition.stamp_s), max(own.last_s, transition.stamp_s)
            if own.since_look >= self.window:
                self._look(agent, own)
                own.since_look, own.stamped, own.first_s, own.last_s = 0, 0, float("inf"), -float("inf")

    def untrusted(self, excluded: Collection[str] = ()) -> dict[str, str]:
        """Return the agents with a confirmed fault, with the reason; none if these are too many, which sets `alert`.

        Args:
            excluded: agents that were excluded before; they count as agents of the group and as excluded.
        """
        named = {name: agent.reason for name, agent in self._agents.items() if agent.reason}
        out, group = {*named, *excluded}, {*self._agents, *excluded}
        is_minority = len(out) <= MOST_EXCLUDED * len(group)
        new = sorted(named.keys() - set(excluded))
        self.alert = (
            f"{len(out)} of {len(group)} agents would be excluded; at most a third is excluded automatically: "
            f"{', '.join(new[:8])}"
            if new and not is_minority
            else ""
        )
        return named if is_minority else {}

    def forget(self, agent: str) -> None:
        """Forget what is known of an agent."""
        self._agents.pop(agent, None)

    def figures(self) -> dict[str, dict[str, float | str]]:
        """Return for each agent how often it was looked at, its mean reward then, how often each fault was found last, and the reason."""
        return {
            name: {"looks": agent.looks, "reward": agent.reward, **agent.found, "reason": agent.reason}
            for name, agent in self._agents.items()
        }

    def _look(self, name: str, agent: _Agent) -> None:
        agent.looks += 1
        agent.reward = sum(row.reward for row in agent.rows) / max(1, len(agent.rows))
        rate = max(0, agent.stamped - 1) / max(1e-6, agent.last_s - agent.first_s)
        faults = {
            "rate": f"{rate:.0f} rows a second of its own stamps, its ticks have {self.rate_hz:g}"
            if rate > MOST_RATE * self.rate_hz
            else "",
            "flipped": self._flipped(name, agent, _Agent.newest, self.window),
        }
        if self._note_events(agent) >= LEAST_EVENTS:
            faults["rare rewards flipped"] = self._rare_flipped(name, agent)
            agent.new_events = 0
        for fault, reason in faults.items():
            agent.found[fault] = agent.found.get(fault, 0) + 1 if reason else 0
            if agent.found[fault] >= CONFIRMED and not agent.reason:
                agent.reason = f"{fault}: {reason}"

    def _note_events(self, agent: _Agent) -> int:
        """Remember the ticks of the window with rare rewards; return how many are new since their last look."""
        rows = agent.newest()[-self.window :]
        found = rare(np.array([row.reward for row in rows], np.float64))
        if found is not None:
            base, is_event_N = found
            events = [(row, row.event(base)) for row, is_event in zip(rows, is_event_N, strict=True) if is_event]
            agent.events.extend(events)
            agent.new_events += len(events)
        return agent.new_events

    def _rare_flipped(self, name: str, agent: _Agent) -> str:
        """Return why the rare rewards of an agent look flipped; empty if they do not, or this cannot be decided."""
        others = [one for other, one in self._agents.items() if other != name and one.events and not one.reason]
        newest = [event for _, event in agent.events][-agent.new_events :]
        signs = [[event for _, event in one.events] for one in others[-MOST_OTHERS:]]
        return contradicts(newest, signs, AGENTS - 1) or self._flipped(name, agent, _Agent.at_events, EVENTS // 2)

    def _flipped(self, name: str, agent: _Agent, rows: Callable[[_Agent], list[_Row]], window: int) -> str:
        """Return why the rewards of an agent look flipped; empty if they do not, or this cannot be decided.

        Args:
            name: of the agent.
            agent: what is remembered of it.
            rows: returns the rows of an agent that are looked at.
            window: how many of the newest.
        """
        others = [
            one
            for other, one in self._agents.items()
            if other != name and len(rows(one)) >= window / 2 and not one.reason
        ][-MOST_OTHERS:]
        width = _commonest(_commonest(len(row.features) for row in rows(one)) for one in (*others, agent) if rows(one))
        own = _table(rows(agent)[-window:], width, window / 2)
        tables = [table for one in others if (table := _table(rows(one), width, window / 2)) is not None]
        if own is None or len(tables) < AGENTS - 1 or _is_elsewhere(own, tables):
            return ""
        models = [_fitted(table) for table in tables]
        verdicts = [verdict for model in models if (verdict := _compared(model, own)) is not None]
        against = [r for r, errors in verdicts if r <= OPPOSED and errors <= ERRORS]
        if len(verdicts) < AGENTS - 1 or 2 * len(against) <= len(verdicts):
            return ""
        known = [
            0.0 if (verdict := _compared(model, table)) is None else verdict[0]
            for at, model in enumerate(models)
            for other, table in enumerate(tables)
            if other != at
        ]
        if median(known) < EXPLAINED**0.5:
            return ""
        return (
            f"its rewards correlate with {median(against):.2f} with what the rows of {len(against)} of "
            f"{len(verdicts)} other agents predict"
        )


def _row(transition: Transition) -> _Row:
    """Return what is remembered of a row: tokens, success and failure, at most `FEATURES` numbers."""
    parts = [np.asarray(transition.tokens[name], np.float64).ravel() for name in sorted(transition.tokens)]
    tokens = np.concatenate(parts)[: FEATURES - 2] if parts else np.zeros(0)
    outcome = (float(transition.success), float(transition.failure))
    end = transition.done + 2 * transition.truncated
    name = "success" if transition.success else "failure" if transition.failure else ""
    return _Row(np.concatenate((tokens, outcome)), end, transition.reward, name)


def _commonest(widths: Iterable[int]) -> int:
    """Return the commonest width; 0 without any."""
    counts = Counter(widths)
    return max(counts, key=counts.__getitem__) if counts else 0


def _table(rows: Iterable[_Row], width: int, least: float) -> _Table | None:
    """Return the rows of a width; None if there are fewer than `least`."""
    same = [row for row in rows if len(row.features) == width]
    if not same or len(same) < least:
        return None
    reward_N = np.array([row.reward for row in same], np.float64)
    _, at_N, counts = np.unique(reward_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts) - (counts - 1) / 2)[at_N]
    end_N = np.array([row.end for row in same], np.int64)
    return _Table(np.stack([row.features for row in same]), end_N, ranks_N)


def _is_elsewhere(own: _Table, others: Sequence[_Table]) -> bool:
    """Return whether a feature of most rows of an agent lies outside of what all others saw.

    A feature that is constant at each agent and differs between the others is a mark of the device, not a place.
    """
    low_F = np.min([table.features_NF.min(0) for table in others], axis=0)
    high_F = np.max([table.features_NF.max(0) for table in others], axis=0)
    is_mark_F = (high_F > low_F + 1e-6) & np.all(
        [np.ptp(table.features_NF, axis=0) <= 1e-6 for table in (own, *others)], axis=0
    )
    outside_NF = (own.features_NF < low_F - 1e-6) | (own.features_NF > high_F + 1e-6)
    return bool(((outside_NF.mean(0) > 1 / 2) & ~is_mark_F).any())


def _within(values: Array, end_N: NDArray[np.int64]) -> Array:
    """Return values without the mean of the rows with the same end."""
    centred = values.copy()
    for end in np.unique(end_N):
        centred[end_N == end] -= values[end_N == end].mean(0)
    return centred


def _scaled(values_N: Array) -> Array:
    """Return values with deviation 1; zeros if they are all equal."""
    deviation = float(values_N.std())
    return values_N / deviation if deviation > 1e-9 else np.zeros_like(values_N)


def _basis(z_NF: Array) -> Array:
    clipped_NF = np.clip(z_NF, -FAR, FAR)
    return np.concatenate((clipped_NF, np.square(clipped_NF)), axis=1)


def _fitted(table: _Table) -> _Model:
    """Fit a model to the rows of one agent."""
    mean_F, scale_F = table.features_NF.mean(0), table.features_NF.std(0)
    scale_F = np.where(scale_F > 1e-6 * np.maximum(1.0, np.abs(mean_F)), scale_F, np.inf)
    basis_NF = _within(_basis((table.features_NF - mean_F) / scale_F), table.end_N)
    reward_N = _scaled(_within(table.reward_N, table.end_N))
    gram_FF = basis_NF.T @ basis_NF + RIDGE * len(reward_N) * np.eye(basis_NF.shape[1])
    return _Model(mean_F, scale_F, np.asarray(np.linalg.solve(gram_FF, basis_NF.T @ reward_N), np.float64))


def _compared(model: _Model, table: _Table) -> tuple[float, float] | None:
    """Return the correlation of predictions with the rewards of another agent, and their slope in standard errors.

    None if the model has nothing to say of most rows, or a number is not finite.
    """
    z_NF = (table.features_NF - model.mean_F) / model.scale_F
    importance_F = np.abs(model.weights_F).reshape(2, -1).sum(0)
    far_N = (np.abs(z_NF) > FAR) @ importance_F > importance_F.sum() / 4
    near_N = ~far_N
    if near_N.mean() < 1 / 2:
        return None
    end_N = table.end_N[near_N]
    predicted_N = _within(_basis(z_NF[near_N]) @ model.weights_F, end_N)
    reward_N = _scaled(_within(table.reward_N[near_N], end_N))
    if not float(predicted_N.std()) >= LEAST_SPREAD or not reward_N.any():
        return None
    product_N = _scaled(predicted_N) * reward_N
    means = np.array([block.mean() for block in np.array_split(product_N, BLOCKS)])
    error = max(1e-9, float(means.std(ddof=1)) / BLOCKS**0.5)
    found = float(product_N.mean()), float(means.mean()) / error
    return found if np.isfinite(found).all() else None
