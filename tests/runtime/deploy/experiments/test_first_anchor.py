"""When something is worth protecting: who leads from nothing, and when the leader is trusted."""

from __future__ import annotations

import numpy as np

from runtime.deploy.experiments.first_anchor import LONG_UNITS, SURVIVED, FirstAnchor
from runtime.deploy.experiments.reward_levels import Level


def grown(*means: float) -> FirstAnchor:
    """The untrained policy at 20, then versions `v0`, `v1` ... with these means."""
    found = FirstAnchor()
    for n in range(20):
        found.add("untrained", 20.0 + n % 3, untrained=True)
    for number, mean in enumerate(means):
        for n in range(8):
            found.add(f"v{number}", mean + n % 4, untrained=False)
    return found


def test_while_each_version_is_better_nothing_leads() -> None:
    assert grown(100.0, 200.0, 300.0).found() is None


def test_after_a_fall_the_best_version_leads_and_is_not_trusted_yet() -> None:
    one = grown(100.0, 300.0, 150.0)
    found = one.found()
    assert found is not None
    assert found[0] == "v1"
    one.lead("v1")
    assert one.settled() is None


def test_a_leader_is_trusted_after_enough_lost_races_in_succession() -> None:
    one = grown(100.0, 300.0, 150.0)
    one.lead("v1")
    for _ in range(SURVIVED - 1):
        one.race_lost()
    assert one.settled() is None
    one.lead("v3")  # overtaken: the count begins again
    one.race_lost()
    assert one.settled() is None
    for _ in range(SURVIVED - 1):
        one.race_lost()
    assert one.settled() == f"{SURVIVED} newer versions did not overtake it in paired blocks"


def test_a_leader_without_rivals_is_trusted_after_a_while() -> None:
    one = grown(100.0, 300.0, 150.0)
    one.lead("v1")
    for _ in range(LONG_UNITS - 9):
        one.add("v1", 300.0, untrained=False)
    assert one.settled() is None
    one.add("v1", 300.0, untrained=False)
    assert one.settled() == f"no version overtook it in {LONG_UNITS} units"
    assert one.gain().startswith("better than the untrained policy (300")


def test_the_state_survives_and_that_of_an_earlier_program_is_read() -> None:
    one = grown(100.0, 300.0, 150.0)
    one.lead("v1")
    one.race_lost()
    again = FirstAnchor.of(one.dump())
    assert again == one
    body = {name: value for name, value in one.dump().items() if name in ("untrained", "versions")}
    assert FirstAnchor.of(body).leader is None


def test_of_equal_versions_the_newest_is_the_best() -> None:
    one = grown(100.0, 300.0, 300.0, 300.0)
    assert one.best() == "v3"
    assert one.dump()["best"] == "v3"
    assert FirstAnchor().best() is None


def climbing(seed: int, deviation: float, step: float) -> int | None:
    """Return after how many versions of 6 units each, which earn `step` more each, a first one leads; None for never in 30."""
    rng, found = np.random.default_rng(seed), FirstAnchor()
    for _ in range(8):
        found.add("untrained", 16.0 + deviation * rng.normal(), untrained=True)
    for number in range(30):
        for _ in range(6):
            found.add(f"v{number}", 20.0 + step * number + deviation * rng.normal(), untrained=False)
            if found.found() is not None:
                return number
    return None


def test_a_slow_climb_in_noisy_units_is_taken_for_no_stall() -> None:
    ended = [climbing(seed, deviation=12.0, step=0.6) for seed in range(100, 120)]
    assert sum(number is None for number in ended) >= 14
    assert all(number is None or number >= 6 for number in ended)


def test_a_stall_is_found_soon_where_units_say_much() -> None:
    ended = [climbing(seed, deviation=1.0, step=0.0) for seed in range(100, 120)]
    assert all(number is not None and number <= 12 for number in ended)


def test_where_the_unit_changes_nothing_of_before_is_compared() -> None:
    one = grown(0.5, 0.6)
    one.lead("v1")
    returns = {"untrained": Level(4, 16.0, 9.0), "v1": Level(6, 30.0, 9.0)}
    one.count(returns)
    assert (one.untrained, one.versions["v1"], one.led) == (returns["untrained"], returns["v1"], 6)
    one.add("v1", 36.0, untrained=False)
    assert returns["v1"].count == 6  # the levels of the rewards have a life of their own
    one.count(returns)
    assert one.versions["v1"].count == 7  # no change, so nothing is forgotten
    again = FirstAnchor.of(one.dump())
    assert again == one
    one.count(None)
    assert not one.versions


def test_the_first_versions_stand_in_for_an_untrained_policy_that_hardly_acted() -> None:
    one = FirstAnchor()
    for mean in (16.0, 17.0, 300.0, 100.0):
        for n in range(8):
            one.add(f"v{mean:.0f}", mean + n % 3, untrained=False)
    found = one.found()
    assert found is not None
    assert found[1].startswith("better than the untrained policy (300.9 after 16.88")


def test_time_proves_nothing_while_a_newer_version_waits() -> None:
    one = grown(100.0, 300.0, 150.0)
    one.lead("v1")
    for _ in range(LONG_UNITS):
        one.add("v1", 300.0, untrained=False)
    assert one.settled(rivals=True) is None
    assert one.settled() is not None
