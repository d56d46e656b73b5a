"""Describe one experiment completely before its first block, so that nothing is chosen after the results are seen.

A unit is one tick, or one whole episode where `episodic` is true. A block is a run of units in which one version acts. A pair is two
adjacent blocks, one of each version. Used by the schedule, the pairing and the test. Knows no clock and no file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Arm = Literal["champion", "challenger", "anchor"]

SHARES = (0.05, 0.2, 0.5)
"""Shares of an experiment's blocks in which the challenger acts: doubtful, unproved, and as good as the champion so far."""
RELATIVE_DELTA = 0.05
"""Share of the champion's gain that an equal version may lose."""
LARGEST_DELTA_SD = 0.1
"""Largest margin, in standard deviations of a unit's reward."""
LONGEST_CARRY_OVER = 3_000
"""Ticks after which an earlier version has no influence, whatever the discount."""


class PlanError(ValueError):
    """A plan has an impossible value."""


@dataclass(frozen=True, slots=True)
class ExperimentPlan:
    """Everything that decides an experiment.

    Args:
        champion: version that acts now.
        challenger: version on trial; None while only the anchor is compared with the champion.
        anchor: last version that was proved better; None where none exists.
        metric: what a pair compares: `reward` per tick, or `return` per episode.
        block_ticks: units in a block: ticks, or episodes if `episodic`.
        washout_ticks: first units of a block that do not count.
        share: share of all blocks in which the challenger acts, at most 0.5.
        delta: loss per unit that still counts as equal, in units of the metric.
        alpha: probability to promote a version that is worse than allowed.
        cap_pairs: pairs after which the champion remains.
        seed: of the coins.
        episodic: units are whole episodes.
        weaker: an actuator forbids alternating; the order of blocks is fixed, and the result is weaker evidence.
        anchor_share: share of all blocks in which the anchor acts.
        alpha_out: probability to reject a challenger that is not worse.
        alpha_harm: the same for all harm outcomes together.
        tick_s: seconds of a tick, for texts.
        reference: version that the guard compares the champion with where the champion is the anchor; None where none exists.
        longest_ticks: ticks of an episode that count; the champion acts in the rest of it. 0: all.

    Raises:
        PlanError: a value is impossible.
    """

    champion: str
    challenger: str | None
    anchor: str | None
    metric: str
    block_ticks: int
    washout_ticks: int
    share: float
    delta: float
    alpha: float
    cap_pairs: int
    seed: int
    episodic: bool = False
    weaker: bool = False
    anchor_share: float = 0.05
    alpha_out: float = 0.05
    alpha_harm: float = 0.05
    tick_s: float = 1.0
    reference: str | None = None
    longest_ticks: int = 0

    def __post_init__(self) -> None:
        checks = {
            "block_ticks": self.block_ticks >= 1,
            "washout_ticks": 0 <= self.washout_ticks < self.block_ticks,
            "share": 0.0 < self.share <= 0.5,
            "delta": 0.0 <= self.delta < math.inf,
            "alpha": 0.0 < self.alpha < 1.0,
            "cap_pairs": self.cap_pairs >= 1,
            "seed": 0 <= self.seed < 1 << 63,
            "anchor_share": 0.0 <= self.anchor_share <= 0.5,
            "alpha_out": 0.0 < self.alpha_out < 1.0,
            "alpha_harm": 0.0 < self.alpha_harm < 1.0,
            "tick_s": 0.0 < self.tick_s < math.inf,
            "challenger": self.challenger not in (self.champion, ""),
            "reference": self.reference != self.champion,
            "longest_ticks": self.longest_ticks >= 0,
        }
        for name, holds in checks.items():
            if not holds:
                raise PlanError(f"plan: {name} is {getattr(self, name)!r}")

    @property
    def is_anchored(self) -> bool:
        """Whether the champion and the anchor are two versions."""
        return self.anchor not in (None, self.champion)

    @property
    def pair_units(self) -> int:
        """Units of one pair, wash-out included."""
        return 2 * self.block_ticks

    def dump(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, body: dict[str, Any]) -> ExperimentPlan:
        """Restore the plan that `dump` returned.

        Raises:
            PlanError: a field is missing, unknown, of another type, or impossible.
        """
        kinds = {field.name: str(field.type) for field in fields(cls)}
        body = _ADDED | body
        if set(body) != set(kinds):
            raise PlanError(f"plan: fields {sorted(set(body) ^ set(kinds))} are missing or unknown")
        for name, value in body.items():
            if type(value) not in _TYPES[kinds[name]]:
                raise PlanError(f"plan: {name} is {value!r}, expected {kinds[name]}")
        return cls(**body)


_ADDED: dict[str, Any] = {"reference": None, "longest_ticks": 0}
"""Fields that plans of an earlier program lack."""
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


@dataclass(frozen=True, slots=True)
class BlockDesign:
    """Length of a block and of its wash-out, in ticks, or in episodes if `episodic`."""

    block_ticks: int
    washout_ticks: int
    episodic: bool = False


def block_design(
    gamma: float, *, action_lag_ticks: int = 0, episodic: bool = False, measured_ticks: float | None = None
) -> BlockDesign:
    """Choose block and wash-out from how long an action has influence, not from how rewards correlate over time.

    Args:
        gamma: discount of a tick; 0 for one-step feedback.
        action_lag_ticks: ticks from a command to its effect.
        episodic: rewards carry `done`: a unit is one episode, and a new episode needs no wash-out.
        measured_ticks: measured carry-over in ticks, which replaces 1 / (1 - gamma).

    Source: Hu & Wager 2022, Bojinov, Simchi-Levi & Zhao 2023.
    """
    if episodic:
        return BlockDesign(1, 0, episodic=True)
    horizon = 1.0 / (1.0 - min(gamma, 1.0 - 1e-9)) - 1.0 if measured_ticks is None else measured_ticks
    carry_over = min(LONGEST_CARRY_OVER, math.ceil(horizon - 1e-9) + action_lag_ticks)
    if carry_over <= 0:
        return BlockDesign(1, 0)
    return BlockDesign(2 * carry_over + 1, carry_over)


def margin(gain: float, unit_sd: float) -> float:
    """Return delta: 5 % of the champion's gain over the safe action or the untrained policy, at most a tenth of a deviation.

    Args:
        gain: mean reward of the champion minus that of the safe action, per unit.
        unit_sd: standard deviation of a unit's reward.
    """
    return max(0.0, min(RELATIVE_DELTA * gain, LARGEST_DELTA_SD * unit_sd))
