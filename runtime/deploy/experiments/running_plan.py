"""Run one plan: who acts in each unit, which pairs are complete, and what the test says of them.

A phase compares a challenger with the champion, or only the champion with its reference, the anchor. The share of the challenger
follows what the pairs show so far, so that a bad challenger costs little. The coin of each pair stays fair, so the test holds at any
share. A challenger that looks clearly worse is given up without a proof, because the champion needs none to remain.

Experiments together may cost at most `LOSS_SHARE` of the champion's gain (`LossBudget`). After a loss, the champion acts alone until it
has earned the loss back at that rate. A challenger without a loss is never delayed.

Knows no file, no clock and no engine.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from learners.experiment_statistics.confidence_sequence import ONE_INCIDENT, standard_errors
from learners.experiment_statistics.experiment_test import ExperimentTest, ExperimentVerdict
from learners.experiment_statistics.paired_outcomes import PairDifference, PairedOutcomes, Silence, TickOutcome
from learners.experiment_statistics.plan import SHARES, Arm, ExperimentPlan
from learners.experiment_statistics.switchback import Assignment, Switchback
from runtime.deploy.experiments.reward_levels import DECISIONS

NEVER = 1e-12
"""Share of a challenger that waits."""
LEAST_PAIRS = 3
"""Pairs before the share follows them."""
WORSE, CLEARLY_WORSE = -1.0, -2.5
"""Standard errors of the mean difference: below the first the share is the smallest, below the second the experiment ends."""
CLEAR_PAIRS = 5
"""Pairs that such an end needs."""
FAR_PAIRS, FAR_DEVIATIONS, FAR_GAIN = 2, 4.0, 0.2
"""A challenger is given up after so few pairs if each is below by more than this many deviations of the champion's units, and by this
share of its gain."""
LOSS_SHARE = 0.02
"""Share of the champion's gain that experiments may cost."""
MOST_ALONE_S = 3_600.0
"""Seconds after which the champion has earned every loss back."""
GIVE_UP_PAIRS = 12
"""Pairs after which a challenger without a gain gives way to a newer one that waits; one without a proof too, at first."""
RACE_PAIRS, RACE_AHEAD = 4, 1.0
"""A race is won after these pairs if the mean difference is above 0 by this number of standard errors, and that of no harm by more."""
PROMISING = 2.0
"""Standard errors of the mean gain from which a challenger goes on beyond its allowance."""


def pairs_allowed(undecided: int, cap_pairs: int) -> int:
    """Return the pairs of a challenger while a newer one waits: `GIVE_UP_PAIRS`, doubled by each undecided one since the last promotion.

    So the allowances before one of n pairs add up to less than 2 n.

    Args:
        undecided: challengers in succession that were given up although they were ahead.
        cap_pairs: pairs after which the champion remains anyway.
    """
    return int(min(cap_pairs, GIVE_UP_PAIRS * 2 ** min(undecided, 30)))


@dataclass(slots=True)
class DecisionPlace:
    """Where one decision counts."""

    assignment: Assignment
    rest: bool = False
    """It is in the rest of an episode that took too long."""
    failed: bool = False
    """A failure of it was counted."""


