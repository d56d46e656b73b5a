"""Two reports of one end are one end; two ends stay two."""

from __future__ import annotations

import pytest

from runtime.feedback.episode_ends import EpisodeEnds


def ends(reports: list[tuple[str, int]], known: EpisodeEnds | None = None) -> list[int]:
    """Return the ticks to which reports of ends belong."""
    known = known or EpisodeEnds()
    return [int(known.decision(source, f"run-{tick}").removeprefix("run-")) for source, tick in reports]


def test_a_second_source_reports_the_same_end_a_tick_or_two_away() -> None:
    reports = [("plant", 100), ("detector", 101), ("plant", 200), ("detector", 198), ("detector", 302), ("plant", 300)]
    assert ends(reports) == [100, 100, 200, 200, 302, 302]


def test_a_source_that_reports_again_saw_another_episode() -> None:
    reports = [("plant", 100), ("detector", 101), ("detector", 102), ("plant", 103)]
    assert ends(reports) == [100, 100, 102, 103]  # the last one: two ticks are no usual distance of two reports here


@pytest.mark.parametrize("sources", [("plant",), ("plant", "detector")])
def test_episodes_of_one_decision_all_end(sources: tuple[str, ...]) -> None:
    reports = [(source, tick) for tick in range(10) for source in sources]
    assert ends(reports) == [tick for tick in range(10) for _ in sources]


def test_episodes_of_one_decision_that_sources_end_in_turns_lose_one_end_at_most() -> None:
    found = ends([(("good", "bad")[tick % 2], tick) for tick in range(20)])
    assert found == [0, 0, *range(2, 20)]


def test_late_reports_other_runs_and_odd_names_are_left_as_they_are() -> None:
    known = EpisodeEnds()
    assert ends([("plant", 100), ("plant", 200), ("person", 101)], known) == [100, 200, 101]
    assert known.decision("detector", "other-201") == "other-201"  # after a restart ticks begin at 0
    assert known.decision("detector", "odd") == "odd"
    assert known.decision("plant", "other-202") == "other-201"
