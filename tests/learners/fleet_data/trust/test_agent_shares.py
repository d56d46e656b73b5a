"""One agent that sends much has no more than its share of the newest rows, and an agent that is alone has all of them."""

from __future__ import annotations

from learners.fleet_data.trust.agent_shares import LEAST_ROWS, AgentShares

NAMES = ("chatty", "arm-1", "arm-2", "arm-3")


def test_a_chatty_agent_never_has_more_than_its_share_of_the_window() -> None:
    shares, most = AgentShares(window=8_000), 0.0
    for _ in range(400):
        for name in NAMES:
            shares.add(name, min(LEAST_ROWS if name == "chatty" else 40, shares.room(name, NAMES)))
        if shares.held.total() == shares.window:
            most = max(most, shares.held["chatty"] / shares.window)
    assert 0.3 < most <= 1.5 / len(NAMES) + LEAST_ROWS / shares.window
    assert shares.held.total() == shares.window
    assert shares.room("chatty", ["chatty"]) == shares.window  # the others are gone
    shares.forget("chatty")
    assert "chatty" not in shares.held
