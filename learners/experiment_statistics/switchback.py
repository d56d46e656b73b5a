"""Choose which version acts in each unit: adjacent blocks in an order that a fair, logged coin decides (a switchback).

Two adjacent blocks make a slot. Each slot is one of three kinds:

- `challenge`: challenger and its opponent, the champion or, in the second stage, the anchor;
- `guard`: champion and anchor, or the version trusted before where the champion is the anchor;
- `plain`: the champion alone.

Kind and coin of a slot come from Philox with the plan's seed and the number of the slot. They cannot be chosen, and anyone can compute
them again. A pair is a slot with two versions; its number is the slot's.

Source: Bojinov, Simchi-Levi & Zhao 2023 (Design and analysis of switchback experiments).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from learners.experiment_statistics.plan import Arm, ExperimentPlan

Kind = Literal["challenge", "guard", "plain"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Two adjacent blocks: who acts in the first and in the second."""

    number: int
    kind: Kind
    coin: int | None
    """0: the version on trial comes first; 1: it comes second; None where no coin was thrown."""
    arms: tuple[Arm, Arm]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one unit belongs to; the log of a tick contains all fields."""

    arm: Arm
    block: int
    pair: int | None
    coin: int | None
    washout: bool
    kind: Kind
    unit: int
    other: Arm | None = None
    """The other version of the pair; None in a plain slot."""


@dataclass(slots=True)
class Switchback:
    """The schedule of one plan. Opponent and the anchor's share of a slot are fixed when the slot is first requested."""

    plan: ExperimentPlan
    _slot: Slot | None = field(default=None, init=False)

    def assignment(self, unit: int, *, opponent: Arm = "champion", anchor_share: float | None = None) -> Assignment:
        """Return the assignment of a unit, numbered from 0 at the start of the experiment.

        Args:
            unit: number of the tick, or of the episode.
            opponent: whom a new challenge slot compares the challenger with.
            anchor_share: share of the anchor for a new slot, if not the plan's.
        """
        plan = self.plan
        block, at = divmod(unit, plan.block_ticks)
        number, position = divmod(block, 2)
        if self._slot is None or self._slot.number != number:
            self._slot = draw_slot(plan, number, opponent, plan.anchor_share if anchor_share is None else anchor_share)
        slot = self._slot
        return Assignment(
            arm=slot.arms[position],
            block=block,
            pair=None if slot.kind == "plain" else number,
            coin=slot.coin,
            washout=at < plan.washout_ticks,
            kind=slot.kind,
            unit=unit,
            other=None if slot.kind == "plain" else slot.arms[1 - position],
        )


def draw_slot(plan: ExperimentPlan, number: int, opponent: Arm = "champion", anchor_share: float = 0.0) -> Slot:
    """Draw kind and coin of a slot."""
    kind_draw, coin_draw = np.random.Generator(np.random.Philox(key=[plan.seed, number])).random(2)
    apart = plan.is_anchored
    guard = min(1.0, 2.0 * anchor_share) if apart or plan.reference is not None else 0.0
    challenge = 0.0 if plan.challenger is None else min(1.0 - guard, 2.0 * plan.share)
    kind: Kind = "challenge"
    trial: Arm = "challenger"
    other: Arm = opponent if apart else "champion"
    if kind_draw < guard:
        kind, trial, other = "guard", "champion", "anchor"
    elif kind_draw >= guard + challenge:
        return Slot(number, "plain", None, ("champion", "champion"))
    if plan.weaker:
        return Slot(number, kind, None, (other, trial))
    coin = int(coin_draw < 0.5)
    return Slot(number, kind, coin, (other, trial) if coin else (trial, other))
