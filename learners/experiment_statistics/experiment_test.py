"""Decide an experiment from its pair differences: live, out, or the champion remains at the cap.

After each pair:

1. A harm outcome that is proved to be more frequent ends the experiment: out. Its margin is 0.
2. The upper bound of the reward difference is below 0: out.
3. The lower bound is above 0: live, better.
4. The lower bound is above -delta: as good as the champion. If the champion is the anchor, or there is none: live. Otherwise the
   challenger has to be within delta of the anchor too, in pairs against it, which the schedule begins now (`opponent`).
5. `cap_pairs` pairs are used: the champion remains.

The anchor is the last version proved better than the anchor before it. So margins do not add up: every live version is within one
delta of it. A challenger better than a champion that is not the anchor goes live, and the anchor stays.

Pure: knows no clock and no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from learners.experiment_statistics.confidence_sequence import ConfidenceSequence
from learners.experiment_statistics.paired_outcomes import HARMS, PairDifference
from learners.experiment_statistics.plan import Arm, ExperimentPlan

Outcome = Literal["live", "out", "cap"]
SUSPECTED = 4.0
"""Evidence for more harm above which a version does not go live, although it is no proof. Neither does one with more incidents than
one: a large gain is proved sooner than a harm."""
EACH_LOOK = 16
"""Pairs up to which each look computes the bounds; after that, looks at a tenth more pairs do, because evidence alone decides."""
MAX_LOOKS = 512
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ExperimentVerdict:
    """The end of an experiment.

    `better`: proved better than its opponent, not merely as good. `new_anchor`: it replaces the anchor.
    """

    outcome: Outcome
    reason: str
    better: bool = False
    new_anchor: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What the test knew after one pair; the runtime logs all of them."""

    pair: int
    pairs: int
    opponent: Arm
    difference: float | None
    mean: float | None
    lower: float | None
    upper: float | None
    better: float
    """Evidence that the mean is above 0; 1 / alpha proves it."""
    equal: float
    """Evidence that the mean is above -delta."""
    worse: float
    """Evidence that the mean is below 0."""
    harms: Mapping[str, float]
    """Evidence that a harm outcome is more frequent."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of the log."""
        return asdict(self)