@dataclass(slots=True)
class LossBudget:
    """What experiments have cost and the champion has not earned back yet, over all experiments."""

    gain: float = 0.0
    """Of the champion over the untrained policy, per unit; 0 where it is unknown, and nothing is limited."""
    deviation: float = 0.0
    """Of a unit of the champion."""
    debt_ticks: float = 0.0
    """Ticks in which the champion earns back what experiments have cost. So a gain that changes later makes no debt longer."""
    unit_ticks: float = 1.0
    """Ticks of a unit: mean length of an episode where units are episodes."""
    period_s: float = 0.1
    """Of a tick."""

    @property
    def most_ticks_alone(self) -> float:
        """Return the ticks after which every loss is earned back: one unit at least."""
        return max(1.0, self.unit_ticks, MOST_ALONE_S / self.period_s)

    def unit(self) -> None:
        """Count one unit that acted."""
        self.tick(max(1.0, self.unit_ticks))

    def tick(self, count: float = 1.0) -> None:
        """Count ticks that acted."""
        self.debt_ticks = max(0.0, self.debt_ticks - count)

    def pair(self, difference: float, units: int) -> None:
        """Count a pair with a challenger: mean difference of a unit, and units of its block.

        A loss counts as far as it exceeds what the champion's own spread explains, so that noise delays no experiment.
        """
        spread = math.sqrt(2.0) * self.deviation
        cost = max(0.0, -difference - spread) if difference < 0 else -difference
        if not math.isfinite(cost) or self.gain <= 0:
            return
        ticks = cost / self.gain / LOSS_SHARE * units * max(1.0, self.unit_ticks)
        self.debt_ticks = min(max(0.0, self.debt_ticks + ticks), self.most_ticks_alone)

    @property
    def units_alone(self) -> int:
        """Units in which the champion acts alone until it has earned the loss back."""
        return math.ceil(self.debt_ticks / max(1.0, self.unit_ticks)) if self.exhausted else 0

    @property
    def exhausted(self) -> bool:
        """Whether the champion has to act alone now."""
        return self.gain > 0 and self.debt_ticks > 0

    def is_far(self, difference: float) -> bool:
        """Return whether a pair is so far below that few of them suffice."""
        return self.gain > 0 and difference < -max(FAR_DEVIATIONS * self.deviation, FAR_GAIN * self.gain)


