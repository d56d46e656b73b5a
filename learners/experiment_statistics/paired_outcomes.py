"""Join the outcomes of ticks to blocks and pairs: differences of reward and of each harm outcome, late rewards included.

A reward counts for the unit of its decision, however late it arrives. A pair is complete when the units that a late reward may take
have passed. Then it is closed, and its difference goes to the test.

- A silent tick is 0 or unknown, as the setting says. An unknown tick has no part in the mean of its source.
- A tick that a person took over, or that ended in a stop, counts as the worst reward that any tick had before. An episode with such
  a tick counts as the worst return before. So a rescue cannot improve a version.
- Where an episode takes too long, the live version acts in its rest. What the rest costs counts for the version that acted before. What
  it earns does not count for a challenger, because another version earned it.
- A harm outcome (takeover, stop, refusal, failure) is the share of ticks, or of episodes, with it.

Knows no clock, no file and no policy.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from learners.experiment_statistics.plan import Arm, ExperimentPlan
from learners.experiment_statistics.switchback import Assignment, Kind

Silence = Literal["zero", "unknown"]
HARMS = ("takeover", "stop", "refusal", "failure")
RECENT_UNITS = 8
"""Units with rewards that can still be retracted."""
MOST_OPEN_BLOCKS = 4_096
"""Blocks that wait for late rewards; further ones displace the oldest, which is counted."""
OWN = "tick"
"""Source of a reward that was computed at the tick itself."""


@dataclass(frozen=True, slots=True)
class TickOutcome:
    """What one tick led to.

    `rewards` holds rewards by source; a source that is absent was silent. `takeover`: a person acted. `stop`: the gate or a person
    stopped the policy. `refusal`: the gate refused its action. `failure`: the episode or the task failed. `done`: an episode ended.
    """

    rewards: Mapping[str, float] = field(default_factory=dict)
    takeover: bool = False
    stop: bool = False
    refusal: bool = False
    failure: bool = False
    done: bool = False

    @property
    def rescued(self) -> bool:
        """Whether the reward says nothing of the policy, because something else acted."""
        return self.takeover or self.stop


@dataclass(frozen=True, slots=True)
class PairDifference:
    """One complete pair: the version on trial minus its opponent, per unit.

    `reward` is None where neither block has a known reward. `harms` are differences of shares, more is worse. `trial` and `other` are
    the mean rewards of both blocks.
    """

    pair: int
    kind: Kind
    opponent: Arm
    reward: float | None
    harms: Mapping[str, float]
    trial: float | None = None
    other: float | None = None
    units: int = 0


@dataclass(slots=True)
class BlockOutcome:
    """What one block has collected so far."""

    assignment: Assignment
    units: set[int] = field(default_factory=set)
    """Units that count; one number an episode."""
    ticks: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """Ticks with a reward, by source."""
    harms: Counter[str] = field(default_factory=Counter)
    harmed: set[tuple[str, int]] = field(default_factory=set)
    rescued_units: set[int] = field(default_factory=set)
    """Ticks, or episodes, that count as the worst."""
    rescued_ticks: int = 0
    """Ticks that count as the worst; a unit lasts many ticks while a person acts."""
    ended: int = 0
    """Complete episodes."""
    rest: dict[int, dict[str, float]] = field(default_factory=dict)
    """Rewards by source in the rest of an episode that took too long, by unit; the live version acts there."""
    endless: bool = False
    """The rest of such an episode did not end either."""

    def count_rest(self, *, only_losses: bool) -> None:
        """Add the rewards of the rest to the sums; with `only_losses` only where they are below 0 in total."""
        for rewards in self.rest.values():
            if not only_losses or sum(rewards.values()) < 0:
                for source, value in rewards.items():
                    self.sums[source] = self.sums.get(source, 0.0) + value
        self.rest = {}

    def value(self, source: str, silence: Silence, *, episodic: bool) -> float | None:
        """Return the mean per unit of a source; None where it is unknown."""
        total = self.sums.get(source, 0.0)
        if episodic:
            return total / len(self.units) if self.units else None
        count = self.ticks - self.rescued_ticks if silence == "zero" else self.counts[source]
        if count <= 0 and self.ticks == self.rescued_ticks:
            return 0.0  # the worst reward replaces all of it
        return total / count if count > 0 else None


@dataclass(slots=True)
class PairedOutcomes:
    """Collect outcomes of one plan.

    Args:
        plan: of the experiment.
        silence: what a tick without a reward means.
        late_units: units after a pair in which rewards may still arrive.
    """

    plan: ExperimentPlan
    silence: Silence = "zero"
    late_units: int = 0
    trial_is_live: bool = False
    """A person made the challenger live, so it acts in the rest of episodes that take too long itself."""
    counts: Counter[str] = field(default_factory=Counter)
    """`late`: rewards and failures for a closed pair; `void`: pairs that are incomplete; `displaced`: blocks beyond the limit."""
    worst: float | None = None
    """Lowest reward of a tick, or return of an episode, so far."""
    _open: OrderedDict[int, BlockOutcome] = field(default_factory=OrderedDict)
    _recent: OrderedDict[int, list[tuple[str, float]]] = field(default_factory=OrderedDict)
    """Rewards of the newest units, by source, as long as a person's command may still become known."""

    def add(self, assignment: Assignment, outcome: TickOutcome) -> None:
        """Add one tick; its rewards may also arrive later, by `credit`."""
        if assignment.pair is None or assignment.washout:
            return
        block = self._open.get(assignment.block)
        if block is None:
            block = self._open[assignment.block] = BlockOutcome(assignment)
            if len(self._open) > MOST_OPEN_BLOCKS:
                self._open.popitem(last=False)
                self.counts["displaced"] += 1
        unit = assignment.unit
        block.units.add(unit)
        block.ticks += 1
        block.ended += outcome.done
        self._add_harms(block, unit, outcome)
        if outcome.rescued:
            block.rescued_units.add(unit)
            block.rescued_ticks += 1
            if not self.plan.episodic:
                return  # rewards of a tick in which something else acted are not the policy's
        elif not self.plan.episodic:
            block.rescued_units.discard(unit)  # the policy acts again
        self._add_rewards(block, outcome.rewards)
        self._remember(unit, outcome.rewards)

    def correct(self, assignment: Assignment) -> None:
        """Note that a person replaced the action of a tick already added: its rewards are not the policy's."""
        block, unit = self._open.get(assignment.block), assignment.unit
        if assignment.pair is None or assignment.washout or block is None or unit not in block.units:
            return
        if not self.plan.episodic and unit in block.rescued_units:
            return
        self._add_harms(block, unit, TickOutcome(takeover=True))
        block.rescued_units.add(unit)
        block.rescued_ticks += 1
        for source, value in self._recent.pop(unit, []):
            block.sums[source] -= value
            block.counts[source] -= 1
            if not block.counts[source]:
                del block.sums[source], block.counts[source]

    def fail(self, assignment: Assignment) -> None:
        """Note a failure of a tick already added; one of a closed pair counts as late."""
        block = self._open.get(assignment.block)
        if block is None or assignment.unit not in block.units:
            self.counts["late"] += 1
            return
        self._add_harms(block, assignment.unit, TickOutcome(failure=True))

    def _remember(self, unit: int, rewards: Mapping[str, float]) -> None:
        if self.plan.episodic:
            return
        self._recent.setdefault(unit, []).extend(rewards.items())
        while len(self._recent) > RECENT_UNITS:
            self._recent.popitem(last=False)

    def credit(self, unit: int, source: str, value: float) -> bool:
        """Add a late reward to the unit of its decision; return False if its pair is closed or does not count it."""
        block = self._open.get(unit // self.plan.block_ticks)
        if block is None or unit not in block.units or (not self.plan.episodic and unit in block.rescued_units):
            self.counts["late"] += 1
            return False
        self._add_rewards(block, {source: value})
        self._remember(unit, {source: value})
        return True

    def credit_rest(self, assignment: Assignment, source: str, value: float) -> None:
        """Add a reward from the rest of an episode that took too long, in which the live version acts."""
        block = self._open.get(assignment.block)
        if block is None:
            self.counts["late"] += 1
            return
        rest = block.rest.setdefault(assignment.unit, {})
        rest[source] = rest.get(source, 0.0) + value

    def end_rest(self, assignment: Assignment) -> None:
        """Note that the rest of an episode that took too long did not end."""
        block = self._open.get(assignment.block)
        if block is not None:
            block.endless = True

    def void(self, block: int) -> None:
        """Discard an open block with incomplete ticks, for instance after a restart."""
        self._open.pop(block, None)

    def complete(self, unit: int) -> list[PairDifference]:
        """Close every pair that can receive no more rewards at a unit; return their differences in order."""
        closed: list[PairDifference] = []
        length = self.plan.pair_units
        while self._open:
            first = next(iter(self._open.values()))
            pair = first.assignment.block // 2
            if unit < (pair + 1) * length + self.late_units:
                break
            blocks = [self._open.pop(number, None) for number in (2 * pair, 2 * pair + 1)]
            one, two = blocks
            if one is None or two is None or not self._whole(one) or not self._whole(two):
                self.counts["void"] += 1
                continue
            closed.append(self._difference(one, two))
        return closed

    def _whole(self, block: BlockOutcome) -> bool:
        return bool(block.ticks) and (not self.plan.episodic or block.ended >= len(block.units))

    def _add_harms(self, block: BlockOutcome, unit: int, outcome: TickOutcome) -> None:
        for harm in HARMS:
            if not getattr(outcome, harm):
                continue
            if self.plan.episodic and (harm, unit) in block.harmed:
                continue
            block.harmed.add((harm, unit))
            block.harms[harm] += 1

    def _add_rewards(self, block: BlockOutcome, rewards: Mapping[str, float]) -> None:
        for source, value in rewards.items():
            block.sums[source] = block.sums.get(source, 0.0) + value
            block.counts[source] += 1
        if not self.plan.episodic and rewards:
            total = sum(rewards.values())
            self.worst = total if self.worst is None else min(self.worst, total)

    def _difference(self, one: BlockOutcome, two: BlockOutcome) -> PairDifference:
        trial_arm = "champion" if one.assignment.kind == "guard" else "challenger"
        trial, other = (one, two) if one.assignment.arm == trial_arm else (two, one)
        strict = not self.trial_is_live and trial.assignment.arm == "challenger"
        trial.count_rest(only_losses=strict)
        other.count_rest(only_losses=False)
        values = self._values(trial, other)
        if strict and trial.endless and values is not None and values[0] >= values[1]:
            values = None  # what such an episode would still have cost is unknown, so it is no proof for the challenger
        harms = {harm: self._share(trial, harm) - self._share(other, harm) for harm in HARMS}
        return PairDifference(
            pair=one.assignment.block // 2,
            kind=one.assignment.kind,
            opponent=other.assignment.arm,
            reward=None if values is None else values[0] - values[1],
            harms=harms,
            trial=None if values is None else values[0],
            other=None if values is None else values[1],
            units=len(one.units) + len(two.units),
        )

    def _share(self, block: BlockOutcome, harm: str) -> float:
        return block.harms[harm] / (len(block.units) if self.plan.episodic else block.ticks)

    def _values(self, trial: BlockOutcome, other: BlockOutcome) -> tuple[float, float] | None:
        """Return the mean reward per unit of both blocks; None where nothing is known of both."""
        episodic = self.plan.episodic
        total = [0.0, 0.0]
        known = False
        for source in sorted({*trial.sums, *other.sums}):
            found = [block.value(source, self.silence, episodic=episodic) for block in (trial, other)]
            if found[0] is None or found[1] is None:
                continue
            known = True
            total = [total[0] + found[0], total[1] + found[1]]
        if not known and not (trial.rescued_ticks or other.rescued_ticks):
            return (0.0, 0.0) if not (trial.sums or other.sums) and self.silence == "zero" else None
        values = [self._with_worst(block, total[i]) for i, block in enumerate((trial, other))]
        if episodic:
            for block, value in zip((trial, other), values, strict=True):
                if not block.rescued_units:
                    self.worst = value if self.worst is None else min(self.worst, value)
        return values[0], values[1]

    def _with_worst(self, block: BlockOutcome, value: float) -> float:
        """Replace the share of rescued units by the worst reward seen."""
        worst = min(value, value if self.worst is None else self.worst)
        if self.plan.episodic:
            return worst if block.rescued_units else value
        share = block.rescued_ticks / block.ticks
        return value * (1.0 - share) + worst * share
