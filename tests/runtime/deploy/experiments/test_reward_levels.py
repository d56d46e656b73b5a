"""What each version earns: whole episodes alone count, and the versions that act are remembered."""

from __future__ import annotations

from collections.abc import Iterator

from learners.safeguards.reward_ledger import LedgerEntry
from runtime.deploy.experiments.reward_levels import VERSIONS, RewardLevels

NONE: frozenset[str] = frozenset()


def episode(version: str, ticks: int) -> Iterator[LedgerEntry]:
    """An episode that earns 1 a tick."""
    for tick in range(ticks):
        yield LedgerEntry(f"d-{tick}", float(tick), version, acted=True, refused=False, own=1.0, done=tick == ticks - 1)


def test_an_episode_that_began_before_the_start_counts_for_no_version() -> None:
    levels = RewardLevels()
    assert levels.settled(episode("a", 30), NONE) == []
    assert levels.settled(episode("a", 50), NONE) == [("a", 50.0)]
    assert (levels.episodes, levels.length) == (1, 50.0)
    after_a_restart = RewardLevels.restored(levels.dump())
    assert after_a_restart.settled(episode("a", 20), NONE) == []
    assert after_a_restart.settled(episode("a", 50), NONE) == [("a", 50.0)]
    assert after_a_restart.returns["a"].deviation == 0.0


def test_a_version_that_acts_keeps_its_level_however_many_others_come() -> None:
    levels = RewardLevels()
    list(levels.settled(episode("untrained", 5), NONE))
    for number in range(3 * VERSIONS):
        levels.settled(episode("untrained" if not number else "champion", 50), NONE)
        levels.settled(episode(f"challenger{number}", 20), NONE)
    assert levels.returns["champion"].count == levels.ticks["champion"].count / 50 == 3 * VERSIONS - 1
    assert len(levels.returns) == VERSIONS
    assert "untrained" in levels.returns