@dataclass(slots=True)
class ExperimentPhase:
    """One plan in progress.

    Args:
        number: of the experiment, for the log.
        plan: registered before its first block.
        silence: what a tick without a reward means.
        acts_in_plain: who acts in blocks that belong to no pair: the champion, or a challenger that a person made live.
        budget: what experiments may cost.
        race: no version is trusted yet; whoever is ahead leads, without a proof.
    """

    number: int
    plan: ExperimentPlan
    silence: Silence = "zero"
    acts_in_plain: Arm = "champion"
    budget: LossBudget = field(default_factory=LossBudget)
    race: bool = False
    alone: bool = False
    """A version that a person made live acts alone at first."""
    unit: int = 0
    begun: bool = False
    """The first unit has begun. With episodes, the phase waits for the next one."""
    ticks: int = 0
    """Ticks of the present episode, or of the rest of one that took too long."""
    share: float = field(init=False)
    reference_share: float = field(init=False)
    """Share of the reference now."""
    test: ExperimentTest = field(init=False)
    pairs: PairedOutcomes = field(init=False)
    differences: list[float] = field(default_factory=list)
    """Of the pairs with a challenger."""
    harms: dict[str, list[float]] = field(default_factory=dict)
    """Of the same pairs: differences of the share of each harm."""
    _schedule: Switchback = field(init=False)
    _places: OrderedDict[str, DecisionPlace] = field(default_factory=OrderedDict)
    """By decision, for rewards and failures that arrive late."""
    _current: Assignment | None = None
    _cut: Assignment | None = None
    """Of the episode that took too long, while the live version acts in its rest."""
    _midway: bool = False
    """The unit began in the middle of an episode without an end, so it counts for no version."""
    _challenged: int = -1
    """The last pair with a challenger that has begun; -1 before the first one."""

    def __post_init__(self) -> None:
        self.share, self.reference_share = self.plan.share, self.plan.anchor_share
        self.test = ExperimentTest(self.plan)
        self.pairs = PairedOutcomes(self.plan, self.silence, trial_is_live=self.acts_in_plain == "challenger")
        self._schedule = Switchback(self.plan)
        self.begun = not self.plan.episodic

    @property
    def verdict(self) -> ExperimentVerdict | None:
        """The end of the experiment, if it has one."""
        return self.test.verdict

    def version_of(self, arm: Arm) -> str:
        """Return the version behind an arm."""
        plan = self.plan
        anchor = plan.anchor if plan.is_anchored else plan.reference
        found = {"champion": plan.champion, "challenger": plan.challenger, "anchor": anchor}[arm]
        assert found is not None
        return found

    def assign(self) -> tuple[str, Assignment] | None:
        """Return the version that acts in the present unit and its assignment; None before the first unit.

        Also None in the rest of an episode that took too long, so that the live version ends it.
        """
        if self.alone or not self.begun:
            return None
        self._schedule.plan = replace(self.plan, share=NEVER if self._waits() else self.share)
        one = self._schedule.assignment(self.unit, opponent=self.test.opponent, anchor_share=self.reference_share)
        self._current = one
        if one.kind == "challenge" and one.pair is not None:
            self._challenged = one.pair
        return self.version_of(self.acts_in_plain if one.kind == "plain" else one.arm), one

    def _waits(self) -> bool:
        """Return whether the champion acts alone: to earn a loss back, or until the first pairs are known."""
        if self.acts_in_plain != "champion":
            return False
        open_until = (
            (self._challenged + 1) * self.plan.pair_units + self.pairs.late_units if self._challenged >= 0 else 0
        )
        return self.budget.exhausted or (len(self.differences) < FAR_PAIRS and self.unit < open_until)

    def add(self, decision: str, assignment: Assignment, outcome: TickOutcome, *, hold: bool) -> None:
        """Take one tick; `hold` where a person acts, so that the block lasts until the policy acts again."""
        if assignment.pair is not None and not assignment.washout and (self.plan.episodic or not hold):
            self._remember(decision, assignment)
        self.pairs.add(assignment, outcome)
        if self.plan.episodic and not hold and assignment.unit == self.unit:
            self._limit_episode()
        if not self.plan.episodic and not hold:
            self.unit = assignment.unit + 1
            self.budget.unit()

    def _remember(self, decision: str, assignment: Assignment, *, rest: bool = False) -> None:
        self._places[decision] = DecisionPlace(assignment, rest)
        while len(self._places) > DECISIONS:
            self._places.popitem(last=False)

    def tick_alone(self, decision: str, outcome: TickOutcome) -> None:
        """Count a tick in the rest of an episode that took too long; where no end comes, the next unit begins without one."""
        if not self.alone and self.acts_in_plain == "champion":
            self.budget.tick()
        if not self.plan.longest_ticks or self.begun or self.alone:
            return
        if self._cut is not None:
            if self._cut.pair is not None:
                self._remember(decision, self._cut, rest=True)
            self.pairs.add(self._cut, outcome)
        self.ticks += 1
        if self.ticks >= self.plan.longest_ticks:
            if self._cut is not None:
                self.pairs.end_rest(self._cut)
                self._end_unit(self._cut, TickOutcome(done=True))
            self.begun, self.ticks, self._midway = True, 0, True

    def _limit_episode(self) -> None:
        """Let the live version act in the rest of an episode that takes too long; the unit ends with the episode."""
        self.ticks += 1
        if not self.plan.longest_ticks or self.ticks < self.plan.longest_ticks or self._current is None:
            return
        self._cut, self.begun, self.ticks = self._current, False, 0

    def _end_unit(self, assignment: Assignment, outcome: TickOutcome) -> None:
        self.pairs.add(assignment, outcome)
        if self._midway:
            self.pairs.void(assignment.block)
        self._midway = False
        self.unit += 1
        self.budget.unit()
        self._cut = None

    def credit(self, decision: str, source: str, value: float) -> None:
        """Add a reward to the unit of its decision, however late."""
        place = self._places.get(decision)
        if place is None:
            return
        if place.rest:
            self.pairs.credit_rest(place.assignment, source, value)
        else:
            self.pairs.credit(place.assignment.unit, source, value)

    def correct(self, assignment: Assignment) -> None:
        """Note that a person replaced the action of a tick already added."""
        self.pairs.correct(assignment)

    def failed(self, decision: str) -> bool:
        """Add a failure to the unit of its decision, however late, and once; return False for a decision that counts nowhere."""
        place = self._places.get(decision)
        if place is not None and not place.failed:
            place.failed = True
            self.pairs.fail(place.assignment)
        return place is not None

    def episode_ended(self, *, failure: bool = False) -> None:
        """Close the present episode; the next tick begins another unit."""
        if not self.plan.episodic:
            return
        if self.alone:
            return
        if self._cut is not None:
            self._end_unit(self._cut, TickOutcome(done=True, failure=failure))
        elif self.begun and self._current is not None and self._current.unit == self.unit:
            self._end_unit(self._current, TickOutcome(done=True, failure=failure))
        self.begun, self.ticks = True, 0

    def complete(self, late_units: int) -> list[PairDifference]:
        """Return the pairs that became complete; those with a challenger went to the test."""
        self.pairs.late_units = late_units
        found = self.pairs.complete(self.unit)
        for pair in found:
            self.test.update(pair)
            self._count_harms(pair.kind, pair.harms)
            if pair.kind == "challenge" and pair.reward is not None:
                self.differences.append(pair.reward)
                if self.acts_in_plain == "champion":
                    self.budget.pair(pair.reward, self.plan.block_ticks)
        if found:
            self._follow_estimate()
        return found

    def give_up(self, allowance: int) -> bool:
        """Return whether a newer challenger may replace this one: it shows no gain, or has no proof yet and none in sight.

        The champion needs no proof to remain, so this may depend on the results: no bound of the test is weakened.

        Args:
            allowance: pairs in which a challenger has to be proved or to look clearly better (`pairs_allowed`).
        """
        count = len(self.differences)
        if count >= (RACE_PAIRS if self.race else GIVE_UP_PAIRS) and sum(self.differences) <= 0.0:
            return True
        if self.acts_in_plain == "challenger" or count < CLEAR_PAIRS:
            return False
        away = standard_errors(self.differences)
        return away < WORSE or (count >= allowance and away < PROMISING)

    def restart(self) -> None:
        """Go on after a restart of the agent: the pair that was open is void, and the next one begins."""
        length = self.plan.pair_units
        self.unit = math.ceil(self.unit / length) * length
        self._current = self._cut = None

    def _count_harms(self, kind: str, harms: Mapping[str, float]) -> None:
        if kind == "challenge":
            for harm, value in harms.items():
                self.harms.setdefault(harm, []).append(value)

    def _is_ahead(self) -> bool:
        """Return whether the challenger has won the race."""
        harmed = any(standard_errors(values) > ONE_INCIDENT for values in self.harms.values())
        return standard_errors(self.differences) >= RACE_AHEAD and not harmed

    def _follow_estimate(self) -> None:
        """Choose the share by the mean difference so far, in standard errors; end what looks clearly worse."""
        count = len(self.differences)
        far = count >= FAR_PAIRS and all(map(self.budget.is_far, self.differences))
        if far and self.acts_in_plain == "champion" and self.test.verdict is None:
            self.test.verdict = ExperimentVerdict("out", f"far below the champion in {count} pairs")
        if count < LEAST_PAIRS:
            return
        away = standard_errors(self.differences)
        if not self.race:
            self.share = SHARES[0] if away < WORSE else SHARES[1] if away < 0 else SHARES[2]
        if away <= CLEARLY_WORSE and count >= CLEAR_PAIRS and self.test.verdict is None:
            self.test.verdict = ExperimentVerdict("out", f"clearly below the champion in {count} pairs")
        if self.race and count >= RACE_PAIRS and self._is_ahead() and self.test.verdict is None:
            self.test.verdict = ExperimentVerdict("live", f"ahead in a race of {count} pairs")
        if self.race and count >= GIVE_UP_PAIRS and self.test.verdict is None:
            self.test.verdict = ExperimentVerdict("cap", f"not ahead in a race of {count} pairs")

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data for JSON."""
        return {
            "number": self.number,
            "test": self.test.dump(),
            "unit": self.unit,
            "share": self.share,
            "acts_in_plain": self.acts_in_plain,
            "race": self.race,
        }

    @classmethod
    def of(cls, body: Mapping[str, Any], silence: Silence) -> ExperimentPhase:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        test = ExperimentTest.of(body["test"])
        arm = body["acts_in_plain"]
        if arm not in ("champion", "challenger"):
            raise ValueError(f"acts_in_plain {arm!r}")
        found = cls(int(body["number"]), test.plan, silence, arm, race=bool(body.get("race", False)))
        found.test, found.unit, found.share = test, int(body["unit"]), float(body["share"])
        found.differences = [
            pair["reward"]
            for pair in body["test"]["pairs"]
            if pair["kind"] == "challenge" and pair["reward"] is not None
        ]
        for pair in body["test"]["pairs"]:
            found._count_harms(pair["kind"], pair["harms"])
        found.restart()
        return found
