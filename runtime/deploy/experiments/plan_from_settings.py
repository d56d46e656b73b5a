"""Derive plans, block lengths and guards of live experiments from the settings and from what units earned so far.

Pure: knows no file, no clock and no engine.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from learners.experiment_statistics.live_version_guard import Guard
from learners.experiment_statistics.paired_outcomes import Silence
from learners.experiment_statistics.plan import ExperimentPlan, block_design, margin
from runtime.deploy.experiments.reward_levels import RewardLevels
from runtime.inference.engine import UNTRAINED

LONGEST_BLOCK_S = 5.0
"""Longest block of the first proof and of the guard's watch over the live version alone."""
WEAKER_BLOCK_S = 60.0
"""Length of a block where the arms may not alternate."""
ACTION_LAG_TICKS = 1
LONGEST_EPISODE = 8.0
"""Mean lengths of the champion's episodes after which an experiment takes an episode as ended."""


@dataclass(frozen=True, slots=True)
class ExperimentRules:
    """What the settings say about experiments.

    Args:
        period_s: of a tick.
        gamma: discount of a tick.
        settle_s: how late a reward may be at first; later rewards raise it.
        silence: what a tick without a reward means.
        anchor_share: share of blocks of the anchor, while a version is live that is only as good.
        cap_pairs: pairs after which the champion remains.
        false_alarms_per_month: of the guard.
        alternate: the arms may alternate at every block.
        enabled: without it every candidate that passes the filters goes live, and nothing is compared.
    """

    period_s: float = 0.1
    gamma: float = 0.99
    settle_s: float = 1.0
    silence: Silence = "zero"
    anchor_share: float = 0.05
    cap_pairs: int = 200
    false_alarms_per_month: float = 1.0
    alternate: bool = True
    enabled: bool = True

    def episodic(self, levels: RewardLevels) -> bool:
        """Return whether a unit is a whole episode."""
        return levels.episodic and self.gamma > 0

    def block_of_one_version(self) -> int:
        """Return the ticks of a block of the first proof and of the guard, in which one version acts."""
        design = block_design(self.gamma, action_lag_ticks=ACTION_LAG_TICKS)
        return max(1, min(design.block_ticks, round(LONGEST_BLOCK_S / self.period_s)))

    def late_units(self, plan: ExperimentPlan, levels: RewardLevels, late_s: float) -> int:
        """Return for how many units a pair stays open for late rewards; `late_s`: how late they were lately."""
        late_s = max(self.settle_s, late_s)
        unit_s = self.period_s * (max(1.0, levels.length) if plan.episodic else 1.0)
        return max(1, math.ceil(late_s / unit_s)) if late_s > 0 else 0

    def ticks_after_settling(self, late_s: float) -> int:
        """Return for how many ticks a settled decision waits for its rewards; `late_s`: how late they were lately."""
        return math.ceil(max(0.0, late_s - self.settle_s) / self.period_s)

    def guard(self, levels: RewardLevels) -> Guard:
        """Return a new guard, with thresholds for pairs of this length."""
        design = block_design(self.gamma, action_lag_ticks=ACTION_LAG_TICKS)
        units = levels.length if self.episodic(levels) else design.block_ticks
        pair_s = 2 * max(1.0, units) * self.period_s
        return Guard(pair_s, self.false_alarms_per_month, self.anchor_share)

    def gain(self, version: str, levels: RewardLevels) -> tuple[float, float]:
        """Return what a version earns per unit more than the untrained policy (its size), and its deviation; 0 where unknown."""
        episodic = self.episodic(levels)
        level, base = levels.of(version, episodic=episodic), levels.of(UNTRAINED, episodic=episodic)
        if level is None:
            return 0.0, 0.0
        return abs(level.mean - (base.mean if base is not None else 0.0)), level.deviation

    def _earns_less(self, version: str, levels: RewardLevels) -> bool:
        """Return whether a version earns less than the untrained policy: then nothing may be lost."""
        episodic = self.episodic(levels)
        level, base = levels.of(version, episodic=episodic), levels.of(UNTRAINED, episodic=episodic)
        return level is not None and base is not None and level.mean < base.mean

    def plan(
        self,
        versions: tuple[str, str | None, str | None],
        number: int,
        *,
        levels: RewardLevels,
        share: float,
        alpha: float,
        reference: str | None = None,
    ) -> ExperimentPlan:
        """Return the complete plan of an experiment, before its first block.

        Args:
            versions: champion, challenger and anchor.
            number: of the experiment; the coins follow from it and the versions.
            levels: what units of each version earned so far.
            share: of all blocks in which the challenger acts.
            alpha: probability to promote a version that is worse than allowed.
            reference: version that the guard compares the champion with where the champion is the anchor.
        """
        champion, challenger, anchor = versions
        episodic, weaker = self.episodic(levels), not self.alternate
        design = block_design(self.gamma, action_lag_ticks=ACTION_LAG_TICKS, episodic=episodic)
        block, washout = design.block_ticks, design.washout_ticks
        if self.gamma <= 0 and not episodic:
            block, washout = 1, 0
        if weaker and not episodic:
            block = max(block, round(WEAKER_BLOCK_S / self.period_s))
        length = levels.lengths.get(champion)
        longest = (
            math.ceil(LONGEST_EPISODE * max(1.0, levels.length if length is None else length.mean)) if episodic else 0
        )
        gain, deviation = self.gain(champion, levels)
        return ExperimentPlan(
            champion=champion,
            challenger=challenger,
            anchor=anchor,
            metric="return" if episodic else "reward",
            block_ticks=block,
            washout_ticks=washout,
            share=share,
            delta=0.0 if self._earns_less(champion, levels) else margin(gain, deviation),
            alpha=alpha,
            cap_pairs=self.cap_pairs,
            seed=_seed(champion, challenger, number),
            episodic=episodic,
            weaker=weaker,
            anchor_share=self.anchor_share,
            tick_s=self.period_s,
            reference=reference,
            longest_ticks=longest,
        )


def _seed(champion: str, challenger: str | None, number: int) -> int:
    """Derive the seed of the coins from the hashes of the weights, which are in the versions' names."""
    text = f"{champion} {challenger} {number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