@dataclass(slots=True)
class ExperimentTest:
    """The test of one plan; see the module."""

    plan: ExperimentPlan
    opponent: Arm = "champion"
    """Whom new challenge slots compare the challenger with."""
    verdict: ExperimentVerdict | None = None
    looks: deque[Look] = field(default_factory=lambda: deque(maxlen=MAX_LOOKS))
    unknown: int = 0
    """Pairs without a known reward."""
    rewards: dict[Arm, ConfidenceSequence] = field(init=False)
    harms: dict[str, ConfidenceSequence] = field(init=False)
    _bounds: dict[Arm, tuple[float, float]] = field(default_factory=dict)
    _bounded_at: dict[Arm, int] = field(default_factory=dict)
    _taken: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.plan
        claims = (0.0, -plan.delta) if plan.delta > 0 else (0.0,)
        self.rewards = {
            "champion": ConfidenceSequence(plan.alpha, plan.alpha_out, claims),
            "anchor": ConfidenceSequence(plan.alpha, plan.alpha_out, claims),
        }
        alpha = plan.alpha_harm / len(HARMS)
        self.harms = {harm: ConfidenceSequence(alpha, alpha) for harm in HARMS}

    @property
    def pairs(self) -> int:
        """Count the pairs with a known reward, of both stages."""
        return sum(len(sequence) for sequence in self.rewards.values())

    def update(self, pair: PairDifference) -> Look | None:
        """Take one complete pair; return the look, or None for a pair that is not of this experiment or comes after the verdict."""
        if self.verdict is not None or pair.kind != "challenge" or pair.opponent not in self.rewards:
            return None
        self._taken.append(asdict(pair))
        for harm, value in pair.harms.items():
            self.harms[harm].update(value)
        sequence = self.rewards[pair.opponent]
        if pair.reward is None:
            self.unknown += 1
        else:
            sequence.update(pair.reward)
        self.verdict = self._decide(pair.opponent)
        look = self._look(pair, sequence)
        self.looks.append(look)
        return look

    def cancel(self, reason: str) -> ExperimentVerdict:
        """End the experiment from outside; the champion remains."""
        self.verdict = self.verdict or ExperimentVerdict("out", reason)
        return self.verdict

    def _decide(self, opponent: Arm) -> ExperimentVerdict | None:
        plan, sequence = self.plan, self.rewards[opponent]
        for harm, counted in self.harms.items():
            if counted.is_above(0.0):
                return ExperimentVerdict("out", f"more {harm}s than the {opponent}")
        if opponent == "champion" and sequence.is_below(0.0):
            return ExperimentVerdict("out", "worse than the champion")
        if opponent == "anchor" and sequence.is_below(-plan.delta if plan.delta > 0 else 0.0):
            return ExperimentVerdict("out", "worse than the anchor by more than the margin")
        suspected = any(
            counted.above[0.0].evidence > SUSPECTED or counted.is_frequent for counted in self.harms.values()
        )
        if not suspected and (found := self._passed(opponent, sequence)) is not None:
            return found
        if self.pairs + self.unknown >= plan.cap_pairs:
            return ExperimentVerdict("cap", f"no proof in {plan.cap_pairs} pairs; the champion remains")
        return None

    def _passed(self, opponent: Arm, sequence: ConfidenceSequence) -> ExperimentVerdict | None:
        plan = self.plan
        alone = not plan.is_anchored
        if sequence.is_above(0.0):
            anchored = alone or opponent == "anchor"
            return ExperimentVerdict("live", f"better than the {opponent}", better=True, new_anchor=anchored)
        if plan.delta <= 0 or not sequence.is_above(-plan.delta):
            return None
        if alone or opponent == "anchor":
            return ExperimentVerdict("live", f"as good as the {opponent}, within the margin")
        self.opponent = "anchor"
        return None

    def _look(self, pair: PairDifference, sequence: ConfidenceSequence) -> Look:
        plan, count = self.plan, len(sequence)
        before = self._bounded_at.get(pair.opponent, 0)
        if count and (count <= EACH_LOOK or count >= 1.1 * before or self.verdict is not None):
            self._bounds[pair.opponent] = (sequence.lower(), sequence.upper())
            self._bounded_at[pair.opponent] = count
        lower, upper = self._bounds.get(pair.opponent, (None, None))
        equal = sequence.above[-plan.delta if plan.delta > 0 else 0.0]
        return Look(
            pair=pair.pair,
            pairs=self.pairs,
            opponent=pair.opponent,
            difference=pair.reward,
            mean=sequence.mean,
            lower=lower,
            upper=upper,
            better=sequence.above[0.0].evidence,
            equal=equal.evidence,
            worse=sequence.below[0.0].evidence,
            harms={harm: counted.above[0.0].evidence for harm, counted in self.harms.items()},
        )

    def sentence(self) -> str:
        """Say in one sentence what is known, such as "112 paired minutes; better by .03, between -.01 and .07"."""
        plan = self.plan
        sequence = self.rewards[self.opponent] if len(self.rewards[self.opponent]) else self.rewards["champion"]
        if not len(sequence):
            return "no pair is complete"
        lower, upper, mean = sequence.lower(), sequence.upper(), sequence.mean
        assert mean is not None
        estimate = min(max(mean, lower), upper)
        known = "better by" if estimate >= 0 else "worse by"
        text = (
            f"{self._amount()}; {known} {short(abs(estimate))}, between {short(lower)} and {short(upper)}"
            if abs(lower) < float("inf") and abs(upper) < float("inf")
            else f"{self._amount()}; {known} {short(abs(estimate))}, too few for an interval"
        )
        if self.verdict is not None and self.verdict.outcome != "live":
            text += f" ({self.verdict.reason})"
        return text + ("; weaker evidence, because the blocks did not alternate at random" if plan.weaker else "")

    def _amount(self) -> str:
        plan, pairs = self.plan, self.pairs + self.unknown
        if plan.episodic:
            return f"{pairs * plan.pair_units} paired episodes"
        seconds = pairs * plan.pair_units * plan.tick_s
        return f"{seconds / 60:.0f} paired minutes" if seconds >= 120 else f"{seconds:.0f} paired seconds"

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data for JSON: the plan and its pairs, from which everything follows."""
        return {"format": FORMAT, "plan": self.plan.dump(), "pairs": list(self._taken)}

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> ExperimentTest:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
        found = cls(ExperimentPlan.of(dict(body["plan"])))
        for pair in body["pairs"]:
            found.update(PairDifference(**pair))
        return found


def short(value: float) -> str:
    """Format a number with two significant digits and without a leading zero, such as .03."""
    text = f"{value:.2g}" if abs(value) >= 0.01 or value == 0 else f"{value:.1g}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and "e" not in text else text
