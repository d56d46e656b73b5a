"""When something is worth protecting: who leads from nothing, and when the leader is trusted."""

from __future__ import annotations

from runtime.deploy.experiments.first_anchor import LONG_UNITS, SURVIVED, FirstAnchor


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
