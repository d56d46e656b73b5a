"""Store the most recent transitions as arrays in memory (replay buffer), and sample batches from them.

The learner process fills the buffer from the store; in lock-step training, nothing touches a disk. A transition's successor is the
next one of its session, so each state is stored once. N-step returns and histories are computed while sampling.

The newest transitions are in the main ring. Overwritten transitions near a failure, an intervention or a demonstration move to the
reserve ring, so that these never run out.

`batch_sampler.py` chooses what makes a batch. Tokens of another encoder version count as missing, and are never mixed with others,
until `learners/reencoding` delivers those of the present version. Until then the transition is set aside: it is not sampled.

Shapes: N positions, B batch, H history, T tokens of a stream, W their width, S streams, U actuators that can be learned.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learners.experience.transition import Transition
from learners.model.features import Features
from learners.model.spec import PolicySpec
from learners.rl.batch_sampler import FAILURES, BatchSampler, Strata
from learners.rl.replay_columns import ReplayColumns, row_bytes
from learners.rl.ring_index import RingIndex
from learners.rl.tokens.local import LocalTokens, TokenStorage
from learners.rl.transition_batch import Batch

MAX_GAP = 3
"""Ticks from one transition to the next that still make it its successor: an overrun skips ticks, an outage ends a chain."""
RESERVE = 0.2
"""Share of the memory for the reserve ring."""
HEADROOM = 4.0
"""Deviations within which the returns seen so far lie; a categorical critic covers more, for a policy that improves."""
RETURN_ROWS = 65_536
"""Newest transitions that the deviation of returns is measured on."""
FEW = 8
"""Rewards of the largest magnitudes that may be outliers: they are clipped at `HEADROOM` times the largest return of the others."""
REWRITTEN = 512
"""Rows of the store that are read together where tokens were lost."""
MAX_ROWS = 1_000_000
"""Transitions with all tokens in this process."""
LEAD_UP = 8
"""Transitions before a reserved one that are stored with it, in addition to its history."""


@dataclass(frozen=True, slots=True)
class BufferIndex:
    """Which rows of the store a replay holds: enough to fill an equal one again."""

    main: tuple[int, ...]
    reserve: tuple[int, ...]
    since_reserved: int
    linked: tuple[bool, ...] | None = None
    """Whether each row of the reserve left the main ring right after the one before it; one more for the row that leaves next. None
    where an older version saved it."""
    tries: tuple[int, int] = (0, 0)
    """Uniform draws lately, and how many of them could be used; 0 where none was made."""
    passed: tuple[int, int] = (0, 0)
    """See `BatchSampler.passed`; 0 where an older version saved it."""


class ReplayBuffer:
    """Rings over as many transitions as `max_bytes` holds.

    Args:
        spec: the policy's streams, actions, history and discount.
        max_bytes: of the arrays.
        steps: n of the n-step returns.
        demonstration_fraction: of a batch from demonstrations and interventions.
        centre: subtract the mean reward of the main ring: reward centring (Naik et al. 2024) in its simple form. Values then
            measure the difference from the usual reward. For tasks with episodes that end independently of the actions.
        settle: newest transitions that are not sampled yet, because their rewards may still arrive.
        failure_share: see `FAILURES`.
        max_rows: no more than this, whatever the memory.
        tokens: makes the storage of the tokens; default: in this process.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        max_bytes: int,
        steps: int = 1,
        demonstration_fraction: float = 0.5,
        settle: int = 0,
        centre: bool = False,
        failure_share: float = FAILURES,
        max_rows: int = MAX_ROWS,
        tokens: Callable[[PolicySpec, int], TokenStorage] = LocalTokens,
    ) -> None:
        self.spec, self.steps, self.settle, self.centre = spec, steps, settle, centre
        total = max(80, min(max_rows, max_bytes // row_bytes(spec)))
        self._reserve = RingIndex(round(total * (1 - RESERVE)), round(total * RESERVE))
        self._main = RingIndex(0, total - self._reserve.size)
        self._trail = 1 << 30
        """Transitions since the last reserved one that left the main ring."""
        self._moved_last = False
        """Whether the transition that left the main ring last went to the reserve."""
        self._columns = ReplayColumns(spec, total, tokens)
        self._follows_N = np.zeros(total, bool)  # the next position holds this one's successor
        self._preceded_N = np.zeros(total, bool)  # the position before holds the tick that the policy saw before
        self._linked_N = np.zeros(total, bool)  # no transition is missing between the position before and this one
        self._sampler = BatchSampler(
            self._columns,
            self._main,
            self._reserve,
            self._drawable,
            demonstration_fraction=demonstration_fraction,
            failure_share=failure_share,
        )

    @property
    def versions(self) -> dict[str, str]:
        """The present version of each stream's encoder; a stream that is not named takes any."""
        return self._columns.versions

    @versions.setter
    def versions(self, versions: dict[str, str]) -> None:
        self._columns.versions = versions

    @property
    def skipped(self) -> Counter[str]:
        """Tokens and actions left out, by cause: `shape`, `action`."""
        return self._columns.skipped

    def __len__(self) -> int:
        """Return the number of stored transitions."""
        return self._main.held + self._reserve.held

    @property
    def acting(self) -> int:
        """Transitions held at which somebody acted, without those that wait for tokens of a new encoder version."""
        held = np.concatenate((self._main.order(), self._reserve.order()))
        return int((self._columns.acted_NU[held].any(-1) & ~self._columns.outdated(held)).sum())

    @property
    def outdated(self) -> int:
        """Transitions set aside until they have tokens of the present encoder versions."""
        return int(self._columns.outdated(np.concatenate((self._main.order(), self._reserve.order()))).sum())

    @property
    def ends_with_action(self) -> bool:
        """Whether somebody acted at the newest transition, so that its successor is still wanted."""
        return bool(self._main.held and self._columns.acted_NU[self._main.before(self._main.head)].any())

    @property
    def added(self) -> int:
        """Transitions ever taken."""
        return self._main.added

    @property
    def capacity(self) -> int:
        """Of the main ring."""
        return self._main.size

    @property
    def bytes(self) -> int:
        """Of the arrays, whether used or not."""
        return (self._main.size + self._reserve.size) * row_bytes(self.spec)

    def append(self, transition: Transition, number: int = -1) -> None:
        """Take the next transition; `number` is its row in the store, for later changes."""
        at = self._main.head
        if self._main.full:
            self._retire(at)
        self._place(at, transition, number)
        self._chain(self._main, at, adjacent=True)
        self._main.added += 1

    def change(self, number: int, after: Mapping[str, float]) -> bool:
        """Apply a late reward or mark to a row of the store; False when it is not held (any more)."""
        changed = self._columns.change(number, after)
        if changed:
            self._sampler.invalidate()
        return changed

    def stale(self) -> dict[str, list[int]]:
        """Return, by stream, the rows with tokens of an earlier version of its encoder; newest first."""
        return self._columns.stale(np.concatenate((self._reserve.order(), self._main.order())))

    def retoken(self, number: int, stream: str, version: str, tokens_TW: NDArray[Any]) -> bool:
        """Give a row's stream the tokens of another version; False when the row is not held, or they do not fit."""
        return self._columns.retoken(number, stream, version, tokens_TW)

    def detach(self) -> None:
        """Discard the row numbers, because the store was recreated and will use them again."""
        self._columns.detach()

    def held(self) -> BufferIndex:
        """Return which rows are stored, oldest first."""
        main, reserve = (tuple(self._columns.number_N[ring.order()].tolist()) for ring in (self._main, self._reserve))
        linked = (*self._linked_N[self._reserve.order()].tolist(), self._moved_last)
        return BufferIndex(main, reserve, self._trail, linked, self._sampler.tries, self._sampler.passed)

    def refill(self, held: BufferIndex, rows: Mapping[int, Transition]) -> None:
        """Fill an empty replay as another one was; rows that are gone are passed over."""
        linked = held.linked or self._linked_by_ticks(held.reserve, rows)
        for ring, numbers in ((self._main, held.main), (self._reserve, held.reserve)):
            was_passed_over = False
            for index, number in enumerate(numbers):
                if number in rows:
                    self._place(ring.head, rows[number], number)
                    adjacent = not was_passed_over and (ring is self._main or linked[index])
                    self._chain(ring, ring.head, adjacent=adjacent)
                    ring.added += 1
                was_passed_over = number not in rows
        self._trail, self._moved_last = held.since_reserved, linked[-1]
        self._sampler.tries, self._sampler.passed = held.tries, held.passed

    def snapshot(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return all that is held, as arrays by name and JSON; a draw after it is the same here and where it was restored."""
        at = self._held_positions()
        columns, rest = self._columns.snapshot(at)
        self._sampler.invalidate()  # the order of its lists depends on when they were made
        links = (self._follows_N, self._preceded_N, self._linked_N)
        arrays = {f"column{i:02d}": column for i, column in enumerate((*columns, *(link[at] for link in links)))}
        rings = {"main": self._main.added, "reserve": self._reserve.added, "size": self._main.size}
        return arrays, {
            "rings": rings,
            "trail": self._trail,
            "moved_last": self._moved_last,
            "tries": list(self._sampler.tries),
            "passed": list(self._sampler.passed),
            "columns": rest,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]], rest: Mapping[str, Any]) -> None:
        """Take up what `snapshot` returned, in an empty replay.

        Raises:
            ValueError: it is of another policy or another size.
        """
        rings = rest["rings"]
        if rings["size"] != self._main.size:
            raise ValueError(f"a replay of {rings['size']} transitions does not fit one of {self._main.size}")
        self._main.added, self._reserve.added = rings["main"], rings["reserve"]
        at = self._held_positions()
        *columns, follows, preceded, linked = (
            arrays[name] for name in sorted(arrays, key=lambda name: (len(name), name))
        )
        self._columns.restore(at, columns, rest["columns"])
        self._follows_N[at], self._preceded_N[at], self._linked_N[at] = follows, preceded, linked
        self._trail, self._moved_last = rest["trail"], rest["moved_last"]
        self._sampler.tries = (rest["tries"][0], rest["tries"][1])
        rows, endings = rest.get("passed", (0, 0))  # an earlier program did not count them
        self._sampler.passed = (rows, endings)
        self._sampler.invalidate()

    def _held_positions(self) -> NDArray[np.int64]:
        return np.concatenate([ring.start + np.arange(ring.held) for ring in (self._main, self._reserve)])

    @staticmethod
    def _linked_by_ticks(numbers: tuple[int, ...], rows: Mapping[int, Transition]) -> tuple[bool, ...]:
        """Return `linked` where an older version did not save it: true only where the ticks of two rows are close."""
        ticks = [rows[number].tick if number in rows else None for number in numbers]
        near = [a is not None and b is not None and 0 < b - a <= MAX_GAP for a, b in itertools.pairwise(ticks)]
        return (*([False] if numbers else []), *near, False)

    def newest(self, count: int) -> Features | None:
        """Return features [B, H] of the last `count` rows, sampleable or not; None if there are none."""
        count = min(count, self._main.held)
        return self._columns.features(self._histories(self._main.order()[-count:])) if count else None

    def strata(self) -> Strata:
        """Return the strata that can be sampled."""
        return self._sampler.strata()

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """Draw `count` transitions.

        Raises:
            ValueError: nothing can be drawn yet.
        """
        at_B, weights_B = self._sampler.draw(count, generator)
        batch = self.batch(at_B)
        return batch if weights_B is None else replace(batch, weights=torch.from_numpy(weights_B))

    def prefetch(self, count: int, generator: torch.Generator) -> None:
        """Request the tokens that the next `sample` needs if nothing changes until then; call it right after a sample."""
        at_B = self._sampler.ahead(count, generator)
        self._columns.tokens.expect(
            np.concatenate((self._histories(at_B), self._histories(self._returns(at_B, self.steps)[2])))
        )

    def rewrite_tokens(
        self, positions: NDArray[np.int64], rows_of: Callable[[list[int]], Mapping[int, Transition]]
    ) -> None:
        """Write the tokens at positions again, because their storage lost them.

        Args:
            positions: those that hold nothing are passed over.
            rows_of: returns rows of the store by their numbers.
        """
        at = np.intersect1d(positions, self._held_positions())
        for start in range(0, len(at), REWRITTEN):
            some = at[start : start + REWRITTEN]
            numbers = self._columns.number_N[some]
            self._columns.rewrite_tokens(some, rows_of(np.unique(numbers[numbers >= 0]).tolist()))
        self._sampler.invalidate()

    def return_scale(self) -> float:
        """Return what returns are divided by, so that values fit the support of a categorical critic; 1 without any reward.

        It is the larger of the deviation of the discounted returns and of their largest magnitude over `HEADROOM`, over the newest
        `RETURN_ROWS` transitions. A few huge rewards are clipped first: one source must not flatten the values of all. The limit follows
        from the returns of the others, so that a rare goal is worth more than all that it costs to reach it.
        """
        at = self._main.order()[-RETURN_ROWS:]
        if not len(at):
            return 1.0
        acted = self._columns.acted_NU[at].any(-1)
        reward = self._columns.reward_N[at].astype(np.float64)
        going = self._follows_N[at] & ~self._columns.done_N[at] & ~self._columns.truncated_N[at] & acted
        going[-1] = False

        def returns(reward: NDArray[np.float64]) -> NDArray[np.float64]:
            total = np.where(acted, reward - (reward.mean() if self.centre else 0.0), 0.0)
            keep, step = np.where(going, self.spec.gamma, 0.0), 1
            while step < len(at) and keep.max() > 1e-3:  # sums of twice as many rewards each time
                total = total + keep * np.concatenate((total[step:], np.zeros(step)))
                keep = keep * np.concatenate((keep[step:], np.zeros(step)))
                step *= 2
            return total[acted]

        if not acted.any():
            return 1.0
        usual = _largest_usual(reward)
        if usual is not None:
            limit = HEADROOM * max(usual, float(np.abs(returns(np.clip(reward, -usual, usual))).max()))
            reward = np.clip(reward, -limit, limit)
        total = returns(reward)
        return float(max(total.std(), np.abs(total).max() / HEADROOM)) or 1.0

    def ordered(self, start: int, stop: int, *, steps: int | None = None) -> Batch | None:
        """Return what can be drawn of the transitions number `start` to `stop` (as in `added`); None if nothing."""
        positions = self._ordered(start, stop, steps)
        return self.batch(positions, steps=steps) if len(positions) else None

    def numbers(self, start: int, stop: int, *, steps: int | None = None) -> list[int]:
        """Return the store's row numbers of the transitions in `ordered`, in the same order."""
        found: list[int] = self._columns.number_N[self._ordered(start, stop, steps)].tolist()
        return found

    def single(self, number: int, *, newest: int) -> Batch | None:
        """Return the one-step batch of a row of the store; None if it is not held, is at rest, or is among the `newest`."""
        at = self._columns.find(number)
        if at is None:
            return None
        at_1 = np.array([at])
        is_new = at < self._main.stop and int(self._main.age(at_1)[0]) < newest
        is_usable_1 = self._columns.acted_NU[at_1].any(-1) & self._has_outcome(at_1) & ~self._columns.outdated(at_1)
        if is_new or not bool(is_usable_1[0]):
            return None
        return self.batch(at_1, steps=1)

    def _ordered(self, start: int, stop: int, steps: int | None) -> NDArray[np.int64]:
        counts = np.arange(max(start, self.added - self._main.held), min(stop, self.added))
        positions: NDArray[np.int64] = self._main.start + counts % self._main.size
        return positions[self._drawable(positions, steps)]

    def batch(self, positions: NDArray[np.int64], *, steps: int | None = None) -> Batch:
        """Build the batch of the transitions at the given positions."""
        at_B = positions
        rewards_B, discounts_B, next_B = self._returns(at_B, steps or self.steps)
        at_BH, next_BH = self._histories(at_B), self._histories(next_B)
        self._columns.tokens.expect(np.concatenate((at_BH, next_BH)))
        return Batch(
            features=self._columns.features(at_BH),
            next_features=self._columns.features(next_BH),
            actions=self._columns.actions(at_B),
            rewards=torch.from_numpy(rewards_B),
            discounts=torch.from_numpy(discounts_B),
            masks=self._columns.masks(next_B),
            allowed=self._columns.masks(at_B),
            is_expert=self._columns.by_actuator(self._columns.is_expert_NU, at_B),
            acted=self._columns.by_actuator(self._columns.acted_NU, at_B),
            step_rewards=None if (steps or self.steps) == 1 else torch.from_numpy(self._columns.reward_N[at_B]),
        )

    def _place(self, at: int, transition: Transition, number: int) -> None:
        """Write one transition's own columns."""
        if self._columns.write(at, transition, number):
            self._sampler.invalidate()

    def _chain(self, ring: RingIndex, at: int, *, adjacent: bool) -> None:
        """Link a position just written with the one before, and cut the one after from what was here.

        Args:
            ring: the ring of the position.
            at: the position.
            adjacent: no transition is missing between the two. A long gap then ends the chain of states, but not the history: the
                policy saw the ticks before the gap when it acted.
        """
        before, after = ring.before(at), ring.after(at)
        gap = self._columns.tick_N[at] - self._columns.tick_N[before]
        is_preceded = bool(
            adjacent and ring.held and self._columns.session_N[at] == self._columns.session_N[before] and gap > 0
        )
        self._follows_N[before] = is_preceded and gap <= MAX_GAP
        self._preceded_N[at], self._follows_N[at], self._preceded_N[after] = is_preceded, False, False
        self._linked_N[at] = adjacent

    def _retire(self, at: int) -> None:
        """Move the oldest of the main ring to the reserve when it belongs to something reserved."""
        ahead = self._main.start + (at - self._main.start + np.arange(LEAD_UP + self.spec.history)) % self._main.size
        near = self._columns.ends(ahead) | self._columns.is_expert_NU[ahead].any(-1)
        if self._columns.acted_NU[at].any():
            self._sampler.note_passed(is_ending=bool(self._columns.ends(at)))
        self._trail = 0 if near[0] else self._trail + 1
        is_adjacent, self._moved_last = self._moved_last, bool(near.any() or self._trail <= self.steps)
        if not self._moved_last:
            return
        to = self._reserve.head
        self._columns.move(at, to)
        self._chain(self._reserve, to, adjacent=is_adjacent)
        self._reserve.added += 1
        self._sampler.invalidate()

    def _drawable(self, positions: NDArray[np.int64], steps: int | None = None) -> NDArray[np.bool_]:
        """Return where somebody acted and the outcome is known: every reward of a sum over `steps` has had time to arrive."""
        at = positions
        wait = self.settle + (steps or self.steps) - 1 if self.settle else 0
        settled = (at >= self._main.stop) | (self._main.age(at) >= wait)
        ready: NDArray[np.bool_] = self._columns.acted_NU[at].any(-1) & self._has_outcome(at) & settled
        return ready & ~self._columns.outdated(at)

    def _has_outcome(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the state after a position is terminal or known; after a time limit it is neither.

        With a discount of 0 that state does not matter.
        """
        if self.spec.gamma == 0:
            return np.ones(at.shape, bool)
        known: NDArray[np.bool_] = self._columns.done_N[at] | (self._follows_N[at] & ~self._columns.truncated_N[at])
        return known

    def _returns(
        self, positions: NDArray[np.int64], steps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Return n-step rewards, discounts and next states; a chain that breaks off earlier has fewer steps.

        A skipped tick counts as a step of the discount. A person who takes over ends the chain of the policy: the rewards of a rescue
        are not the policy's.
        """
        gamma = self.spec.gamma
        usual = float(self._columns.reward_N[self._main.order()].mean()) if self.centre and self._main.held else 0.0
        here = positions.copy()
        rewards = np.zeros(len(here), np.float64)
        discounts = np.ones(len(here), np.float64)
        going = self._has_outcome(here)
        is_expert = self._columns.is_expert_NU[here].any(-1)
        for _ in range(steps):
            rewards += np.where(going, discounts * (self._columns.reward_N[here] - usual), 0.0)
            ended = going & self._columns.done_N[here]
            going &= ~ended
            following = self._after(here)
            elapsed = np.maximum(1, self._columns.tick_N[following] - self._columns.tick_N[here])
            discounts = np.where(ended, 0.0, np.where(going, discounts * gamma**elapsed, discounts))
            here = np.where(going, following, here)
            # a state without an outcome or an actor only ends the walk
            going &= self._has_outcome(here) & self._columns.acted_NU[here].any(-1)
            going &= is_expert | ~self._columns.is_expert_NU[here].any(-1)
            if not going.any():
                break
        return rewards.astype(np.float32), discounts.astype(np.float32), here

    def _after(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(at >= self._main.stop, self._reserve.after(at), self._main.after(at))

    def _before(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(at >= self._main.stop, self._reserve.before(at), self._main.before(at))

    def _histories(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions [B, H] that a state consists of, oldest first; a session's first state fills the places before it, as in inference."""
        history = self.spec.history
        at_BH = np.repeat(positions[:, None], history, axis=1)
        alive_B = np.ones(len(positions), bool)
        for h in range(history - 2, -1, -1):
            later = at_BH[:, h + 1]
            before = self._before(later)
            alive_B &= self._preceded_N[later]
            at_BH[:, h] = np.where(alive_B, before, later)
        return at_BH


def _largest_usual(reward_N: NDArray[np.float64]) -> float | None:
    """Return the largest magnitude without the `FEW` largest; None where so few are not 0."""
    magnitudes = np.sort(np.abs(reward_N[reward_N != 0]))
    return float(magnitudes[-FEW - 1]) if len(magnitudes) > FEW else None
