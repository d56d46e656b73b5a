"""Choose which transitions of the replay buffer make a batch: strata of demonstrations and of endings, and a uniform rest.

The share of demonstrations and interventions grows with their number (RLPD, Ball et al. 2023). The share of terminal transitions and
outcomes is corrected by importance weights. The rest is drawn from the main ring by rejection, so that no list of valid rows is
needed. The sampler knows positions, and neither states nor returns.

Shapes: N positions, B batch, U actuators that can be learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from learners.rl.replay_columns import ReplayColumns
from learners.rl.ring_index import RingIndex

FAILURES = 1 / 16
"""Share of a batch that terminal transitions and outcomes get, once there are enough."""
MOST_DRAWS = 8
"""No transition of a stratum is drawn more than this many times as often as any other: a single override is no half of a batch."""
MOST_OF_AGENT = 1 / 8
"""Of a batch that demonstrations and interventions of one agent of a fleet get: one device that calls all of its rows corrections does not
teach all others."""
TRIES_REMEMBERED = 65_536
"""Draws after which earlier ones count half in the estimate of how many rows can be drawn."""
PASSED_REMEMBERED = 4
"""Sizes of the main ring: rows that left it after which earlier ones count half in the estimate of how often an episode ends."""


@dataclass(frozen=True, slots=True)
class Strata:
    """How many transitions of each kind can be drawn."""

    sampleable: int
    demonstrations: int
    terminal: int


class BatchSampler:
    """Draws positions.

    Args:
        columns: the arrays of the buffer.
        main: the ring of the newest transitions.
        reserve: the ring of transitions that are stored longer.
        drawable: returns where a position has an action and a known outcome.
        demonstration_fraction: of a batch from demonstrations and interventions.
        failure_share: see `FAILURES`.
    """

    def __init__(
        self,
        columns: ReplayColumns,
        main: RingIndex,
        reserve: RingIndex,
        drawable: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
        *,
        demonstration_fraction: float,
        failure_share: float,
    ) -> None:
        self._columns, self._main, self._reserve, self._drawable = columns, main, reserve, drawable
        self.demonstration_fraction, self.failure_share = demonstration_fraction, failure_share
        self.tries = (0, 0)
        """Rows of the main ring that uniform draws tried lately, and how many of them could be drawn."""
        self.passed = (0, 0)
        """Rows at which somebody acted that left the main ring lately, and how many of them were endings."""
        self._lists: dict[str, NDArray[np.int64]] | None = None

    def note_passed(self, *, is_ending: bool) -> None:
        """Count a row that leaves the main ring; old ones lose weight."""
        rows, endings = self.passed[0] + 1, self.passed[1] + int(is_ending)
        self.passed = (rows // 2, endings // 2) if rows > PASSED_REMEMBERED * self._main.size else (rows, endings)

    def invalidate(self) -> None:
        """Search the strata again at the next draw: one of their rows changed."""
        self._lists = None

    def strata(self) -> Strata:
        """Return the strata that can be sampled."""
        lists = self.special()
        return Strata(
            int(self._drawable(self._main.order()).sum()), len(lists["demonstrations"]), len(lists["endings"])
        )

    def draw(self, count: int, generator: torch.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """Draw `count` positions B, and their importance weights B; None where all are 1.

        Raises:
            ValueError: nothing can be drawn yet.
        """
        lists = self.special()
        agent_N = self._columns.agents(lists["demonstrations"])
        density_A = self._densities(np.bincount(agent_N + 1), count)
        shares_A = density_A * np.bincount(agent_N + 1)
        demonstrations = round(float(shares_A.sum()))
        endings = min(self._share(count, self.failure_share, len(lists["endings"])), count - demonstrations)
        uniform = self._uniform(count - demonstrations - endings, generator)
        parts = [
            uniform,
            _pick_by_agent(lists["demonstrations"], agent_N + 1, shares_A, demonstrations, generator),
            _pick(lists["endings"], endings, generator),
        ]
        at_B = np.concatenate(parts)
        if not endings:
            return at_B, None
        sizes = (len(lists["demonstrations"]), len(lists["endings"]), self._drawable_share() * self._main.held)
        density_B = np.zeros(len(at_B))
        known_B = self._columns.agents(at_B) + 1
        is_known_B = known_B < len(density_A)
        density_B[is_known_B] = density_A[known_B[is_known_B]]
        return at_B, self._weights(at_B, (demonstrations, endings), sizes, density_B)

    def ahead(self, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        """Return what the next `draw` returns if nothing changes until then; call it right after a draw. No state changes."""
        copied, tries = torch.Generator(), self.tries
        copied.set_state(generator.get_state())
        try:
            return self.draw(count, copied)[0]
        finally:
            self.tries = tries

    def _densities(self, counts_A: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """Return how often each demonstration of an agent is drawn for a batch of `count`, A.

        An agent's have at most `MOST_OF_AGENT` together. What it has beyond takes nothing from those of the others.

        Args:
            counts_A: demonstrations of each agent; those of a device of its own come first, and have no such limit.
            count: size of the batch.
        """
        limits_A = np.full(len(counts_A), float(max(1, int(MOST_OF_AGENT * count))))
        limits_A[:1] = count
        most_A = limits_A / np.maximum(counts_A, 1)
        density, wanted = MOST_DRAWS * count / max(1, self._main.held), self.demonstration_fraction * count
        rows, used = int(counts_A.sum()), 0.0
        for agent in np.argsort(most_A, kind="stable"):  # who has most first: the others share what is left
            if not counts_A[agent]:
                continue
            if used + rows * min(density, most_A[agent]) >= wanted:
                density = max(0.0, wanted - used) / rows
                break
            used += counts_A[agent] * min(density, most_A[agent])
            rows -= int(counts_A[agent])
        found_A: NDArray[np.float64] = np.minimum(density, most_A)
        return found_A

    def _share(self, count: int, wanted: float, rows: int) -> int:
        """Return how many of `count` come from a stratum: the wanted share, but no row more than `MOST_DRAWS` times as often as others."""
        return round(count * min(wanted, MOST_DRAWS * rows / max(1, self._main.held)))

    def _weights(
        self,
        at_B: NDArray[np.int64],
        drawn: tuple[int, int],
        sizes: tuple[int, int, float],
        density_B: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Return importance weights B: endings count as often as they happened, not as often as they are sampled.

        The share of demonstrations is intended (RLPD), so it is not corrected. The reserve holds endings of a time of which it holds
        hardly anything else. So all endings together count as often as the rows of that time and of the main ring ended.

        Args:
            at_B: the sampled positions.
            drawn: how many of them come from the strata of demonstrations and of endings.
            sizes: rows in these strata, and about how many rows of the main ring can be sampled.
            density_B: how often each demonstration is drawn from their stratum.
        """
        endings, uniform = drawn[1], len(at_B) - sum(drawn)
        each = 1 / max(1.0, sizes[2])
        is_expert_B = self._columns.is_expert_NU[at_B].any(-1) * density_B
        ends_B = self._columns.ends(at_B)
        is_ending_B = ends_B * (endings / max(1, sizes[1]))
        is_main_B = at_B < self._main.stop  # a demonstration of the reserve has the share of its stratum alone
        usual_B = np.where(ends_B, self._ending_weight(sizes[1], sizes[2]), is_main_B)
        wanted_B = (uniform + endings) * each * usual_B + is_expert_B
        found_B = is_main_B * uniform * each + is_expert_B + is_ending_B
        weights: NDArray[np.float32] = (wanted_B / found_B).astype(np.float32)
        return weights

    def _ending_weight(self, endings: int, rows: float) -> float:
        """Return the weight of an ending beside that of a row of the main ring, at most 1.

        Args:
            endings: that can be drawn, those of the reserve included.
            rows: of the main ring that can be drawn.
        """
        if not self.passed[0] or self._lists is None:
            return 1.0
        there = self._lists["endings"]
        in_main = int(self._drawable(there[there < self._main.stop]).sum())
        rate = (in_main + self.passed[1]) / (rows + self.passed[0])
        return min(1.0, rate * rows / max(1, endings))

    def special(self) -> dict[str, NDArray[np.int64]]:
        """Return positions of the reserved strata; they are searched again only when one of them changed."""
        if self._lists is None:
            at = np.concatenate((self._main.order(), self._reserve.order()))
            self._lists = {
                "demonstrations": at[self._columns.is_expert_NU[at].any(-1)],
                "endings": at[self._columns.ends(at)],
            }
        return {name: positions[self._drawable(positions)] for name, positions in self._lists.items()}

    def _drawable_share(self) -> float:
        """Return about which share of the main ring can be drawn, as the rejections of all batches show it."""
        if not self.tries[0]:
            ready = self._drawable(self._main.order())
            self.tries = (len(ready), int(ready.sum()))
        return self.tries[1] / max(1, self.tries[0])

    def _note_tries(self, tries: int, fits: int) -> None:
        """Count draws of the main ring and how many of them could be used; old ones lose weight."""
        tries, fits = self.tries[0] + tries, self.tries[1] + fits
        self.tries = (tries // 2, fits // 2) if tries > TRIES_REMEMBERED else (tries, fits)

    def _uniform(self, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        """Sample positions uniformly from the main ring, by rejection, so that no list of valid rows is needed."""
        drawn: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        missing, attempts = count, 0
        while missing > 0:
            if attempts == 64 or not self._main.held:
                ready = self._main.order()
                ready = ready[self._drawable(ready)]
                if not len(ready):
                    raise ValueError(
                        f"none of {self._main.held + self._reserve.held} transitions has both an action and an outcome yet"
                    )
                drawn.append(_pick(ready, missing, generator))
                return np.concatenate(drawn)
            back = torch.randint(self._main.held, (missing + 8,), generator=generator).numpy()
            tried = self._main.newest(back)
            fit = tried[self._drawable(tried)]
            self._note_tries(len(tried), len(fit))
            drawn.append(fit[:missing])
            missing, attempts = missing - len(drawn[-1]), attempts + 1
        return np.concatenate(drawn)


def _pick_by_agent(
    positions: NDArray[np.int64],
    agent_N: NDArray[np.int64],
    shares_A: NDArray[np.float64],
    count: int,
    generator: torch.Generator,
) -> NDArray[np.int64]:
    """Draw `count` positions, of each agent its share or one more or less."""
    present = np.flatnonzero(shares_A)
    if len(present) <= 1:
        return _pick(positions, count, generator)
    ends_G = np.cumsum(shares_A[present]) * (count / shares_A.sum()) + float(torch.rand((), generator=generator))
    ends_G = np.floor(ends_G).clip(max=count)
    ends_G[-1] = count
    counts_G = np.diff(ends_G, prepend=0.0).astype(int)
    return np.concatenate(
        [_pick(positions[agent_N == agent], n, generator) for agent, n in zip(present, counts_G, strict=True)]
    )


def _pick(positions: NDArray[np.int64], count: int, generator: torch.Generator) -> NDArray[np.int64]:
    if not count:
        return np.empty(0, np.int64)
    chosen: NDArray[np.int64] = positions[torch.randint(len(positions), (count,), generator=generator).numpy()]
    return chosen
